"""The ledger counts what happened: survivors, repetitions, units; and knows when to stop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.privacy import ledger as ledger_module
from services.privacy.accountant import epsilon, noise_for
from services.privacy.events import Release, RoundEvent, SharedNoise, Unit
from services.privacy.ledger import Budget, Ledger

RECORDS = Budget(Unit.RECORD, epsilon=2.0, delta=1e-5)
NODES = Budget(Unit.NODE, epsilon=2.0, delta=1e-5)


def local(round_index: int, node: str = "sat-1", noise: float = 1.5, attempt: int = 0) -> RoundEvent:
    """Three local epochs of batches of 32 of 500 examples, all noise by the node itself."""
    return RoundEvent(round_index, node, 48, 0.064, noise, 1.0, attempt)


def shared(arrived: int, round_index: int = 0, node: str | None = None) -> RoundEvent:
    """One sum of 8 nodes whose noise is promised with 6."""
    return RoundEvent(round_index, node, 1, 1.0, SharedNoise(6.3, 6, arrived), 0.5)


def test_a_ledger_composes_each_nodes_events_and_tells_the_worst() -> None:
    """A record is in one node only: each node has its own epsilon, and the run's is the largest."""
    ledger = Ledger(RECORDS)
    for event in (local(0), local(1), local(0, "sat-2")):
        assert ledger.record(event)
    assert ledger.epsilon("sat-1") == epsilon([Release(1.5, 0.064, 96)], 1e-5) == ledger.epsilon()
    assert ledger.epsilon("sat-2") == epsilon([Release(1.5, 0.064, 48)], 1e-5) < ledger.epsilon()
    assert ledger.epsilon("sat-3") == 0
    assert ledger.accounts() == ("sat-1", "sat-2")


@settings(max_examples=15, deadline=None)
@given(st.permutations([shared(5, 0), shared(8, 1), shared(6, 2), shared(7, 3), shared(6, 4)]))
def test_the_order_of_events_does_not_matter(events: list[RoundEvent]) -> None:
    """Whatever order rounds are recorded in, the figure is the same to the last digit."""
    ledger, sorted_ledger = Ledger(NODES), Ledger(NODES)
    for event in events:
        ledger.record(event)
    for event in sorted(events, key=lambda event: event.round):
        sorted_ledger.record(event)
    assert ledger.epsilon() == sorted_ledger.epsilon()


def test_each_lost_survivor_costs_and_each_spare_one_saves() -> None:
    """Epsilon falls with every noise share that arrived; with as many as were promised it is the promised one."""
    spent = []
    for arrived in range(1, 9):
        ledger = Ledger(NODES)
        ledger.record(shared(arrived))
        spent.append(ledger.epsilon())
    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == len(spent)
    assert spent[5] == epsilon([Release(6.3)], 1e-5)


def test_a_round_in_which_no_share_arrived_has_no_bound() -> None:
    """A sum without any noise is counted as infinitely expensive, and stays so."""
    ledger = Ledger(NODES)
    ledger.record(shared(0))
    ledger.record(shared(8, 1))
    assert ledger.epsilon() == math.inf
    assert ledger.would_exceed(shared(8, 2))


def test_shares_of_nodes_that_tell_theirs_do_not_protect() -> None:
    """8 arrived shares of which 2 are known protect as 6 do."""
    assert SharedNoise(6.3, 6, 8, shares_known=2).multiplier == SharedNoise(6.3, 6, 6).multiplier
    assert SharedNoise(6.3, 6, 1, shares_known=2).multiplier == 0


def test_discrete_shares_keep_the_promise_and_lose_the_lattice_once() -> None:
    """With as many as promised the multiplier is the promised one; with fewer a little less than continuous shares."""
    assert SharedNoise(1.0, 6, 6, clip_steps=40.0).multiplier == pytest.approx(1.0, abs=1e-12)
    assert SharedNoise(1.0, 6, 3, clip_steps=40.0).multiplier < SharedNoise(1.0, 6, 3).multiplier
    assert SharedNoise(1.0, 6, 0, clip_steps=40.0).multiplier == 0


def test_an_event_told_twice_counts_once_and_one_made_twice_counts_twice() -> None:
    """The same event again changes nothing; another attempt with fresh noise costs; other numbers are refused."""
    ledger = Ledger(RECORDS)
    assert ledger.record(local(0))
    assert not ledger.record(local(0))
    once = ledger.epsilon()
    with pytest.raises(InvalidInputError, match="another attempt"):
        ledger.record(local(0, noise=3.0))
    assert ledger.epsilon() == once
    assert ledger.record(local(0, attempt=1))
    assert ledger.epsilon() == epsilon([Release(1.5, 0.064, 96)], 1e-5) > once


def test_the_budget_pays_for_as_many_rounds_as_it_was_made_for() -> None:
    """Noise for 10 rounds at epsilon 2 lasts 10 rounds; the 11th would exceed, and fewer survivors end it earlier."""
    noise = noise_for(2.0, 1e-5, 10)
    plan = RoundEvent(0, None, 1, 1.0, SharedNoise(noise, 6, 6), 0.5)
    ledger = Ledger(NODES)
    assert ledger.rounds_left(plan, most=100) == 10
    for index in range(10):
        event = replace(plan, round=index)
        assert not ledger.would_exceed(event)
        ledger.record(event)
    assert ledger.would_exceed(replace(plan, round=10))
    assert ledger.rounds_left(plan, most=100) == 0

    unlucky = Ledger(NODES)
    unlucky.record(replace(plan, noise=SharedNoise(noise, 6, 3)))
    assert unlucky.rounds_left(plan, most=100) == 8
    assert unlucky.rounds_left(plan, most=5) == 5


def test_a_ledger_comes_back_from_json_text() -> None:
    """After a round trip through text the events, the budget and the figure are the same."""
    ledger = Ledger(RECORDS)
    for event in (local(0), local(0, "sat-2", 2.0), local(1, attempt=2)):
        ledger.record(event)
    ledger.record(shared(5, 2, node="sat-1"))
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert list(again) == list(ledger)
    assert again.budget == ledger.budget
    assert again.epsilon() == ledger.epsilon()


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.update(version=2),
        lambda state: state.pop("budget"),
        lambda state: state["budget"].update(unit="galaxy"),
        lambda state: state["budget"].update(epsilon=math.nan),
        lambda state: state["events"][0].pop("noise"),
        lambda state: state["events"][0].update(clip=0),
        lambda state: state["events"][0].update(colour="red"),
        lambda state: state["events"][0].update(noise="loud"),
        lambda state: state["events"].append({**state["events"][0], "noise": 9.0}),
    ],
)
def test_a_damaged_state_is_refused(damage: Any) -> None:
    """No state that cannot be understood wholly becomes a ledger that would report less."""
    ledger = Ledger(RECORDS)
    ledger.record(local(0))
    state = ledger.to_json()
    damage(state)
    with pytest.raises(InvalidInputError):
        Ledger.from_json(state)


def test_a_ledger_takes_events_of_its_own_unit_only() -> None:
    """A run's event has no place among records, nor a node's among nodes."""
    with pytest.raises(InvalidInputError, match="of a named node"):
        Ledger(RECORDS).record(shared(8))
    with pytest.raises(InvalidInputError, match="without a node"):
        Ledger(NODES).would_exceed(local(0))


def test_shared_noise_over_several_local_steps_is_refused() -> None:
    """A share of noise in each of many local steps protects no step: only the sum of one does."""
    with pytest.raises(InvalidInputError, match="share the noise of each step"):
        RoundEvent(0, "sat-1", 48, 0.064, SharedNoise(1.0, 6, 8), 1.0)


def test_a_full_ledger_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound an event is refused, and repeating a known one is not."""
    monkeypatch.setattr(ledger_module, "EVENTS_MAX", 2)
    ledger = Ledger(RECORDS)
    ledger.record(local(0))
    ledger.record(local(1))
    assert not ledger.record(local(1))
    with pytest.raises(ledger_module.CapacityError, match="full"):
        ledger.record(local(2))
