"""Generations that run at the same time do not see each other; sampling is a function of seed and position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from orbitmesh import AsyncMesh, Mesh
from tests.mesh.support import Models, deployed, expect_idle, nodes_of, tokens_of, until

TOGETHER = 8
"""Generations at once."""


def test_eight_at_once_each_say_what_they_say_alone(mesh: Mesh, models: Models) -> None:
    """Threads share one `Mesh`; prompts of very different lengths share one pipeline."""
    model = models.get("deepseek_v3")
    prompts = [model.prompt(length, seed=3) for length in (1, 2, 5, 40, 90, 260, 300, 520)]
    with deployed(mesh, model, "many", stages=3, kv_tokens=4096) as deployment:
        with ThreadPoolExecutor(TOGETHER) as threads:
            said = list(threads.map(lambda prompt: tokens_of(mesh, "many", prompt, 20), prompts))
        assert said == [model.answer(prompt, 20) for prompt in prompts]
        expect_idle(mesh, "many", nodes_of(deployment))


async def test_the_async_client_runs_many_on_one_connection(mesh: Mesh, models: Models) -> None:
    """`AsyncMesh` interleaves the same generations in one event loop."""
    model = models.get("llama")
    prompts = [model.prompt(3 + index, seed=4) for index in range(TOGETHER)]
    with deployed(mesh, model, "async", stages=2, kv_tokens=2048):
        async with AsyncMesh.connect(mesh.local.gateway, identity=mesh.local.identity) as other:
            running = [await other.generate("async", prompt, max_new_tokens=16) for prompt in prompts]
            for generation, prompt in zip(running, prompts, strict=True):
                await generation.wait()
                assert list(generation.token_ids) == model.answer(prompt, 16)


def test_a_seed_gives_the_same_tokens_however_the_model_is_cut(mesh: Mesh, models: Models) -> None:
    """One stage or three: the random number depends on seed and position only; another seed says something else."""
    model = models.get("qwen2")
    prompt = model.prompt(12, seed=5)
    sampling = {"temperature": 1.3, "top_p": 0.9, "ignore_end": True}
    with (
        deployed(mesh, model, "whole", stages=1, kv_tokens=512),
        deployed(mesh, model, "cut", stages=3, kv_tokens=512),
    ):
        first = tokens_of(mesh, "whole", prompt, 24, seed=7, **sampling)
        assert tokens_of(mesh, "cut", prompt, 24, seed=7, **sampling) == first
        assert tokens_of(mesh, "cut", prompt, 24, seed=7, **sampling) == first
        others = {tuple(tokens_of(mesh, "cut", prompt, 24, seed=seed, **sampling)) for seed in range(4)}
        assert len(others) == 4
        assert tokens_of(mesh, "cut", prompt, 24, seed=7, ignore_end=True) == tokens_of(
            mesh, "whole", prompt, 24, seed=9, ignore_end=True
        )


def test_tokens_are_handed_out_as_they_are_produced(mesh: Mesh, models: Models) -> None:
    """When the first token is in the client's hands the nodes are still at work on the answer."""
    model = models.get("llama", seed=1)
    with deployed(mesh, model, "stream", stages=3, kv_tokens=1024) as deployment:
        until(lambda: mesh.status().generations == 0, "the gateway has closed what was asked before")
        generation = mesh.generate("stream", model.prompt(4), max_new_tokens=900, ignore_end=True)
        tokens = iter(generation)
        first = next(tokens)
        assert first.position == 4
        assert generation.finish_reason is None
        assert mesh.status().generations == 1
        positions = [first.position, *(token.position for token in tokens)]
        assert positions == list(range(4, 904))
        assert generation.first_token_s is not None
        assert generation.total_s is not None
        assert generation.first_token_s < generation.total_s / 4
        expect_idle(mesh, "stream", nodes_of(deployment))
