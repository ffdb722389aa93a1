"""How the configuration of each model family is cut, so that a stage builds exactly the layers it holds.

A stage's layers are numbered from 0 again: transformers reads layer 0 of the cache for the sequence length
and the mask, and a later stage that kept the model's own numbers would compute wrong logits without any
error. Every setting that depends on a layer's number is therefore shifted here.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from typing import Any

from orbitmesh.errors import PackError
from orbitmesh.pack import SUPPORTED_ARCHITECTURES, Manifest

_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types")


def import_family(architecture: str) -> bool:
    """Imports what builds models of a family of transformers; false where that had been done.

    Args:
        architecture: One of `SUPPORTED_ARCHITECTURES`.
    """
    name = f"transformers.models.{architecture}.modeling_{architecture}"
    known = name in sys.modules
    importlib.import_module(name)
    return not known


def parse_config(manifest: Manifest, config_json: bytes) -> Any:
    """The transformers configuration of a pack, checked against its manifest.

    Args:
        manifest: The manifest, already trusted.
        config_json: The bytes of the pack's `config.json`, already verified.

    Raises:
        PackError: the configuration does not parse or contradicts the manifest.
    """
    from transformers import CONFIG_MAPPING

    try:
        raw = json.loads(config_json)
        model_type = raw["model_type"]
        if model_type not in SUPPORTED_ARCHITECTURES:
            raise ValueError(f"model_type {model_type!r} is not supported")
        config = CONFIG_MAPPING[model_type].from_dict(raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PackError(
            f"the pack's config.json cannot be used: {error}", metadata={"file": "config.json"}
        ) from error
    facts = {
        "model_type": manifest.architecture,
        "num_hidden_layers": manifest.layer_count,
        "hidden_size": manifest.hidden_size,
        "vocab_size": manifest.vocab_size,
        "max_position_embeddings": manifest.context_tokens,
    }
    for field, expected in facts.items():
        if getattr(config, field) != expected:
            raise PackError(
                f"the pack's config.json says {field} = {getattr(config, field)!r}, "
                f"its manifest says {expected!r}",
                metadata={"file": "config.json"},
            )
    return config


def slice_config(config: Any, layers: range) -> Any:
    """The configuration of a model that has just these layers, numbered from 0.

    The attention and experts implementations are left for transformers to choose, as `from_pretrained` does.
    """
    count = len(layers)
    cut = copy.deepcopy(config)
    dense = _dense_layers(config, layers)
    cut.num_hidden_layers = count
    for field in _PER_LAYER_LISTS:
        values = getattr(config, field, None)
        if values is not None:
            setattr(cut, field, list(values[layers.start : layers.stop]))
    if getattr(config, "first_k_dense_replace", None) is not None:
        cut.first_k_dense_replace = min(max(config.first_k_dense_replace - layers.start, 0), count)
    if dense is not None:
        cut.mlp_only_layers, cut.decoder_sparse_step = dense, 1
    return cut


def _dense_layers(config: Any, layers: range) -> list[int] | None:
    """Of a Qwen3-MoE stage, the layers without experts, numbered from 0; None for the other families."""
    if config.model_type != "qwen3_moe":
        return None
    return [
        index - layers.start
        for index in layers
        if index in config.mlp_only_layers or (index + 1) % config.decoder_sparse_step != 0
    ]


def mask_kinds(config: Any) -> tuple[str, ...]:
    """For each layer of a (cut) configuration the mask it sees: `full` or `sliding`.

    Qwen2 and Qwen3 name it per layer; a Qwen3-MoE with a window slides everywhere; the others see everything.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return tuple("sliding" if kind == "sliding_attention" else "full" for kind in types)
    return ("full" if window is None else "sliding",) * int(config.num_hidden_layers)
