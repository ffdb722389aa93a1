"""Training runs in slices of a real mesh: who is let in, what leaves under which name, and that nobody stays in one."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orbitmesh import LocalTraining, Mesh, SecureSums
from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, PermissionError_
from orbitmesh.slice_results import SliceTraffic
from orbitmesh.trust import Role, issue, load_identity
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from tests.mesh.support import channel_to, until
from tests.mesh.training.puppet import Puppet, in_the_mesh
from tests.mesh.training.support import kept_by

CALL_S = 30.0
NODES = 3
GROUPED = 4
FOREVER = 1_000_000


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose aggregator is killed."""
    with Mesh.local(nodes=GROUPED, directory=tmp_path_factory.mktemp("sliced")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def nodes(sliced: Mesh) -> list[str]:
    return sorted(sliced.local.processes())


@pytest.fixture(scope="module")
def stranger(sliced: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The mesh as another client has it."""
    identity = tmp_path_factory.mktemp("stranger")
    issue(sliced.local.directory / "ca", Role.CLIENT, "stranger", identity)
    with Mesh.connect(sliced.local.gateway, identity=identity) as mesh:
        yield mesh


@contextmanager
def held(mesh: Mesh, name: str, *, tenant: str = "local", release: bool = True, **profile: Any) -> Iterator[None]:
    """A slice with something on every node, for as long as the block runs; releasing it fails where work is in it."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        stub = slices_pb2_grpc.SlicesServiceStub(channel)
        has = {"CPU": 0.01, "BandwidthGbps": 0.01}
        message = slices_pb2.SliceProfile(
            snssai=slices_pb2.Snssai(sst=1), resources=has, latency_ms=60_000.0, nodes_max=16, **profile
        )
        define = slices_pb2.DefineSliceRequest(name=name, tenant=tenant, profile=message, request_id=str(uuid.uuid4()))
        stub.DefineSlice(define, timeout=CALL_S)
        state = stub.ListSlices(slices_pb2.ListSlicesRequest(), timeout=CALL_S)
        here = [each.name for each in state.nodes if not each.absent and each.name in (message.nodes or [each.name])]
        rows = [
            slices_pb2.SliceAllocation(slice=name, node=node, served=1 / len(here), resources=has) for node in here
        ]
        apply = slices_pb2.ApplyRequest(allocations=rows, etag=state.etag, request_id=str(uuid.uuid4()))
        stub.Apply(apply, timeout=CALL_S)
        yield
        if release:
            found = stub.GetSlice(slices_pb2.GetSliceRequest(name=name), timeout=CALL_S).slice
            request = slices_pb2.ReleaseRequest(name=name, etag=found.etag, request_id=str(uuid.uuid4()))
            stub.Release(request, timeout=CALL_S)


def traffic(mesh: Mesh, name: str) -> SliceTraffic:
    """What was measured of a slice."""
    return mesh.slices.get(name).traffic


def refusal(act: Callable[[], Any]) -> MeshError:
    """The error of what has to be refused."""
    with pytest.raises(MeshError) as refused:
        act()
    return refused.value


def test_a_run_uses_only_a_slice_of_its_tenant_and_a_refused_one_leaves_nothing(
    sliced: Mesh, nodes: list[str]
) -> None:
    """Another tenant's slice, one that does not exist, one without an allocation, one that is elsewhere, a full one:
    by reasons that say so. The aggregator knows no such run, nor does any node, and the name is free."""
    small: dict[str, Any] = {"task": "digits", "rounds": 1, "nodes": nodes[:NODES], "evaluate": False}
    sliced.slices.define("plan", resources={"CPU": 0.01})
    with (
        held(sliced, "theirs", tenant="somebody"),
        held(sliced, "single", max_number_of_ues=1),
        held(sliced, "elsewhere", nodes=nodes[NODES:]),
    ):
        first = sliced.train("first", **small | {"rounds": FOREVER}, slice="single")
        for name, error, reason in (
            ("theirs", PermissionError_, "SLICE_NOT_YOURS"),
            ("nowhere", PermissionError_, "SLICE_NOT_YOURS"),
            ("plan", InvalidInputError, "FAILED_PRECONDITION"),
            ("elsewhere", InvalidInputError, "FAILED_PRECONDITION"),
            ("single", CapacityError, "SLICE_FULL"),
            ("No slice!", InvalidInputError, "INVALID_INPUT"),
        ):
            refused = refusal(lambda name=name: sliced.train("refused", **small, slice=name))  # type: ignore[misc]
            assert isinstance(refused, error)
            assert refused.reason == reason
            assert [run.name for run in sliced.trainings()] == ["first"]
        assert sliced.slices.get("single").admitted == 1
        assert first.cancel().state == "cancelled"
        assert sliced.slices.get("single").admitted == 0
        run = sliced.train("refused", **small, slice="single")
        assert run.wait(timeout=60.0).spec.slice == "single"
        assert not any("refused" in kept for node in nodes[NODES:] for kept in kept_by(sliced, node))
        assert first.resume(rounds=FOREVER).state == "running"
        assert refusal(lambda: run.resume(rounds=FOREVER)).reason == "SLICE_FULL"
        assert run.status().state == "done"
        first.cancel()
    with Mesh.connect(sliced.local.gateway, identity=sliced.local.operator_identity) as operator:
        assert operator.slices.get("plan").state == "defined"
    sliced.slices.release("plan")
    for each in (first, run):
        each.delete()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "in groups"])
def test_what_a_round_sends_leaves_in_the_slice_of_its_run(sliced: Mesh, nodes: list[str], secure: bool) -> None:
    """The ports of those who send count at least the bytes of the contributions for the slice, with groups also those
    that go from a node to its head; and no more than was sent for this run: the same one without a slice adds none."""
    groups = SecureSums(groups=[nodes[:2], nodes[2:]]) if secure else None
    asked: dict[str, Any] = {
        "task": "mnist5k", "rounds": 2, "nodes": nodes, "evaluate": False, "secure_sums": groups,
        "local": LocalTraining(steps=1, lr=0.05),
    }  # fmt: skip
    name = "grouped" if secure else "bulk"
    with held(sliced, name):
        outside = sliced.train(f"out-of-{name}", **asked)
        outside.wait(timeout=60.0)
        inside = sliced.train(f"in-{name}", **asked, slice=name)
        status = inside.wait(timeout=60.0)
        contributions = [each for one in status.rounds for each in one.contributions]
        sent = sum(each.size_bytes for each in contributions if not each.via)
        # What came in a sum was brought to a head before: as many bytes of each node as of any other.
        brought = sum(each.via != "" for each in contributions) * max(each.size_bytes for each in contributions)
        assert bool(brought) == secure
        assert sent + brought > 100_000
        until(lambda: traffic(sliced, name).sent_bytes >= sent + brought, "the ports told of what the slice sent")
        wire = sum(node.up_bytes + node.down_bytes for node in inside.status().nodes) + brought
        assert traffic(sliced, name).sent_bytes < 1.5 * wire
        for run in (inside, outside):
            run.delete()


@pytest.mark.parametrize("slice_name", ["down", None])
def test_what_the_aggregator_sends_goes_in_the_slice_of_the_run(
    sliced: Mesh, nodes: list[str], slice_name: str | None, tmp_path: Path
) -> None:
    """Orders, weights, word of what is stored and of the end, as a node hears them that is none of ours."""
    puppet = Puppet()
    with held(sliced, "down", nodes=nodes[:1]), in_the_mesh(sliced, "puppet", tmp_path, puppet):
        run = sliced.train(
            f"heard-{slice_name}".lower(), task="digits", rounds=2, nodes=[nodes[0], "puppet"], evaluate=False,
            slice=slice_name,
        )  # fmt: skip
        run.wait(timeout=60.0)
        until(lambda: puppet.ended == puppet.sessions == 1, "it was told of the end")
        assert puppet.slices == {slice_name or ""}
        run.delete()


def test_a_run_keeps_its_slice_through_kills_and_gives_it_back_when_it_has_ended(
    sliced: Mesh, nodes: list[str]
) -> None:
    """While it goes on its slice cannot be released, also after the aggregator and the slices service were killed; once
    it has ended, it can. Where the aggregator was killed before it gave its place back, it does so when it is back."""
    long: dict[str, Any] = {"task": "digits", "nodes": nodes[:NODES], "evaluate": False, "slice": "kept"}
    with held(sliced, "kept", max_number_of_ues=1):
        run = sliced.train("kept", **long, rounds=FOREVER, local=LocalTraining(steps=1, lr=0.05))
        until(lambda: run.status().rounds_done > 0, "a round is done")
        for name in ("aggregator", "slices"):
            sliced.local.restart(name)
            until(lambda: _goes_on(run), "rounds go on")
            assert refusal(lambda: sliced.slices.release("kept")).reason == "SLICE_IN_USE"
            assert sliced.slices.get("kept").admitted == 1
        assert run.status().spec.slice == "kept"
        run.cancel()
        assert sliced.slices.get("kept").admitted == 0
        run.delete()
        # The slices service is away when the run ends: it is told when it is back, by whoever is there then.
        run = sliced.train("orphan", **long, rounds=FOREVER, local=LocalTraining(steps=1, lr=0.05))
        sliced.local.kill("slices")
        assert run.cancel().state == "cancelled"
        sliced.local.kill("aggregator")
        sliced.local.restart("slices")
        assert sliced.slices.get("kept").admitted == 1
        sliced.local.restart("aggregator")
        until(lambda: sliced.slices.get("kept").admitted == 0, "the place was given back")
        run.delete()


def test_a_run_whose_place_is_gone_waits_until_it_has_another_one(
    sliced: Mesh, nodes: list[str], stranger: Mesh
) -> None:
    """Its tenant gives it back and lets other work in before the aggregator is back: the run says what it waits for,
    and goes on once there is room. Nobody else may have it go on for longer."""
    with held(sliced, "one", max_number_of_ues=1):
        run = sliced.train(
            "patient", task="digits", rounds=FOREVER, nodes=nodes[:NODES], evaluate=False, slice="one",
            local=LocalTraining(steps=1, lr=0.05),
        )  # fmt: skip
        until(lambda: run.status().rounds_done > 0, "a round is done")
        sliced.local.kill("aggregator")
        _withdraw_all(sliced, "patient")
        with sliced.slices.admit("one"):
            sliced.local.restart("aggregator")
            until(lambda: run.status().state == "paused", "it waits")
            status = run.status()
            assert "slice" in status.why
            assert "one" in status.why
            done = status.rounds_done
            assert refusal(lambda: stranger.training("patient").resume(FOREVER - 1)).reason == "SLICE_NOT_YOURS"
            assert run.status().rounds_done == done
        until(lambda: run.status().rounds_done > done, "it goes on")
        run.cancel()
        run.delete()


def _goes_on(run: Any) -> bool:
    try:
        done = run.status().rounds_done
        until(lambda: run.status().rounds_done > done + 1, "a round more is done")
    except MeshError:
        return False
    return True


def _withdraw_all(mesh: Mesh, run: str) -> None:
    """Gives back the place of a run as its tenant could: its name is what the aggregator wrote down."""
    database = sqlite3.connect(mesh.local.directory / "state" / "aggregator" / "aggregator.sqlite")
    [(request_id, holder)] = database.execute("SELECT request_id, holder FROM places").fetchall()
    database.close()
    assert run in request_id
    assert holder == "spiffe://orbitmesh/client/local"
    with channel_to(mesh.local.gateway, load_identity(mesh.local.identity), Role.GATEWAY, "gateway") as channel:
        stub = slices_pb2_grpc.SlicesServiceStub(channel)
        stub.Withdraw(slices_pb2.WithdrawRequest(request_id=request_id), timeout=CALL_S)
