"""How a gateway steers a generation: transitions one by one, and what it settles, against a plain search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.course import (
    Course,
    Emit,
    FindNode,
    GoOn,
    Phase,
    Standing,
    Start,
    StopAll,
    Switch,
    gather,
    lost,
    plan_switch,
    settle,
    silent,
    standing,
    token,
    trouble,
)

NODES = ("a", "b", "c")
RUNNING = Course(NODES, known=10, stop=20, epoch=3, phase=Phase.RUNNING)
GATHERING = Course(NODES, known=10, stop=20, epoch=3, phase=Phase.GATHERING, standings=(None, None, None))
SWITCHING = Course(NODES, 10, 20, 3, Phase.RUNNING, switch=Switch(12, ("a", "x", "c")))

standings = st.builds(
    lambda length, back: Standing(length, max(0, length - back)), st.integers(0, 12), st.integers(0, 12)
)


@given(st.lists(standings, min_size=1, max_size=4), st.integers(1, 12))
def test_what_is_settled_lets_every_stage_have_all_it_needs_and_keep_all_it_can(
    stages: list[Standing], known: int
) -> None:
    """Each stage gets every row that it lacks, from a journal or computed anew; the last computes the row before the
    unknown token; and no stage could keep a position more."""
    starts = settle(stages, known)

    def good(lengths: list[int]) -> bool:
        for index, (length, stage) in enumerate(zip(lengths, stages, strict=True)):
            if length > min(stage.length, known):
                return False
            if index + 1 < len(stages):
                # Rows of the next stage between its length and this one's come from the journal.
                needed = lengths[index + 1]
                if needed < length and needed < stage.journal_start:
                    return False
        return lengths[-1] <= known - 1

    lengths = [start.length for start in starts]
    assert good(lengths)
    for index, length in enumerate(lengths):
        assert not good([*lengths[:index], length + 1, *lengths[index + 1 :]])
    assert [start.push_from for start in starts] == [*lengths[1:], 0]


def test_a_gathering_asks_all_under_a_new_epoch() -> None:
    """With the same nodes or others; a generation that is over is left alone."""
    course, commands = gather(RUNNING)
    assert commands == [StopAll()] and course == GATHERING.__class__(
        NODES, 10, 20, 4, Phase.GATHERING, (None, None, None)
    )
    assert gather(RUNNING, ["x", "b", "c"])[0].nodes == ("x", "b", "c")
    over = Course(NODES, 20, 20, 3, finished=True)
    assert gather(over) == (over, [])


def test_when_all_have_answered_it_goes_on() -> None:
    """Not before; answers of another epoch do not count."""
    course = GATHERING
    for index, found in ((2, Standing(9, 9)), (0, Standing(10, 0))):
        course, commands = standing(course, 3, index, found, (), 10, False)
        assert commands == [] and course.phase is Phase.GATHERING
        assert standing(course, 2, 1, Standing(5, 5), (), 10, False) == (course, [])
    course, commands = standing(course, 3, 1, Standing(4, 0), (), 10, False)
    assert course.phase is Phase.RUNNING
    assert commands == [GoOn((Start(10, 4), Start(4, 9), Start(9, 0)), 10)]
    assert standing(course, 3, 1, Standing(4, 0), (77,), 10, False) == (course, [])


def test_tokens_that_stages_know_are_handed_out_once() -> None:
    """In whatever order the answers come; the last one ends the generation at once."""
    course, commands = standing(GATHERING, 3, 0, Standing(11, 0), (70, 71), 10, False)
    assert commands == [Emit(10, 70), Emit(11, 71)] and course.known == 12
    course, commands = standing(course, 3, 2, Standing(12, 12), (70, 71, 72), 10, False)
    assert commands == [Emit(12, 72)] and course.known == 13
    course, commands = standing(GATHERING, 3, 2, Standing(12, 12), (72, 73), 10, True)
    assert course.finished and commands == [Emit(10, 72), Emit(11, 73)]


def test_a_stage_that_does_not_answer_is_replaced_or_waited_for() -> None:
    """Once for each gathering; word of an older one means nothing."""
    course, commands = silent(GATHERING, 3, 1)
    assert course.phase is Phase.WAITING and commands == [FindNode(1, "b")]
    assert silent(course, 3, 2) == (course, [])
    assert silent(GATHERING, 2, 1) == (GATHERING, [])


def test_a_token_counts_once_in_its_epoch_and_its_turn() -> None:
    """Older ones, those of other epochs and of a generation that gathers are dropped; one too far shows a loss."""
    course, commands = token(RUNNING, 3, 10, 70, False)
    assert course.known == 11 and commands == [Emit(10, 70)]
    assert token(course, 3, 10, 70, False) == (course, [])
    assert token(RUNNING, 2, 10, 70, False) == (RUNNING, [])
    assert token(RUNNING, 4, 10, 70, False) == (RUNNING, [])
    assert token(GATHERING, 3, 10, 70, False) == (GATHERING, [])
    course, commands = token(RUNNING, 3, 11, 71, False)
    assert commands == [StopAll()] and course.known == 10 and course.epoch == 4
    course, commands = token(RUNNING, 3, 10, 70, True)
    assert course.finished and commands == [Emit(10, 70)]
    assert token(course, 3, 11, 71, False) == (course, [])


def test_trouble_of_this_epoch_gathers_once() -> None:
    """What an older epoch still reports is settled already."""
    course, commands = trouble(RUNNING, 3)
    assert commands == [StopAll()] and course.epoch == 4
    assert trouble(course, 3) == (course, []) and trouble(course, 4) == (course, [])
    assert trouble(RUNNING, 2) == (RUNNING, []) and trouble(RUNNING, 4) == (RUNNING, [])


def test_a_planned_move_is_made_by_the_first_token_behind_it() -> None:
    """Until then tokens are of the old epoch; nothing stops."""
    planned = plan_switch(RUNNING, 12, ["a", "x", "c"])
    assert planned == SWITCHING
    for position in (10, 11):
        planned, commands = token(planned, 3, position, 70, False)
        assert commands == [Emit(position, 70)] and planned.nodes == NODES
    planned, commands = token(planned, 4, 12, 70, False)
    assert commands == [Emit(12, 70)]
    assert (planned.nodes, planned.epoch, planned.switch) == (("a", "x", "c"), 4, None)


@pytest.mark.parametrize("how", ["trouble", "trouble behind", "token lost", "gather"])
def test_an_epoch_that_a_move_may_have_begun_is_not_used_again(how: str) -> None:
    """Whatever interrupts a planned move, the next epoch is above that of the move, and the new way is taken."""
    course, commands = {
        "trouble": lambda: trouble(SWITCHING, 3),
        "trouble behind": lambda: trouble(SWITCHING, 4),
        "token lost": lambda: token(SWITCHING, 3, 11, 71, False),
        "gather": lambda: gather(SWITCHING),
    }[how]()
    assert commands == [StopAll()]
    assert (course.epoch, course.nodes, course.switch) == (5, ("a", "x", "c"), None)


def test_a_lost_node_is_replaced_without_asking_it() -> None:
    """Where it is in the pipeline; otherwise all are asked."""
    course, commands = lost(RUNNING, 3, "b")
    assert course.phase is Phase.WAITING and commands == [FindNode(1, "b")]
    assert lost(RUNNING, 3, "z")[1] == [StopAll()]
    assert lost(RUNNING, 2, "b") == (RUNNING, [])
    course, commands = lost(SWITCHING, 3, "x")
    assert commands == [FindNode(1, "x")] and course.epoch == 4 and gather(course)[0].epoch == 5
    assert lost(SWITCHING, 3, "b")[1] == [StopAll()]
