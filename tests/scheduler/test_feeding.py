"""Journal or cache: whichever is fewer bytes, with the numbers of real models."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.feeding import CACHE, JOURNAL, break_even_layers, feed_mode, weigh
from tests.scheduler.test_registry_and_placement import manifest

LLAMA_3_8B = (4096, 2 * 8 * 128)
DEEPSEEK_V3 = (7168, 512 + 64)


@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize(
    ("model", "layers", "mode"),
    [
        (LLAMA_3_8B, 1, CACHE),
        (LLAMA_3_8B, 2, JOURNAL),
        (LLAMA_3_8B, 3, JOURNAL),
        (LLAMA_3_8B, 32, JOURNAL),
        (DEEPSEEK_V3, 1, CACHE),
        (DEEPSEEK_V3, 12, CACHE),
        (DEEPSEEK_V3, 13, JOURNAL),
    ],
)
def test_the_fewer_bytes_are_sent(model: tuple[int, int], layers: int, mode: int, item_bytes: int) -> None:
    """Llama-3-8B is equal at 2 layers, DeepSeek's latents between 12 and 13, whatever the numbers' width."""
    hidden, kv = model
    found = weigh(
        positions=1000,
        hidden_bytes_per_token=hidden * item_bytes,
        kv_bytes_per_token_of_stage=kv * layers * item_bytes,
    )
    assert found.mode == mode
    assert found.journal_bytes == 1000 * hidden * item_bytes
    assert found.cache_bytes == 1000 * kv * layers * item_bytes
    assert str(min(found.journal_bytes, found.cache_bytes)) in found.reason


def test_break_even_is_where_the_numbers_of_the_models_put_it() -> None:
    """2 layers for Llama-3-8B; 12.4 for DeepSeek-V3; a stage without caches is always fed from the journal's side."""
    assert break_even_layers(*LLAMA_3_8B) == 2
    assert 12 < break_even_layers(*DEEPSEEK_V3) < 13
    assert break_even_layers(100, 0) == float("inf")


def test_what_cannot_serve_is_not_chosen() -> None:
    """A journal that was cut cannot replay; a cache out of reach cannot move; without both there is an error."""
    sizes = {"positions": 10, "hidden_bytes_per_token": 1, "kv_bytes_per_token_of_stage": 100}
    assert weigh(**sizes).mode == JOURNAL
    assert weigh(**sizes, journal_start=3).mode == CACHE
    dear = {**sizes, "hidden_bytes_per_token": 1000}
    assert weigh(**dear).mode == CACHE
    assert weigh(**dear, cache_reachable=False).mode == JOURNAL
    with pytest.raises(InvalidInputError, match="neither"):
        weigh(**dear, journal_start=3, cache_reachable=False)
    with pytest.raises(InvalidInputError, match="positions"):
        weigh(**{**sizes, "positions": -1})


def test_a_stage_of_a_model_is_weighed_by_its_manifest() -> None:
    """256 bytes of hidden state against 512 of cache a layer; a first stage's tokens are 4: the journal."""
    made = manifest()
    assert feed_mode(made, range(1, 3)) == JOURNAL
    slim = replace(made, kv_bytes_per_token=(100,) * 4)
    assert feed_mode(slim, range(1, 3)) == CACHE
    assert feed_mode(slim, range(1, 4)) == JOURNAL
    assert feed_mode(slim, range(2), first=True) == JOURNAL
    assert feed_mode(slim, range(1, 3), cache_reachable=False) == JOURNAL


def test_the_rule_needs_nothing_but_itself() -> None:
    """It may be imported where there is no torch and no numpy."""
    code = "import sys, orbitmesh.feeding; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)
