"""Work that is not its sender's to send, or does not fit, ends at most what is the sender's own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

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
    pipeline_through,
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


def open_own(mesh: Mesh, nodes: Sequence[str], stage: int, gateway: Identity, number: int = NUMBER, **how: Any) -> None:
    """Opens a generation in one stage and nowhere else."""
    request = executor_pb2.OpenGenerationRequest(
        deployment="ring",
        generation=number,
        max_tokens=RESERVED,
        stop_position=RESERVED,
        time_to_live={"seconds": 60},
        stage_index=stage,
        epoch=1,
        pipeline=pipeline_through(mesh, nodes),
        prompt_tokens=2,
        **how,
    )
    with executor(mesh, nodes[stage], gateway) as stub:
        stub.OpenGeneration(request, timeout=60)


@contextmanager
def executor(mesh: Mesh, node: str, identity: Identity) -> Iterator[executor_pb2_grpc.ExecutorServiceStub]:
    with channel_to(address_of(mesh, node), identity, Role.EXECUTOR, node) as channel:
        yield executor_pb2_grpc.ExecutorServiceStub(channel)


def step(
    dtype: wire_pb2.Dtype, shape: list[int], position: int = 0, number: int = NUMBER, stage: int = 0, epoch: int = 1
) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=dtype, shape=shape),
        step=wire_pb2.StepInfo(generation=number, position=position, sample=True, stage_index=stage, epoch=epoch),
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
    "unknown token": (INT32, [2], 0, ids(1, 99999), "INVALID_INPUT", "99999"),
    "negative token": (INT32, [2], 0, ids(1, -1), "INVALID_INPUT", "-1"),
}


@pytest.mark.parametrize("case", WRONG_STEPS)
async def test_a_step_that_does_not_fit_ends_its_own_generation_with_the_reason(
    mesh: Mesh, model: Model, nodes: list[str], gateway: Identity, case: str
) -> None:
    """The gateway that sent it is told why; the cache is freed; others are answered meanwhile and afterwards."""
    dtype, shape, position, data, reason, named = WRONG_STEPS[case]
    open_own(mesh, nodes, 0, gateway)
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
            open_own(mesh, nodes, 1, gateway, number)
            await feeding.send(step(dtype, shape, number=number, stage=1), data)
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
        for reason, identity in (
            ("", gateway),
            ("ROLE_NOT_ALLOWED", load_identity(mesh.local.directory / "identities" / f"executor-{nodes[1]}")),
            ("ROLE_NOT_ALLOWED", user),
        ):
            with executor(mesh, nodes[0], identity) as stub:
                for what, ask in acts(stub, number):
                    expected = reason or ("NOT_YOURSELF" if what == "close" else "NOT_FOUND")
                    assert refusal(ask) == expected, (identity.title, what)
        assert mesh.status().generations == 1, "it ended before all had tried"
        said = [event.token.id for event in call if event.HasField("token")]
    assert said[:60] == model.answer(prompt, 60)
    assert len(said) == 1500
    expect_idle(mesh, "ring", nodes)


def acts(
    stub: executor_pb2_grpc.ExecutorServiceStub, number: int, epoch: int = 9, stage: int = 0
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a gateway may ask of a stage for a generation that it has opened."""
    where = {"deployment": "ring", "generation": number, "stage_index": stage}
    stop = executor_pb2.StopGenerationRequest(**where, epoch=epoch)
    yield "stop", lambda: stub.StopGeneration(stop, timeout=60)
    go_on = executor_pb2.ContinueGenerationRequest(**where, epoch=epoch, length=1, sample_from=2)
    yield "go on", lambda: stub.ContinueGeneration(go_on, timeout=60)
    switch = executor_pb2.ContinueGenerationRequest(**where, epoch=epoch, switch_at=RESERVED - 1)
    yield "switch", lambda: stub.ContinueGeneration(switch, timeout=60)
    for mode in (executor_pb2.FEED_MODE_JOURNAL, executor_pb2.FEED_MODE_CACHE):
        feed = executor_pb2.FeedGenerationRequest(**where, epoch=epoch, mode=mode)
        yield "feed", lambda feed=feed: stub.FeedGeneration(feed, timeout=60)
    close = executor_pb2.CloseGenerationRequest(**where)
    yield "close", lambda: stub.CloseGeneration(close, timeout=60)


def refusal(ask: Callable[[], object]) -> str:
    """The reason for which a call fails."""
    with pytest.raises(grpc.RpcError) as refused:
        ask()
    return map_rpc_error(refused.value).reason


async def test_a_hole_is_told_and_ends_nothing(mesh: Mesh, nodes: list[str], gateway: Identity) -> None:
    """What came before was lost on its way: the gateway can send it again and the generation goes on."""
    open_own(mesh, nodes, 0, gateway)
    async with session_to(mesh, nodes[0], gateway) as session:
        await session.send(step(INT32, [2], 3), ids(1, 2))
        failure = (await received(session)).info.failure
        assert (failure.generation, failure.reason, failure.epoch) == (NUMBER, "STEP_LOST", 1)
        assert failure.metadata["expected"] == "0"
        # Of another epoch: what is over is dropped, what has not begun here is told likewise.
        await session.send(step(INT32, [1], 0, epoch=2), ids(1))
        assert (await received(session)).info.failure.epoch == 2
        assert stages_on(mesh, nodes[0])["ring"].generations == 1
    await close_own(mesh, nodes, 0, gateway)


async def close_own(mesh: Mesh, nodes: list[str], stage: int, gateway: Identity) -> None:
    request = executor_pb2.CloseGenerationRequest(deployment="ring", generation=NUMBER, stage_index=stage)
    with executor(mesh, nodes[stage], gateway) as stub:
        stub.CloseGeneration(request, timeout=60)
    expect_idle(mesh, "ring", nodes)


def test_what_belongs_to_an_epoch_that_is_over_is_refused(mesh: Mesh, nodes: list[str], gateway: Identity) -> None:
    """A call that was held up on its way must not undo what came after it."""
    open_own(mesh, nodes, 1, gateway)
    where = {"deployment": "ring", "generation": NUMBER, "stage_index": 1}
    with executor(mesh, nodes[1], gateway) as stub:
        pipeline = pipeline_through(mesh, nodes)
        stop = executor_pb2.StopGenerationRequest(**where, epoch=5, pipeline=pipeline)
        assert stub.StopGeneration(stop, timeout=60).length == 0
        assert stub.StopGeneration(stop, timeout=60).length == 0  # repeating it changes nothing
        for epoch in (1, 4):
            for what, ask in acts(stub, NUMBER, epoch, stage=1):
                if what != "close":
                    assert refusal(ask) == "STALE_EPOCH", (what, epoch)
        beyond = executor_pb2.ContinueGenerationRequest(**where, epoch=5, length=3)
        assert refusal(lambda: stub.ContinueGeneration(beyond, timeout=60)) == "INVALID_INPUT"
        early = executor_pb2.ContinueGenerationRequest(**where, epoch=6, length=0)
        assert refusal(lambda: stub.ContinueGeneration(early, timeout=60)) == "STALE_EPOCH"
        go_on = executor_pb2.ContinueGenerationRequest(**where, epoch=5, length=0, sample_from=2)
        stub.ContinueGeneration(go_on, timeout=60)
        assert refusal(lambda: stub.StopGeneration(stop, timeout=60)) == "STALE_EPOCH"  # it runs in this epoch
        elsewhere = executor_pb2.StopGenerationRequest(**where, epoch=7, pipeline=pipeline[:1])
        assert refusal(lambda: stub.StopGeneration(elsewhere, timeout=60)) == "INVALID_INPUT"
        stub.CloseGeneration(executor_pb2.CloseGenerationRequest(**where), timeout=60)
    expect_idle(mesh, "ring", nodes)


WRONG_PIECES: dict[str, tuple[dict[str, int], int, str]] = {
    "not the first layer": ({"layer": 1}, 128, "INVALID_INPUT"),
    "no rows": ({"rows": 0}, 0, "DTYPE_MISMATCH"),
    "more rows than bytes": ({"rows": 2}, 128, "DTYPE_MISMATCH"),
    "keys of another size": ({"key_bytes": 32}, 128, "DTYPE_MISMATCH"),
    "not the next position": ({"position": 3}, 128, "INVALID_INPUT"),
    "past the reservation": ({"rows": RESERVED + 1, "key_bytes": 64 * (RESERVED + 1)}, 128 * 17, "INVALID_INPUT"),
}


@pytest.mark.parametrize("case", WRONG_PIECES)
async def test_a_piece_of_a_cache_that_does_not_fit_ends_the_hand_over(
    mesh: Mesh, model: Model, nodes: list[str], gateway: Identity, case: str
) -> None:
    """The node that takes over refuses it with the reason and frees what it had reserved."""
    changed, size, reason = WRONG_PIECES[case]
    whole = {"generation": NUMBER, "stage_index": 1, "epoch": 1, "layer": 0, "position": 0, "rows": 1, "key_bytes": 64}
    piece = wire_pb2.TransferInfo(cache=wire_pb2.CacheInfo(**(whole | changed)))
    old = load_identity(mesh.local.directory / "identities" / f"executor-{nodes[0]}")
    open_own(mesh, nodes, 1, gateway, standby=True, cache_from=nodes[0])
    async with session_to(mesh, nodes[1], gateway) as home, session_to(mesh, nodes[1], old) as giving:
        await giving.send(piece, bytes(size))
        failure = (await received(home)).info.failure
        assert (failure.generation, failure.reason) == (NUMBER, reason)
    expect_idle(mesh, "ring", nodes)
    assert tokens_of(mesh, "ring", [1, 2, 3], 4) == model.answer([1, 2, 3], 4)


async def test_a_cache_is_taken_from_the_named_node_alone_and_in_order(
    mesh: Mesh, nodes: list[str], gateway: Identity
) -> None:
    """Another node's piece is refused to its sender and changes nothing; a layer that was left out is noticed."""
    identities = mesh.local.directory / "identities"
    held = {stage: stages_on(mesh, nodes[stage])["ring"] for stage in range(3)}
    stage = max(held, key=lambda stage: held[stage].layer_stop - held[stage].layer_start)
    layers = held[stage].layer_stop - held[stage].layer_start
    assert layers > 1
    before, after = nodes[stage - 1], nodes[(stage + 1) % 3]
    open_own(mesh, nodes, stage, gateway, standby=True, cache_from=before)

    def piece(layer: int) -> wire_pb2.TransferInfo:
        info = wire_pb2.CacheInfo(generation=NUMBER, stage_index=stage, epoch=1, layer=layer, rows=1, key_bytes=64)
        return wire_pb2.TransferInfo(cache=info)

    async with (
        session_to(mesh, nodes[stage], gateway) as home,
        session_to(mesh, nodes[stage], load_identity(identities / f"executor-{after}")) as stranger,
        session_to(mesh, nodes[stage], load_identity(identities / f"executor-{before}")) as giving,
    ):
        await stranger.send(piece(0), bytes(128))
        assert (await received(stranger)).info.failure.reason == "NOT_YOURSELF"
        assert stages_on(mesh, nodes[stage])["ring"].generations == 1
        await giving.send(piece(layers - 1), bytes(128))
        failure = (await received(home)).info.failure
        assert (failure.generation, failure.reason) == (NUMBER, "INVALID_INPUT")
    expect_idle(mesh, "ring", nodes)


def attempts(
    mesh: Mesh, nodes: list[str], outsider: str, gateway: Identity, number: int
) -> Iterator[tuple[Identity, str, wire_pb2.TransferInfo, bytes]]:
    """Who sends what to whom, none of it due."""
    identities = mesh.local.directory / "identities"
    middle = step(FLOAT32, [1, 48], 20, number, stage=1), bytes(192)
    last = step(FLOAT32, [1, 48], 20, number, stage=2), bytes(192)
    token = wire_pb2.TransferInfo(token=wire_pb2.TokenInfo(generation=number, position=20, epoch=1)), ids(1)
    cache = wire_pb2.TransferInfo(
        cache=wire_pb2.CacheInfo(generation=number, stage_index=2, epoch=1, position=20, rows=1, key_bytes=64)
    )
    for name, node, work in (
        (outsider, nodes[2], last),
        (nodes[0], nodes[2], last),
        (nodes[2], nodes[1], middle),
        (outsider, nodes[0], token),
        (nodes[1], nodes[0], token),
        (outsider, nodes[0], (step(INT32, [1], 20, number), ids(1))),
        (nodes[1], nodes[2], (cache, bytes(128))),
    ):
        yield load_identity(identities / f"executor-{name}"), node, *work
    yield gateway, nodes[0], step(INT32, [1], 20, number), ids(1)
    yield gateway, nodes[1], *middle
