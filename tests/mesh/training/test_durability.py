"""Aggregator and nodes are killed at random moments: the same weights, every contribution counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from orbitmesh import IntegrityError, LocalTraining, Mesh, SecureSums
from orbitmesh.trust import issue
from services.training.plan import LocalPlan
from tests.mesh.support import until
from tests.mesh.surviving import strike
from tests.mesh.training.blows import AGGREGATOR, deal, random_blows, times_trained
from tests.mesh.training.support import Plain, digest, each_once, kept_by, spooled, task_of

ROUNDS, SEED = 12, 13
ROUND_S = 0.15
"""About what a round takes: blows are spread over it."""
WITHIN_S = 90.0
CASES: dict[str, dict[str, Any]] = {
    "plain": {"local": LocalTraining(epochs=6, lr=0.05)},
    # Momenta at the nodes and at the aggregator, and a residual that no sent value may be missing from, or be twice in.
    "stateful": {
        "local": LocalTraining(epochs=6, lr=0.002, optimiser="adamw", keep_optimiser=True),
        "strategy": "fedadam",
        "compression": "topk:0.05",
    },
    "secret": {"local": LocalTraining(epochs=6, lr=0.05), "secure_sums": SecureSums()},
}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(nodes=3, directory=tmp_path_factory.mktemp("durable")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def nodes(fragile: Mesh) -> list[str]:
    return sorted(fragile.local.processes())


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The digests of the weights of runs in which nothing dies."""
    return {}


def expected(mesh: Mesh, nodes: list[str], case: str, undisturbed: dict[str, str]) -> str:
    """The digest of a run of that case in which nothing dies."""
    if case not in undisturbed:
        name = f"calm-{case}".replace(" ", "-")
        training = begin(mesh, nodes, case, name)
        training.wait(timeout=WITHIN_S)
        undisturbed[case] = digest(training.weights())
    return undisturbed[case]


def begin(mesh: Mesh, nodes: list[str], case: str, name: str) -> Any:
    return mesh.train(name, task="digits", rounds=ROUNDS, nodes=nodes, seed=SEED, evaluate=False, **CASES[case])


def expect_undisturbed(mesh: Mesh, nodes: list[str], training: Any, case: str, digest_expected: str) -> None:
    """The weights are those of the calm run, to the bit; every round counts each node once; no contribution is left at
    the aggregator, and once the run is deleted nothing at the nodes."""
    status = training.wait(timeout=WITHIN_S)
    assert digest(training.weights()) == digest_expected
    each_once(status, nodes)
    assert not spooled(mesh, training.name)
    assert not training.delete()
    until(lambda: not any(training.name in run for node in nodes for run in kept_by(mesh, node)), "nodes let go of it")


def test_kills_at_random_moments_change_nothing(fragile: Mesh, nodes: list[str], undisturbed: dict[str, str]) -> None:
    """Two of the aggregator and two of nodes; a node trains a round again only where it was killed in it."""
    kill_often(fragile, nodes, undisturbed, "stateful", 8, 2)


def kill_often(mesh: Mesh, nodes: list[str], undisturbed: dict[str, str], case: str, seed: int, each: int) -> None:
    """A run in which the aggregator, and nodes, are killed so many times each."""
    calm = expected(mesh, nodes, case, undisturbed)
    name = f"kills-{case}-{seed}".replace(" ", "-")
    training = begin(mesh, nodes, case, name)
    dealt = deal(mesh, training, random_blows(seed, nodes, ROUNDS, each, each, ROUND_S))
    assert dealt.total() == 2 * each, f"the run was over before all blows were dealt: {dealt}"
    expect_undisturbed(mesh, nodes, training, case, calm)
    for node in nodes:
        trained = times_trained(mesh, node, name)
        again = trained.total() - len(trained)
        assert again <= dealt[node], f"{node} was killed {dealt[node]} times and trained {again} rounds again"


def test_what_was_acknowledged_outlives_the_aggregator(
    fragile: Mesh, nodes: list[str], undisturbed: dict[str, str]
) -> None:
    """It dies in the midst of a round, with two contributions of three on its disk: nobody trains that round again, and
    both are in the sum."""
    calm = expected(fragile, nodes, "stateful", undisturbed)
    training = begin(fragile, nodes, "stateful", "leaderless")
    until(lambda: training.status().rounds_done >= 2, "some rounds are done")
    strike(fragile, nodes[0])
    until(lambda: states(training, nodes[1:]) == {"stored"}, "the other nodes' contributions are durable")
    time.sleep(1.5)
    assert states(training, nodes[1:]) == {"stored"}, "they are no longer"
    for process in (AGGREGATOR, nodes[0]):
        fragile.local.restart(process)
    expect_undisturbed(fragile, nodes, training, "stateful", calm)
    for node in nodes[1:]:
        assert times_trained(fragile, node, "leaderless") == dict.fromkeys(range(ROUNDS), 1)


def states(training: Any, nodes: list[str]) -> set[str]:
    """How nodes are."""
    return {node.state for node in training.status().nodes if node.name in nodes}


@pytest.mark.soak
def test_a_run_that_is_cancelled_and_resumed_is_the_same_run(
    fragile: Mesh, nodes: list[str], undisturbed: dict[str, str]
) -> None:
    """Stopped in the midst of a round, with an aggregator that is started anew in between."""
    calm = expected(fragile, nodes, "stateful", undisturbed)
    training = begin(fragile, nodes, "stateful", "stop-and-go")
    until(lambda: training.status().rounds_done >= 3, "some rounds are done")
    stopped = training.cancel()
    assert stopped.state == "cancelled"
    assert stopped.rounds_done < ROUNDS
    fragile.local.restart(AGGREGATOR)
    again = training.resume()
    assert (again.state, again.rounds_done) == ("running", stopped.rounds_done)
    expect_undisturbed(fragile, nodes, training, "stateful", calm)


@pytest.mark.soak
def test_all_die_at_once(fragile: Mesh, nodes: list[str], undisturbed: dict[str, str]) -> None:
    """The power fails: every process of the mesh goes at one moment, and the run goes on when they are back."""
    calm = expected(fragile, nodes, "stateful", undisturbed)
    training = begin(fragile, nodes, "stateful", "dark")
    until(lambda: training.status().rounds_done >= 2, "some rounds are done")
    for process in (*nodes, AGGREGATOR, "scheduler", "gateway"):
        strike(fragile, process)
    for process in ("scheduler", AGGREGATOR, "gateway", *nodes):
        fragile.local.restart(process)
    expect_undisturbed(fragile, nodes, training, "stateful", calm)


@pytest.mark.soak
def test_identities_are_renewed_within_a_run(fragile: Mesh, nodes: list[str], undisturbed: dict[str, str]) -> None:
    """All get fresh certificates and keys in the midst of a run with secure sums, then die and come back: what each had
    sealed on its disk opens, and the run is the same."""
    calm = expected(fragile, nodes, "secret", undisturbed)
    training = begin(fragile, nodes, "secret", "renewed")
    until(lambda: training.status().rounds_done >= 2, "some rounds are done")
    where = fragile.local.directory
    for process, role in [(AGGREGATOR, "aggregator"), *((node, "executor") for node in nodes)]:
        issue(where / "ca", role, process, where / "identities" / f"{role}-{process}")
        strike(fragile, process)
    for process in (AGGREGATOR, *nodes):
        fragile.local.restart(process)
    expect_undisturbed(fragile, nodes, training, "secret", calm)


def test_one_run_with_damaged_files_keeps_nobody_else_from_going_on(fragile: Mesh, nodes: list[str]) -> None:
    """The aggregator starts, other runs are there, and whoever asks for that one is told what is wrong; it can be
    deleted, and its name taken again."""
    local, asked = LocalTraining(steps=1), {"task": "digits", "rounds": 1, "nodes": nodes, "evaluate": False}
    runs = [fragile.train(name, local=local, **asked) for name in ("hurt", "sound")]
    for run in runs:
        run.wait(timeout=WITHIN_S)
    strike(fragile, AGGREGATOR)
    (weights,) = (fragile.local.directory / "state" / AGGREGATOR / "hurt").glob("*.weights")
    weights.write_bytes(b"")
    fragile.local.restart(AGGREGATOR)
    assert runs[1].status().state == "done"
    assert runs[1].weights().size
    with pytest.raises(IntegrityError, match="'hurt' could not be read"):
        runs[0].status()
    runs[0].delete()
    assert [run.name for run in fragile.trainings() if run.name == "hurt"] == []
    assert fragile.train("hurt", local=local, **asked).wait(timeout=WITHIN_S).state == "done"


@pytest.mark.soak
def test_a_cohort_of_whoever_is_there(fragile: Mesh, nodes: list[str]) -> None:
    """Two of three are asked in turns, while processes die. Who is asked depends on who is there; whoever it was, the
    weights are those of the loop that asks the same."""
    local = LocalTraining(epochs=6, lr=0.05)
    training = fragile.train(
        "in-turns", task="digits", rounds=ROUNDS, nodes=nodes, seed=SEED, evaluate=False, cohort=2, local=local
    )
    deal(fragile, training, random_blows(3, nodes, ROUNDS, 3, 5, ROUND_S))
    status = training.wait(timeout=WITHIN_S)
    plain = Plain(task_of("digits"), len(nodes), LocalPlan(epochs=6, lr=0.05), SEED)
    for each in status.rounds:
        assert len(each.cohort) == 2
        assert sorted(each.contributed) == sorted(each.cohort)
        plain.round([nodes.index(node) for node in each.contributed])
    assert plain.rounds == ROUNDS
    assert np.abs(training.weights() - plain.weights).max() <= 1e-5


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CASES)
def test_many_kills_change_nothing(
    fragile: Mesh, nodes: list[str], undisturbed: dict[str, str], case: str, seed: int
) -> None:
    """Thirty in one run, half of them of the aggregator."""
    kill_often(fragile, nodes, undisturbed, case, 1000 + seed, 15)
