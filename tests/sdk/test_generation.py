"""Generations seen by a client: the stream, its figures, and every way in which it may end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orbitmesh import (
    AsyncGeneration,
    AsyncMesh,
    CancelledError_,
    CapacityError,
    DeadlineError,
    InternalError,
    InvalidInputError,
    Mesh,
    Token,
    TransportError,
)
from orbitmesh.v1 import gateway_pb2
from tests.sdk.small_gateway import Identities, SmallGateway, refuse, started, token

Responses = AsyncIterator[gateway_pb2.GenerateResponse]
WAIT_S = 60.0


async def forever(request: gateway_pb2.GenerateRequest, context: Any) -> Responses:
    yield started()
    for number in itertools.count():
        yield token(number)
        await asyncio.sleep(0.005)


async def first_token(generation: AsyncGeneration) -> None:
    """Waits until a token is there."""
    async with asyncio.timeout(WAIT_S):
        await generation._token(0)


async def test_tokens_arrive_in_order_and_the_figures_afterwards(mesh: AsyncMesh) -> None:
    """An answer streams its tokens and then knows text, ids, trace and figures."""
    generation = await mesh.generate("demo", prompt="Space is", max_new_tokens=4)
    assert generation.trace_id == "ab" * 16
    assert generation.finish_reason is None
    assert [token async for token in generation] == [Token(n, f" {n}", 3 + n) for n in range(4)]
    assert generation.text == " 0 1 2 3"
    assert generation.token_ids == (0, 1, 2, 3)
    assert generation.prompt_tokens == 3
    assert generation.finish_reason == "length"
    assert (generation.tokens_per_second, generation.first_token_s, generation.total_s) == (12.5, 0.25, 1.5)
    assert (generation.raw_bytes, generation.wire_bytes) == (1000, 800)


async def test_what_was_asked_reaches_the_gateway(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """Every argument stands in the request, and numpy-like integers are taken as token ids."""

    class Number:
        def __index__(self) -> int:
            return 11

    generation = await mesh.generate(
        "demo",
        [5, Number()],
        max_new_tokens=2,
        temperature=0.5,
        top_p=0.25,
        seed=2**64 - 1,
        ignore_end=True,
        timings=False,  # type: ignore[list-item]
        slice="cam",
    )
    await generation.wait()
    request = gateway.requests[0]
    assert request.deployment == "demo"
    assert list(request.token_ids.ids) == [5, 11]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.seed) == (
        0.5,
        0.25,
        2**64 - 1,
    )
    assert request.ignore_end
    assert request.no_timings
    assert request.slice == "cam"


async def test_a_generation_without_a_slice_names_none(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """The field stays empty."""
    await (await mesh.generate("demo", "x", max_new_tokens=1)).wait()
    assert gateway.requests[0].slice == ""


async def test_a_second_loop_sees_the_same_tokens(mesh: AsyncMesh) -> None:
    """Tokens are kept: iterating again after the end replays them."""
    generation = await mesh.generate("demo", prompt="x", max_new_tokens=3)
    first = [token.id async for token in generation]
    assert [token.id async for token in generation] == first == [0, 1, 2]


async def test_leaving_the_loop_stops_the_work_in_the_mesh(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """A `break` cancels the call: the gateway sees it."""
    gateway.behaviour = forever
    generation = await mesh.generate("demo", prompt="x")
    async for token_ in generation:
        if token_.id == 2:
            break
    await asyncio.wait_for(gateway.cancelled.wait(), WAIT_S)
    assert generation.finish_reason == "cancelled"
    assert generation.token_ids[:3] == (0, 1, 2)


async def test_an_exception_in_the_loop_stops_the_work_in_the_mesh(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """Whatever ends the loop ends the work."""
    gateway.behaviour = forever

    async def consume() -> None:
        async for _ in await mesh.generate("demo", prompt="x"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await consume()
    await asyncio.wait_for(gateway.cancelled.wait(), WAIT_S)


async def test_cancelling_the_task_stops_the_work_in_the_mesh(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """A cancelled task ends as cancelled, not with an error of ours, and the gateway sees it."""
    gateway.behaviour = forever
    generation = await mesh.generate("demo", prompt="x")
    task = asyncio.create_task(generation.wait())
    await first_token(generation)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(gateway.cancelled.wait(), WAIT_S)
    assert generation.finish_reason == "cancelled"


async def test_cancel_by_another_task_ends_the_loop_with_a_typed_error(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """Who waits for tokens of a generation that someone cancels is told so, and not left waiting."""
    gateway.behaviour = forever
    generation = await mesh.generate("demo", prompt="x")
    waiting = asyncio.create_task(generation.wait())
    await first_token(generation)
    await generation.cancel()
    with pytest.raises(CancelledError_) as caught:
        await asyncio.wait_for(waiting, WAIT_S)
    assert caught.value.trace_id == "ab" * 16


async def test_the_timeout_bounds_the_whole_answer(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """Tokens that keep coming do not extend the time: the total bounds."""
    gateway.behaviour = forever
    generation = await mesh.generate("demo", prompt="x", timeout=1.0)
    with pytest.raises(DeadlineError) as caught:
        await generation.wait()
    assert generation.token_ids
    assert generation.finish_reason == "failed"
    assert caught.value.trace_id == "ab" * 16


async def test_a_refusal_is_raised_by_generate_itself(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """What the gateway refuses is raised where it was asked for, with reason and metadata."""

    async def full(request: gateway_pb2.GenerateRequest, context: Any) -> Responses:
        await refuse(context, "KV_MEMORY_EXHAUSTED", "the caches are full", free_bytes="17")
        yield started()

    gateway.behaviour = full
    with pytest.raises(CapacityError) as caught:
        await mesh.generate("demo", prompt="x")
    assert caught.value.reason == "KV_MEMORY_EXHAUSTED"
    assert caught.value.metadata == {"free_bytes": "17"}
    assert caught.value.retryable


async def test_an_error_in_the_middle_keeps_what_arrived(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """A failure after two tokens is raised with the trace, the two tokens stay, and asking again raises
    again."""

    async def breaks(request: gateway_pb2.GenerateRequest, context: Any) -> Responses:
        yield started()
        yield token(0)
        yield token(1)
        await refuse(context, "INTERNAL", "a defect")

    gateway.behaviour = breaks
    generation = await mesh.generate("demo", prompt="x")
    for _ in range(2):
        with pytest.raises(InternalError) as caught:
            await generation.wait()
        assert caught.value.trace_id == "ab" * 16
    assert generation.token_ids == (0, 1)
    assert generation.finish_reason == "failed"


async def test_a_stream_that_ends_early_is_no_answer(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """A clean end of the stream without `finished` is an error, never a short answer that looks whole."""

    async def short(request: gateway_pb2.GenerateRequest, context: Any) -> Responses:
        yield started()
        yield token(0)

    gateway.behaviour = short
    generation = await mesh.generate("demo", prompt="x")
    with pytest.raises(TransportError, match="ended before the generation did"):
        await generation.wait()


@pytest.mark.parametrize(
    ("arguments", "reason", "words"),
    [
        ({"prompt": ""}, "EMPTY_PROMPT", "empty"),
        ({"prompt": []}, "EMPTY_PROMPT", "empty"),
        ({"prompt": [1.5]}, "INVALID_INPUT", "token ids"),
        ({"prompt": [-1]}, "INVALID_INPUT", "-1"),
        ({"prompt": [2**32]}, "INVALID_INPUT", "4294967296"),
        ({"prompt": "\ud800"}, "INVALID_INPUT", "surrogate"),
        ({"prompt": "x" * (2**21 + 1)}, "PROMPT_TOO_LONG", "2097153"),
        ({"prompt": "x", "max_new_tokens": 0}, "INVALID_INPUT", "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": 2.0}, "INVALID_INPUT", "max_new_tokens"),
        ({"prompt": "x", "temperature": float("nan")}, "INVALID_INPUT", "temperature"),
        ({"prompt": "x", "temperature": -0.1}, "INVALID_INPUT", "temperature"),
        ({"prompt": "x", "top_p": 1.5}, "INVALID_INPUT", "top_p"),
        ({"prompt": "x", "seed": -1}, "INVALID_INPUT", "seed"),
        ({"prompt": "x", "timeout": 0}, "INVALID_INPUT", "timeout"),
        ({"prompt": "x", "timeout": float("inf")}, "INVALID_INPUT", "timeout"),
        ({"prompt": "x", "slice": ""}, "INVALID_INPUT", "slice"),
        ({"prompt": "x", "slice": "Cam"}, "INVALID_INPUT", "slice"),
        ({"prompt": "x", "slice": 7}, "INVALID_INPUT", "slice"),
        ({"name": "../x", "prompt": "x"}, "INVALID_INPUT", "deployment"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(
    mesh: AsyncMesh, gateway: SmallGateway, arguments: dict[str, Any], reason: str, words: str
) -> None:
    """An argument out of range is named, and the gateway never hears of it."""
    with pytest.raises(InvalidInputError, match=words) as caught:
        await mesh.generate(**{"name": "demo", **arguments})
    assert caught.value.reason == reason
    assert gateway.requests == []


def test_the_sync_face_streams_and_stops(gateway_elsewhere: SmallGateway, identities: Identities) -> None:
    """The same over the sync client: a stream, its figures, and a `break` that the gateway sees."""
    with Mesh.connect(gateway_elsewhere.address, identity=identities.client) as mesh:
        generation = mesh.generate("demo", prompt="x", max_new_tokens=3)
        assert [token.id for token in generation] == [0, 1, 2]
        assert generation.tokens_per_second == 12.5
        gateway_elsewhere.behaviour = forever
        generation = mesh.generate("demo", prompt="x")
        for token_ in generation:
            if token_.id == 1:
                break
        assert generation.finish_reason == "cancelled"
        with pytest.raises(DeadlineError):
            mesh.generate("demo", prompt="x", timeout=0.2).wait()


def test_a_generation_in_a_with_block_is_stopped_at_its_end(
    gateway_elsewhere: SmallGateway, identities: Identities
) -> None:
    """`with mesh.generate(...)` leaves nothing running behind it."""
    gateway_elsewhere.behaviour = forever
    with Mesh.connect(gateway_elsewhere.address, identity=identities.client) as mesh:
        with mesh.generate("demo", prompt="x") as generation:
            next(iter(generation))
        assert generation.finish_reason == "cancelled"


def test_a_path_is_taken_for_the_identity_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, gateway_elsewhere: SmallGateway, identities: Identities
) -> None:
    """`~` in the identity's path is the home directory."""
    monkeypatch.setenv("HOME", str(Path(identities.client).parent))
    with Mesh.connect(gateway_elsewhere.address, identity="~/me") as mesh:
        assert mesh.status().name == "gateway"
