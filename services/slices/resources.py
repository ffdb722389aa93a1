"""Amounts of the four resources that slices share, and the parts of a node that a slice may have.

On the wire amounts are a `map<string, double>` with the names in `NAMES`; here they are one frozen object, so that a
name that nobody knows, a negative amount or a NaN stops at the door.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orbitmesh.errors import InvalidInputError

NAMES = ("CPU", "GPU", "MemoryGB", "BandwidthGbps")
"""The resources: cores, devices, 10^9 bytes, 10^9 bits per second."""
SLACK = 1e-9
"""Sums of doubles are exact to this part of a capacity; what fits within it fits."""
MOST = 1e12
"""No amount is larger: beyond it, doubles no longer tell parts of it apart."""


@dataclass(frozen=True)
class Resources:
    """An amount of each resource.

    Args:
        cpu: Cores.
        gpu: Devices.
        memory_gb: 10^9 bytes.
        bandwidth_gbps: 10^9 bits per second.

    Raises:
        InvalidInputError: an amount is negative, not finite or above `MOST`; the message names the resource.
    """

    cpu: float = 0.0
    gpu: float = 0.0
    memory_gb: float = 0.0
    bandwidth_gbps: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.items():
            _check_amount(name, value)

    @classmethod
    def of(cls, amounts: Mapping[str, float], what: str = "resources") -> Resources:
        """From amounts by name; those that are not named are 0.

        Args:
            amounts: By name, see `NAMES`.
            what: Whose amounts, for the message.

        Raises:
            InvalidInputError: unknown name; negative, infinite, NaN or too large amount.
        """
        check_names(amounts, what)
        for name, value in amounts.items():
            _check_amount(f"{what}: {name}", value)
        return cls(*(float(amounts.get(name, 0.0)) for name in NAMES))

    def to_map(self) -> dict[str, float]:
        """All four amounts by name."""
        return dict(self.items())

    def items(self) -> Iterator[tuple[str, float]]:
        """Name and amount, in the order of `NAMES`."""
        return zip(NAMES, self.values(), strict=True)

    def values(self) -> tuple[float, float, float, float]:
        """The amounts, in the order of `NAMES`."""
        return (self.cpu, self.gpu, self.memory_gb, self.bandwidth_gbps)

    def __getitem__(self, name: str) -> float:
        return self.values()[NAMES.index(name)]

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: Resources) -> Resources:
        """What is left when `other` is taken away: 0 where that is more than there is."""
        return Resources(*(max(0.0, a - b) for a, b in zip(self.values(), other.values(), strict=True)))

    def times(self, factor: float) -> Resources:
        """Each amount times a factor of at least 0."""
        return Resources(*(a * factor for a in self.values()))

    def at_least(self, other: Resources) -> Resources:
        """The larger amount of each resource."""
        return Resources(*(max(a, b) for a, b in zip(self.values(), other.values(), strict=True)))

    def lacking(self, capacity: Resources) -> dict[str, float]:
        """How much of which resource is missing where this is to fit into `capacity`; empty where it fits."""
        return {
            name: value - capacity[name]
            for name, value in self.items()
            if value > capacity[name] * (1 + SLACK) + SLACK * SLACK
        }

    def fits(self, capacity: Resources) -> bool:
        """Whether `capacity` has this much of everything, to within the rounding of doubles (`SLACK`)."""
        return not self.lacking(capacity)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.items() if value) or "nothing"


@dataclass(frozen=True)
class Share:
    """How much of one resource of a node a slice has, as parts of that node's whole capacity.

    Args:
        dedicated: Never lent to others, also while it is idle.
        minimum: Guaranteed; lent while it is idle. At least `dedicated`.
        maximum: Never exceeded, also while others are idle.

    Raises:
        InvalidInputError: a part outside 0 to 1, or not dedicated <= minimum <= maximum.
    """

    dedicated: float = 0.0
    minimum: float = 0.0
    maximum: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("dedicated", self.dedicated), ("min", self.minimum), ("max", self.maximum)):
            if not 0 <= value <= 1:  # False for NaN too
                raise InvalidInputError(
                    f"a share's {name} is {value!r}; it is a part of a node's capacity: give 0 to 1"
                )
        if not self.dedicated <= self.minimum <= self.maximum:
            raise InvalidInputError(
                f"a share has dedicated {self.dedicated:g}, min {self.minimum:g}, max {self.maximum:g}; "
                "expected dedicated <= min <= max"
            )


WHOLE = Share()
"""Nothing guaranteed, all allowed: the share of a resource that a slice names none for."""


def check_names(named: Mapping[str, object], what: str = "resources") -> None:
    """Refuses names that are no resource.

    Raises:
        InvalidInputError: with the names that there are.
    """
    for name in named:
        if name not in NAMES:
            raise InvalidInputError(f"{what}: unknown resource {name!r:.80}; expected some of {', '.join(NAMES)}")


def _check_amount(name: str, value: float) -> None:
    if not 0 <= value <= MOST or not math.isfinite(value):
        raise InvalidInputError(f"{name} is {value!r}; expected a finite amount of 0 to {MOST:g}")
