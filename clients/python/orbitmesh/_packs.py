"""From what a user names (a pack, a model directory, a hub id) to a signed pack on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.errors import InternalError, InvalidInputError, PackError, UnknownModelError, error_for
from orbitmesh.pack.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, read_manifest_bytes
from orbitmesh.results import OnProgress, Progress
from orbitmesh.trust import Identity, sign_bytes

CACHED_PACKS = 8
"""How many packs made from model directories are kept; the oldest goes first."""
SIGNATURE_BYTES = 64 * 1024
"""A larger signature file is refused, in bytes."""
STDERR_BYTES = 16 * 1024
"""How much of the packing process's complaints is kept for an error, in bytes."""
STOP_WAIT_S = 5.0
"""How long the packing process may take to end when it is given up, in seconds."""
LINE_BYTES = 1 << 20
"""The longest line that the packing process may say, in bytes."""
PACKING_MODULES = ("torch", "transformers", "safetensors")
"""What packing needs beyond the base install."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SignedPack:
    """A pack on this machine, ready to be sent."""

    directory: Path
    """Where its files are."""
    manifest: Manifest
    """What it holds."""
    manifest_bytes: bytes
    """The exact bytes that were signed."""
    signature: bytes
    """The signature over them."""
    request_id: str
    """Makes a repeated registration harmless."""


async def signed_pack(source: str | Path, identity: Identity, on_progress: OnProgress) -> SignedPack:
    """The signed pack that `source` names; a model directory or hub id is packed first, once, into the cache.

    Raises:
        UnknownModelError: there is nothing there.
        InvalidInputError: packing is needed and the extra `mesh` is not installed, or the model cannot be
            packed.
        PackError: the manifest is damaged.
    """
    path = await asyncio.to_thread(lambda: Path(source).expanduser())
    if (path / MANIFEST_NAME).is_file():
        return await asyncio.to_thread(_read_pack, path, identity, False)
    if not path.is_dir() and not (isinstance(source, str) and _HUB_ID.fullmatch(source)):
        raise UnknownModelError(
            f"{source} is neither a directory nor a hub id; give a pack (a directory with {MANIFEST_NAME}), "
            "a model "
            "directory (config.json and *.safetensors) or an id of the form owner/model",
            metadata={"source": source},
        )
    built = await _cached(path.resolve() if path.is_dir() else str(source), on_progress)
    # Packs in the cache are ours, and their signer may be of a mesh that is long gone: they are signed anew
    # each time.
    return await asyncio.to_thread(_read_pack, built, identity, True)


def cache_directory() -> Path:
    """Where packs made from model directories are kept: `$XDG_CACHE_HOME/orbitmesh/packs`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orbitmesh" / "packs"


def check_can_pack() -> None:
    """Raises `InvalidInputError`, naming the extra to install, unless models can be packed here."""
    missing = [name for name in PACKING_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"packing a model needs {', '.join(missing)}, which the base install leaves out; "
            "run `pip install 'orbitmesh[mesh]'`, or give a pack that was made elsewhere with `orbitmesh "
            "model pack`",
            reason="FAILED_PRECONDITION",
            metadata={"missing": " ".join(missing)},
        )


async def build(
    source: str | Path,
    dest: Path,
    on_progress: OnProgress,
    *,
    name: str | None = None,
    dtype: str | None = None,
) -> None:
    """Packs a model into `dest`, in a process of its own.

    Raises:
        MeshError: whatever `orbitmesh.pack.builder.build_pack` refuses with.
    """
    check_can_pack()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # a folder of the user's that is called like one of our packages must not stand in for it
        "-m",
        "orbitmesh._packing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        # Ctrl-C in a terminal reaches the whole group: the packer must end through us, after its cleanup.
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 - PIPE was asked for
    try:
        order = {"source": str(source), "dest": str(dest), "name": name, "dtype": dtype}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.TaskGroup() as group:
            complaints = group.create_task(_tail(process))
            built = group.create_task(_follow(process, str(source), on_progress))
        refusal = built.result()
        await process.wait()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await _ended(process)
    if refusal is not None:
        metadata = refusal.get("metadata")
        raise error_for(
            str(refusal["reason"]), str(refusal["message"]), metadata if isinstance(metadata, dict) else None
        )
    if process.returncode != 0:
        raise InternalError(
            f"packing {source} ended with status {process.returncode}: "
            f"{complaints.result()[-400:] or 'no word'}"
        )


async def _cached(source: Path | str, on_progress: OnProgress) -> Path:
    check_can_pack()
    cache = cache_directory()
    target = cache / await asyncio.to_thread(_fingerprint, source)
    if await asyncio.to_thread(_is_readable, target):
        return target
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    # The builder calls the model by the last part of its source, and refuses a place that exists: two that
    # pack the same model at once each write beside the other, and the one that ends last finds the work done.
    fresh = cache / f"{target.name}.{uuid.uuid4().hex[:8]}"
    await build(source, fresh, on_progress)
    try:
        fresh.rename(target)
    except OSError:
        await asyncio.to_thread(shutil.rmtree, fresh, True)
    await asyncio.to_thread(_forget_old, cache, target)
    return target


def _is_readable(directory: Path) -> bool:
    """Whether there is a pack of the format that this code reads; one of another format is removed."""
    if not (directory / MANIFEST_NAME).is_file():
        return False
    try:
        Manifest.parse(read_manifest_bytes(directory))
    except PackError:
        shutil.rmtree(directory)
        return False
    return True


def _read_pack(directory: Path, identity: Identity, sign_anew: bool) -> SignedPack:
    data = read_manifest_bytes(directory)
    manifest = Manifest.parse(data)
    signature = None if sign_anew else _read_signature(directory / SIGNATURE_NAME)
    return SignedPack(directory, manifest, data, signature or sign_bytes(identity, data), str(uuid.uuid4()))


def _read_signature(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > SIGNATURE_BYTES:
        raise InvalidInputError(
            f"{path} is larger than {SIGNATURE_BYTES} bytes: no signature; sign the pack anew"
        )
    return data


def _fingerprint(source: Path | str) -> str:
    """A name for the pack of this source as it is now, made with this transformers."""
    digest = hashlib.sha256(importlib.metadata.version("transformers").encode())
    if isinstance(source, Path):
        digest.update(str(source).encode())
        for path in sorted(source.iterdir()):
            if path.is_file():
                facts = path.stat()
                digest.update(f"\0{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}".encode())
    else:
        digest.update(source.encode())
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(str(source)).name)[:48].lstrip(".") or "model"
    return f"{name}-{digest.hexdigest()[:16]}"


def _forget_old(cache: Path, keep: Path) -> None:
    packs = [path for path in cache.iterdir() if path != keep and (path / MANIFEST_NAME).is_file()]
    packs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in packs[CACHED_PACKS - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


async def _follow(
    process: asyncio.subprocess.Process, source: str, on_progress: OnProgress
) -> Mapping[str, object] | None:
    """Passes progress on until the process says how it ended; returns the refusal, if it was one."""
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    refusal: Mapping[str, object] | None = None
    on_progress(Progress(phase="packing", subject=source))
    async for raw in process.stdout:
        try:
            line = json.loads(raw)
        except ValueError:
            continue  # a library that prints
        if isinstance(line, dict) and "error" in line:
            refusal = line["error"]
        elif isinstance(line, dict) and "file" in line:
            on_progress(Progress("packing", str(line["file"]), int(line["done"]), int(line["total"])))
    return refusal


async def _tail(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101 - PIPE was asked for
    kept = b""
    while chunk := await process.stderr.read(4096):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept.decode(errors="replace").strip()


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_WAIT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
