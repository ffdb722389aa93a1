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


PROMPT = gateway_pb2.TokenIds(ids=[1, 2])
NOTHING_TO_COMPUTE = {WATCH: slices_pb2.WatchSlicesRequest().SerializeToString(), HEALTH: b""}
PROMPTS = gateway_pb2.GenerateRequest(deployment="idle", token_ids=PROMPT, max_new_tokens=40, ignore_end=True)


@pytest.mark.parametrize("method", NOTHING_TO_COMPUTE)
async def test_a_client_that_reads_nothing_takes_no_more_than_its_part(
    mesh: Mesh, model: Model, serving: None, attacker: Identity, method: str
) -> None:
    """So many of its streams are let in, all others are refused by name, and another client's calls all succeed."""
    refused = await beside_streams(mesh, model, attacker, method, NOTHING_TO_COMPUTE[method])
    assert refused == {"CAPACITY_EXHAUSTED": STREAMS - CALLS_PER_USER}


@pytest.mark.soak
async def test_prompts_that_nobody_reads_are_bounded_too(
    mesh: Mesh, model: Model, serving: None, attacker: Identity
) -> None:
    """As they end others of them are let in, so how many are refused is open; another client's calls all succeed."""
    refused = await beside_streams(mesh, model, attacker, GENERATE, PROMPTS.SerializeToString())
    assert set(refused) == {"CAPACITY_EXHAUSTED"}


async def beside_streams(
    mesh: Mesh, model: Model, attacker: Identity, method: str, request: bytes
) -> Counter[str]:
    """Another client's answers beside the streams; gives why streams were refused."""
    async with open_channel(mesh.local.gateway, attacker, Role.GATEWAY, "gateway") as channel:
        calls = [channel.unary_stream(method)(request) for _ in range(STREAMS)]
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
            while sum(refused.values()) < (1 if method == GENERATE else STREAMS - CALLS_PER_USER):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for task in settling:
            task.cancel()
        for call in calls:
            call.cancel()
        await asyncio.gather(*settling, return_exceptions=True)
    return refused
