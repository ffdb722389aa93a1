"""A round counts each contribution once, gives up only who had contact and did nothing, and says what it lacks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.aggregator.rounds import (
    Arrived,
    Contact,
    Event,
    GivenUp,
    Phase,
    Progress,
    Rejected,
    Round,
    Stored,
    Summed,
    advance,
    from_json,
    to_json,
)

NODES = ("sat-1", "sat-2", "sat-3", "sat-4")
OPEN = Round(index=3, cohort=NODES, quorum=3, patience_s=10.0)


def stored(salt: int = 0) -> Stored:
    return Stored(digest=f"{salt:064x}", examples=500, size_bytes=1000)


def after(state: Round, *events: Event) -> Round:
    for event in events:
        state = advance(state, event)
    return state


def test_it_is_ready_when_everybody_has_contributed() -> None:
    """And done when the sum is in the model; both may be told twice."""
    state = after(OPEN, *(Arrived(node, 3, stored(n)) for n, node in enumerate(NODES[:3])))
    assert (state.phase, state.waiting) == (Phase.OPEN, ("sat-4",))
    state = after(state, Arrived("sat-4", 3, stored(4)))
    assert state.phase is Phase.READY
    state = after(state, Summed(3), Summed(3))
    assert state.phase is Phase.DONE
    assert after(state, Arrived("sat-4", 3, stored(4))) == state


def test_a_repeated_contribution_is_no_news_and_another_one_is_refused() -> None:
    """A node that starts anew sends again what it had sent; only that."""
    state = after(OPEN, Arrived("sat-1", 3, stored(1)))
    assert after(state, Arrived("sat-1", 3, stored(1))) == state
    with pytest.raises(InvalidInputError) as refused:
        advance(state, Arrived("sat-1", 3, stored(2)))
    assert refused.value.reason == "CONTRIBUTION_REPLAYED"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Arrived("sat-1", 2, stored()), "STALE_ROUND"),
        (Arrived("sat-1", 4, stored()), "STALE_ROUND"),
        (Arrived("sat-9", 3, stored()), "NOT_IN_COHORT"),
        (GivenUp("sat-9", 3, "NOT_FINITE"), "NOT_IN_COHORT"),
        (Arrived("sat-1", 3, replace(stored(), examples=0)), "INVALID_INPUT"),
        (Summed(3), "INVALID_INPUT"),
        (Contact("sat-1", -1.0), "INVALID_INPUT"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(event: Event, reason: str) -> None:
    """The round itself stays as it was."""
    with pytest.raises(InvalidInputError) as refused:
        advance(OPEN, event)
    assert refused.value.reason == reason


def test_patience_is_counted_in_seconds_of_contact_without_progress() -> None:
    """A node out of sight for a day loses none of it, nor one whose bytes move."""
    state = after(OPEN, Contact("sat-1", 9.0), Progress("sat-1"), Contact("sat-1", 9.0))
    assert "sat-1" in state.waiting
    state = after(state, Contact("sat-1", 1.1))
    assert state.given_up == {"sat-1": "DEADLINE"}
    assert "sat-1" in after(state, Progress("sat-1")).waiting, "it moves again: it is waited for again"


def test_too_few_contributions_leave_it_stuck_with_the_reasons() -> None:
    """Until one that was given up comes back, or sends what it owed."""
    state = after(OPEN, Arrived("sat-1", 3, stored(1)), Arrived("sat-2", 3, stored(2)))
    state = after(state, GivenUp("sat-3", 3, "NOT_FINITE"), Contact("sat-4", 11.0))
    assert state.phase is Phase.STUCK
    assert "2 contributions and needs 3" in state.why_stuck
    assert "sat-3 (NOT_FINITE), sat-4 (DEADLINE)" in state.why_stuck
    assert after(state, Progress("sat-3")).phase is Phase.STUCK, "what it sent was refused: moving does not mend that"
    assert after(state, Progress("sat-4")).phase is Phase.OPEN
    assert after(state, Arrived("sat-4", 3, stored(4))).phase is Phase.READY


def test_what_comes_after_the_close_is_late_and_not_counted() -> None:
    """The sum must not depend on whether it had begun."""
    state = after(OPEN, *(Arrived(node, 3, stored(n)) for n, node in enumerate(NODES[:3])), Contact("sat-4", 11.0))
    assert state.phase is Phase.READY
    assert after(state, Progress("sat-4")).phase is Phase.READY
    with pytest.raises(InvalidInputError) as late:
        advance(state, Arrived("sat-4", 3, stored(4)))
    assert late.value.reason == "STALE_ROUND"


def summed(*others: str, salt: int = 7) -> Stored:
    return replace(stored(salt), others={name: 100 + number for number, name in enumerate(others)})


def test_a_sum_made_on_the_way_brings_all_in_it_at_once() -> None:
    """Each with its own examples; the bytes are those of whoever sent it; told twice it is no news."""
    state = after(OPEN, Contact("sat-3", 11.0), Arrived("sat-2", 3, summed("sat-3", "sat-1")))
    assert state.waiting == ("sat-4",) and not state.given_up
    assert [state.stored[node].examples for node in ("sat-2", "sat-3", "sat-1")] == [500, 100, 101]
    assert [state.stored[node].size_bytes for node in ("sat-2", "sat-3", "sat-1")] == [1000, 0, 0]
    assert [state.stored[node].via for node in ("sat-2", "sat-3", "sat-1")] == ["", "sat-2", "sat-2"]
    assert after(state, Arrived("sat-2", 3, summed("sat-3", "sat-1"))) == state
    assert from_json(json.loads(json.dumps(to_json(state)))) == state
    assert after(state, Arrived("sat-4", 3, stored(4))).phase is Phase.READY


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Arrived("sat-2", 3, summed("sat-1")), "CONTRIBUTION_REPLAYED"),
        (Arrived("sat-1", 3, summed("sat-2")), "CONTRIBUTION_REPLAYED"),
        (Arrived("sat-2", 3, summed("sat-9")), "NOT_IN_COHORT"),
        (Arrived("sat-2", 3, replace(summed("sat-3"), others={"sat-3": 0})), "INVALID_INPUT"),
        (Arrived("sat-2", 2, summed("sat-3")), "STALE_ROUND"),
    ],
)
def test_a_sum_counts_with_all_in_it_or_not_at_all(event: Event, reason: str) -> None:
    """Where one in it has contributed by another way, or is no node of the round, nothing of it counts."""
    state = after(OPEN, Arrived("sat-1", 3, stored(1)))
    with pytest.raises(InvalidInputError) as refused:
        advance(state, event)
    assert refused.value.reason == reason


def test_whoever_is_in_a_sum_cannot_contribute_again_and_is_not_rejected_alone() -> None:
    """One part cannot be taken out of a sum."""
    state = after(OPEN, Arrived("sat-2", 3, summed("sat-3")))
    with pytest.raises(InvalidInputError) as refused:
        advance(state, Arrived("sat-3", 3, stored(3)))
    assert refused.value.reason == "CONTRIBUTION_REPLAYED"
    assert after(state, Rejected("sat-3", 3, "NORM_OUTLIER")).given_up == dict.fromkeys(
        ("sat-2", "sat-3"), "NORM_OUTLIER"
    )


def test_a_round_with_enough_closes_though_others_are_awaited() -> None:
    """As buffers do: the K-th contribution closes it, and what comes later belongs to the next."""
    state = after(replace(OPEN, quorum=1, enough=2), Arrived("sat-1", 3, stored(1)))
    assert state.phase is Phase.OPEN
    state = after(state, Arrived("sat-3", 3, stored(3)))
    assert state.phase is Phase.READY and state.waiting == ("sat-2", "sat-4")
    assert from_json(json.loads(json.dumps(to_json(state)))) == state


def test_what_stands_out_beside_the_others_is_not_counted() -> None:
    """A durable contribution that is rejected opens the question of the quorum again; a finished round stays."""
    state = after(OPEN, *(Arrived(node, 3, stored(n)) for n, node in enumerate(NODES)))
    less = after(state, Rejected("sat-2", 3, "NORM_OUTLIER"))
    assert less.phase is Phase.READY and set(less.stored) == {"sat-1", "sat-3", "sat-4"}
    stuck = after(less, Rejected("sat-1", 3, "NORM_OUTLIER"))
    assert stuck.phase is Phase.STUCK and "sat-2 (NORM_OUTLIER)" in stuck.why_stuck
    done = after(state, Summed(3))
    assert after(done, Rejected("sat-2", 3, "NORM_OUTLIER")) == done
    with pytest.raises(InvalidInputError):
        advance(state, Rejected("stranger", 3, "NORM_OUTLIER"))


@pytest.mark.parametrize("cohort, quorum", [((), 0), (("a", "a"), 1), (("a",), 2), (("a",), 0)])
def test_an_impossible_round_is_not_begun(cohort: tuple[str, ...], quorum: int) -> None:
    """No nodes, one node twice, more needed than asked, or none needed."""
    with pytest.raises(InvalidInputError):
        Round(index=0, cohort=cohort, quorum=quorum, patience_s=1.0)


nodes = st.sampled_from((*NODES, "stranger"))
events = st.one_of(
    st.builds(Arrived, nodes, st.sampled_from([3, 3, 3, 2]), st.builds(stored, st.integers(0, 1))),
    st.builds(GivenUp, nodes, st.just(3), st.just("NOT_FINITE")),
    st.builds(Progress, nodes),
    st.builds(Contact, nodes, st.floats(0, 20)),
    st.builds(Summed, st.just(3)),
)


@given(st.lists(events, max_size=40))
def test_whatever_happens_nothing_that_was_stored_is_lost_or_counted_twice(story: list[Event]) -> None:
    """Each event twice, as after a crash: the same state; contributions only come, until the round is done."""
    state = OPEN
    for event in story:
        try:
            after_it = advance(state, event)
        except InvalidInputError:
            continue
        assert dict(state.stored).items() <= dict(after_it.stored).items()
        assert not after_it.stored.keys() & after_it.given_up.keys()
        assert {*after_it.stored, *after_it.given_up, *after_it.waiting} == {*NODES}
        if state.phase is Phase.READY:
            assert after_it.stored == state.stored
        if state.phase is Phase.DONE:
            assert after_it == state
        if not isinstance(event, Contact):
            assert advance(after_it, event) == after_it
        state = after_it
