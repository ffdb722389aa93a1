"""Two language tasks: DeepSeek-V3's architecture on the text that comes with CPython, split by section between nodes.

`pydoc` has the sizes and the tokenizer of the model in `models/pydoc` of the repository, so that it can be split over
the mesh once it is trained. `pydoc-small` reads bytes and is a fifteenth of it.
"""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from orbitmesh.errors import InvalidInputError
from services.training.arrays import IndexArray
from services.training.examples import Examples
from services.training.partition import LEAST_EXAMPLES, check_index, deal_sections, split
from services.training.prose import Prose, Section, read_prose
from services.training.task import Task, seeded

MODEL_VARIABLE = "ORBITMESH_PYDOC_MODEL"
"""Environment variable that names the model directory where it is not in the checkout."""

BEGIN_ID = 0
END_ID = 1

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

SMALL_SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 512,
}
"""Sizes of the small model."""


class Language(Task):
    """Predict each token of a text from those before it."""

    metric: ClassVar[str] = "loss"
    sequence_tokens: ClassVar[int]
    """Tokens of an example, the begin sign included."""

    @abstractmethod
    def config(self) -> DeepseekV3Config:
        """The model's settings."""

    @abstractmethod
    def prose(self) -> Prose:
        """The text."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """A text's token ids, without the signs for begin (0) and end (1)."""

    def model(self, seed: int) -> nn.Module:
        """A model at random."""
        with seeded(seed):
            return DeepseekV3ForCausalLM(self.config())

    def shard(self, index: int, nodes: int, *, seed: int, alpha: float | None = None) -> Examples:
        """Whole sections for each node; with an `alpha`, the sequences of a section are spread with that skew."""
        check_index(index, nodes)
        rows, owner = self._train
        sections = int(owner[-1]) + 1
        if alpha is None:
            mine = deal_sections(np.bincount(owner, minlength=sections), nodes, seed=seed)[index]
            part = np.flatnonzero(np.isin(owner, mine))
            if len(part) < LEAST_EXAMPLES:
                raise InvalidInputError(
                    f"{len(rows)} sequences in {sections} sections give node {index} of {nodes} only {len(part)}; it "
                    f"needs {LEAST_EXAMPLES}: use fewer nodes"
                )
        else:
            part = split(owner, nodes, seed=seed, alpha=alpha)[index]
        return _examples(rows[part])

    def held_out(self) -> Examples:
        """Sequences of sections that are in no shard."""
        return self._held_out

    def per_example_loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """Mean cross entropy of each sequence's tokens, in nats, of shape (examples,)."""
        logits: torch.Tensor = model(batch.inputs, use_cache=False).logits
        losses = functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
        return losses.view(batch.targets.shape).mean(dim=1)

    def _rows(self, sections: tuple[Section, ...]) -> tuple[IndexArray, IndexArray]:
        """Sequences, int64 of shape (sequences, sequence_tokens), and the section number of each."""
        length = self.sequence_tokens - 1
        rows: list[IndexArray] = []
        owner: list[IndexArray] = []
        for section in sections:
            ids = np.array([*self.encode(section.text), END_ID], np.int64)
            usable = len(ids) // length
            if usable:
                rows.append(ids[: usable * length].reshape(usable, length))
                owner.append(np.full(usable, len(owner)))
        whole = np.concatenate(rows)
        return np.pad(whole, ((0, 0), (1, 0)), constant_values=BEGIN_ID), np.concatenate(owner)

    @cached_property
    def _train(self) -> tuple[IndexArray, IndexArray]:
        return self._rows(self._prose.train)

    @cached_property
    def _held_out(self) -> Examples:
        return _examples(self._rows(self._prose.held_out)[0])

    @cached_property
    def _prose(self) -> Prose:
        return self.prose()


class PyDoc(Language):
    """Topics and docstrings of CPython, and a model of 4.7 million parameters."""

    sequence_tokens = 257

    def config(self) -> DeepseekV3Config:
        """Those of `models/pydoc`."""
        return DeepseekV3Config.from_pretrained(self._directory, local_files_only=True)

    def prose(self) -> Prose:
        """Everything; what the shipped model has not seen is held out."""
        return read_prose(held_out_per_mille=75)

    def encode(self, text: str) -> list[int]:
        """The ids of the shipped tokenizer."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def export(self, model: nn.Module, directory: Path) -> None:
        """Write a trained model in Hugging Face layout, with its tokenizer: what `orbitmesh deploy` takes.

        Raises:
            InvalidInputError: this is no model of this task.
        """
        if not isinstance(model, DeepseekV3ForCausalLM):
            raise InvalidInputError(f"a {type(model).__name__} was given; expected what this task's `model` makes")
        model.save_pretrained(directory)
        for name in TOKENIZER_FILES:
            shutil.copyfile(self._directory / name, directory / name)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self._directory / "tokenizer.json"))

    @cached_property
    def _directory(self) -> Path:
        given = os.environ.get(MODEL_VARIABLE)
        directory = Path(given) if given else Path(__file__).resolve().parents[2] / "models" / "pydoc"
        missing = [name for name in ("config.json", *TOKENIZER_FILES) if not (directory / name).is_file()]
        if missing:
            raise InvalidInputError(
                f"there is no {', '.join(missing)} in {directory}: set {MODEL_VARIABLE} to a directory like "
                "models/pydoc of the repository, on every node of the run",
                reason="NOT_FOUND",
            )
        return directory


class PyDocSmall(Language):
    """Topics of CPython byte by byte, and a model small enough for a test."""

    sequence_tokens = 129

    def config(self) -> DeepseekV3Config:
        """SMALL_SIZES; the rest as `models/pydoc`."""
        return DeepseekV3Config(
            **SMALL_SIZES,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.0,
            num_mtp_layers=0,
            tie_word_embeddings=False,
            initializer_range=0.05,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=BEGIN_ID,
            eos_token_id=END_ID,
        )

    def prose(self) -> Prose:
        """The topics, a fifth of them held out."""
        return read_prose(held_out_per_mille=200, topics_only=True)

    def encode(self, text: str) -> list[int]:
        """The bytes of its UTF-8, plus two."""
        return [byte + 2 for byte in text.encode()]


def _examples(rows: IndexArray) -> Examples:
    whole = torch.from_numpy(rows)
    return Examples(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())
