"""How a stage comes to a node: its manifest checked, its files fetched, every byte verified, its layers loaded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from orbitmesh.errors import CapacityError, InvalidInputError, PackError, error_for
from orbitmesh.pack import Manifest
from orbitmesh.pack.manifest import check_layers
from orbitmesh.pack.store import ContentStore
from orbitmesh.trust import Role, verify_signature
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.executor.kvcache import CachePool
from services.executor.stage import Stage

SIGNERS = frozenset({Role.CLIENT, Role.OPERATOR})
"""Whose packs a node loads."""


class StageFiles:
    """The files of packs on this node."""

    def __init__(self, state: Path) -> None:
        self.store = ContentStore(state / "files")
        self._packs = state / "packs"

    async def fetch(
        self,
        manifest: Manifest,
        names: tuple[str, ...],
        open_session: Callable[[], Awaitable[Session]],
        slice_name: str,
    ) -> AsyncIterator[int]:
        """Brings the named files here, in a slice; yields how many bytes of them are here.

        Raises:
            PackError: Where what arrived is not what the manifest says.
            MeshError: Where the source refuses or cannot be reached.
        """
        entries = [manifest.file(name) for name in names]
        wanted = {bytes.fromhex(entry.sha256): entry.size_bytes for entry in entries}
        missing = {
            sha256: size
            for sha256, size in wanted.items()
            if not await asyncio.to_thread(self.store.complete, sha256, size)
        }
        here = sum(size for sha256, size in wanted.items() if sha256 not in missing)
        yield here
        if not missing:
            return
        session = await open_session()
        try:
            for sha256, size in missing.items():
                held = self.store.held_bytes(sha256)
                request = wire_pb2.FileRequest(sha256=sha256, offset=held)
                await session.send(wire_pb2.TransferInfo(file_request=request, slice=slice_name))
                complete = False
                while not complete:
                    received = await session.receive()
                    piece = _piece(received.info, sha256, size)
                    complete = await asyncio.to_thread(self.store.append, sha256, piece.offset, received.data, size)
                    here += len(received.data)
                    yield here + held
                here += held
        finally:
            await session.close()

    def directory(self, manifest: Manifest, manifest_bytes: bytes, names: tuple[str, ...]) -> Path:
        """A directory with the named files under their own names."""
        directory = self._packs / hashlib.sha256(manifest_bytes).hexdigest()[:32]
        for name in names:
            self.store.place(bytes.fromhex(manifest.file(name).sha256), directory / name)
        return directory

    def discard(self, manifest: Manifest, names: tuple[str, ...]) -> None:
        """Throws the named files away, so that the next attempt fetches them again."""
        for name in names:
            self.store.discard(bytes.fromhex(manifest.file(name).sha256))


def _piece(info: wire_pb2.TransferInfo, sha256: bytes, size: int) -> wire_pb2.FileInfo:
    if info.HasField("failure"):
        raise error_for(info.failure.reason, info.failure.message, dict(info.failure.metadata))
    if not info.HasField("file") or info.file.sha256 != sha256 or info.file.size_bytes != size:
        raise PackError("the source sent something other than the file that was asked for")
    return info.file


def check_request(request: executor_pb2.LoadStageRequest, ca: Any) -> tuple[Manifest, range]:
    """The manifest of a load request, its signature checked, and the layers.

    Raises:
        PackError: Where the manifest is damaged, unsigned, or signed by someone who may not.
        InvalidInputError: Where the layers or the pipeline do not fit the model.
    """
    verify_signature(request.manifest, request.signature or None, ca, SIGNERS)
    manifest = Manifest.parse(request.manifest)
    layers = range(request.layer_start, request.layer_stop)
    check_layers(manifest, layers)
    if not 0 <= request.stage_index < len(request.pipeline):
        raise InvalidInputError("the stage's index is outside its pipeline")
    if (request.stage_index == 0) != (layers.start == 0):
        raise InvalidInputError("the first stage, and only it, holds the first layer")
    if (request.stage_index == len(request.pipeline) - 1) != (layers.stop == manifest.layer_count):
        raise InvalidInputError("the last stage, and only it, holds the last layer")
    return manifest, layers


def stage_weight_bytes(manifest: Manifest, names: tuple[str, ...]) -> int:
    """Bytes of the named weight files: what a stage's weights take in memory."""
    return sum(manifest.file(name).size_bytes for name in names if name.endswith(".safetensors"))


def check_memory(needed_bytes: int, free_bytes: int, what: str) -> None:
    """Refuses what does not fit.

    Raises:
        CapacityError: With what is needed and what is free.
    """
    if needed_bytes > free_bytes:
        raise CapacityError(
            f"{what} needs {needed_bytes} bytes and {free_bytes} are free on this node: cut the model into more "
            "stages, lower kv_tokens, or give the node more memory",
            metadata={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
        )


def load(manifest: Manifest, directory: Path, layers: range, *, device: str, threads: int | None) -> tuple[Stage, int]:
    """Loads a stage; returns it and the bytes of cache one token takes. Blocks."""
    stage = Stage.load(manifest, directory, layers, device=device, threads=threads)
    return stage, stage.kv_bytes_per_token()


def make_pool(kv_tokens: int, bytes_per_token: int) -> CachePool:
    """Memory for the caches of a stage."""
    return CachePool(max(1, kv_tokens) * bytes_per_token, bytes_per_token)
