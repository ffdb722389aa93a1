"""The manifest of a pack: what the model is, which files it is made of, and the hash of every one of them.

A pack is a directory::

    manifest.json          this module's format; its exact bytes are what gets signed
    manifest.sig           a detached signature over those bytes (made and checked by `orbitmesh.trust`)
    config.json            the transformers configuration
    embed.safetensors      the token embedding; with tied heads also the matrix of the head
    layer-00.safetensors   one file per decoder layer, tensors named as in the layer's module
    head.safetensors       the final norm and, unless tied, the head
    tokenizer.json ...     copied as they were

Nothing in a pack is believed before its hash matches, and the manifest is believed only after its signature
was checked. Parsing is strict: an unknown field, a missing one, a path instead of a plain name or counts
that do not fit each other are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orbitmesh.errors import InvalidInputError, PackError, UnknownModelError

FORMAT_VERSION = 1
"""The version of the pack format that this code writes, and the only one it reads."""
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
CONFIG_NAME = "config.json"
EMBED_NAME = "embed.safetensors"
HEAD_NAME = "head.safetensors"

MANIFEST_MAX_BYTES = 4 * 1024 * 1024
"""A larger manifest is refused unread, in bytes."""
PACK_MAX_FILES = 4096
"""A pack with more files is refused."""
LAYERS_MAX = 2048
"""A model with more decoder layers is refused."""
FILE_MAX_BYTES = 1 << 40
"""A pack file larger than this is refused, in bytes."""
READ_CHUNK_BYTES = 1024 * 1024
"""How much of a file is read and hashed at a time, in bytes."""

SUPPORTED_ARCHITECTURES = ("deepseek_v2", "deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe")
"""The `model_type` values that packs and stages know how to cut."""
SUPPORTED_DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes that a pack may hold its weights in; `float32` is the one of the "same tokens" promise."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes done over all files, bytes in all) while a pack is written or verified."""


def layer_file(index: int) -> str:
    """The name of the file that holds decoder layer `index`."""
    return f"layer-{index:02d}.safetensors"


@dataclass(frozen=True)
class PackFile:
    """One file of a pack."""

    name: str
    """A plain file name: no folder, no leading dot."""
    size_bytes: int
    """The exact size, in bytes."""
    sha256: str
    """SHA-256 over the whole file, 64 lower-case hexadecimal digits."""


@dataclass(frozen=True)
class Manifest:
    """What a pack holds. Made by `orbitmesh.pack.builder.build_pack`, read by `load_manifest`."""

    format_version: int
    """Always `FORMAT_VERSION`."""
    name: str
    """What people call the model; a deployment may call it otherwise."""
    architecture: str
    """The transformers `model_type`, one of `SUPPORTED_ARCHITECTURES`."""
    dtype: str
    """The dtype of the weights, and of the hidden states between stages: one of `SUPPORTED_DTYPES`."""
    layer_count: int
    """How many decoder layers there are."""
    hidden_size: int
    """The width of the hidden state that crosses a cut, in values per token."""
    vocab_size: int
    """How many token ids the embedding knows."""
    context_tokens: int
    """The longest prompt plus answer, in tokens (`max_position_embeddings`)."""
    tied: bool
    """True where the head is the embedding matrix: the last stage then reads `embed.safetensors` too."""
    eos_token_ids: tuple[int, ...]
    """The token ids that end an answer; may be empty."""
    layer_bytes: tuple[int, ...]
    """The size of each decoder layer's file, in bytes, in order: what a planner weighs."""
    kv_bytes_per_token: tuple[int, ...]
    """What one token takes in the cache of each decoder layer, in bytes, measured on the model: the planner's other
    weight."""
    files: tuple[PackFile, ...]
    """Every file but the manifest and its signature, ordered by name."""
    created_at: str
    """When the pack was built, RFC 3339 in UTC."""
    transformers_version: str
    """The transformers release that built it; module names of the tensors follow it."""

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Reads a manifest from its exact bytes.

        Raises:
            PackError: `PACK_DAMAGED`; the message names the field that is wrong.
        """
        if len(data) > MANIFEST_MAX_BYTES:
            raise PackError(f"the manifest is {len(data)} bytes; at most {MANIFEST_MAX_BYTES} are allowed")
        try:
            raw = json.loads(
                data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
            )
        except (ValueError, RecursionError) as error:
            raise PackError(f"the manifest is not valid JSON: {error}") from None
        return _manifest_from(_fields_exactly(raw, cls, "the manifest"))

    def to_bytes(self) -> bytes:
        """The bytes to write and to sign: ASCII JSON, keys in the fields' order, a newline at the end."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=True) + "\n").encode()

    @property
    def total_bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> PackFile:
        """The entry of one file.

        Raises:
            PackError: the manifest names no such file.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise PackError(f"the manifest of {self.name!r} names no file {name!r}", metadata={"file": name})

    def files_for(self, layers: range) -> tuple[str, ...]:
        """The names of the files that a stage of these layers reads, and no others.

        Raises:
            InvalidInputError: the layers are empty, not consecutive or outside of the model.
        """
        check_layers(self, layers)
        names = [CONFIG_NAME, *(layer_file(index) for index in layers)]
        last = layers.stop == self.layer_count
        if layers.start == 0 or (last and self.tied):
            names.append(EMBED_NAME)
        if last:
            names.append(HEAD_NAME)
        return tuple(names)


def check_layers(manifest: Manifest, layers: range) -> None:
    """Raises `InvalidInputError` unless `layers` is a non-empty run of this model's layers."""
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= manifest.layer_count:
        raise InvalidInputError(
            f"layers {layers.start}..{layers.stop} (step {layers.step}) are not a run of the "
            f"{manifest.layer_count} layers of {manifest.name!r}; expected "
            f"0 <= start < stop <= {manifest.layer_count} and step 1",
            metadata={"start": layers.start, "stop": layers.stop, "layer_count": manifest.layer_count},
        )


def load_manifest(directory: Path) -> Manifest:
    """Reads `manifest.json` of a pack. The signature is not checked here; `orbitmesh.trust` does that.

    Raises:
        UnknownModelError: there is no pack at this place.
        PackError: the manifest is damaged.
    """
    return Manifest.parse(read_manifest_bytes(directory))


def read_manifest_bytes(directory: Path) -> bytes:
    """The exact bytes of the manifest, bounded: what a signature is made over and checked against.

    Raises:
        UnknownModelError: there is no pack at this place.
        PackError: the manifest is larger than `MANIFEST_MAX_BYTES`.
    """
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_MAX_BYTES + 1)
    except OSError as error:
        raise UnknownModelError(
            f"{directory} is not a pack: {MANIFEST_NAME} cannot be read ({error.strerror}); "
            "make a pack with `orbitmesh model pack SRC DEST`"
        ) from None
    if len(data) > MANIFEST_MAX_BYTES:
        raise PackError(f"{path} is larger than {MANIFEST_MAX_BYTES} bytes, the most a manifest may have")
    return data


def verify_files(
    manifest: Manifest,
    directory: Path,
    names: Iterable[str] | None = None,
    *,
    progress: Progress | None = None,
) -> None:
    """Hashes files of a pack against the manifest, reading each once and holding `READ_CHUNK_BYTES` of it.

    Args:
        manifest: The manifest, already trusted.
        directory: Where the pack is.
        names: The files to check; all of them where left out.
        progress: Called as bytes are checked.

    Raises:
        PackError: `PACK_DAMAGED`, naming the first file that is missing, of another size or of another hash.
    """
    wanted = [manifest.file(name) for name in names] if names is not None else list(manifest.files)
    total = sum(entry.size_bytes for entry in wanted)
    done = 0
    for entry in wanted:
        digest = hashlib.sha256()
        path = _sized(directory, entry)
        with path.open("rb") as file:
            while chunk := file.read(READ_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(entry.name, done, total)
        _compare(entry, digest.hexdigest())


def read_verified(manifest: Manifest, directory: Path, name: str) -> bytes:
    """One file of a pack, whole, after its hash was checked over these very bytes.

    Because what is returned is what was hashed, a file that changes on the disk meanwhile cannot slip in.

    Raises:
        PackError: `PACK_DAMAGED`, naming the file.
    """
    entry = manifest.file(name)
    with _sized(directory, entry).open("rb") as file:
        data = file.read(entry.size_bytes)
    _compare(entry, hashlib.sha256(data).hexdigest())
    return data


def _sized(directory: Path, entry: PackFile) -> Path:
    path = directory / entry.name
    try:
        found = path.stat().st_size if path.is_file() else None
    except OSError:
        found = None
    if found is None:
        raise PackError(
            f"{entry.name} is missing from the pack at {directory}; copy it there again "
            "or build the pack anew",
            metadata={"file": entry.name},
        )
    if found != entry.size_bytes:
        raise PackError(
            f"{entry.name} is {found} bytes, the manifest says {entry.size_bytes}; copy the file again",
            metadata={"file": entry.name, "expected_bytes": entry.size_bytes, "found_bytes": found},
        )
    return path


def _compare(entry: PackFile, found: str) -> None:
    if found != entry.sha256:
        raise PackError(
            f"{entry.name} is damaged: expected SHA-256 {entry.sha256[:16]}..., found {found[:16]}...; "
            "copy the file again from where the pack was built",
            metadata={"file": entry.name, "expected_sha256": entry.sha256[:16], "found_sha256": found[:16]},
        )


# --- strict parsing ---


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _fields_exactly(raw: Any, kind: type[Any], what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise PackError(f"{what} must be a JSON object, found {type(raw).__name__}")
    expected = {field.name for field in fields(kind)}
    if raw.keys() != expected:
        missing, unknown = sorted(expected - raw.keys()), sorted(raw.keys() - expected)
        raise PackError(
            f"{what} does not have the fields of this format: missing {missing}, unknown {unknown}"
        )
    return raw


def _whole(raw: Any, what: str, low: int, high: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
        raise PackError(f"{what} must be a whole number from {low} to {high}, found {raw!r:.80}")
    return raw


def _text(raw: Any, what: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(raw, str) or not pattern.fullmatch(raw):
        raise PackError(f"{what} must match {pattern.pattern}, found {raw!r:.80}")
    return raw


def _one_of(raw: Any, what: str, allowed: tuple[str, ...]) -> str:
    if raw not in allowed:
        raise PackError(f"{what} must be one of {', '.join(allowed)}, found {raw!r:.80}")
    return str(raw)


def _list(raw: Any, what: str, most: int) -> list[Any]:
    if not isinstance(raw, list) or len(raw) > most:
        raise PackError(f"{what} must be a list of at most {most} entries")
    return raw


def _manifest_from(raw: dict[str, Any]) -> Manifest:
    if raw["format_version"] != FORMAT_VERSION or isinstance(raw["format_version"], bool):
        raise PackError(
            f"the pack format is version {raw['format_version']!r:.80}; this code reads {FORMAT_VERSION}"
        )
    if not isinstance(raw["tied"], bool):
        raise PackError(f"tied must be true or false, found {raw['tied']!r:.80}")
    vocab_size = _whole(raw["vocab_size"], "vocab_size", 1, 1 << 31)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=_text(raw["name"], "name", _MODEL_NAME),
        architecture=_one_of(raw["architecture"], "architecture", SUPPORTED_ARCHITECTURES),
        dtype=_one_of(raw["dtype"], "dtype", SUPPORTED_DTYPES),
        layer_count=_whole(raw["layer_count"], "layer_count", 1, LAYERS_MAX),
        hidden_size=_whole(raw["hidden_size"], "hidden_size", 1, 1 << 24),
        vocab_size=vocab_size,
        context_tokens=_whole(raw["context_tokens"], "context_tokens", 1, 1 << 31),
        tied=raw["tied"],
        eos_token_ids=tuple(
            _whole(token, "eos_token_ids", 0, 1 << 31)
            for token in _list(raw["eos_token_ids"], "eos_token_ids", 64)
        ),
        layer_bytes=tuple(
            _whole(size, "layer_bytes", 1, FILE_MAX_BYTES)
            for size in _list(raw["layer_bytes"], "layer_bytes", LAYERS_MAX)
        ),
        kv_bytes_per_token=tuple(
            _whole(size, "kv_bytes_per_token", 1, 1 << 31)
            for size in _list(raw["kv_bytes_per_token"], "kv_bytes_per_token", LAYERS_MAX)
        ),
        files=tuple(_file_from(file) for file in _list(raw["files"], "files", PACK_MAX_FILES)),
        created_at=_text(raw["created_at"], "created_at", re.compile(r"[0-9T:.+Z-]{10,40}")),
        transformers_version=_text(raw["transformers_version"], "transformers_version", _PLAIN_NAME),
    )
    _check_consistent(manifest)
    return manifest


def _file_from(raw: Any) -> PackFile:
    entry = _fields_exactly(raw, PackFile, "an entry of files")
    name = _text(entry["name"], "a file's name", _PLAIN_NAME)
    if name in (MANIFEST_NAME, SIGNATURE_NAME):
        raise PackError(f"files must not name {name}: a manifest cannot hold its own hash")
    return PackFile(
        name=name,
        size_bytes=_whole(entry["size_bytes"], f"size_bytes of {name}", 0, FILE_MAX_BYTES),
        sha256=_text(entry["sha256"], f"sha256 of {name}", _SHA256),
    )


def _check_consistent(manifest: Manifest) -> None:
    sizes = {file.name: file.size_bytes for file in manifest.files}
    if len(sizes) != len(manifest.files) or len({name.lower() for name in sizes}) != len(sizes):
        raise PackError("files names the same file twice")
    for required in (CONFIG_NAME, EMBED_NAME, HEAD_NAME):
        if required not in sizes:
            raise PackError(f"files does not name {required}")
    expected = {layer_file(index) for index in range(manifest.layer_count)}
    found = {name for name in sizes if name.startswith("layer-")}
    if found != expected:
        raise PackError(
            f"layer_count is {manifest.layer_count} but the layer files differ from that: "
            f"missing {sorted(expected - found)[:4]}, unexpected {sorted(found - expected)[:4]}"
        )
    if manifest.layer_bytes != tuple(sizes[layer_file(index)] for index in range(manifest.layer_count)):
        raise PackError("layer_bytes differs from the sizes of the layer files")
    if len(manifest.kv_bytes_per_token) != manifest.layer_count:
        raise PackError("kv_bytes_per_token must have one entry per layer")
