"""The shipped model: what it is, that it is reproducible, and that it beats zstd -19 on unseen text."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from models.training.corpus import Corpus, Document

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "pydoc"
SCRIPT = ROOT / "models" / "train.py"
MAX_SHIPPED_BYTES = 10_000_000
MEASURED_BYTES = 40_000


@dataclass(frozen=True)
class Loaded:
    """The shipped model as transformers' own loaders give it."""

    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def on_path() -> Iterator[None]:
    """`models` is no part of the distribution, so the repository's root goes on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(on_path: None) -> Corpus:
    from models.training.corpus import load_corpus

    return load_corpus()


@pytest.fixture(scope="module")
def loaded(one_thread: None) -> Loaded:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32, local_files_only=True)
    model.train(False)
    return Loaded(model, AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SHIPPED / "training.json").read_text())
    return content


def part_of(documents: tuple[Document, ...]) -> tuple[Document, ...]:
    """Whole held-out documents, in order, up to MEASURED_BYTES."""
    part: list[Document] = []
    size = 0
    for document in documents:
        if size + len(document.text.encode()) <= MEASURED_BYTES:
            part.append(document)
            size += len(document.text.encode())
    return tuple(part)


def test_all_shipped_files_together_stay_under_ten_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert sum(sizes.values()) <= MAX_SHIPPED_BYTES, sizes


def test_the_architecture_is_deepseek_v3_with_latent_attention_and_routed_and_shared_experts() -> None:
    config = AutoConfig.from_pretrained(SHIPPED, local_files_only=True)
    assert config.model_type == "deepseek_v3"
    assert config.architectures == ["DeepseekV3ForCausalLM"]
    assert config.num_hidden_layers >= 6, "three stages of at least two layers"
    assert 0 < config.first_k_dense_replace < config.num_hidden_layers
    assert config.n_routed_experts > config.num_experts_per_tok >= 2
    assert config.n_shared_experts >= 1
    assert config.q_lora_rank and config.kv_lora_rank
    assert config.max_position_embeddings >= 1024


def test_every_weight_is_finite_and_survives_a_cast_to_float16() -> None:
    with safe_open(SHIPPED / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - safe_open has no iterator
            tensor = weights.get_tensor(name).float()
            assert torch.isfinite(tensor).all(), name
            assert torch.isfinite(tensor.half()).all(), name


@pytest.mark.soak
def test_no_paragraph_of_the_held_out_text_occurs_in_the_training_text(corpus: Corpus) -> None:
    def squeezed(documents: tuple[Document, ...]) -> set[str]:
        parts: set[str] = set()
        for document in documents:
            lines = [line.strip() for line in document.text.split("\n")]
            parts.update(" ".join(part.split()) for part in "\n".join(lines).split("\n\n"))
        return parts - {""}

    assert len(corpus.held_out) > 20
    assert not squeezed(corpus.held_out) & squeezed(corpus.train)


@pytest.mark.soak
def test_the_held_out_text_is_a_twentieth_to_a_tenth_of_all_text(corpus: Corpus) -> None:
    held_out, train = len(corpus.held_out_text.encode()), len(corpus.train_text.encode())
    assert 0.05 <= held_out / (held_out + train) <= 0.10


@pytest.mark.soak
def test_the_record_names_the_text_the_model_was_trained_on(corpus: Corpus, record: dict[str, Any]) -> None:
    """The digest equals the recorded one where the text is as long as the recorded one, and only there."""
    digest = hashlib.sha256()
    for label, documents in (("train", corpus.train), ("held-out", corpus.held_out)):
        for document in documents:
            for field in (label, document.name, document.text):
                digest.update(len(field.encode()).to_bytes(8, "big") + field.encode())
    assert digest.hexdigest() == corpus.sha256
    same_text = len(corpus.train_text.encode()) == record["train_bytes"] and (
        len(corpus.held_out_text.encode()) == record["held_out_bytes"]
    )
    assert (record["corpus_sha256"] == corpus.sha256) == same_text


@pytest.mark.soak
def test_the_model_beats_zstd_19_on_a_part_of_the_held_out_text(corpus: Corpus, loaded: Loaded) -> None:
    """Bits are recomputed here, window by window, without the script's own measure."""
    part = part_of(corpus.held_out)
    ids = [
        token
        for document in part
        for token in [*loaded.tokenizer(document.text, add_special_tokens=False)["input_ids"], 1]
    ]
    bits = 0.0
    span = 511
    with torch.no_grad():
        for start in range(0, len(ids), span):
            window = torch.tensor([[0, *ids[start : start + span]]])
            logits = loaded.model(window).logits[0, :-1]
            chosen = torch.log_softmax(logits.double(), -1).gather(1, window[0, 1:, None])
            bits -= float(chosen.sum()) / torch.log(torch.tensor(2.0)).item()
    text = "\n".join(document.text for document in part).encode()
    assert len(text) > MEASURED_BYTES // 2
    zstd_bits = 8 * len(zstandard.ZstdCompressor(level=19).compress(text))
    assert bits / len(text) < zstd_bits / len(text)


def test_the_recorded_figures_beat_zstd_19(record: dict[str, Any]) -> None:
    assert record["model"] < record["zstd_19"]


def test_the_scripts_measure_counts_every_token_once_whatever_the_stride(loaded: Loaded, on_path: None) -> None:
    """A text shorter than one window gives the bits of transformers' own loss on it."""
    from models.training.measure import model_bits

    row = loaded.tokenizer("The with statement is used to wrap the execution of a block.")["input_ids"]
    ids = torch.tensor([row])
    with torch.no_grad():
        loss = loaded.model(ids, labels=ids).loss
    expected_bits = float(loss) * (len(row) - 1) / torch.log(torch.tensor(2.0)).item()
    assert model_bits(loaded.model, torch.tensor(row[1:])) == pytest.approx(expected_bits, rel=1e-5)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_the_tokenizer_gives_any_text_back_unchanged(loaded: Loaded, text: str) -> None:
    ids = loaded.tokenizer(text)["input_ids"]
    assert ids[0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == text


@given(step=st.integers(min_value=1, max_value=20_000))
def test_a_training_told_to_end_at_a_step_is_the_training_of_some_number_of_steps(on_path: None, step: int) -> None:
    """The rate falls from exactly that step, and before it no rate depends on the number of steps."""
    from models.training.optimiser import decay_start, rate_share, steps_from_decay_start

    steps = steps_from_decay_start(step)
    assert decay_start(steps) == step
    assert rate_share(step - 1, steps) == rate_share(step - 1, 10 * steps)
    assert 0 < rate_share(steps - 1, steps) <= rate_share(step, steps)


def test_ctrl_c_ends_a_training_early_and_a_second_one_stops_it(on_path: None) -> None:
    """The first lets the rate fall from the next step on; the second is the usual interrupt."""
    from models.train import Ending
    from models.training.optimiser import decay_start

    ending = Ending(steps=1000)
    try:
        ending.look(10)
        assert ending.steps == 1000
        signal.raise_signal(signal.SIGINT)
        ending.look(11)
        assert decay_start(ending.steps) == 11
        ending.look(12)
        assert decay_start(ending.steps) == 11
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        ending.restore()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_two_trainings_from_one_seed_write_the_same_bytes(tmp_path: Path) -> None:
    """Three steps of the tiny setting, twice: all files are equal, and another seed's weights are not."""

    def train(name: str, seed: int) -> dict[str, str]:
        directory = tmp_path / name
        command = [sys.executable, str(SCRIPT), "--out", str(directory), "--size", "tiny"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command += ["--steps", "3", "--seed", str(seed)]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        files = ("model.safetensors", "tokenizer.json", "config.json")
        return {file: hashlib.sha256((directory / file).read_bytes()).hexdigest() for file in files}

    first = train("first", 7)
    assert train("second", 7) == first
    assert train("third", 8)["model.safetensors"] != first["model.safetensors"]


def test_a_directory_without_a_model_is_refused_with_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--evaluate", str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no config.json" in result.stderr
