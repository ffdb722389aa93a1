"""Tiny random models of every supported family, in Hugging Face layout, with awkward sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

EOS_TOKEN_ID = 256
VOCAB_SIZE = 259
"""256 bytes, the end-of-text token and two more: not a multiple of anything."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": None,
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen2": _COMMON | {"num_hidden_layers": 7, "tie_word_embeddings": True},
    "qwen3": _COMMON | {"num_hidden_layers": 3, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": _COMMON
    | {
        "num_hidden_layers": 7,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "norm_topk_prob": True,
    },
    "deepseek_v2": _COMMON
    | _MLA
    | {"q_lora_rank": None, "n_shared_experts": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _COMMON | _MLA | {"q_lora_rank": 18, "n_shared_experts": 1},
}


def make_model(family: str, directory: Path, seed: int, **overrides: Any) -> Path:
    """Saves a random model of `family` with a byte-level tokenizer to `directory` and returns it.

    Args:
        family: A key of `FAMILIES`.
        directory: Made where missing.
        seed: Of the weights.
        overrides: Fields of the family's configuration.
    """
    config = CONFIG_MAPPING[family](**(FAMILIES[family] | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # zeros would hide that it travels
                buffer.normal_(std=0.1)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    _byte_tokenizer(config.vocab_size).save_pretrained(directory)
    return directory


def _byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:vocab_size]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<end>"} if vocab_size > EOS_TOKEN_ID else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
