"""Amounts of the resources in whole millionths: what is promised is added up exactly.

Sums of doubles drift: a slice that took and gave back 0.1 cores a million times would have a little more, or less, than
it has. Whoever keeps account keeps it in integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orbitmesh.errors import InvalidInputError
from services.slices.resources import NAMES, Resources

UNIT = 1_000_000
"""How many of the smallest amounts make one: a core, a device, 10^9 bytes, 10^9 bits per second."""
MOST = 1e9
"""No amount that is promised is larger: up to it doubles carry every millionth."""

Amounts = tuple[int, int, int, int]
"""Of each resource, in millionths, in the order of `NAMES`; never negative."""

NOTHING: Amounts = (0, 0, 0, 0)
_NEARLY = 1e-3
"""Doubles that miss a whole millionth by so little are that: 0.7 times 10^6 is 699,999.9999999999."""


def exact(resources: Resources, what: str = "resources") -> Amounts:
    """The nearest amounts in millionths.

    Raises:
        InvalidInputError: One is above `MOST`.
    """
    for name, value in resources.items():
        if value > MOST:
            raise InvalidInputError(f"{what}: {name} is {value:g}; expected at most {MOST:g}")
    cpu, gpu, memory, bandwidth = (round(value * UNIT) for value in resources.values())
    return cpu, gpu, memory, bandwidth


def rounded_down(resources: Resources) -> Amounts:
    """The amounts without what is less than a millionth: many of them together are no more than the doubles were."""
    cpu, gpu, memory, bandwidth = (int(value * UNIT + _NEARLY) for value in resources.values())
    return cpu, gpu, memory, bandwidth


def parse(given: Mapping[str, float], what: str = "resources") -> Amounts:
    """Amounts by name as they come in.

    Raises:
        InvalidInputError: Unknown name; negative, infinite, NaN or too large amount.
    """
    return exact(Resources.of(given, what), what)


def to_resources(amounts: Amounts) -> Resources:
    """As doubles; `exact` gives the same amounts back."""
    return Resources(*(amount / UNIT for amount in amounts))


def to_map(amounts: Amounts) -> dict[str, float]:
    """As doubles by name; what is nothing is left out."""
    return {name: amount / UNIT for name, amount in zip(NAMES, amounts, strict=True) if amount}


def plus(one: Amounts, other: Amounts) -> Amounts:
    """Both together."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def minus(one: Amounts, other: Amounts) -> Amounts:
    """What is left of `one`; negative where `other` is more."""
    return one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3]


def total(each: Iterable[Amounts]) -> Amounts:
    """All together."""
    found = NOTHING
    for amounts in each:
        found = plus(found, amounts)
    return found


def covers(there: Amounts, needed: Amounts) -> bool:
    """Whether there is as much of everything as is needed."""
    return (
        there[0] >= needed[0] and there[1] >= needed[1] and there[2] >= needed[2] and there[3] >= needed[3]
    )


def lacking(there: Amounts, needed: Amounts) -> dict[str, float]:
    """How much of which resource is missing, as doubles by name."""
    short = (max(0, need - have) for have, need in zip(there, needed, strict=True))
    return {name: amount / UNIT for name, amount in zip(NAMES, short, strict=True) if amount}


def in_words(amounts: Amounts) -> str:
    """For messages: `CPU 4, MemoryGB 8`."""
    return ", ".join(f"{name} {amount / UNIT:g}" for name, amount in zip(NAMES, amounts, strict=True) if amount) or (
        "nothing"
    )
