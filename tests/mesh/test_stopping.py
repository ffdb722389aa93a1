"""Who gives up frees every node; a full cache refuses and holds nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orbitmesh import AsyncMesh, Mesh
from orbitmesh.errors import CancelledError_, CapacityError, DeadlineError
from orbitmesh.trust import Role, issue
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from tests.mesh.support import (
    Model,
    Models,
    address_of,
    channel_to,
    deployed,
    expect_idle,
    nodes_of,
    open_generations,
    pipeline_through,
    stages_on,
    tokens_of,
    until,
)

LONG = 1000
"""New tokens of an answer that nobody waits for."""
LINGER_S = 5
"""For how long the client that is killed asks the gateway to wait for it, in seconds; else it is half a minute."""


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=1, max_position_embeddings=4096, num_hidden_layers=9)


@pytest.fixture(scope="module")
def nodes(mesh: Mesh, model: Model) -> Iterator[list[str]]:
    with deployed(mesh, model, "stop", stages=3, kv_tokens=8192) as deployment:
        yield nodes_of(deployment)


@contextmanager
def beside(mesh: Mesh, model: Model) -> Iterator[None]:
    """Another generation goes on while the block runs, and must come out right."""
    prompt = model.prompt(11, seed=9)
    said: list[int] = []
    thread = threading.Thread(
        target=lambda: said.extend(tokens_of(mesh, "stop", prompt, 300, ignore_end=True)), name="beside"
    )
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    assert not thread.is_alive()
    assert said[:40] == model.answer(prompt, 40)
    assert len(said) == 300


def begin(mesh: Mesh, model: Model, **how: Any) -> Any:
    """A long answer of which three tokens have come."""
    generation = mesh.generate("stop", model.prompt(5), max_new_tokens=LONG, ignore_end=True, **how)
    tokens = iter(generation)
    for _ in range(3):
        next(tokens)
    return generation, tokens


def test_leaving_the_loop_stops_every_node(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """The iterator is closed; the caches are free again while another generation goes on."""
    with beside(mesh, model):
        generation, tokens = begin(mesh, model)
        assert open_generations(mesh, "stop", nodes) >= len(nodes)
        tokens.close()
        assert generation.finish_reason == "cancelled"
        until(lambda: open_generations(mesh, "stop", nodes) <= len(nodes), "only the other generation is left")
    expect_idle(mesh, "stop", nodes)
    until(lambda: mesh.status().generations == 0, "the gateway runs nothing")


def test_cancel_stops_every_node(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """`cancel()` from outside the loop; what came stays readable, the loop says that it was cancelled."""
    generation, tokens = begin(mesh, model)
    generation.cancel()
    assert generation.token_ids[:3] == tuple(model.answer(model.prompt(5), 3))
    with pytest.raises(CancelledError_):
        list(tokens)
    expect_idle(mesh, "stop", nodes)


async def test_a_cancelled_task_stops_every_node(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """asyncio's own cancellation reaches the nodes."""
    async with AsyncMesh.connect(mesh.local.gateway, identity=mesh.local.identity) as other:
        generation = await other.generate("stop", model.prompt(5), max_new_tokens=LONG, ignore_end=True)
        task = asyncio.create_task(generation.wait())
        await asyncio.to_thread(until, lambda: len(generation.token_ids) >= 3, "some tokens have come")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(expect_idle, mesh, "stop", nodes)


def test_a_client_that_is_killed_stops_every_node(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """SIGKILL: the client says no goodbye; the gateway waits for its return as long as it said, and not longer."""
    program = (
        "import sys; from orbitmesh import Mesh, _requests\n"
        f"_requests.LINGER_S = {LINGER_S}\n"
        "with Mesh.connect(sys.argv[1], identity=sys.argv[2]) as mesh:\n"
        f"    for token in mesh.generate('stop', {model.prompt(5)}, max_new_tokens={LONG * 3}, ignore_end=True):\n"
        "        print(token.id, flush=True)\n"
    )
    arguments = [sys.executable, "-c", program, mesh.local.gateway, str(mesh.local.identity)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert int(client.stdout.readline()) == model.answer(model.prompt(5), 1)[0]
        os.kill(client.pid, signal.SIGKILL)
    expect_idle(mesh, "stop", nodes, LINGER_S + 20)
    until(lambda: mesh.status().generations == 0, "the gateway runs nothing")


def test_a_deadline_stops_every_node(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """The time is spent in the middle of the answer: a typed error, and nothing is held any more."""
    with beside(mesh, model):
        generation = mesh.generate("stop", model.prompt(5), max_new_tokens=4000, ignore_end=True, timeout=2.0)
        with pytest.raises(DeadlineError):
            list(generation)
        assert generation.finish_reason == "failed"
        assert 0 < len(generation.token_ids) < 4000
        until(lambda: open_generations(mesh, "stop", nodes) <= len(nodes), "only the other generation is left")
    expect_idle(mesh, "stop", nodes)


def test_a_full_cache_says_what_is_free_and_reserves_nothing(mesh: Mesh, model: Model, nodes: list[str]) -> None:
    """What does not fit is refused by a stage; the other stages give back what they had reserved."""
    generation, tokens = begin(mesh, model)
    fill = mesh.generate("stop", model.prompt(5), max_new_tokens=4000, ignore_end=True)
    before = {node: stages_on(mesh, node)["stop"].kv_free_bytes for node in nodes}
    with pytest.raises(CapacityError) as refused:
        mesh.generate("stop", model.prompt(5), max_new_tokens=4000)
    error = refused.value
    assert error.reason == "KV_MEMORY_EXHAUSTED"
    assert error.retryable
    assert int(error.metadata["free_bytes"]) == before[error.metadata["node"]]
    assert int(error.metadata["needed_bytes"]) > int(error.metadata["free_bytes"])
    until(
        lambda: {node: stages_on(mesh, node)["stop"].kv_free_bytes for node in nodes} == before,
        "what was reserved for the refused generation is free again",
    )
    fill.cancel()
    tokens.close()
    assert generation.finish_reason == "cancelled"
    expect_idle(mesh, "stop", nodes)


def test_one_stage_without_room_leaves_no_reservation_on_the_others(
    mesh: Mesh, model: Model, nodes: list[str], tmp_path: Path
) -> None:
    """The middle stage is filled by another gateway; again and again the others reserve and give back."""
    other = issue(mesh.local.directory / "ca", Role.GATEWAY, "other", tmp_path / "other")
    with channel_to(address_of(mesh, nodes[1]), other, Role.EXECUTOR, nodes[1]) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        fill = executor_pb2.OpenGenerationRequest(
            deployment="stop",
            generation=7,
            max_tokens=8000,
            stop_position=8000,
            time_to_live={"seconds": 60},
            stage_index=1,
            epoch=1,
            prompt_tokens=5,
            pipeline=pipeline_through(mesh, nodes),
        )
        stub.OpenGeneration(fill, timeout=60)
        for _ in range(12):
            with pytest.raises(CapacityError) as refused:
                mesh.generate("stop", model.prompt(5), max_new_tokens=1000)
            assert refused.value.metadata["node"] == nodes[1]
            expect_idle(mesh, "stop", [nodes[0], nodes[2]])
        close = executor_pb2.CloseGenerationRequest(deployment="stop", generation=7, stage_index=1)
        stub.CloseGeneration(close, timeout=60)
    expect_idle(mesh, "stop", nodes)


def test_a_generation_whose_gateway_is_silent_is_freed_when_its_time_is_over(
    mesh: Mesh, nodes: list[str], tmp_path: Path
) -> None:
    """Nobody closes it; the node does."""
    other = issue(mesh.local.directory / "ca", Role.GATEWAY, "other", tmp_path / "other")
    with channel_to(address_of(mesh, nodes[0]), other, Role.EXECUTOR, nodes[0]) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        request = executor_pb2.OpenGenerationRequest(
            deployment="stop",
            generation=8,
            max_tokens=100,
            stop_position=100,
            time_to_live={"nanos": 500_000_000},
            epoch=1,
            prompt_tokens=5,
            pipeline=pipeline_through(mesh, nodes),
        )
        answer = stub.OpenGeneration(request, timeout=60)
        assert answer.reserved_bytes > 0
    expect_idle(mesh, "stop", nodes)
