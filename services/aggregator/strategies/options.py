"""The options of a strategy: numbers by name, each with a range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orbitmesh.errors import InvalidInputError


@dataclass(frozen=True)
class Option:
    """One number that a user may set."""

    default: float
    """Its value where it is left out."""
    low: float
    """The least allowed value."""
    high: float
    """The greatest allowed value."""
    meaning: str
    """A sentence with the unit."""
    whole: bool = False
    """Whether it is an integer."""


RATE_MAX = 1e3
BELOW_ONE = math.nextafter(1.0, 0.0)
SERVER_RATE = Option(
    1.0, math.ulp(0.0), RATE_MAX, "What the update is multiplied by before it is added to the weights."
)


def check(strategy: str, known: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, float]:
    """The given options as numbers.

    Raises:
        InvalidInputError: an option is unknown, is no number or is out of its range; the message names it.
    """
    checked: dict[str, float] = {}
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            raise InvalidInputError(
                f"the strategy {strategy!r} has no option {str(name)[:64]!r}; it has: {', '.join(known) or 'none'}",
                metadata={"options": ",".join(known)},
            )
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if math.isnan(number) or (option.whole and not number.is_integer()):
            kind = "a whole number" if option.whole else "a number"
            raise InvalidInputError(f"{name} of {strategy!r} is {str(value)[:64]!r}; expected {kind}: {option.meaning}")
        if not option.low <= number <= option.high:
            between = f"from {option.low:g} to {option.high:g}"
            raise InvalidInputError(f"{name} of {strategy!r} is {value}; it must be {between}: {option.meaning}")
        checked[name] = number
    return checked
