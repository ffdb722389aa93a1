"""What each message means for a generation in a stage: transitions one by one, and all of them at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.executor.progress import (
    Phase,
    Progress,
    Switch,
    Verdict,
    computed,
    go_on,
    plan_switch,
    samples,
    stop,
    take,
)

RUNNING = Progress(3, Phase.RUNNING, taken=10, length=10, push_from=4, sample_from=8)
STANDBY = Progress(3, Phase.STANDBY, taken=10, length=10, sample_from=8)
STOPPED = Progress(3, Phase.STOPPED, taken=10, length=10, sample_from=8)
SWITCHING = Progress(3, Phase.RUNNING, taken=10, length=10, push_from=4, sample_from=8, switch=Switch(12, 4))


@pytest.mark.parametrize(
    ("progress", "epoch", "position", "rows", "feed", "verdict"),
    [
        (RUNNING, 3, 10, 1, False, Verdict.TAKE),
        (RUNNING, 3, 10, 8, False, Verdict.TAKE),
        (RUNNING, 3, 9, 1, False, Verdict.DROP),
        (RUNNING, 3, 2, 8, False, Verdict.DROP),
        (RUNNING, 3, 8, 4, False, Verdict.GAP),
        (RUNNING, 3, 11, 1, False, Verdict.GAP),
        (RUNNING, 2, 10, 1, False, Verdict.DROP),
        (RUNNING, 2, 11, 1, False, Verdict.DROP),
        (RUNNING, 4, 10, 1, False, Verdict.GAP),
        (RUNNING, 3, 10, 1, True, Verdict.DROP),
        (STANDBY, 3, 10, 1, True, Verdict.TAKE),
        (STANDBY, 3, 10, 1, False, Verdict.DROP),
        (STOPPED, 3, 10, 1, False, Verdict.HOLD),
        (STOPPED, 3, 99, 1, False, Verdict.HOLD),
        (STOPPED, 3, 10, 1, True, Verdict.DROP),
        (STOPPED, 2, 10, 1, False, Verdict.DROP),
        (STOPPED, 4, 10, 1, False, Verdict.GAP),
        (SWITCHING, 3, 10, 1, False, Verdict.TAKE),
        (SWITCHING, 4, 10, 1, False, Verdict.GAP),
        (SWITCHING, 3, 12, 1, False, Verdict.DROP),
        (SWITCHING, 4, 12, 1, False, Verdict.GAP),
    ],
)
def test_what_becomes_of_a_step(
    progress: Progress, epoch: int, position: int, rows: int, feed: bool, verdict: Verdict
) -> None:
    """Only what follows, of this epoch and of this kind, is taken; nothing else changes what is expected next."""
    after, found = take(progress, epoch, position, rows, feed=feed)
    assert found is verdict
    assert after.taken == (position + rows if verdict is Verdict.TAKE else progress.taken)
    assert after.length == progress.length


def test_a_switch_happens_at_its_first_position() -> None:
    """Up to the switch steps are of the old epoch, from there on of the new one; then the old one is over."""
    progress = SWITCHING
    for position in (10, 11):
        progress, verdict = take(progress, 3, position, 1, feed=False)
        assert verdict is Verdict.TAKE and progress.epoch == 3
    assert progress.epoch_at(11) == 3 and progress.epoch_at(12) == 4
    progress, verdict = take(progress, 4, 12, 1, feed=False)
    assert verdict is Verdict.TAKE
    assert progress == Progress(4, Phase.RUNNING, taken=13, length=10, push_from=4, sample_from=8)
    assert take(progress, 3, 13, 1, feed=False)[1] is Verdict.DROP


def test_a_successor_sends_nothing_of_what_it_was_fed() -> None:
    """What it was fed stays; from the switch on it sends and samples, and is fed no more."""
    progress = plan_switch(STANDBY, 4, 12, 13)
    progress, verdict = take(progress, 3, 10, 2, feed=True)
    assert verdict is Verdict.TAKE
    progress, verdict = take(progress, 4, 12, 1, feed=False)
    assert verdict is Verdict.TAKE and progress.phase is Phase.RUNNING and progress.push_from == 12
    progress, outcome = computed(progress, 10, 2)
    assert outcome.push_from is None and not outcome.sample
    progress, outcome = computed(progress, 12, 1)
    assert outcome.push_from == 12 and outcome.sample
    assert take(progress, 4, 13, 1, feed=True)[1] is Verdict.DROP


@pytest.mark.parametrize(
    ("progress", "position", "rows", "push_from", "sample"),
    [
        (RUNNING, 0, 4, None, False),
        (RUNNING, 0, 6, 4, False),
        (RUNNING, 4, 4, 4, True),
        (RUNNING, 10, 1, 10, True),
        (STANDBY, 10, 1, None, False),
        (STOPPED, 10, 1, None, True),
        (STOPPED, 4, 3, None, False),
    ],
)
def test_what_becomes_of_a_result(
    progress: Progress, position: int, rows: int, push_from: int | None, sample: bool
) -> None:
    """A running stage sends what the next one lacks and samples what is unknown; a stopped one keeps and tells it."""
    after, outcome = computed(progress, position, rows)
    assert (outcome.push_from, outcome.sample) == (push_from, sample)
    assert after.length == position + rows
    if progress.phase is Phase.STOPPED:
        assert after.taken == position + rows
    if progress.phase is Phase.RUNNING:
        assert samples(progress, position + rows) == sample


def test_a_stop_counts_what_is_computed_and_forgets_what_waits() -> None:
    """It ends a planned switch; an older epoch stops nothing, the same one may be repeated until the stage goes on."""
    busy = Progress(3, Phase.RUNNING, taken=14, length=10, switch=Switch(20, 4))
    stopped = stop(busy, 5)
    assert (stopped.epoch, stopped.phase, stopped.taken, stopped.length) == (5, Phase.STOPPED, 10, 10)
    assert stopped.switch is None
    assert stop(stopped, 5) == stopped
    assert stop(busy, 4).epoch == 4
    for epoch in (2, 3):
        with pytest.raises(InvalidInputError) as caught:
            stop(busy, epoch)
        assert caught.value.reason == "STALE_EPOCH" and caught.value.metadata["current_epoch"] == "3"


def test_going_on_cuts_to_what_was_settled() -> None:
    """It runs from there under its epoch only; told twice it does nothing; it cannot go on from what it never had."""
    running = go_on(STOPPED, 3, 7, 5, 9)
    assert running == Progress(3, Phase.RUNNING, taken=7, length=7, push_from=5, sample_from=9)
    later, _ = take(running, 3, 7, 1, feed=False)
    assert go_on(later, 3, 7, 5, 9) is later
    for epoch in (2, 4):
        with pytest.raises(InvalidInputError) as caught:
            go_on(STOPPED, epoch, 7, 5, 9)
        assert caught.value.reason == "STALE_EPOCH"
    with pytest.raises(InvalidInputError):
        go_on(STOPPED, 3, 11, 5, 9)


def test_a_switch_is_planned_ahead_or_not_at_all() -> None:
    """Neither behind what was taken, nor at a token that may have left, nor under an epoch that is not later."""
    assert plan_switch(RUNNING, 4, 11, 12).switch == Switch(11, 4)
    assert plan_switch(RUNNING, 4, 11, 12).sample_from == RUNNING.sample_from
    assert plan_switch(STANDBY, 4, 10, 11).sample_from == 11
    behind = Progress(3, Phase.RUNNING, taken=14, length=10)
    for progress, epoch, at in (
        (behind, 4, 13),
        (RUNNING, 4, 10),
        (RUNNING, 2, 20),
        (STANDBY, 3, 20),
        (STANDBY, 4, 9),
        (STOPPED, 4, 20),
    ):
        with pytest.raises(InvalidInputError) as caught:
            plan_switch(progress, epoch, at, at + 1)
        assert caught.value.reason == "STALE_EPOCH"
    switched, _ = take(plan_switch(RUNNING, 4, 11, 12), 3, 10, 1, feed=False)
    switched, _ = take(switched, 4, 11, 1, feed=False)
    assert plan_switch(switched, 4, 11, 12) is switched


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 12), st.integers(1, 4)), max_size=40))
def test_whatever_comes_positions_are_taken_once_and_in_order(
    messages: list[tuple[int, int, int, int]],
) -> None:
    """Epochs never go back, what is in the cache is at most what was taken, and every step taken follows the last."""
    progress = Progress(1, Phase.RUNNING)
    waiting: list[tuple[int, int]] = []
    for kind, epoch, position, rows in messages:
        before = progress
        try:
            if kind <= 1:
                progress, verdict = take(progress, epoch, position, rows, feed=kind == 1)
                if verdict is Verdict.TAKE:
                    assert position == before.taken and epoch == progress.epoch
                    waiting.append((position, rows))
            elif kind == 2 and waiting:
                progress, outcome = computed(progress, *waiting.pop(0))
                assert outcome.push_from is None or outcome.push_from >= progress.push_from
            elif kind == 3:
                progress = stop(progress, epoch)
                waiting = waiting[:1] if rows == 1 else []
                for step in waiting:
                    progress, _ = computed(progress, *step)
                waiting = []
            elif kind == 4:
                progress = go_on(progress, epoch, position, position, position)
            else:
                progress = plan_switch(progress, epoch, position, position + 1)
        except InvalidInputError:
            assert progress is before
        assert progress.epoch >= before.epoch
        assert progress.length <= progress.taken
        assert progress.switch is None or progress.switch.epoch > progress.epoch
