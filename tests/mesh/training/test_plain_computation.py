"""A run over processes, sessions and disks is the loop that anybody would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh, SecureSums
from services.training.plan import LocalPlan
from tests.mesh.support import until
from tests.mesh.training.support import ENDED_WITHIN_S, Plain, digest, each_once, kept_by, names, spooled, task_of

NODES, ROUNDS, SEED = 3, 3, 11
ROUNDING = 1e-6
"""What three rounds may differ by: numpy's mean multiplies in float64, the aggregator a span at a time in float32, so
single values differ in the last bit after a round, and training goes on from there."""


@pytest.mark.parametrize("alpha", [None, 0.5], ids=["even", "skewed"])
def test_a_run_equals_the_plain_computation(mesh: Mesh, alpha: float | None) -> None:
    """Federated averaging gives the weights of a loop over the shards in this process, the figures of these weights,
    and the loss of that training; with skewed labels nodes weigh as many examples as they have."""
    nodes, name = names(mesh, NODES), f"plain-{alpha is None}".lower()
    plain = Plain(task_of("digits"), NODES, LocalPlan(epochs=1, lr=0.1, momentum=0.5), SEED, alpha)
    assert (len(set(plain.examples)) == NODES) is (alpha is not None)

    training = mesh.train(
        name,
        task="digits",
        rounds=ROUNDS,
        nodes=nodes,
        local=LocalTraining(epochs=1, lr=0.1, momentum=0.5),
        seed=SEED,
        alpha=alpha,
    )
    status = training.wait(timeout=ENDED_WITHIN_S)

    each_once(status, nodes)
    assert [node.examples for node in status.nodes] == plain.examples
    weights = training.weights()
    for done in status.rounds:
        results = [plain.train(node) for node in range(NODES)]
        assert done.train_loss == pytest.approx(
            np.average([result.loss for result in results], weights=plain.examples), abs=ROUNDING
        )
        plain.round()
        assert done.figures == pytest.approx(plain.figures(), abs=ROUNDING)
    assert np.abs(weights - plain.weights).max() <= ROUNDING
    exact = Plain(plain.task, NODES, plain.plan, SEED, alpha)
    exact.weights = weights
    assert dict(status.rounds[-1].figures) == exact.figures(), "the figures are of other weights than were given"
    assert status.rounds[-1].figures["accuracy"] > 0.8


def test_the_same_request_gives_the_same_weights_to_the_bit(mesh: Mesh) -> None:
    """Also under another name; another seed gives others."""
    found = []
    for name, seed in (("bits-1", 5), ("bits-2", 5), ("bits-3", 6)):
        training = mesh.train(name, task="digits", rounds=2, nodes=names(mesh, NODES), seed=seed, evaluate=False)
        training.wait(timeout=ENDED_WITHIN_S)
        found.append(digest(training.weights()))
    assert found[0] == found[1] != found[2]


def test_a_run_that_is_over_leaves_nothing_but_its_weights(mesh: Mesh) -> None:
    """No contribution at the aggregator, no directory at a node."""
    nodes = names(mesh, NODES)
    training = mesh.train("tidy", task="digits", rounds=2, nodes=nodes, compression="int8")
    training.wait(timeout=ENDED_WITHIN_S)
    until(lambda: not any("tidy." in run for node in nodes for run in kept_by(mesh, node)), "nodes let go of the run")
    assert not spooled(mesh, "tidy")
    assert training.weights().shape == (training.status().values,)


def test_a_cohort_takes_turns(mesh: Mesh) -> None:
    """Two of three nodes are asked in each round, each as often as the others, and the weights are those of the loop
    that asks the same."""
    nodes = names(mesh, NODES)
    training = mesh.train("turns", task="digits", rounds=3, nodes=nodes, cohort=2, seed=SEED, evaluate=False)
    status = training.wait(timeout=ENDED_WITHIN_S)
    asked = [node for each in status.rounds for node in each.cohort]
    assert sorted(asked) == sorted([*nodes, *nodes])
    plain = Plain(task_of("digits"), NODES, LocalPlan(epochs=1), SEED)
    for each in status.rounds:
        assert set(each.contributed) == set(each.cohort)
        plain.round([nodes.index(node) for node in each.cohort])
    assert np.abs(training.weights() - plain.weights).max() <= ROUNDING


@pytest.mark.parametrize("sums", [None, SecureSums()], ids=["plain", "secure"])
def test_a_run_goes_on_for_more_rounds(mesh: Mesh, sums: SecureSums | None) -> None:
    """Two rounds and then two more are four rounds, to the bit; with secure sums their scale goes on too, which follows
    the updates, and what their rounding left out."""
    local, name = LocalTraining(epochs=1, lr=0.002, optimiser="adamw"), "secure" if sums else "plain"
    how: dict[str, Any] = {"task": "digits", "nodes": names(mesh, NODES), "local": local, "seed": SEED}
    whole = mesh.train(f"whole-{name}", rounds=4, secure_sums=sums, **how)
    whole.wait(timeout=ENDED_WITHIN_S)
    parts = mesh.train(f"parts-{name}", rounds=2, secure_sums=sums, **how)
    parts.wait(timeout=ENDED_WITHIN_S)
    parts.resume(rounds=4)
    status = parts.wait(timeout=ENDED_WITHIN_S)
    each_once(status, names(mesh, NODES))
    assert digest(parts.weights()) == digest(whole.weights())
    for training in (whole, parts):
        assert not training.delete()
