"""Training on a mesh of real processes through the SDK."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orbitmesh import (
    AsyncMesh,
    CancelledError_,
    InvalidInputError,
    Link,
    LocalTraining,
    Mesh,
    Privacy,
    TrainingRound,
    TransportError,
)
from services.training.flat import load_flat
from services.training.task import find_task

WAIT_S = 60.0


def until(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds, which it must do at some time."""
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def listed(mesh: Mesh) -> list[str] | None:
    """The names of the runs; None where the aggregator is out of reach."""
    try:
        return [run.name for run in mesh.trainings(timeout=30)]
    except TransportError:
        return None


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two satellites and a ground node, with emulated links."""
    with Mesh.local(nodes=3, link=Link(latency_ms=2, rate_mbps=1000)) as local:
        yield local


def test_a_local_mesh_has_an_aggregator_that_comes_back_where_it_was(mesh: Mesh) -> None:
    """Killed, it is a typed error worth a retry; started again, the gateway finds it without being told."""
    assert mesh.trainings() == []
    pid = mesh.local.services()["aggregator"]
    mesh.local.kill("aggregator")
    with (
        Mesh.connect(mesh.local.gateway, identity=mesh.local.identity, patience=0) as hasty,
        pytest.raises(TransportError) as away,
    ):
        hasty.trainings(timeout=30)
    assert away.value.retryable
    mesh.local.restart("aggregator")
    assert mesh.local.services()["aggregator"] != pid
    until(lambda: listed(mesh) == [], "the gateway reaches it again")


def test_the_aggregators_links_are_emulated_as_the_gateways(mesh: Mesh) -> None:
    """It has one to each satellite, which can be cut and restored by the names of both ends; none to its own place."""
    relays = mesh.local.stats()["relays"]
    assert {name for name in relays if "aggregator" in name} == {"aggregator>sat-1", "aggregator>sat-2"}
    mesh.local.cut("aggregator", "sat-1")
    assert mesh.local.stats()["relays"]["aggregator>sat-1"]["state"] == "cut"
    mesh.local.restore("sat-1", "aggregator")
    assert mesh.local.stats()["relays"]["aggregator>sat-1"]["state"] == "up"
    with pytest.raises(InvalidInputError, match="no link"):
        mesh.local.cut("aggregator", "ground-1")


def test_what_was_learnt_is_worth_what_the_mesh_says(mesh: Mesh) -> None:
    """The weights, put into a model of the task here, give the figures that a node measured after the last round."""
    training = mesh.train("worth", task="digits", rounds=4, nodes=["sat-1", "ground-1"], local=LocalTraining(lr=0.1))
    status = training.wait(timeout=WAIT_S)
    assert (status.state, status.rounds_done, len(status.rounds)) == ("done", 4, 4)
    assert status.spec.local == LocalTraining(epochs=1, lr=0.1)
    assert [each.contributed for each in status.rounds] == [("sat-1", "ground-1")] * 4
    task = find_task("digits")
    model = task.model(0)
    weights = training.weights()
    load_flat(model, weights)
    assert weights.size == status.values
    assert task.evaluate(model) == pytest.approx(dict(status.rounds[-1].figures), rel=1e-5)
    losses = [each.train_loss or 0.0 for each in status.rounds]
    assert losses == sorted(losses, reverse=True)


def test_a_watch_outlives_gateway_and_aggregator_and_the_run_is_the_same(mesh: Mesh) -> None:
    """Both are killed with SIGKILL and started again while the run goes on: every round is told once it is done, none
    twice as it was, and the weights are to the bit those of a run that nobody disturbed."""
    asked: dict[str, Any] = {"task": "digits", "rounds": 12, "seed": 5, "local": LocalTraining(epochs=4)}
    calm = mesh.train("calm", **asked)
    calm.wait(timeout=WAIT_S)
    training = mesh.train("shaken", **asked)
    struck: dict[int, str] = {2: "gateway", 5: "aggregator"}
    told: list[TrainingRound] = []
    for update in training.watch():
        told += update.rounds
        for index in [index for index in struck if update.rounds_done > index]:
            service = struck.pop(index)
            mesh.local.kill(service)
            mesh.local.restart(service)
    assert struck == {}
    assert sorted({each.index for each in told if each.done_at is not None}) == list(range(12))
    assert all(one != other for one, other in itertools.pairwise(told))
    until(lambda: listed(mesh) is not None, "the gateway reaches the aggregator again")
    assert training.weights().tobytes() == calm.weights().tobytes()


def test_a_cancelled_run_goes_on_where_it_was(mesh: Mesh) -> None:
    """Waiting for it is an error that says so; resumed it ends with the weights of a run that was never stopped."""
    asked: dict[str, Any] = {"task": "digits", "seed": 6, "local": LocalTraining(epochs=4)}
    training = mesh.train("stopped", rounds=1000, **asked)
    for update in training.watch():
        if update.rounds_done >= 2:
            break
    cancelled = training.cancel()
    assert (cancelled.state, training.cancel().state) == ("cancelled", "cancelled")
    with pytest.raises(CancelledError_):
        training.wait()
    rounds = cancelled.rounds_done + 2
    training.resume(rounds=rounds)
    assert training.wait(timeout=WAIT_S).rounds_done == rounds
    whole = mesh.train("unstopped", rounds=rounds, **asked)
    whole.wait(timeout=WAIT_S)
    assert training.weights().tobytes() == whole.weights().tobytes()


def test_the_ledger_of_a_private_run_adds_up(mesh: Mesh) -> None:
    """One entry for each node and round; what was spent is what the status says, and within the promise."""
    training = mesh.train(
        "private", task="digits", rounds=2, privacy=Privacy(unit="record", epsilon=5.0), local=LocalTraining(steps=2)
    )
    status = training.wait(timeout=WAIT_S)
    ledger = training.ledger()
    assert ledger.promised == status.spec.privacy
    assert ledger.promised is not None
    assert (ledger.promised.unit, ledger.promised.epsilon, ledger.promised.delta) == ("record", 5.0, 1e-5)
    assert ledger.promised.noise_multiplier is not None
    assert 0 < ledger.epsilon <= 5.0
    assert status.epsilon == pytest.approx(ledger.epsilon)
    assert {(entry.round, entry.node) for entry in ledger.entries} == {
        (index, node) for index in range(2) for node in ("ground-1", "sat-1", "sat-2")
    }
    assert max(entry.epsilon for entry in ledger.entries) == pytest.approx(ledger.epsilon)


def test_a_run_that_cannot_be_is_a_typed_error_where_it_is_waited_for(mesh: Mesh) -> None:
    """No node has the task: the run fails, and the error names it and what there is."""
    training = mesh.train("impossible", task="sorcery", rounds=2)
    with pytest.raises(InvalidInputError, match=r"sorcery.*digits"):
        training.wait(timeout=WAIT_S)
    with pytest.raises(InvalidInputError, match="no weights"):
        training.weights()
    with pytest.raises(InvalidInputError) as taken:
        mesh.train("impossible", task="digits", rounds=2)
    assert taken.value.reason == "ALREADY_EXISTS"


async def test_the_async_client_sees_the_same_runs(mesh: Mesh) -> None:
    """A run that one client began is watched to its end by another."""
    mesh.train("shared", task="digits", rounds=3)
    async with AsyncMesh.connect(mesh.local.gateway, identity=mesh.local.identity) as other:
        training = await other.training("shared")
        states = [update.state async for update in training.watch()]
        assert states[-1] == "done"
        assert "shared" in [run.name for run in await other.trainings()]
