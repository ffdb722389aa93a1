"""Makes a pack from a model in Hugging Face layout. Needs torch and transformers: import it only to build.

The model is loaded once with transformers' own `from_pretrained`, which knows how checkpoints map to modules
(fused experts, tied heads, renamed keys), and each decoder layer is written out under its module's names. A
stage then only has to put the same tensors back into the same modules.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from orbitmesh.durable import flush
from orbitmesh.errors import InvalidInputError, TransportError, UnknownModelError
from orbitmesh.pack.manifest import (
    CONFIG_NAME,
    EMBED_NAME,
    FORMAT_VERSION,
    HEAD_NAME,
    MANIFEST_NAME,
    READ_CHUNK_BYTES,
    SUPPORTED_ARCHITECTURES,
    SUPPORTED_DTYPES,
    Manifest,
    PackFile,
    Progress,
    layer_file,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""Copied into the pack as they are, where the source has them."""
SOURCE_CONFIG_MAX_BYTES = 4 * 1024 * 1024
"""A larger `config.json` is refused unread, in bytes."""
REFUSED_ROPE_TYPES = ("longrope",)
"""Position codes that depend on how long the whole prompt is: it cannot be prefilled in chunks."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja")


def build_pack(
    source: Path | str,
    dest: Path,
    *,
    name: str | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
    hub_endpoint: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Manifest:
    """Builds a pack at `dest` and returns its manifest; signing it is a step of its own.

    The pack appears at `dest` whole or not at all: it is written as `dest` + ".partial", synced and renamed.

    Args:
        source: A directory in Hugging Face layout (config.json and safetensors), or a hub id such as
            `Qwen/Qwen3-0.6B`.
        dest: The directory to make; must not exist.
        name: What to call the model; the last part of `source` where left out.
        dtype: One of `SUPPORTED_DTYPES`. In `float32` the mesh gives the same tokens as one process does.
        progress: Called with (file name, bytes written, bytes in all).
        hub_endpoint: Another hub than the public one, as a URL.
        now: Gives the time that the manifest records.

    Raises:
        InvalidInputError: `UNSUPPORTED_MODEL`, `ALREADY_EXISTS`, `DTYPE_MISMATCH`, or the source does not
            load.
        UnknownModelError: there is no such directory and no such model on the hub.
        TransportError: the hub could not be reached.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise InvalidInputError(
            f"a pack cannot hold {dtype!r}; choose one of {', '.join(SUPPORTED_DTYPES)}",
            reason="DTYPE_MISMATCH",
        )
    partial = dest.with_name(dest.name + ".partial")
    for path in (dest, partial):
        if path.exists():
            raise InvalidInputError(
                f"{path} already exists; remove it or name another place", reason="ALREADY_EXISTS"
            )
    directory = _fetch(source, hub_endpoint)
    config = _read_config(directory)
    model = _load(directory, config, dtype)
    partial.mkdir(parents=True)
    try:
        files = _write_files(model, directory, partial, progress)
        manifest = _describe(model, files, name or Path(str(source)).name, dtype, now())
        (partial / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        flush(partial / MANIFEST_NAME)
        flush(partial)
        partial.rename(dest)
        flush(dest.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _fetch(source: Path | str, endpoint: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise UnknownModelError(
            f"{source} is neither a directory nor a hub id; give a directory with config.json and "
            "*.safetensors, or an id of the form owner/model"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_PATTERNS), endpoint=endpoint))
    except RepositoryNotFoundError:
        raise UnknownModelError(
            f"the hub has no model {source!r}, or it asks for a login (`hf auth login`)"
        ) from None
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        raise TransportError(
            f"the model {source!r} could not be fetched from the hub ({type(error).__name__}); check the "
            "network, or download it where there is one and pack that directory: "
            f"`hf download {source} --local-dir DIR`"
        ) from error


def _read_config(directory: Path) -> Any:
    path = directory / CONFIG_NAME
    try:
        if path.stat().st_size > SOURCE_CONFIG_MAX_BYTES:
            raise InvalidInputError(f"{path} is larger than {SOURCE_CONFIG_MAX_BYTES} bytes")
        raw = json.loads(path.read_bytes())
    except OSError:
        raise InvalidInputError(
            f"{directory} has no {CONFIG_NAME}; expected a model in Hugging Face layout"
        ) from None
    except ValueError as error:
        raise InvalidInputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidInputError(f"{path} must hold a JSON object")
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED_ARCHITECTURES:
        _refuse(f"its model_type is {model_type!r:.80}")
    if raw.get("quantization_config"):
        _refuse("it is quantised (quantization_config); save it de-quantised first")
    if raw.get("per_layer_config"):
        _refuse("its layers are of different shapes (per_layer_config)")
    if not any(directory.glob("*.safetensors")):
        raise InvalidInputError(
            f"{directory} has no *.safetensors; weights in .bin or .pt can run code when they are read and "
            "are never loaded: convert them with transformers' `save_pretrained` where you trust them"
        )
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, StrictDataclassError) as error:
        raise InvalidInputError(f"transformers refuses {path}: {error}") from error
    if set(getattr(config, "base_model_pp_plan", None) or {}) != {"embed_tokens", "layers", "norm"}:
        _refuse("transformers has no pipeline plan (base_model_pp_plan) for it")
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type in REFUSED_ROPE_TYPES:
        _refuse(f"its rope_type {rope_type!r} depends on the length of the whole prompt")
    return config


def _refuse(why: str) -> None:
    raise InvalidInputError(
        f"this model cannot be split: {why}; supported are {', '.join(SUPPORTED_ARCHITECTURES)}",
        reason="UNSUPPORTED_MODEL",
        metadata={"supported": ",".join(SUPPORTED_ARCHITECTURES)},
    )


def _load(directory: Path, config: Any, dtype: str) -> Any:
    try:
        with _quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InvalidInputError(f"transformers could not load the model in {directory}: {error}") from error
    model, info = loaded
    # transformers fills what it does not find with random numbers and only logs it.
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            raise InvalidInputError(
                f"the checkpoint in {directory} is not complete: {kind} {sorted(map(str, info[kind]))[:4]}; "
                "download it again"
            )
    return model.eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    # Its progress bar would write over ours.
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _write_files(model: Any, source: Path, dest: Path, progress: Progress | None) -> list[PackFile]:
    """Writes everything but the manifest; returns the entries, ordered by name."""
    tied = _is_tied(model)
    parts: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        EMBED_NAME: lambda: {"embed_tokens.weight": model.model.embed_tokens.weight}
    }
    for index, layer in enumerate(model.model.layers):
        parts[layer_file(index)] = layer.state_dict
    parts[HEAD_NAME] = lambda: {
        "norm.weight": model.model.norm.weight,
        **({} if tied else {"lm_head.weight": model.lm_head.weight}),
    }
    total = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors().values())
    done = 0
    for file_name, tensors in parts.items():
        held = {key: tensor.detach().contiguous() for key, tensor in tensors().items()}
        save_file(held, dest / file_name, metadata={"format": "pt"})
        done += sum(tensor.nbytes for tensor in held.values())
        if progress is not None:
            progress(file_name, done, total)
    # Written from the loaded configuration: whatever spelling the source had, stages read this release's.
    (dest / CONFIG_NAME).write_bytes(model.config.to_json_string(use_diff=False).encode())
    for file_name in TOKENIZER_FILES:
        if (source / file_name).is_file():
            shutil.copyfile(source / file_name, dest / file_name)
    return [_entry(path) for path in sorted(dest.iterdir())]


def _is_tied(model: Any) -> bool:
    return bool(model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr())


def _entry(path: Path) -> PackFile:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    flush(path)
    return PackFile(name=path.name, size_bytes=size, sha256=digest.hexdigest())


def _describe(model: Any, files: list[PackFile], name: str, dtype: str, at: datetime) -> Manifest:
    config = model.config
    sizes = {file.name: file.size_bytes for file in files}
    # `generate` stops at the ids of the generation configuration, which may name more than the model's.
    eos = model.generation_config.eos_token_id
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "model",
        architecture=config.model_type,
        dtype=dtype,
        layer_count=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_tokens=config.max_position_embeddings,
        tied=_is_tied(model),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        layer_bytes=tuple(sizes[layer_file(index)] for index in range(config.num_hidden_layers)),
        kv_bytes_per_token=_kv_bytes_per_token(model),
        files=tuple(files),
        created_at=at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        transformers_version=transformers.__version__,
    )
    return Manifest.parse(manifest.to_bytes())


def _kv_bytes_per_token(model: Any) -> tuple[int, ...]:
    """What one token leaves in each layer's cache, in bytes: read off a real step, so no family needs a formula."""
    with torch.inference_mode():
        past = model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True).past_key_values
    return tuple(
        sum(part.numel() * part.element_size() for part in (layer.keys, layer.values)) for layer in past.layers
    )
