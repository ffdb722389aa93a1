"""Places of a pipeline filled anew, with real executors: standbys, spares, repetitions, nodes that come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.rpc import map_rpc_error
from orbitmesh.v1 import scheduler_pb2
from services.scheduler.holdings import SUSPECT_S
from tests.mesh.support import Model, deployed, stages_on, tokens_of, until
from tests.scheduler.conftest import Scheduler, nodes, scheduler_of, standbys

KV_TOKENS = 256


@pytest.fixture
def scheduler(mesh: Mesh, tmp_path: Path) -> Iterator[Scheduler]:
    # Those that the test before has killed and started again have not all joined yet.
    until(lambda: all(node.state == "up" for node in mesh.nodes()), "all nodes are up")
    with scheduler_of(mesh, tmp_path) as scheduler:
        yield scheduler


def with_standbys(scheduler: Scheduler, name: str) -> scheduler_pb2.Deployment:
    """A deployment of two stages once both have a standby: nodes that a test before made suspect give none at first."""
    until(lambda: set(standbys(scheduler.deployment(name))) == {0, 1}, "both have a standby", SUSPECT_S + 10)
    return scheduler.deployment(name)


# First, while nobody is suspect yet: a node that is gets no new place for half a minute.
def test_a_killed_node_leaves_its_deployment_ready_while_a_standby_waits_and_comes_back_as_one(
    mesh: Mesh, scheduler: Scheduler, tiny: Model
) -> None:
    """The loss is said in words; after the replacement the node that comes back gets no place but stands by."""
    with deployed(mesh, tiny, "kept", stages=2, standbys=1, kv_tokens=KV_TOKENS):
        before = with_standbys(scheduler, "kept")
        lost = next(node for node in nodes(before) if node != "ground-1")
        index = nodes(before).index(lost)
        mesh.local.kill(lost)
        until(lambda: lost in scheduler.deployment("kept").failure, "the loss is noticed")
        assert scheduler.deployment("kept").state == scheduler_pb2.DEPLOYMENT_STATE_READY
        answers = scheduler.replace("kept", index, lost)
        assert nodes(answers[-1].deployment)[index] == standbys(before)[index]
        mesh.local.restart(lost)
        until(lambda: set(standbys(scheduler.deployment("kept"))) == {0, 1}, "both stages have a standby again")
        assert nodes(scheduler.deployment("kept")) == nodes(answers[-1].deployment), "nothing moves back by itself"
        assert scheduler.deployment("kept").failure == ""


def test_a_warm_standby_takes_the_place_at_once_and_is_refilled(mesh: Mesh, scheduler: Scheduler, tiny: Model) -> None:
    """The first message has it; a repetition changes nothing; a new standby is loaded elsewhere, unasked."""
    with deployed(mesh, tiny, "warm", stages=2, standbys=1, kv_tokens=KV_TOKENS):
        before = with_standbys(scheduler, "warm")
        assert not set(standbys(before).values()) & set(nodes(before)), "nodes outside the pipeline come first"
        for index, node in standbys(before).items():
            assert "warm" in stages_on(mesh, node)
            assert stages_on(mesh, node)["warm"].stage_index == index
        old, new = nodes(before)[1], standbys(before)[1]
        answers = scheduler.replace("warm", 1, old)
        assert [nodes(answer.deployment) for answer in answers] == [[nodes(before)[0], new]]
        assert answers[0].deployment.version > before.version
        assert new not in standbys(answers[0].deployment).values()
        again = scheduler.replace("warm", 1, old)
        assert [nodes(answer.deployment) for answer in again] == [[nodes(before)[0], new]]
        until(lambda: 1 in standbys(scheduler.deployment("warm")), "the standby is refilled")
        after = scheduler.deployment("warm")
        assert nodes(after) == [nodes(before)[0], new]
        assert standbys(after)[1] not in (new, old), "whom a gateway cannot reach stands by for nothing"
        assert after.state == scheduler_pb2.DEPLOYMENT_STATE_READY
    until(lambda: all("warm" not in stages_on(mesh, node.name) for node in mesh.nodes()), "all is let go of")


def test_two_gateways_at_once_get_one_replacement(mesh: Mesh, scheduler: Scheduler, tiny: Model) -> None:
    """Without a standby the best spare is loaded, once, with progress; both callers are told of the same node."""
    with deployed(mesh, tiny, "spare", stages=2, kv_tokens=KV_TOKENS):
        before = scheduler.deployment("spare")
        start = threading.Barrier(2)

        def call(_: int) -> list[scheduler_pb2.ReplaceStageResponse]:
            start.wait()
            return scheduler.replace("spare", 0, nodes(before)[0])

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(call, range(2))
        assert nodes(first[-1].deployment) == nodes(second[-1].deployment)
        taken = nodes(first[-1].deployment)[0]
        assert taken != nodes(before)[0]
        assert any(answer.progress for answer in [*first, *second]), "somebody saw it load"
        assert first[-1].deployment.version == second[-1].deployment.version == before.version + 1
        holders = [node.name for node in mesh.nodes() if "spare" in stages_on(mesh, node.name)]
        assert sorted(holders) == sorted({*nodes(before), taken})


def test_where_no_node_can_the_error_says_so_and_that_a_retry_may_help(
    mesh: Mesh, scheduler: Scheduler, tiny: Model
) -> None:
    """Only the named nodes may serve this deployment, and both have a place without room to spare."""
    with deployed(mesh, tiny, "alone", stages=1, nodes=["sat-1"], kv_tokens=KV_TOKENS):
        with pytest.raises(grpc.RpcError) as refused:
            scheduler.replace("alone", 0, "sat-1")
        error = map_rpc_error(refused.value)
        assert (error.reason, error.retryable) == ("NO_SPARE_NODE", True)
        assert error.metadata["node"] == "sat-1"
        assert nodes(scheduler.deployment("alone")) == ["sat-1"]


@pytest.mark.parametrize(
    ("name", "index", "hand_over", "reason"),
    [
        ("nobody", 0, False, "UNKNOWN_MODEL"),
        ("bad", 7, False, "INVALID_INPUT"),
        ("bad", 0, True, "FAILED_PRECONDITION"),
    ],
)
def test_replacements_that_make_no_sense_are_refused(
    mesh: Mesh, scheduler: Scheduler, tiny: Model, name: str, index: int, hand_over: bool, reason: str
) -> None:
    """No such deployment, no such place, no such hand-over: each by its own reason, and nothing changes."""
    with deployed(mesh, tiny, "bad", stages=1, nodes=["sat-2"], kv_tokens=KV_TOKENS):
        with pytest.raises(grpc.RpcError) as refused:
            scheduler.replace(name, index, "sat-2", hand_over=hand_over)
        assert map_rpc_error(refused.value).reason == reason
        assert scheduler.deployment("bad").version == scheduler.deployment("bad").version


def test_watchers_see_what_is_there_what_changes_and_what_goes(mesh: Mesh, scheduler: Scheduler, tiny: Model) -> None:
    """The stream begins with the deployments that there are and ends, for one, with its being taken down."""
    with deployed(mesh, tiny, "seen", stages=1, nodes=["sat-1", "sat-2"], kv_tokens=KV_TOKENS):
        call = scheduler.stub.WatchDeployments(scheduler_pb2.WatchDeploymentsRequest(names=["seen"]), timeout=60)
        first = next(call)
        assert (first.deployment.name, first.deleted) == ("seen", False)
        scheduler.replace("seen", 0, nodes(first.deployment)[0])
        second = next(call)
        assert nodes(second.deployment) != nodes(first.deployment)
        assert second.deployment.version > first.deployment.version
    last = _until_deleted(call)
    assert (last.deployment.name, last.deleted) == ("seen", True)
    call.cancel()


def _until_deleted(call: Iterator[scheduler_pb2.WatchDeploymentsResponse]) -> scheduler_pb2.WatchDeploymentsResponse:
    return next(answer for answer in call if answer.deleted)


def test_a_name_is_free_again_although_a_node_still_holds_a_stage_of_the_one_before(
    mesh: Mesh, scheduler: Scheduler, tiny: Model
) -> None:
    """A deployment was taken down while a node that had lost its place in it still held its stage."""
    with deployed(mesh, tiny, "again", stages=2, nodes=["sat-1", "sat-2", "sat-3"], kv_tokens=KV_TOKENS):
        old = nodes(scheduler.deployment("again"))[0]
        scheduler.replace("again", 0, old)
    assert stages_on(mesh, old)["again"].layer_stop < tiny.layers
    with deployed(mesh, tiny, "again", stages=1, nodes=[old], kv_tokens=KV_TOKENS):
        assert stages_on(mesh, old)["again"].layer_stop == tiny.layers
        assert tokens_of(mesh, "again", [1, 2, 3], 5) == tiny.answer([1, 2, 3], 5)
