"""What a port is told: the rate of its link and, for each slice, what it is guaranteed, keeps and may not exceed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.wire.pacing import FRAME_MIN_BYTES

DEFAULT_SLICE = ""
"""The slice of all traffic that names none, or one that the port does not know."""

FRAME_S = 0.0136
"""How long a frame may keep the link, in seconds: 16 KiB at 97 % of 10 Mbit/s. Who is first waits for one at most."""

CEILING_FRAME_S = 0.006
"""A frame of a slice with a ceiling takes no longer at that ceiling, in seconds: one more or less in a second is then
0.6 %."""

FRAME_LEAST_BYTES = 1 << 10
"""The smallest frames: what is put around one is a tenth of it then."""

LEAST_WEIGHT = 0.01
"""What a slice weighs that is guaranteed less than this part of the link, where idle bandwidth is lent."""

QUEUE_BYTES = 8 << 20
"""How much of one slice may wait, in bytes."""

QUEUE_FRAMES = 1024
"""How many frames of one slice may wait."""

SLICES_MAX = 256
"""How many slices one port serves beside the default one."""

RATE_MIN_BPS = 1e3
"""The slowest link, in bits per second."""

RATE_MAX_BPS = 1e13
"""The fastest link, in bits per second."""

ROUNDING = 1e-9
"""By how much a sum of guarantees may pass the link's rate, as a part of it: sums of floats are not exact."""


@dataclass(frozen=True)
class SliceRule:
    """What one slice has of a link; rates in bits per second."""

    guarantee_bps: float = 0.0
    """It has this whenever it wants it; lent while it does not."""
    dedicated_bps: float = 0.0
    """The part of the guarantee that is never lent."""
    ceiling_bps: float | None = None
    """It never has more; None: as much as the link carries."""
    urgent: bool = False
    """Whether its frames go before those of others."""
    latency_s: float = 0.0
    """A frame that waits longer is counted as a violation, in seconds; 0 counts none."""

    def __post_init__(self) -> None:
        ceiling = math.inf if self.ceiling_bps is None else self.ceiling_bps
        for name in ("guarantee_bps", "dedicated_bps", "latency_s"):
            _check_number(name, getattr(self, name), 0.0, RATE_MAX_BPS)
        if self.ceiling_bps is not None:
            _check_number("ceiling_bps", self.ceiling_bps, 1.0, RATE_MAX_BPS)
        if not self.dedicated_bps <= self.guarantee_bps <= ceiling:
            raise InvalidInputError(
                f"dedicated {self.dedicated_bps:g}, guaranteed {self.guarantee_bps:g} and ceiling {ceiling:g} bit/s do "
                "not rise in this order; what is dedicated is a part of the guarantee, and that is below the ceiling"
            )


@dataclass(frozen=True)
class PortSpec:
    """A link and who has what of it."""

    rate_bps: float
    """What may be sent on it, in bits per second."""
    slices: Mapping[str, SliceRule] = field(default_factory=dict)
    """By name; the default slice has the empty name, and no guarantee where it is not there."""

    def __post_init__(self) -> None:
        _check_number("rate_bps", self.rate_bps, RATE_MIN_BPS, RATE_MAX_BPS)
        if len(self.slices) > SLICES_MAX + 1:
            raise InvalidInputError(
                f"{len(self.slices)} slices are too many for one link; at most {SLICES_MAX}", reason="LIMIT_EXCEEDED"
            )
        guaranteed = sum(rule.guarantee_bps for rule in self.slices.values())
        if guaranteed > self.rate_bps * (1 + ROUNDING):
            raise InvalidInputError(
                f"{guaranteed:g} bit/s are guaranteed on a link of {self.rate_bps:g}; lower some guarantee"
            )

    def rule(self, name: str) -> SliceRule:
        """The rule of a slice; that of the default slice where it has none."""
        return self.slices.get(name) or self.slices.get(DEFAULT_SLICE) or SliceRule()

    def weight(self, rule: SliceRule) -> float:
        """What a slice weighs where idle bandwidth is lent, in bits per second."""
        return max(rule.guarantee_bps, LEAST_WEIGHT * self.rate_bps)

    def frame_bytes(self, rule: SliceRule) -> int:
        """How large the frames of a slice should be: short on the link, and many in each second of a ceiling."""
        size = self.rate_bps / 8 * FRAME_S
        if rule.ceiling_bps is not None:
            size = min(size, rule.ceiling_bps / 8 * CEILING_FRAME_S)
        step = FRAME_MIN_BYTES if size >= FRAME_MIN_BYTES else FRAME_LEAST_BYTES
        return max(min(int(size), FRAME_BODY_BYTES) // step * step, FRAME_LEAST_BYTES)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """Refuses what is not a finite number from `low` to `high`."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise InvalidInputError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}")
