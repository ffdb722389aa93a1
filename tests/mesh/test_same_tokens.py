"""A model that is cut over nodes says what transformers says of it whole, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from orbitmesh import Mesh
from orbitmesh.limits import PREFILL_CHUNK_TOKENS
from tests.mesh.support import Models, deployed, nodes_of, tokens_of

PROMPT_LENGTHS = (1, 7, PREFILL_CHUNK_TOKENS - 1, PREFILL_CHUNK_TOKENS, PREFILL_CHUNK_TOKENS + 1, 600)
"""Around the length at which a prompt is cut, and more than two pieces."""
NEW_TOKENS = 6
CUTS: list[tuple[str, dict[str, Any], int]] = [
    ("deepseek_v3", {}, 1),
    ("deepseek_v3", {}, 3),
    ("deepseek_v3", {}, 5),
    ("deepseek_v2", {}, 2),
    ("deepseek_v2", {}, 4),
    ("llama", {}, 1),
    ("llama", {}, 5),
    ("llama", {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}, 2),
    ("qwen2", {}, 3),
    ("qwen2", {}, 5),
    ("qwen3", {}, 3),
    ("qwen3_moe", {}, 4),
]


@pytest.mark.parametrize(("family", "overrides", "stages"), CUTS, ids=lambda value: str(value)[:40])
def test_greedy_tokens_equal_those_of_the_unsplit_model(
    mesh: Mesh, models: Models, family: str, overrides: dict[str, Any], stages: int
) -> None:
    """Whatever the family, the number of stages and the length of the prompt."""
    model = models.get(family, **overrides)
    with deployed(mesh, model, "same", stages=stages, kv_tokens=1024) as deployment:
        assert [layer for stage in deployment.stages for layer in stage.layers] == list(range(model.layers))
        assert len(set(nodes_of(deployment))) == stages
        for length in PROMPT_LENGTHS:
            prompt = model.prompt(length)
            assert tokens_of(mesh, "same", prompt, NEW_TOKENS) == model.answer(prompt, NEW_TOKENS), length


def test_the_end_token_ends_the_answer_where_transformers_ends_it(mesh: Mesh, models: Models) -> None:
    """The model's end token is the last one given; told to ignore it, the model goes on."""
    model = models.get("llama", seed=5)
    prompt = model.prompt(9)
    said = model.answer(prompt, 8)
    end = said[4]  # whatever it says there becomes its end token
    ending = models.get("llama", seed=5, eos_token_id=end)
    expected = ending.answer(prompt, 8)
    assert expected[-1] == end
    assert len(expected) <= 5
    with deployed(mesh, ending, "ending", stages=2, kv_tokens=256):
        generation = mesh.generate("ending", prompt, max_new_tokens=8)
        assert [token.id for token in generation] == expected
        assert generation.finish_reason == "stop"
        longer = mesh.generate("ending", prompt, max_new_tokens=8, ignore_end=True)
        assert [token.id for token in longer] == said
        assert longer.finish_reason == "length"


def test_an_answer_may_fill_the_context_to_its_last_position(mesh: Mesh, models: Models) -> None:
    """Prompt and answer together are exactly as long as the context."""
    model = models.get("qwen3", seed=2, max_position_embeddings=40)
    prompt = model.prompt(30)
    with deployed(mesh, model, "full", stages=3):
        assert tokens_of(mesh, "full", prompt, 10) == model.answer(prompt, 10)


def test_the_shipped_model_says_the_same_text(mesh: Mesh, shipped: Path, tmp_path: Path) -> None:
    """Text in, text out: the pieces together are what transformers' own tokenizer makes of the tokens."""
    model = Models.load(shipped, tmp_path / "pack")
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    with deployed(mesh, model, "pydoc", stages=3, kv_tokens=512):
        for text in ("The class statement", "x", "Überraschung: ☃ and 数", "def f(x):\n    return"):
            ids = [int(each) for each in tokenizer(text)["input_ids"]]
            expected = model.answer(ids, 24)
            generation = mesh.generate("pydoc", text, max_new_tokens=24)
            pieces = [token.text for token in generation]
            assert list(generation.token_ids) == expected
            whole = str(tokenizer.decode(ids + expected, skip_special_tokens=True))
            before = str(tokenizer.decode(ids, skip_special_tokens=True))
            assert "".join(pieces) == generation.text == whole.removeprefix(before)
            assert generation.prompt_tokens == len(ids)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(12))
def test_random_configurations_give_the_same_tokens(mesh: Mesh, models: Models, seed: int) -> None:
    """Configurations, prompts and cuts drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    family = ("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3")[seed % 6]
    overrides: dict[str, Any] = {"num_hidden_layers": draw(1, 9), "hidden_size": 12 * draw(2, 9)}
    if family == "qwen3_moe":
        overrides["mlp_only_layers"] = []
    if family.startswith("deepseek"):
        overrides["first_k_dense_replace"] = draw(0, overrides["num_hidden_layers"])
    model = models.get(family, seed=seed, **overrides)
    with deployed(mesh, model, "drawn", stages=draw(1, min(5, model.layers))):
        for _ in range(6):
            prompt = model.prompt(draw(1, 600), seed)
            assert tokens_of(mesh, "drawn", prompt, 24) == model.answer(prompt, 24), (family, overrides)
