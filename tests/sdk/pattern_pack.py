"""A pack without a model in it, for what only moves and checks bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orbitmesh.pack.manifest import FORMAT_VERSION, Manifest, PackFile


def write_pack(directory: Path, layer_bytes: int = 9 << 20) -> Manifest:
    """A pack whose files hold patterns and no model: sending does not look into them."""
    directory.mkdir()
    contents = {
        "config.json": b"{}",
        "embed.safetensors": bytes(range(256)) * 40,
        "head.safetensors": b"h" * 5000,
        "layer-00.safetensors": bytes(range(251)) * (layer_bytes // 251),
    }
    files = []
    for name, data in sorted(contents.items()):
        (directory / name).write_bytes(data)
        files.append(PackFile(name, len(data), hashlib.sha256(data).hexdigest()))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="pattern",
        architecture="llama",
        dtype="float32",
        layer_count=1,
        hidden_size=8,
        vocab_size=16,
        context_tokens=64,
        kv_bytes_per_token=(64,),
        tied=False,
        eos_token_ids=(2,),
        layer_bytes=(len(contents["layer-00.safetensors"]),),
        files=tuple(files),
        created_at="2026-01-01T00:00:00Z",
        transformers_version="5.23.0",
    )
    (directory / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest
