"""Faults that an operator puts into processes on purpose: each does what it says, and the mesh bears it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import InvalidInputError, MeshError, TransportError
from orbitmesh.rpc import map_rpc_error, mapped_errors
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from tests.mesh.support import Models, channel_to, deployed, until

CALL_S = 30.0
TOKENS = 200


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of its own, whose processes take faults."""
    with Mesh.local(nodes=2, directory=tmp_path_factory.mktemp("breakable"), allow_faults=True) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def ops(breakable: Mesh) -> Iterator[ops_pb2_grpc.OpsServiceStub]:
    """The gateway, asked by an operator."""
    identity = load_identity(breakable.local.operator_identity)
    with channel_to(breakable.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        yield ops_pb2_grpc.OpsServiceStub(channel)


def inject(ops: ops_pb2_grpc.OpsServiceStub, request: ops_pb2.InjectFaultRequest) -> ops_pb2.InjectFaultResponse:
    with mapped_errors():
        answer: ops_pb2.InjectFaultResponse = ops.InjectFault(request, timeout=CALL_S)
    return answer


def test_a_process_takes_no_faults_unless_it_was_told_to(mesh: Mesh) -> None:
    """By a flag of its own, which no mesh has by default; nothing happens to it."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        stub = ops_pb2_grpc.OpsServiceStub(channel)
        for process in ("", "scheduler/scheduler", f"executor/{next(iter(mesh.local.processes()))}"):
            with pytest.raises(InvalidInputError, match="--allow-faults"):
                inject(stub, ops_pb2.InjectFaultRequest(process=process, crash=True))


@pytest.mark.parametrize(
    "fault",
    [
        {}, {"crash": False}, {"stall_s": 0.0}, {"stall_s": float("nan")}, {"stall_s": 1e9}, {"cut_sessions": False},
        {"refuse": ops_pb2.RefusedCalls(for_s=-1)}, {"delay": ops_pb2.DelayedCalls(by_s=1)},
        {"delay": ops_pb2.DelayedCalls(by_s=float("inf"), for_s=1)},
    ],
)  # fmt: skip
def test_what_is_no_fault_is_refused(ops: ops_pb2_grpc.OpsServiceStub, fault: dict[str, object]) -> None:
    """With a sentence; nothing happens."""
    with pytest.raises(InvalidInputError):
        inject(ops, ops_pb2.InjectFaultRequest(process="scheduler/scheduler", **fault))  # type: ignore[arg-type]


def test_calls_are_refused_and_held_up_for_a_time(breakable: Mesh, ops: ops_pb2_grpc.OpsServiceStub) -> None:
    """Those of users; operators are answered all the while, and afterwards it is as before."""
    user = load_identity(breakable.local.identity)
    with channel_to(breakable.local.gateway, user, Role.GATEWAY, "gateway") as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

        def asked(timeout_s: float) -> MeshError | None:
            try:
                stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=timeout_s)
            except grpc.RpcError as error:
                return map_rpc_error(error)
            return None

        inject(ops, ops_pb2.InjectFaultRequest(refuse=ops_pb2.RefusedCalls(for_s=600)))
        refused = asked(CALL_S)
        assert isinstance(refused, TransportError) and "an operator" in refused.message
        inject(ops, ops_pb2.InjectFaultRequest(refuse=ops_pb2.RefusedCalls(for_s=0.001)))
        until(lambda: asked(CALL_S) is None, "calls are answered as before")
        inject(ops, ops_pb2.InjectFaultRequest(delay=ops_pb2.DelayedCalls(by_s=600, for_s=600)))
        held = asked(0.5)
        assert held is not None and held.reason == "DEADLINE"
        inject(ops, ops_pb2.InjectFaultRequest(delay=ops_pb2.DelayedCalls(by_s=0.001, for_s=0.001)))
        until(lambda: asked(CALL_S) is None, "calls are answered as before")


def test_an_answer_outlives_a_process_that_crashes_stalls_and_is_cut_off(
    breakable: Mesh, models: Models, ops: ops_pb2_grpc.OpsServiceStub
) -> None:
    """Its tokens are the model's; a process that crashed has ended with nothing said, and is not there until it is
    started anew."""
    model = models.get("llama")
    prompt = model.prompt(5)
    with deployed(breakable, model, "broken", stages=2) as held:
        first, second = (stage.node for stage in held.stages)
        said: list[int] = []
        for token in breakable.generate("broken", prompt=prompt, max_new_tokens=TOKENS, ignore_end=True):
            said.append(token.id)
            if len(said) == 20:
                cut = inject(ops, ops_pb2.InjectFaultRequest(process=f"executor/{second}", cut_sessions=True))
                assert cut.process == f"executor/{second}" and cut.sessions_cut > 0
            if len(said) == 40:
                inject(ops, ops_pb2.InjectFaultRequest(process=f"executor/{first}", stall_s=0.5))
            if len(said) == 60:
                inject(ops, ops_pb2.InjectFaultRequest(process=f"executor/{second}", crash=True))
        assert said == model.answer(prompt, TOKENS)
        log = (breakable.local.directory / "logs" / f"{second}.log").read_text(encoding="utf-8")
        assert '"kind": "crash"' in log.splitlines()[-1]
        breakable.local.restart(second)
        until(lambda: all(node.state == "up" for node in breakable.nodes()), "it is back")
