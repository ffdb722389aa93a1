"""How far a generation is in one stage, and what each message for it means: pure transitions, no clock, no tensors.

A generation runs under an *epoch*. Its gateway stops every stage under a new one, learns how far each got, and lets
them go on: whatever was under way of the old epoch is dropped wherever it turns up. A stage that is about to move does
not stop: from an agreed position on, the *switch*, steps belong to the new epoch and take the new way.

    STANDBY  --stop--> STOPPED --go_on--> RUNNING --stop--> STOPPED ...
       |                                     ^
       +-----------------switch--------------+

`taken` counts the positions that were accepted, `length` those that are in the cache; the difference is being computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from orbitmesh.errors import InvalidInputError


class Phase(Enum):
    """What a generation does in a stage."""

    STANDBY = "standby"
    """It is fed, so that it can take over; nothing leaves it."""
    STOPPED = "stopped"
    """It waits to be told how to go on."""
    RUNNING = "running"
    """It computes what comes and sends it on."""


class Verdict(Enum):
    """What becomes of a step or token that arrived."""

    TAKE = "take"
    """It is next."""
    HOLD = "hold"
    """It is of the epoch that is about to begin: keep it until the stage goes on."""
    DROP = "drop"
    """It is of another epoch, or was taken already."""
    GAP = "gap"
    """Something before it was lost: the gateway has to be told."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The position from which a generation goes another way."""

    at: int
    """The first position of the new epoch."""
    epoch: int
    """The new epoch."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a generation is in one stage."""

    epoch: int
    """Which run this is; frames carry it."""
    phase: Phase
    """What it does."""
    taken: int = 0
    """Positions accepted for computation: the one expected next."""
    length: int = 0
    """Positions in the cache."""
    push_from: int = 0
    """Results of earlier positions stay here: the next stage has them."""
    sample_from: int = 0
    """The first position whose token is sampled, in the last stage."""
    switch: Switch | None = None
    """Where it will go another way."""

    def filled(self, length: int) -> Progress:
        """The same with a cache that was filled from elsewhere."""
        return replace(self, taken=length, length=length)

    def epoch_at(self, position: int) -> int:
        """The epoch that a step of this position belongs to."""
        return self.switch.epoch if self.switch is not None and position >= self.switch.at else self.epoch


def take(progress: Progress, epoch: int, position: int, rows: int, *, feed: bool) -> tuple[Progress, Verdict]:
    """A step of `rows` positions from `position` on arrived."""
    if epoch != progress.epoch_at(position):
        # Of a later epoch: this stage was not told in time. Whoever counts on it has to stop everything again.
        return progress, Verdict.GAP if epoch > progress.epoch_at(position) else Verdict.DROP
    if progress.switch is not None and position >= progress.switch.at:
        progress = _switched(progress, progress.switch)
    if progress.phase is Phase.STOPPED:
        return progress, Verdict.DROP if feed else Verdict.HOLD
    if feed is not (progress.phase is Phase.STANDBY):
        return progress, Verdict.DROP
    if position + rows <= progress.taken:
        return progress, Verdict.DROP
    if position != progress.taken:
        return progress, Verdict.GAP
    return replace(progress, taken=position + rows), Verdict.TAKE


def _switched(progress: Progress, switch: Switch) -> Progress:
    push_from = switch.at if progress.phase is Phase.STANDBY else progress.push_from
    return replace(progress, epoch=switch.epoch, phase=Phase.RUNNING, push_from=push_from, switch=None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of results."""

    push_from: int | None
    """Rows from this position on go to the next stage; None where none do."""
    sample: bool
    """Whether the token behind the last row is sampled."""


def samples(progress: Progress, end: int) -> bool:
    """Whether the last stage samples the token at `end` after computing the position before it."""
    return progress.phase is Phase.RUNNING and end >= progress.sample_from


def computed(progress: Progress, position: int, rows: int) -> tuple[Progress, Outcome]:
    """Positions from `position` on are in the cache. Whoever calls has dropped what is of an earlier epoch."""
    end = position + rows
    progress = replace(progress, length=end)
    if progress.phase is Phase.STOPPED:
        # It was under way when the stage was stopped: its result is kept, and told when the stage goes on.
        return replace(progress, taken=end), Outcome(None, end >= progress.sample_from)
    if progress.phase is Phase.STANDBY:
        return progress, Outcome(None, False)
    start = max(position, progress.push_from)
    return progress, Outcome(start if start < end else None, samples(progress, end))


def stop(progress: Progress, epoch: int) -> Progress:
    """The generation is held under a new epoch; what is being computed will count, what waits does not.

    Raises:
        InvalidInputError: `STALE_EPOCH`, a newer epoch has begun already.
    """
    if epoch < progress.epoch or (epoch == progress.epoch and progress.phase is Phase.RUNNING):
        raise stale(epoch, progress.epoch)
    return replace(progress, epoch=epoch, phase=Phase.STOPPED, taken=progress.length, switch=None)


def go_on(progress: Progress, epoch: int, length: int, push_from: int, sample_from: int) -> Progress:
    """The generation runs again from `length` on; the caller cuts cache and journal to it.

    Raises:
        InvalidInputError: `STALE_EPOCH`, it was stopped under another epoch; or it never got to `length`.
    """
    if epoch != progress.epoch:
        raise stale(epoch, progress.epoch)
    if progress.phase is Phase.RUNNING:
        return progress
    if length > progress.length:
        raise InvalidInputError(f"the stage holds {progress.length} positions and cannot go on from {length}")
    return Progress(epoch, Phase.RUNNING, length, length, push_from, sample_from)


def plan_switch(progress: Progress, epoch: int, at: int, sample_from: int) -> Progress:
    """Steps from position `at` on will belong to `epoch`.

    Raises:
        InvalidInputError: `STALE_EPOCH`, the position or the epoch has passed, or the stage is stopped.
    """
    if progress.epoch == epoch and progress.phase is Phase.RUNNING:
        return progress
    if epoch <= progress.epoch or progress.phase is Phase.STOPPED or at < progress.taken:
        raise stale(epoch, progress.epoch)
    if progress.phase is Phase.RUNNING and at <= progress.length:
        # The last stage may have sent the token of this position under the epoch that would be over for it.
        raise stale(epoch, progress.epoch)
    sample = sample_from if progress.phase is Phase.STANDBY else progress.sample_from
    return replace(progress, switch=Switch(at, epoch), sample_from=sample)


def stale(epoch: int, current: int) -> InvalidInputError:
    """The error for a message of an epoch that is over."""
    return InvalidInputError(
        f"epoch {epoch} of this generation is over: it is in epoch {current}",
        reason="STALE_EPOCH",
        metadata={"epoch": epoch, "current_epoch": current},
    )
