"""What operators ask of processes: by whom, through whom, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import InvalidInputError, MeshError, PermissionError_
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc
from tests.mesh.support import channel_to

CALL_S = 30.0


@pytest.fixture(scope="module")
def ops(mesh: Mesh) -> Iterator[ops_pb2_grpc.OpsServiceStub]:
    """The gateway, asked by an operator."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        yield ops_pb2_grpc.OpsServiceStub(channel)


def test_the_gateway_tells_of_every_process(mesh: Mesh, ops: ops_pb2_grpc.OpsServiceStub) -> None:
    """Each answers for itself, with a process of its own."""
    names = ["gateway/gateway", "scheduler/scheduler", "slices/slices", "aggregator/aggregator"]
    names += [f"executor/{node.name}" for node in mesh.nodes() if node.state == "up"]
    pids = set()
    for name in names:
        told = ops.GetProcess(ops_pb2.GetProcessRequest(process=name), timeout=CALL_S)
        assert told.process == name and told.memory_bytes > 1 << 20 and not told.draining
        assert ops.ListTransfers(ops_pb2.ListTransfersRequest(process=name), timeout=CALL_S).process == name
        pids.add(told.pid)
    assert len(pids) == len(names)


def test_a_process_that_is_asked_directly_tells_of_itself_alone(mesh: Mesh) -> None:
    """Of another process, and of the whole mesh, it says whom to ask."""
    identity = load_identity(mesh.local.operator_identity)
    node = next(node for node in mesh.nodes() if node.state == "up")
    with channel_to(node.address, identity, Role.EXECUTOR, node.name) as channel:
        stub = ops_pb2_grpc.OpsServiceStub(channel)
        own = stub.GetProcess(ops_pb2.GetProcessRequest(), timeout=CALL_S)
        assert own.process == f"executor/{node.name}"
        for call, request in (
            (stub.GetProcess, ops_pb2.GetProcessRequest(process="scheduler/scheduler")),
            (stub.GetTopology, ops_pb2.GetTopologyRequest()),
            (stub.ListGenerations, ops_pb2.ListGenerationsRequest()),
            (stub.ExplainTrace, ops_pb2.ExplainTraceRequest()),
        ):
            with pytest.raises(InvalidInputError, match="ask a gateway"), mapped_errors():
                call(request, timeout=CALL_S)


@pytest.mark.parametrize("process", ["executor/nobody", "executor/", "nonsense", "client/local", "x" * 5000, "\x00/…"])
def test_a_process_that_is_not_there_is_named_with_those_that_are(
    ops: ops_pb2_grpc.OpsServiceStub, process: str
) -> None:
    """A typed error; what was asked for is cut in it."""
    with pytest.raises(InvalidInputError, match="gateway/gateway") as refused, mapped_errors():
        ops.GetProcess(ops_pb2.GetProcessRequest(process=process), timeout=CALL_S)
    assert refused.value.reason == "NOT_FOUND" and len(refused.value.message) < 600


def test_a_level_that_is_none_changes_nothing(ops: ops_pb2_grpc.OpsServiceStub) -> None:
    """It is refused before anybody is asked."""
    for process in ("", "scheduler/scheduler"):
        with pytest.raises(InvalidInputError, match="debug, info, warning, error"), mapped_errors():
            ops.SetLogLevel(ops_pb2.SetLogLevelRequest(process=process, level="loud"), timeout=CALL_S)
        told = ops.GetProcess(ops_pb2.GetProcessRequest(process=process), timeout=CALL_S)
        assert told.log_level == "info"


def test_nobody_but_an_operator_is_told(mesh: Mesh) -> None:
    """A client hears which role may, for every method."""
    identity = load_identity(mesh.local.identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        stub = ops_pb2_grpc.OpsServiceStub(channel)
        for method in ops_pb2.DESCRIPTOR.services_by_name["OpsService"].methods:
            request = getattr(ops_pb2, method.input_type.name)()
            with pytest.raises(PermissionError_) as refused, mapped_errors():
                getattr(stub, method.name)(request, timeout=CALL_S)
            assert "operator" in refused.value.message


def test_a_trace_that_nobody_knows_and_a_call_without_time_are_refused(ops: ops_pb2_grpc.OpsServiceStub) -> None:
    """By reasons that say so."""
    with pytest.raises(MeshError) as refused, mapped_errors():
        ops.ExplainTrace(ops_pb2.ExplainTraceRequest(trace_id="0" * 32), timeout=CALL_S)
    assert refused.value.reason == "NOT_FOUND"
    with pytest.raises(grpc.RpcError) as raw:
        ops.GetTopology(ops_pb2.GetTopologyRequest(), timeout=0.000001)
    assert raw.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
