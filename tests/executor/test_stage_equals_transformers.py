"""A model cut into stages answers as transformers' own unsplit model does, and refuses what it should."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from orbitmesh.errors import InvalidInputError, PackError
from orbitmesh.pack import Manifest, load_manifest
from orbitmesh.pack.builder import build_pack
from services.executor.kvcache import CachePool, GenerationCache
from services.executor.sampling import sample
from services.executor.stage import Stage
from tests.models_for_tests import FAMILIES, make_model

NEW_TOKENS = 14
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 256,
}
# Each: the family, what differs from its tiny default, and how long the prompts are.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "llama": ("llama", {}, (1, 37, 600)),
    "llama one layer, one key head": ("llama", {"num_hidden_layers": 1, "num_key_value_heads": 1}, (2, 65)),
    "llama biases and scaled rope": (
        "llama",
        {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
        (1, 300),
    ),
    "llama linear rope, tied": (
        "llama",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
            "tie_word_embeddings": True,
        },
        (130,),
    ),
    "llama dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        (90,),
    ),
    "llama to the last position of its context": ("llama", {"max_position_embeddings": 64}, (51,)),
    "qwen2 tied": ("qwen2", {}, (1, 64, 511)),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False}, (33,)),
    "qwen2 sliding window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 29, "max_window_layers": 3},
        (1, 20, 28, 29, 200),
    ),
    "qwen3 tied": ("qwen3", {}, (1, 65, 600)),
    "qwen3 sliding window": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 17,
            "max_window_layers": 0,
            "tie_word_embeddings": False,
        },
        (16, 150),
    ),
    "qwen3_moe": ("qwen3_moe", {}, (1, 65, 400)),
    "qwen3_moe sliding, every layer sparse": (
        "qwen3_moe",
        {"use_sliding_window": True, "sliding_window": 33, "decoder_sparse_step": 1, "mlp_only_layers": []},
        (100,),
    ),
    "deepseek_v2": ("deepseek_v2", {}, (1, 65, 600)),
    "deepseek_v2 low-rank queries, yarn": (
        "deepseek_v2",
        {"q_lora_rank": 14, "rope_parameters": YARN_ROPE, "topk_method": "greedy"},
        (2, 300),
    ),
    "deepseek_v3": ("deepseek_v3", {}, (1, 65, 600)),
    "deepseek_v3 yarn, no interleave": (
        "deepseek_v3",
        {
            "rope_parameters": YARN_ROPE,
            "rope_interleave": False,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
        },
        (129,),
    ),
    "deepseek_v3 all dense": ("deepseek_v3", {"first_k_dense_replace": 5}, (40,)),
    "deepseek_v3 all sparse, tied": (
        "deepseek_v3",
        {"first_k_dense_replace": 0, "tie_word_embeddings": True, "q_lora_rank": None},
        (40,),
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tests share two cores with others, and one thread makes them comparable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Prepared:
    """A model on disk, its pack, and transformers' unsplit model."""

    pack: Path
    manifest: Manifest
    unsplit: Any


def _prepare(family: str, directory: Path, overrides: dict[str, Any], dtype: str = "float32") -> Prepared:
    source = make_model(family, directory / "model", seed=7, **overrides)
    manifest = build_pack(source, directory / "pack", dtype=dtype)
    unsplit = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    return Prepared(directory / "pack", manifest, unsplit)


def _aligned(model: Any) -> Any:
    """The same weights in memory that torch allocated itself.

    `from_pretrained` leaves tensors where the file had them, and for unaligned memory kernels take another
    path, which gives other last bits.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _cuts(layer_count: int) -> list[list[range]]:
    """One stage, two and three uneven ones, and a stage for every layer."""
    edges = [[0, layer_count], list(range(layer_count + 1))]
    if layer_count > 2:
        edges += [[0, 1, layer_count], [0, 1, layer_count - 1, layer_count]]
    return [[range(low, high) for low, high in pairwise(edge)] for edge in edges]


def _load(prepared: Prepared, cut: Sequence[range]) -> list[Stage]:
    return [Stage.load(prepared.manifest, prepared.pack, layers) for layers in cut]


def _caches(stages: Sequence[Stage], tokens: int, name: str = "g") -> list[GenerationCache]:
    return [CachePool(1 << 30, stage.kv_bytes_per_token()).open(name, tokens) for stage in stages]


def _as_received(hidden: torch.Tensor) -> torch.Tensor:
    """The hidden state as it comes out of a network buffer: read-only bytes at an odd address."""
    data = bytearray(hidden.numel() * hidden.element_size() + 4)
    data[4:] = hidden.view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(data, dtype=hidden.dtype, offset=4).reshape(hidden.shape)


def _step(
    stages: Sequence[Stage], caches: Sequence[GenerationCache], x: torch.Tensor, position: int
) -> torch.Tensor:
    for stage, cache in zip(stages, caches, strict=True):
        x = stage.forward(x, cache, position)
        if not stage.is_last:
            x = _as_received(x)
    return x


def _generate(
    stages: Sequence[Stage], prompt: torch.Tensor, chunk: int | None = None, eos: Sequence[int] = ()
) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy generation through the stages: the new tokens and the logits each was chosen from."""
    caches = _caches(stages, len(prompt) + NEW_TOKENS)
    tokens: list[int] = []
    seen: list[torch.Tensor] = []
    position = 0
    logits = torch.empty(0)
    for piece in prompt.split(chunk or len(prompt)):
        logits = _step(stages, caches, piece, position)
        position += len(piece)
    while True:
        seen.append(logits)
        tokens.append(sample(logits, temperature=0, top_p=1, seed=0, position=position))
        if len(tokens) == NEW_TOKENS or tokens[-1] in eos:
            return tokens, seen
        logits = _step(stages, caches, torch.tensor(tokens[-1:]), position)
        position += 1


def _theirs(model: Any, prompt: torch.Tensor) -> tuple[list[int], list[torch.Tensor]]:
    out = model.generate(
        prompt.unsqueeze(0),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in out.logits]


def _prompt(length: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed + length))


@pytest.mark.parametrize("case", CASES)
def test_every_cut_gives_the_tokens_and_the_bits_of_the_unsplit_model(case: str, tmp_path: Path) -> None:
    """Tokens equal `generate` as it stands; logits equal it to the last bit once its weights are aligned."""
    family, overrides, lengths = CASES[case]
    prepared = _prepare(family, tmp_path, overrides)
    eos = prepared.manifest.eos_token_ids
    expected = {length: _theirs(prepared.unsplit, _prompt(length))[0] for length in lengths}
    aligned = _aligned(prepared.unsplit)
    exact = {length: _theirs(aligned, _prompt(length)) for length in lengths}
    for cut in _cuts(prepared.manifest.layer_count):
        stages = _load(prepared, cut)
        for length in lengths:
            tokens, logits = _generate(stages, _prompt(length), eos=eos)
            assert tokens == expected[length], (cut, length)
            assert tokens == exact[length][0]
            for position, (ours, theirs) in enumerate(zip(logits, exact[length][1], strict=True)):
                assert torch.equal(ours, theirs), (cut, length, position)


@pytest.mark.parametrize("case", ["llama", "qwen2 sliding window", "qwen3_moe", "deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("chunk", [64, 100, 256])
def test_a_prompt_in_chunks_gives_the_same_tokens(case: str, chunk: int, tmp_path: Path) -> None:
    """Prefilling piece by piece, as stages that overlap do, does not change the answer."""
    family, overrides, _ = CASES[case]
    prepared = _prepare(family, tmp_path, overrides)
    count = prepared.manifest.layer_count
    stages = _load(prepared, [range(2), range(2, count)])
    for length in (chunk - 1, chunk + 1, 5 * chunk // 2):
        prompt = _prompt(length)
        tokens, _ = _generate(stages, prompt, chunk, prepared.manifest.eos_token_ids)
        assert tokens == _theirs(prepared.unsplit, prompt)[0], length


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_cut_without_changing_a_bit(family: str, tmp_path: Path) -> None:
    """In bfloat16 the stages still do exactly what the unsplit model does on the same step shapes."""
    prepared = _prepare(family, tmp_path, {}, "bfloat16")
    stages = _load(prepared, [range(1), range(1, prepared.manifest.layer_count)])
    tokens, logits = _generate(stages, _prompt(50), eos=prepared.manifest.eos_token_ids)
    expected, theirs = _theirs(_aligned(prepared.unsplit), _prompt(50))
    assert tokens == expected
    assert all(torch.equal(ours, other.float()) for ours, other in zip(logits, theirs, strict=True))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare("llama", tmp_path_factory.mktemp("llama"), {})


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    family, overrides, _ = CASES["qwen2 sliding window"]
    return _prepare(family, tmp_path_factory.mktemp("sliding"), overrides)


def test_generations_that_take_turns_do_not_disturb_each_other(llama: Prepared) -> None:
    """Two generations stepped alternately give the tokens that each gives alone."""
    stages = _load(llama, [range(2), range(2, 5)])
    prompts = [_prompt(5), _prompt(41)]
    alone = [_generate(stages, prompt)[0] for prompt in prompts]
    caches = [_caches(stages, 100, f"g{index}") for index in range(2)]
    inputs, positions, together = list(prompts), [0, 0], [[], []]  # type: ignore[var-annotated]
    for _ in range(NEW_TOKENS):
        for turn in range(2):
            logits = _step(stages, caches[turn], inputs[turn], positions[turn])
            positions[turn] += len(inputs[turn])
            together[turn].append(int(logits.argmax()))
            inputs[turn] = torch.tensor(together[turn][-1:])
    assert together == alone


def test_a_step_that_fails_leaves_the_cache_as_it_was(llama: Prepared) -> None:
    """After an error in the last layer, the same step gives the same bits as if nothing had happened."""
    (stage,) = _load(llama, [range(5)])
    cache, twin = _caches([stage, stage], 50)
    for each in (cache, twin):
        stage.forward(_prompt(20), each, 0)
    last = stage._blocks[-1]

    def fails(*args: Any, **kwargs: Any) -> torch.Tensor:
        last(*args, **kwargs)
        raise MemoryError

    stage._blocks[-1] = fails
    with pytest.raises(MemoryError):
        stage.forward(_prompt(3), cache, 20)
    stage._blocks[-1] = last
    assert cache.length == 20
    assert torch.equal(stage.forward(_prompt(4), cache, 20), stage.forward(_prompt(4), twin, 20))


@pytest.mark.parametrize("name", ["llama", "sliding"])
def test_rolling_back_forgets_exactly_the_tokens_behind_the_mark(
    name: str, request: pytest.FixtureRequest
) -> None:
    """A generation that took wrong tokens back continues like one that never had them."""
    prepared: Prepared = request.getfixturevalue(name)
    (stage,) = _load(prepared, [range(prepared.manifest.layer_count)])
    for mark in (10, 60):
        cache, clean = _caches([stage, stage], 200)
        for each in (cache, clean):
            stage.forward(_prompt(mark), each, 0)
        for position in range(mark, mark + 30):
            stage.forward(torch.tensor([position]), cache, position)
        cache.truncate(mark)
        for position in range(mark, mark + 15):
            token = torch.tensor([255 - position])
            assert torch.equal(stage.forward(token, cache, position), stage.forward(token, clean, position))


def test_a_stage_reads_its_own_files_and_no_others(llama: Prepared, tmp_path: Path) -> None:
    """With every other file gone from the node, a middle stage still loads and computes."""
    middle = range(1, 3)
    for name in llama.manifest.files_for(middle):
        shutil.copy(llama.pack / name, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3
    stage = Stage.load(llama.manifest, tmp_path, middle)
    assert not stage.is_first
    assert not stage.is_last
    hidden = torch.randn(4, llama.manifest.hidden_size)
    (cache,) = _caches([stage], 4)
    assert stage.forward(hidden, cache, 0).shape == hidden.shape
    with pytest.raises(PackError, match=r"layer-00\.safetensors is missing"):
        Stage.load(llama.manifest, tmp_path, range(3))


def test_middle_chunks_of_a_prompt_spare_the_head(llama: Prepared) -> None:
    """Where the logits are not needed the last stage returns none; the next step is not changed by it."""
    (stage,) = _load(llama, [range(5)])
    cache, other = _caches([stage, stage], 20)
    assert stage.forward(_prompt(9), cache, 0, need_logits=False).shape == (0,)
    assert stage.forward(_prompt(9), other, 0).shape == (llama.manifest.vocab_size,)
    assert torch.equal(stage.forward(_prompt(2), cache, 9), stage.forward(_prompt(2), other, 9))


@pytest.mark.parametrize(
    ("family", "bytes_per_layer"),
    [
        ("llama", 2 * 2 * 8 * 4),  # keys and values, 2 heads, 48/6 wide, float32
        ("qwen3", 2 * 2 * 16 * 4),
        ("deepseek_v2", (20 + 8) * 4),  # the latent and the shared rotary part, once for all heads
        ("deepseek_v3", (20 + 8) * 4),
    ],
)
def test_cache_bytes_per_token_are_those_of_the_architecture(
    family: str, bytes_per_layer: int, tmp_path: Path
) -> None:
    """The measured bytes equal the papers' formulas, and a cache holds just what it reserved."""
    prepared = _prepare(family, tmp_path, {})
    stage = Stage.load(prepared.manifest, prepared.pack, range(2))
    assert prepared.manifest.kv_bytes_per_token[:2] == (bytes_per_layer, bytes_per_layer)
    assert stage.kv_bytes_per_token() == 2 * bytes_per_layer
    cache = CachePool(1 << 20, stage.kv_bytes_per_token()).open("g", 77)
    stage.forward(_prompt(5), cache, 0)
    layers: Any = cache.layers(stage.make_cache).layers
    held = sum(layer.buffers.keys.nbytes + layer.buffers.values.nbytes for layer in layers)
    assert held == cache.reserved_bytes


def test_measuring_reports_each_part_where_the_stage_has_it(llama: Prepared) -> None:
    """Layer, embedding and head are timed on real steps; a middle stage has neither embedding nor head."""
    first, middle, last = _load(llama, [range(1), range(1, 4), range(4, 5)])
    assert first.measure(limit_s=0.1).embed_s > 0
    assert last.measure(limit_s=0.1).head_s > 0
    times = middle.measure(limit_s=0.1)
    assert times.layer_s > 0
    assert (times.embed_s, times.head_s) == (0, 0)
    ticks = iter(range(1_000_000))
    assert middle.measure(limit_s=20, clock=lambda: float(next(ticks))).steps < 10  # bounded by the clock


BAD_STEPS: dict[str, tuple[Callable[[], torch.Tensor], int, str]] = {
    "floats for token ids": (lambda: torch.zeros(3), 0, "DTYPE_MISMATCH"),
    "int32 token ids": (lambda: torch.zeros(3, dtype=torch.int32), 0, "DTYPE_MISMATCH"),
    "a batch": (lambda: torch.zeros((1, 3), dtype=torch.int64), 0, "DTYPE_MISMATCH"),
    "nothing": (lambda: torch.zeros(0, dtype=torch.int64), 0, "DTYPE_MISMATCH"),
    "a negative token": (lambda: torch.tensor([4, -1]), 0, "INVALID_INPUT"),
    "a token beyond the vocabulary": (lambda: torch.tensor([259]), 0, "INVALID_INPUT"),
    "a position ahead of the cache": (lambda: torch.tensor([1]), 1, "INVALID_INPUT"),
    "more than was reserved": (lambda: torch.zeros(51, dtype=torch.int64), 0, "LIMIT_EXCEEDED"),
    "more than the context": (lambda: torch.zeros(1025, dtype=torch.int64), 0, "PROMPT_TOO_LONG"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_wrong_step_is_refused_and_changes_nothing(name: str, llama: Prepared) -> None:
    """Wrong dtype, shape, token, position or length: a typed error, and the generation goes on."""
    make, position, reason = BAD_STEPS[name]
    (stage,) = _load(llama, [range(5)])
    (cache,) = _caches([stage], 50)
    with pytest.raises(InvalidInputError) as caught:
        stage.forward(make(), cache, position)
    assert caught.value.reason == reason
    assert cache.length == 0
    assert stage.forward(torch.tensor([1, 2]), cache, 0).shape == (259,)


@pytest.mark.parametrize(
    "hidden", [torch.zeros(2, 47), torch.zeros(48), torch.zeros((2, 48), dtype=torch.float64)], ids=str
)
def test_hidden_states_of_another_shape_or_dtype_are_refused(hidden: torch.Tensor, llama: Prepared) -> None:
    """A later stage takes the pack's width and dtype only."""
    stage = Stage.load(llama.manifest, llama.pack, range(1, 5))
    (cache,) = _caches([stage], 50)
    with pytest.raises(InvalidInputError) as caught:
        stage.forward(hidden, cache, 0)
    assert caught.value.reason == "DTYPE_MISMATCH"


def test_a_closed_generation_cannot_be_stepped(llama: Prepared) -> None:
    """After the pool took the memory back, a late step is refused rather than given new memory."""
    (stage,) = _load(llama, [range(5)])
    pool = CachePool(1 << 20, stage.kv_bytes_per_token())
    cache = pool.open("g", 10)
    stage.forward(_prompt(3), cache, 0)
    pool.close("g")
    with pytest.raises(InvalidInputError) as caught:
        stage.forward(torch.tensor([1]), cache, 3)
    assert caught.value.reason == "NOT_FOUND"


@pytest.mark.parametrize(
    "layers", [range(0), range(3, 2), range(6), range(5, 6), range(-1, 2), range(0, 4, 2)], ids=str
)
def test_layers_that_the_model_does_not_have_are_refused(layers: range, llama: Prepared) -> None:
    """Empty, reversed, out of range or with gaps: refused before a file is opened."""
    with pytest.raises(InvalidInputError, match="not a run of the 5 layers"):
        Stage.load(llama.manifest, llama.pack / "nowhere", layers)


def test_one_flipped_bit_in_any_file_of_a_stage_stops_its_loading(llama: Prepared, tmp_path: Path) -> None:
    """Every byte is hashed before it is used: no file of a stage may differ in a bit."""
    pack = tmp_path / "pack"
    shutil.copytree(llama.pack, pack)
    manifest = load_manifest(pack)
    names = manifest.files_for(range(5))
    for turn, name in enumerate(names):
        whole = (pack / name).read_bytes()
        at = (turn * 7919) % len(whole)
        (pack / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PackError, match=f"{name} is damaged"):
            Stage.load(manifest, pack, range(5))
        (pack / name).write_bytes(whole)
    assert Stage.load(manifest, pack, range(5)).is_last
