"""A mesh of real processes through the SDK: deploy, answer, explain, break, leave nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orbitmesh import AsyncMesh, InvalidInputError, Link, Mesh, Progress, UnknownModelError

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEW_TOKENS = 12
WAIT_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: five layers, grouped heads, random weights."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    directory = tmp_path_factory.mktemp("model") / "Tiny_Llama"
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two satellites and a ground node, with emulated links."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Mesh.local(nodes=3, link=Link(latency_ms=2, rate_mbps=1000)) as local:
            pids = [process.pid for process in local.local.processes().values()]
            supervisor = local.local.pid
            yield local
        assert not any(Path(f"/proc/{pid}").exists() for pid in [supervisor, *pids])


def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds, which it must do at some time."""
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_deployed_model_answers_as_transformers_does(mesh: Mesh, model: Path) -> None:
    """Packed, sent, cut in two and placed, the model gives the tokens of `generate` on the whole."""
    steps: list[Progress] = []
    deployment = mesh.deploy(model, name="demo", stages=2, on_progress=steps.append)
    assert [layer for stage in deployment.stages for layer in stage.layers] == list(range(5))
    assert len({stage.node for stage in deployment.stages}) == 2
    assert deployment.model == "Tiny_Llama"
    assert {"packing", "uploading", "planning", "loading", "ready"} <= {step.phase for step in steps}
    assert deployment.plan is not None
    assert deployment.plan.reasons
    generation = mesh.generate("demo", PROMPT, max_new_tokens=NEW_TOKENS, ignore_end=True)
    tokens = list(generation)
    whole = LlamaForCausalLM.from_pretrained(model)
    expected = whole.generate(  # type: ignore[misc]
        torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    assert [token.id for token in tokens] == expected[0, len(PROMPT) :].tolist()
    assert [token.position for token in tokens] == list(range(len(PROMPT), len(PROMPT) + NEW_TOKENS))
    assert generation.finish_reason == "length"
    assert generation.wire_bytes is not None
    assert generation.raw_bytes is not None
    assert generation.wire_bytes > 0 < generation.raw_bytes


def test_the_breakdown_names_where_the_time_went(mesh: Mesh) -> None:
    """Rows sum to the total within one per cent, links and computation are in it, and it prints."""
    generation = mesh.generate("demo", PROMPT, max_new_tokens=NEW_TOKENS, ignore_end=True).wait()
    breakdown = mesh.explain(generation.trace_id)
    assert abs(breakdown.sum_s - breakdown.total_s) <= 0.01 * breakdown.total_s
    assert breakdown.attributed >= 0.95
    assert len(breakdown.token_s) == NEW_TOKENS
    stages = [stage.node for stage in mesh.deployment("demo").stages]
    assert set(stages) <= set(breakdown.places)
    assert f"{stages[0]}>{stages[1]}" in breakdown.places
    assert generation.trace_id in str(breakdown)


def test_leaving_a_loop_frees_the_caches_on_every_node(mesh: Mesh) -> None:
    """A `break` stops the generation in the mesh: no stage holds it any more."""
    for token in mesh.generate("demo", PROMPT, max_new_tokens=200, ignore_end=True):
        if token.position > len(PROMPT) + 1:
            break
    until(lambda: mesh.status().generations == 0)


async def test_the_async_client_sees_the_same_mesh(mesh: Mesh) -> None:
    """Address and identity of a local mesh are good for any other client."""
    async with AsyncMesh.connect(mesh.local.gateway, identity=mesh.local.identity) as other:
        assert [node.name for node in await other.nodes()] == ["ground-1", "sat-1", "sat-2"]
        generation = await other.generate("demo", PROMPT, max_new_tokens=3, ignore_end=True)
        assert len([token async for token in generation]) == 3


def test_the_same_pack_is_neither_made_nor_sent_twice(mesh: Mesh, model: Path) -> None:
    """A second deployment of a model takes pack and files that are there."""
    steps: list[Progress] = []
    mesh.deploy(model, name="again", stages=1, on_progress=steps.append)
    assert not {"packing", "uploading"} & {step.phase for step in steps}
    mesh.delete("again")
    assert [deployment.name for deployment in mesh.deployments()] == ["demo"]
    mesh.delete("again")


def test_planning_changes_nothing(mesh: Mesh, model: Path) -> None:
    """A plan for three stages names three nodes and leaves the deployments as they are."""
    plan = mesh.plan(model, stages=3)
    assert len({stage.node for stage in plan.stages}) == 3
    assert len(plan.crossings) == 3
    assert [deployment.name for deployment in mesh.deployments()] == ["demo"]


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda mesh, model: mesh.generate("nothing", [1]), UnknownModelError, "nothing"),
        (lambda mesh, model: mesh.generate("demo", "text"), InvalidInputError, "token"),
        (lambda mesh, model: mesh.generate("demo", [96] * 300), InvalidInputError, "300|256|context"),
        (lambda mesh, model: mesh.generate("demo", [97]), InvalidInputError, "97"),
        (lambda mesh, model: mesh.deploy(model, name="many", stages=9), InvalidInputError, "9"),
        (lambda mesh, model: mesh.deploy(model, name="demo"), InvalidInputError, "already"),
        (lambda mesh, model: mesh.deploy(model / "nowhere"), UnknownModelError, "nowhere"),
        (lambda mesh, model: mesh.explain("0" * 32), InvalidInputError, "trace"),
        (lambda mesh, model: mesh.local.kill("sat-9"), InvalidInputError, "sat-9"),
    ],
)
def test_what_cannot_be_done_is_a_typed_error(
    mesh: Mesh,
    model: Path,
    ask: Callable[[Mesh, Path], object],
    error: type[Exception],
    words: str,
) -> None:
    """Each mistake has its class and names its cause; the mesh goes on."""
    with pytest.raises(error, match=words):
        ask(mesh, model)
    assert mesh.status().scheduler_up


def test_a_killed_node_holds_the_answer_up_until_it_is_back(mesh: Mesh, model: Path) -> None:
    """SIGKILL on a node in the middle of an answer: the process is gone, the loop waits and goes on."""
    expected = mesh.generate("demo", PROMPT, max_new_tokens=200, ignore_end=True).wait().token_ids
    victim = mesh.deployment("demo").stages[-1].node
    pid = mesh.local.processes()[victim].pid
    generation = mesh.generate("demo", PROMPT, max_new_tokens=200, ignore_end=True, timeout=90)
    for token in generation:
        if token.position == len(PROMPT) + 2:
            mesh.local.kill(victim)
            until(lambda: not _alive(pid))
            mesh.local.restart(victim)
    assert generation.token_ids == expected
    assert generation.finish_reason == "length"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
