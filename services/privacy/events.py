"""What happened, as values: releases, and the rounds that made them. The accountant and the ledger interpret them.

A *release* is one addition of Gaussian noise to a sum in which one unit of privacy (a record or a node) changes at most
`clip` in Euclidean norm. Neighbouring data differ by adding or removing one unit. The *noise multiplier* is the noise's
standard deviation divided by `clip`; it is all the accountant has to know beside the sampling.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from orbitmesh.errors import InvalidInputError

LATTICE_VARIANCE_STEPS2 = 4.0
"""What integer noise loses against continuous noise, in squared steps: the r² of `services.privacy.noise`."""
STEPS_MAX = 10**8
"""Steps that one event may stand for."""


class Unit(Enum):
    """Whose presence is hidden."""

    RECORD = "record"
    """One example of one node: nodes hold different ones, so each node has its own account."""
    NODE = "node"
    """All that one node holds: one account for the run."""


@dataclass(frozen=True, slots=True)
class Release:
    """Noisy sums of one kind, each over a Poisson sample.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    noise_multiplier: float
    """Standard deviation of the noise that was there, in clips; 0 where there was none."""
    sample_rate: float = 1.0
    """The chance of each unit to be in a sum, drawn for each unit and sum alone, 0 to 1."""
    steps: int = 1
    """How many sums were released."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InvalidInputError(f"a noise multiplier is a finite number of at least 0, not {self.noise_multiplier}")
        if not 0 <= self.sample_rate <= 1:
            raise InvalidInputError(f"a sample rate is between 0 and 1, not {self.sample_rate}")
        if not 0 <= self.steps <= STEPS_MAX:
            raise InvalidInputError(f"an event stands for 0 to {STEPS_MAX} steps, not {self.steps}")


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """Noise that several nodes add in shares, so that only its sum protects.

    Nodes size shares for `shares_promised`; what counts is `shares_arrived`.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    multiplier_promised: float
    """Standard deviation of the sum of `shares_promised` shares, in clips."""
    shares_promised: int
    """The fewest survivors with which the round was to count (t_min)."""
    shares_arrived: int
    """Survivors whose noise is in the sum."""
    shares_known: int = 0
    """Arrived shares of nodes that are assumed to tell theirs: they do not protect."""
    clip_steps: float | None = None
    """The clip in steps of the integer ring where shares are discrete; None where they are continuous."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier_promised) and self.multiplier_promised >= 0):
            raise InvalidInputError(f"a noise multiplier is finite and at least 0, not {self.multiplier_promised}")
        if self.shares_promised < 1 or self.shares_arrived < 0 or self.shares_known < 0:
            raise InvalidInputError(
                f"expected at least 1 promised share and no negative counts, got {self.shares_promised} promised, "
                f"{self.shares_arrived} arrived, {self.shares_known} known"
            )
        if self.clip_steps is not None and not (math.isfinite(self.clip_steps) and self.clip_steps > 0):
            raise InvalidInputError(f"a clip in steps is finite and above 0, not {self.clip_steps}")

    @property
    def multiplier(self) -> float:
        """Standard deviation of the noise that protects, in clips: above what was promised where more arrived."""
        counted = max(self.shares_arrived - self.shares_known, 0)
        variance = self.multiplier_promised**2 * counted / self.shares_promised
        if self.clip_steps is not None:
            # The promise already pays for the lattice once; a sum of any number of shares loses it only once.
            promised = self.multiplier_promised**2 + LATTICE_VARIANCE_STEPS2 / self.clip_steps**2
            variance = promised * counted / self.shares_promised - LATTICE_VARIANCE_STEPS2 / self.clip_steps**2
        return math.sqrt(max(variance, 0.0))


@dataclass(frozen=True, slots=True)
class RoundEvent:
    """What one round took from one account.

    `attempt` tells a round that was made again with fresh noise, which costs again, from one told twice, which costs
    once.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    round: int
    """The round's index."""
    node: str | None
    """Whose records; None where the unit is a node and the account is the run's."""
    steps: int
    """Noisy sums that the round released of this account."""
    sample_rate: float
    """The chance of each unit to be in each sum, 0 to 1."""
    noise: float | SharedNoise
    """Standard deviation of the noise in clips: a number where the node added all of it by itself."""
    clip: float
    """The norm to which each unit was clipped, in units of the parameters."""
    attempt: int = 0
    """How often the round had been made before with other noise."""

    def __post_init__(self) -> None:
        if self.round < 0 or self.attempt < 0:
            raise InvalidInputError(f"round and attempt count from 0, not {self.round} and {self.attempt}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise InvalidInputError(f"a clip is finite and above 0, not {self.clip}: without one nothing is bounded")
        if isinstance(self.noise, SharedNoise) and self.steps > 1:
            raise InvalidInputError(
                f"noise in shares protects one sum, and this round made {self.steps} steps of each node on its own: "
                "share the noise of each step, or let each node add all of it"
            )
        self.release()

    def release(self) -> Release:
        """What the accountant has to know."""
        multiplier = self.noise.multiplier if isinstance(self.noise, SharedNoise) else self.noise
        return Release(multiplier, self.sample_rate, self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the inverse of `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(row: dict[str, Any]) -> RoundEvent:
        """The event of such values.

        Raises:
            InvalidInputError: A field is missing, unknown or out of its range.
        """
        try:
            noise = row["noise"]
            return RoundEvent(**{**row, "noise": SharedNoise(**noise) if isinstance(noise, dict) else float(noise)})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"not a round's privacy event: {error!r}; expected the fields that `to_json` writes"
            ) from error
