"""The shipped model's tokenizer: byte-level BPE, so that any text is coded and comes back unchanged."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.training.corpus import Document

BEGIN = "<s>"
END = "</s>"
BEGIN_ID = 0
END_ID = 1


def train_tokenizer(documents: tuple[Document, ...], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Learn `vocab_size` entries (special ones and the 256 bytes among them) from the documents.

    `context` is the model's greatest number of tokens. The tokenizer puts `<s>` before every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    return fast


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer stored in a directory of Hugging Face layout."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    return tokenizer


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: tuple[Document, ...]) -> list[torch.Tensor]:
    """Each document's token ids, int64 of shape (tokens,), ending in `</s>` and without `<s>`."""
    texts = [document.text for document in documents]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [torch.tensor([*row, END_ID]) for row in rows]
