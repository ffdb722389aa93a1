"""A run outlives the process that leads it, at whatever moment that ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orbitmesh.errors import InvalidInputError
from services.aggregator.rounds import Arrived, Contact, GivenUp, Phase, Round, Stored, Summed, advance
from services.aggregator.store import INITIAL, RunRecord, RunStore
from services.aggregator.strategies.base import State

ROOT = Path(__file__).parents[2]
RUN = RunRecord("mnist", "request-1", {"task": "mnist5k", "rounds": 20}, "running", "", INITIAL, {})
VALUES = 3000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(tmp_path)
    yield opened
    opened.close()


def done(index: int) -> Round:
    state = Round(index=index, cohort=("sat-1", "sat-2"), quorum=1, patience_s=5.0)
    for event in (
        Contact("sat-2", 1.5),
        Arrived("sat-1", index, Stored("ab" * 32, 500, 1234)),
        GivenUp("sat-2", index, "NOT_FINITE"),
        Summed(index),
    ):
        state = advance(state, event)
    return state


def weights_of(weights_round: int) -> np.ndarray:
    return np.random.default_rng(weights_round + 1000).standard_normal(VALUES).astype(np.float32)


def finish(store: RunStore, index: int, state: State, report: dict[str, float]) -> None:
    weights = weights_of(index + 1)
    staged = store.stage_weights("mnist", index + 1, weights.size)
    staged[:] = weights
    store.finish_round("mnist", done(index), store.staged_path("mnist", index + 1), state, report)


def test_a_run_is_there_again_as_it_was(store: RunStore, tmp_path: Path) -> None:
    """With its rounds, the reports, the state of its strategy, and its weights to the bit."""
    assert store.begin(RUN) == store.begin(RUN) == RUN
    store.start_from("mnist", [weights_of(0).tobytes()], VALUES)
    half = advance(Round(index=0, cohort=("sat-1", "sat-2"), quorum=2, patience_s=5.0), Contact("sat-1", 2.0))
    store.put_round("mnist", half)
    finish(store, 0, State({"momentum": weights_of(7)}, {"rounds": 1}), {"accuracy": 0.25})
    store.put_report("mnist", 0, {"accuracy": 0.5})
    store.put_round("mnist", replace(half, index=1))
    again = RunStore(tmp_path)
    assert again.get("mnist") == replace(RUN, weights_round=1, strategy={"rounds": 1})
    kept = again.strategy_state("mnist")
    assert kept.values == {"rounds": 1} and list(kept.arrays) == ["momentum"]
    assert np.array_equal(kept.arrays["momentum"], weights_of(7))
    assert np.array_equal(again.weights("mnist"), weights_of(1))
    assert again.rounds("mnist") == [(done(0), {"accuracy": 0.5}), (replace(half, index=1), {})]
    assert again.rounds("mnist")[0][0].phase is Phase.DONE
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["1.momentum.state", "1.weights"]
    again.close()


def test_names_are_taken_once_and_are_names(store: RunStore) -> None:
    """The same request again is the same run; another one is refused; none leads out of the directory."""
    store.begin(RUN)
    with pytest.raises(InvalidInputError) as taken:
        store.begin(replace(RUN, request_id="request-2"))
    assert taken.value.reason == "ALREADY_EXISTS"
    for name in ("", "../up", "Mnist", "a" * 64, "a/b", "-a", "a\n"):
        with pytest.raises(InvalidInputError):
            store.begin(replace(RUN, name=name))
    with pytest.raises(InvalidInputError) as unknown:
        store.get("digits")
    assert unknown.value.reason == "NOT_FOUND" and "mnist" in unknown.value.message


def test_weights_of_another_kind_are_refused(store: RunStore) -> None:
    """What is read back must be what was meant."""
    store.begin(RUN)
    assert store.weights("mnist") is None
    whole = np.ones(5, "<f4").tobytes()
    for wrong in ([whole], [whole, whole[:4], b"x"], [np.array([np.nan] * 6, "<f4").tobytes()]):
        with pytest.raises(InvalidInputError):
            store.start_from("mnist", wrong, 6)
        assert store.weights("mnist") is None


LEADER = """
import sys
from pathlib import Path
from services.aggregator.store import RunStore
from tests.aggregator.test_store import RUN, VALUES, State, finish, weights_of
store = RunStore(Path(sys.argv[1]))
store.begin(RUN)
if store.weights("mnist") is None:
    store.start_from("mnist", [weights_of(0).tobytes()], VALUES)
while True:
    at = store.get("mnist").weights_round
    finish(store, at, State({"m": weights_of(-at)}, {"round": at}), {"round": at})
    print(at, flush=True)
"""


def test_a_leader_that_is_killed_at_any_moment_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """SIGKILL between any two of its steps: weights, strategy and rounds are always those of one and the same round."""
    rng, last = random.Random(5), -1
    for _ in range(4):
        leader = subprocess.Popen([sys.executable, "-c", LEADER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert leader.stdout is not None
        leader.stdout.readline()
        time.sleep(rng.random() * 0.1)
        os.kill(leader.pid, signal.SIGKILL)
        said = [int(line) for line in leader.communicate()[0].split()]
        store = RunStore(tmp_path)
        run = store.get("mnist")
        assert run.weights_round > max([last, *said]), "what was said to be over is over"
        assert np.array_equal(store.weights("mnist"), weights_of(run.weights_round))
        state = store.strategy_state("mnist")
        assert state.values == {"round": run.weights_round - 1}
        assert np.array_equal(state.arrays["m"], weights_of(1 - run.weights_round))
        assert [state.index for state, _ in store.rounds("mnist")] == list(range(run.weights_round))
        last = run.weights_round - 1
        store.close()
