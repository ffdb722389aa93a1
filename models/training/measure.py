"""Bits per byte of held-out text: the model's, and those of zstd on the same bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import zstandard
from torch.nn import functional
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from models.training.corpus import Corpus, Document, join
from models.training.tokens import BEGIN_ID, encode_documents

CONTEXT_TOKENS = 1024
"""Tokens the model sees at once when it is measured, `<s>` included: the length it was last trained at."""

STRIDE_TOKENS = 512
"""Tokens between two windows: each token is predicted from at least CONTEXT_TOKENS - STRIDE_TOKENS - 1 tokens
before it, where the text has so many."""

WINDOWS_AT_ONCE = 8

ZSTD_LEVEL = 19

ZSTD_WINDOW_LOG = 27
"""A window of 128 MiB, so that a prefix of the whole training text stays in reach."""


@dataclass(frozen=True)
class Figures:
    """Bits per byte of one text, by four ways of coding it."""

    model: float
    """The model's: -log2 of the probability of all tokens, one `</s>` per document included, over bytes."""
    zstd_19: float
    """`zstd -19` on the text alone, one frame."""
    zstd_19_with_training_text: float
    """`zstd -19` with all the training text as its prefix: it knows what the model was taught."""
    held_out_bytes: int
    """UTF-8 bytes of the measured text."""
    held_out_tokens: int
    """Tokens of it, one `</s>` per document among them."""


def measure(model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> Figures:
    """All figures for the corpus's held-out documents; the model must be in float32."""
    text = corpus.held_out_text.encode()
    rows = encode_documents(tokenizer, corpus.held_out)
    return Figures(
        model=model_bits(model, torch.cat(rows)) / len(text),
        zstd_19=zstd_bits_per_byte(text),
        zstd_19_with_training_text=zstd_bits_per_byte(text, corpus.train_text.encode()),
        held_out_bytes=len(text),
        held_out_tokens=sum(len(row) for row in rows),
    )


def bits_per_byte(
    model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: tuple[Document, ...]
) -> float:
    """The model's bits per byte of some documents."""
    ids = torch.cat(encode_documents(tokenizer, documents))
    return model_bits(model, ids) / len(join(documents).encode())


@torch.no_grad()
def model_bits(model: DeepseekV3ForCausalLM, ids: torch.Tensor) -> float:
    """Total -log2 probability of `ids`, int64 of shape (tokens,), each token counted once.

    A window is `<s>` and the next CONTEXT_TOKENS - 1 tokens; the next window starts STRIDE_TOKENS later and
    counts only the tokens that the one before did not hold.
    """
    was_training = model.training
    model.train(False)
    span = CONTEXT_TOKENS - 1
    windows: list[tuple[torch.Tensor, int]] = []
    counted = 0
    for start in range(0, len(ids), STRIDE_TOKENS):
        window = ids[start : start + span]
        windows.append((window, counted - start))
        counted = start + len(window)
        if counted == len(ids):
            break
    nats = 0.0
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        nats += _window_nats(model, windows[first : first + WINDOWS_AT_ONCE])
    model.train(was_training)
    return nats / math.log(2)


def _window_nats(model: DeepseekV3ForCausalLM, windows: list[tuple[torch.Tensor, int]]) -> float:
    """Each window comes with the number of its first tokens not to count."""
    longest = max(len(window) for window, _ in windows)
    inputs = torch.full((len(windows), longest), BEGIN_ID)
    targets = torch.full((len(windows), longest), -100)
    for row, (window, skipped) in enumerate(windows):
        inputs[row, 1 : len(window)] = window[:-1]
        targets[row, skipped : len(window)] = window[skipped:]
    logits = model(inputs, use_cache=False).logits.float()
    flat = logits.flatten(0, 1)
    return float(functional.cross_entropy(flat, targets.flatten(), ignore_index=-100, reduction="sum"))


def zstd_bits_per_byte(text: bytes, prefix: bytes = b"") -> float:
    """Bits per byte of `text` under zstd at level 19 as one frame, `prefix` its raw-content dictionary."""
    if not prefix:
        return 8 * len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)) / len(text)
    parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, window_log=ZSTD_WINDOW_LOG)
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
    return 8 * len(compressor.compress(text)) / len(text)
