"""Secure sums over real processes: the same weights as plain sums but for rounding, whoever vanishes, and nothing that
the aggregator gets says what one node learned."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh, Privacy, SecureSums
from services.training.plan import LocalPlan
from services.training.task import find_task
from tests.mesh.training.support import Plain

NODES = ["ground-1", "sat-1", "sat-2", "sat-3"]
LOCAL = LocalTraining(epochs=1, lr=0.1)
ROUNDS = 4
CLOSE = 2e-4
"""After four rounds: integers have steps a hundred times finer, but a unit that is just on or off makes more of it."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(nodes=len(NODES), directory=tmp_path_factory.mktemp("secure")) as local:
        yield local


@pytest.fixture(scope="module")
def plain() -> list[np.ndarray]:
    """The weights after each round without a mesh, and without masks."""
    run = Plain(find_task("digits"), len(NODES), LocalPlan(epochs=1, lr=0.1), seed=3)
    return [run.round().copy() for _ in range(ROUNDS)]


def test_the_weights_are_those_of_plain_sums_but_for_rounding(mesh: Mesh, plain: list[np.ndarray]) -> None:
    """With 24 bits a node the integers have steps of a millionth: the mean over masks is the plain one to 1e-6."""
    run = mesh.train(
        "fine", task="digits", rounds=2, nodes=NODES, local=LOCAL, seed=3, compression="int8",
        secure_sums=SecureSums(bits=24),
    )  # fmt: skip
    status = run.wait(timeout=90)
    assert all(set(each.contributed) == set(NODES) for each in status.rounds)
    assert np.allclose(run.weights(), plain[1], rtol=0, atol=1e-6)


def test_a_node_that_vanishes_in_a_round_is_left_out_and_the_sum_is_right(mesh: Mesh, plain: list[np.ndarray]) -> None:
    """Killed before it contributes: three of four unmask, and later, when it is back, it takes part again."""
    run = mesh.train(
        "vanishing", task="digits", rounds=ROUNDS, nodes=NODES, local=LOCAL, seed=3, patience_s=3.0,
        compression="int8", secure_sums=SecureSums(bits=24),
    )  # fmt: skip
    while run.status().rounds_done < 1:
        time.sleep(0.01)
    mesh.local.kill("sat-2")
    status = run.wait(timeout=90)
    mesh.local.restart("sat-2")
    assert status.state == "done"
    contributed = [set(each.contributed) for each in run.status().rounds]
    assert contributed[0] == set(NODES)
    assert contributed[-1] == set(NODES) - {"sat-2"}
    expected = Plain(find_task("digits"), len(NODES), LocalPlan(epochs=1, lr=0.1), seed=3)
    for names in contributed:
        expected.round([NODES.index(name) for name in sorted(names)])
    assert np.allclose(run.weights(), expected.weights, rtol=0, atol=CLOSE)


def test_the_aggregator_is_killed_while_masks_are_open_and_the_sum_is_the_same(
    mesh: Mesh, plain: list[np.ndarray]
) -> None:
    """SIGKILL after every round's first contribution: no mask is used twice, none is lost."""
    run = mesh.train(
        "killed", task="digits", rounds=ROUNDS, nodes=NODES, local=LOCAL, seed=3, compression="int8",
        secure_sums=SecureSums(bits=24),
    )  # fmt: skip
    for delay_s in (0.1, 0.3, 0.2):
        time.sleep(delay_s)
        mesh.local.kill("aggregator")
        mesh.local.restart("aggregator")
    run.wait(timeout=90)
    assert all(set(each.contributed) == set(NODES) for each in run.status().rounds)
    assert np.allclose(run.weights(), plain[-1], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("unit", "local", "epsilon"),
    [("record", LOCAL, 8.0), ("record", LocalTraining(steps=1, lr=1.0), 8.0), ("node", LOCAL, 3000.0)],
    ids=["noise of each node", "noise in shares", "whole nodes"],
)
def test_a_private_run_spends_its_promise_and_no_more(
    mesh: Mesh, unit: str, local: LocalTraining, epsilon: float
) -> None:
    """All rounds are paid for, the ledger agrees with the status, no node says a loss; more rounds are not begun."""
    name = f"private-{unit}-{local.steps}"
    run = mesh.train(
        name, task="digits", rounds=ROUNDS, nodes=NODES, local=local, seed=3, compression="int8",
        secure_sums=SecureSums(), privacy=Privacy(unit=unit, epsilon=epsilon),
    )  # fmt: skip
    status = run.wait(timeout=90)
    assert status.rounds_done == ROUNDS and 0 < status.epsilon <= epsilon
    assert all(each.train_loss is None for each in status.rounds)
    ledger = run.ledger()
    assert ledger.epsilon == pytest.approx(status.epsilon)
    assert ledger.epsilon == max(each.epsilon for each in ledger.entries)
    spent = [each.epsilon for each in status.rounds]
    assert spent == sorted(spent)
    run.resume(rounds=100)
    ended = run.wait(timeout=90)
    assert ended.state == "done" and ended.rounds_done < 100 and "spent" in ended.why
    assert run.ledger().epsilon <= epsilon
