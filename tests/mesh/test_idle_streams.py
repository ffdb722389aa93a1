"""One client that opens a thousand streams and reads none of them: it is bounded, and others are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from orbitmesh import Mesh
from orbitmesh.rpc import map_rpc_error, open_channel
from orbitmesh.trust import Identity, Role, issue
from orbitmesh.v1 import gateway_pb2, slices_pb2
from services.runtime.drain import CALLS_PER_USER
from tests.mesh.support import Model, Models, deployed, tokens_of

STREAMS = 1000
WATCH = "/orbitmesh.v1.SlicesService/WatchSlices"
GENERATE = "/orbitmesh.v1.GatewayService/Generate"
HEALTH = "/grpc.health.v1.Health/Watch"


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("qwen3", seed=3, max_position_embeddings=64)


@pytest.fixture(scope="module")
def serving(mesh: Mesh, model: Model) -> Iterator[None]:
    with deployed(mesh, model, "idle", stages=2, kv_tokens=64 * 200):
        yield


@pytest.fixture(scope="module")
def attacker(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    directory: Path = tmp_path_factory.mktemp("attacker")
    return issue(mesh.local.directory / "ca", Role.CLIENT, "attacker", directory / "me")


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [
        (WATCH, slices_pb2.WatchSlicesRequest().SerializeToString()),
        (HEALTH, b""),
        (
            GENERATE,
            gateway_pb2.GenerateRequest(
                deployment="idle", token_ids=gateway_pb2.TokenIds(ids=[1, 2]), max_new_tokens=8, ignore_end=True
            ).SerializeToString(),
        ),
    ],
    ids=["watching", "health", "generating"],
)
async def test_a_client_that_reads_nothing_takes_no_more_than_its_part(
    mesh: Mesh, model: Model, serving: None, attacker: Identity, method: str, request_bytes: bytes
) -> None:
    """So many of its streams are let in, all others are refused by name, and another client's calls all succeed."""
    async with open_channel(mesh.local.gateway, attacker, Role.GATEWAY, "gateway") as channel:
        calls = [channel.unary_stream(method)(request_bytes) for _ in range(STREAMS)]
        refused: Counter[str] = Counter()

        async def settle(call: grpc.aio.UnaryStreamCall) -> None:
            begins, ends = await call.initial_metadata(), await call.trailing_metadata()
            error = grpc.aio.AioRpcError(await call.code(), begins, ends, await call.details())
            if error.code() is not grpc.StatusCode.OK:
                refused[map_rpc_error(error).reason] += 1

        settling = [asyncio.ensure_future(settle(call)) for call in calls]
        for _ in range(3):
            answer = await asyncio.to_thread(tokens_of, mesh, "idle", [4, 5, 6], 5)
            assert answer == model.answer([4, 5, 6], 5)
        async with asyncio.timeout(60):
            while sum(refused.values()) < STREAMS - 2 * CALLS_PER_USER:  # noqa: ASYNC110 - counted by other tasks
                await asyncio.sleep(0.05)
        assert set(refused) == {"CAPACITY_EXHAUSTED"}
        for task in settling:
            task.cancel()
        for call in calls:
            call.cancel()
        await asyncio.gather(*settling, return_exceptions=True)
