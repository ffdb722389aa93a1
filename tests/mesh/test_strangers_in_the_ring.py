"""Work that is not its sender's to send, or does not fit, ends at most what is the sender's own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.rpc import map_rpc_error, open_channel
from orbitmesh.trust import Identity, Role, issue, load_identity
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, gateway_pb2, gateway_pb2_grpc, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import dial, open_exchange
from tests.mesh.support import (
    WITHIN_S,
    Model,
    Models,
    address_of,
    channel_to,
    deployed,
    expect_idle,
    nodes_of,
    stages_on,
    tokens_of,
)

RESERVED = 16
"""Positions of the stranger's own generation."""
NUMBER = 4711


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=6, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def nodes(mesh: Mesh, model: Model) -> Iterator[list[str]]:
    with deployed(mesh, model, "ring", stages=3, kv_tokens=8192) as deployment:
        yield nodes_of(deployment)


@pytest.fixture
def gateway(mesh: Mesh, tmp_path: Path) -> Identity:
    """A second gateway of the mesh: it may open generations, and sees what comes back."""
    return issue(mesh.local.directory / "ca", Role.GATEWAY, "second", tmp_path / "second")


@asynccontextmanager
async def session_to(mesh: Mesh, node: str, identity: Identity) -> AsyncIterator[Session]:
    channel = open_channel(address_of(mesh, node), identity, Role.EXECUTOR, node)
    session = await dial(open_exchange(channel), identity, receiver_role=Role.EXECUTOR, receiver_name=node)
    try:
        yield session
    finally:
        await session.close()
        await channel.close()


async def received(session: Session) -> Received:
    async with asyncio.timeout(WITHIN_S):
        return await session.receive()


def open_own(mesh: Mesh, node: str, gateway: Identity, number: int = NUMBER) -> None:
    request = executor_pb2.OpenGenerationRequest(
        deployment="ring", generation=number, max_tokens=RESERVED, stop_position=RESERVED, time_to_live={"seconds": 60}
    )
    with channel_to(address_of(mesh, node), gateway, Role.EXECUTOR, node) as channel:
        executor_pb2_grpc.ExecutorServiceStub(channel).OpenGeneration(request, timeout=10)


def step(dtype: wire_pb2.Dtype, shape: list[int], position: int = 0, number: int = NUMBER) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=dtype, shape=shape),
        step=wire_pb2.StepInfo(generation=number, position=position, sample=True),
    )


def ids(*tokens: int) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


INT32, FLOAT32, INT8 = wire_pb2.DTYPE_INT32, wire_pb2.DTYPE_FLOAT32, wire_pb2.DTYPE_INT8
WRONG_STEPS: dict[str, tuple[wire_pb2.Dtype, list[int], int, bytes, str, str]] = {
    "floats for ids": (FLOAT32, [2], 0, bytes(8), "DTYPE_MISMATCH", "int32"),
    "a table of ids": (INT32, [1, 2], 0, ids(1, 2), "DTYPE_MISMATCH", "int32"),
    "nothing": (INT32, [0], 0, b"", "DTYPE_MISMATCH", "int32"),
    "past the reservation": (INT32, [RESERVED + 1], 0, ids(*range(RESERVED + 1)), "INVALID_INPUT", "reserved"),
    "past it by position": (INT32, [2], RESERVED - 1, ids(1, 2), "INVALID_INPUT", "reserved"),
    "a hole before it": (INT32, [2], 3, ids(1, 2), "INVALID_INPUT", "position"),
    "unknown token": (INT32, [2], 0, ids(1, 99999), "INVALID_INPUT", "99999"),
    "negative token": (INT32, [2], 0, ids(1, -1), "INVALID_INPUT", "-1"),
}


@pytest.mark.parametrize("case", WRONG_STEPS)
async def test_a_step_that_does_not_fit_ends_its_own_generation_with_the_reason(
    mesh: Mesh, model: Model, nodes: list[str], gateway: Identity, case: str
) -> None:
    """The gateway that sent it is told why; the cache is freed; others are answered meanwhile and afterwards."""
    dtype, shape, position, data, reason, named = WRONG_STEPS[case]
    open_own(mesh, nodes[0], gateway)
    assert stages_on(mesh, nodes[0])["ring"].generations == 1
    async with session_to(mesh, nodes[0], gateway) as session:
        await session.send(step(dtype, shape, position), data)
        failure = (await received(session)).info.failure
        assert (failure.generation, failure.reason) == (NUMBER, reason)
        assert named in failure.message
        expect_idle(mesh, "ring", nodes)
        await session.send(step(INT32, [1]), ids(1))  # it is unknown by now: nothing happens
    assert tokens_of(mesh, "ring", [1, 2, 3], 4) == model.answer([1, 2, 3], 4)
    expect_idle(mesh, "ring", nodes)


async def test_hidden_states_of_another_type_or_width_are_refused(
    mesh: Mesh, model: Model, nodes: list[str], gateway: Identity
) -> None:
    """A middle stage is fed by a first one that was taken over: the gateway hears of it."""
    feeder = load_identity(mesh.local.directory / "identities" / f"executor-{nodes[0]}")
    async with session_to(mesh, nodes[1], gateway) as home, session_to(mesh, nodes[1], feeder) as feeding:
        wrong = ((FLOAT32, [2, 47], bytes(2 * 47 * 4)), (INT8, [2, 48], bytes(96)), (FLOAT32, [96], bytes(384)))
        for number, (dtype, shape, data) in enumerate(wrong, 1):
            open_own(mesh, nodes[1], gateway, number)
            await feeding.send(step(dtype, shape, number=number), data)
            failure = (await received(home)).info.failure
            assert (failure.generation, failure.reason) == (number, "DTYPE_MISMATCH")
            assert "(rows, 48)" in failure.message
    assert tokens_of(mesh, "ring", [1, 2, 3], 4) == model.answer([1, 2, 3], 4)
    expect_idle(mesh, "ring", nodes)


async def test_work_from_whom_it_is_not_due_changes_nothing(
    mesh: Mesh, model: Model, nodes: list[str], gateway: Identity
) -> None:
    """Satellites and a second gateway send steps and tokens into a generation that runs: they alone are refused."""
    prompt = model.prompt(5)
    outsider = next(name for name in ("sat-1", "sat-2", "sat-3") if name not in nodes[1:])
    request = gateway_pb2.GenerateRequest(
        deployment="ring", token_ids=gateway_pb2.TokenIds(ids=prompt), max_new_tokens=1500, ignore_end=True
    )
    user = load_identity(mesh.local.identity)
    with channel_to(mesh.local.gateway, user, Role.GATEWAY, "gateway") as channel:
        call = gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request, timeout=60)
        number = int(next(call).started.generation)  # whoever is inside the ring knows it
        for identity, node, info, data in attempts(mesh, nodes, outsider, gateway, number):
            async with session_to(mesh, node, identity) as session:
                await session.send(info, data)
                failure = (await received(session)).info.failure
                assert (failure.generation, failure.reason) == (number, "NOT_YOURSELF"), (identity.title, node)
        with channel_to(address_of(mesh, nodes[0]), gateway, Role.EXECUTOR, nodes[0]) as other:
            close = executor_pb2.CloseGenerationRequest(deployment="ring", generation=number)
            with pytest.raises(grpc.RpcError) as refused:
                executor_pb2_grpc.ExecutorServiceStub(other).CloseGeneration(close, timeout=10)
            assert map_rpc_error(refused.value).reason == "NOT_YOURSELF"
        assert mesh.status().generations == 1, "it ended before all had tried"
        said = [event.token.id for event in call if event.HasField("token")]
    assert said[:60] == model.answer(prompt, 60)
    assert len(said) == 1500
    expect_idle(mesh, "ring", nodes)


def attempts(
    mesh: Mesh, nodes: list[str], outsider: str, gateway: Identity, number: int
) -> Iterator[tuple[Identity, str, wire_pb2.TransferInfo, bytes]]:
    """Who sends what to whom, none of it due."""
    identities = mesh.local.directory / "identities"
    hidden = step(FLOAT32, [1, 48], 20, number), bytes(192)
    token = wire_pb2.TransferInfo(token=wire_pb2.TokenInfo(generation=number, position=20)), ids(1)
    for name, node, work in (
        (outsider, nodes[2], hidden),
        (nodes[0], nodes[2], hidden),
        (nodes[2], nodes[1], hidden),
        (outsider, nodes[0], token),
        (nodes[1], nodes[0], token),
        (nodes[2], nodes[1], token),
        (outsider, nodes[0], (step(INT32, [1], 20, number), ids(1))),
    ):
        yield load_identity(identities / f"executor-{name}"), node, *work
    yield gateway, nodes[0], step(INT32, [1], 20, number), ids(1)
    yield gateway, nodes[1], *hidden
