"""What a run's privacy costs: the noise that its rounds need, what they have spent, and when it is over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.aggregator.accounting import Accounting
from services.aggregator.spec import RunSpec, check_spec
from services.privacy.accountant import epsilon
from services.privacy.events import Release, RoundEvent

NODES = [f"sat-{number}" for number in range(8)]
EXAMPLES = dict.fromkeys(NODES, 500)
RECORD, NODE = training_pb2.PRIVACY_UNIT_RECORD, training_pb2.PRIVACY_UNIT_NODE
DELTA = 1e-5


def spec_of(unit: training_pb2.PrivacyUnit, *, budget: float = 2.0, rounds: int = 10, **fields: Any) -> RunSpec:
    asked = training_pb2.TrainingSpec(
        task="mnist5k", rounds=rounds, privacy={"unit": unit, "epsilon": budget, "delta": DELTA}, **fields
    )
    return check_spec(asked, NODES)


def composed(*events: tuple[float, float, int]) -> float:
    """Epsilon of (noise, sample rate, steps): the accountant, which is compared with dp-accounting in tests/privacy."""
    return epsilon([Release(noise, rate, steps) for noise, rate, steps in events], DELTA)


def release(spec: RunSpec, accounting: Accounting, round_index: int, node: str) -> str:
    asked = spec.message.privacy
    steps, rate = accounting.local_steps(500), accounting.sample_rate(500)
    event = RoundEvent(round_index, node, steps, rate, asked.noise_multiplier, asked.clip)
    return json.dumps(event.to_json())


def test_the_paper_s_setting_spends_its_epsilon_and_no_more() -> None:
    """8 nodes of 500 examples, 3 epochs, batch 32: the noise found makes ten rounds cost just below epsilon 2."""
    spec = spec_of(RECORD, local={"epochs": 3})
    accounting = Accounting(spec, None)
    noise = spec.message.privacy.noise_multiplier = accounting.noise(EXAMPLES)
    for index in range(10):
        assert not accounting.exhausted(index, EXAMPLES)
        for node in NODES:
            assert accounting.announced(index, node, release(spec, accounting, index, node))
    spent = accounting.message().epsilon
    assert composed((noise, 32 / 500, 10 * 48)) <= spent <= 2.0
    assert spent == pytest.approx(2.0, rel=0.01)
    assert "spent" in accounting.exhausted(10, EXAMPLES)


def test_what_was_announced_twice_counts_once_and_what_was_not_asked_is_refused() -> None:
    """As after a restart of either end; less noise than asked, another's name or another round is no release of it."""
    spec = spec_of(RECORD, local={"epochs": 1})
    accounting = Accounting(spec, None)
    spec.message.privacy.noise_multiplier = accounting.noise(EXAMPLES)
    good = release(spec, accounting, 0, "sat-1")
    assert accounting.announced(0, "sat-1", good) and not accounting.announced(0, "sat-1", good)
    before = accounting.message().epsilon
    again = Accounting(spec, json.loads(json.dumps(accounting.to_json())))
    assert again.message().epsilon == before and not again.announced(0, "sat-1", good)
    less = json.loads(good) | {"noise": spec.message.privacy.noise_multiplier / 2}
    for index, node, told in ((0, "sat-2", good), (1, "sat-1", good), (0, "sat-1", json.dumps(less)), (0, "sat-3", "")):
        with pytest.raises(InvalidInputError):
            again.announced(index, node, told)
    assert again.message().epsilon == before


@pytest.mark.parametrize("survivors", [6, 7, 8])
def test_shared_noise_is_counted_by_those_who_survived(survivors: int) -> None:
    """More survivors than promised bring more noise: the round costs less, by the root of their number."""
    spec = spec_of(NODE, budget=1000.0, secure_sums={}, compression="int8")
    accounting = Accounting(spec, None)
    noise = spec.message.privacy.noise_multiplier = accounting.noise(EXAMPLES)
    for index in range(10):
        assert accounting.revealed(index, survivors, 1000.0)
        assert not accounting.revealed(index, survivors, 1000.0)
    entry = accounting.message().entries[0]
    assert (entry.survivors, entry.survivors_promised, entry.node) == (survivors, 6, "")
    # Whole steps cost the variance of a lattice, a few squared steps of a thousand.
    assert entry.noise_multiplier == pytest.approx(noise * (survivors / 6) ** 0.5, rel=0.01)
    assert accounting.message().epsilon == pytest.approx(composed((entry.noise_multiplier, 1.0, 10)))


def test_a_run_stops_before_the_round_that_would_overspend() -> None:
    """Also where noise was given that pays for fewer rounds than asked for."""
    spec = spec_of(RECORD, rounds=50, local={"epochs": 1})
    accounting = Accounting(spec, None)
    spec.message.privacy.noise_multiplier = 1.5
    done = 0
    while not accounting.exhausted(done, EXAMPLES):
        for node in NODES:
            accounting.announced(done, node, release(spec, accounting, done, node))
        done += 1
    assert 0 < done < 50
    steps = accounting.local_steps(500)
    assert composed((1.5, 32 / 500, done * steps)) <= 2.0 < composed((1.5, 32 / 500, (done + 1) * steps))
