"""The packs that a gateway keeps: registered by a signed manifest, filled by uploads, handed to executors."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from gateway.shared import CHUNK_BYTES, SharedStore
from gateway.text import Text
from orbitmesh.durable import write_durably
from orbitmesh.errors import InvalidInputError, MeshError, UnknownModelError
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.pack import Manifest
from orbitmesh.pack.store import ContentStore
from orbitmesh.trust import IdentitySource, Role, verify_signature
from orbitmesh.v1 import gateway_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.runtime.logs import EventLog
from services.runtime.roomy import send_when_room

SIGNERS = frozenset({Role.CLIENT, Role.OPERATOR})
PACKS_MAX = 1024
"""How many packs a gateway keeps."""
TOKENIZER_FILE = "tokenizer.json"


class PackShelf:
    """Packs on disk below one directory, and in the database of the gateways where there are several.

    Args:
        directory: Where on disk.
        identities: Who we are, and whose signatures count.
        log: Where to say what happened.
        shared: The database; what is acknowledged is there, and the disk holds what this gateway had in its hands.
    """

    def __init__(
        self, directory: Path, identities: IdentitySource, log: EventLog, shared: SharedStore | None = None
    ) -> None:
        self._shared = shared
        self._copying = threading.Lock()
        self._rows: dict[bytes, int] = {}
        self.store = ContentStore(directory / "files")
        self._manifests = directory / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)
        self._identities = identities
        self._log = log
        self._texts: dict[bytes, Text | None] = {}
        if shared is not None:
            self._share(shared)
        # Asked for every piece of an upload: read from the manifests once.
        self._sizes = {
            entry.sha256: entry.size_bytes
            for manifest in self._registered().values()
            for entry in Manifest.parse(manifest).files
        }

    def _share(self, shared: SharedStore) -> None:
        """What this gateway had acknowledged when it was alone, and what it was about to acknowledge."""
        known = shared.manifests()
        for sha256, manifest in self._on_disk().items():
            if sha256 not in known:
                for entry in Manifest.parse(manifest).files:
                    self._have(bytes.fromhex(entry.sha256), entry.size_bytes)
                shared.put_manifest(manifest)

    def _on_disk(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in sorted(self._manifests.glob("*.json"))}

    def _registered(self) -> dict[str, bytes]:
        """Every pack's manifest, by its hash."""
        return self._on_disk() if self._shared is None else self._shared.manifests()

    def _have(self, sha256: bytes, size_bytes: int) -> bool:
        """Whether all of a file is where it outlives what this gateway has to outlive."""
        if self._shared is None:
            return self.store.complete(sha256, size_bytes)
        return self._copied_whole(self._shared, sha256, size_bytes)

    def _copied_whole(self, shared: SharedStore, sha256: bytes, size_bytes: int) -> bool:
        """Brings to the database what is here of a file and not there; whether it is there whole now."""
        with self._copying:
            if shared.has(sha256):
                return True
            whole = self.store.complete(sha256, size_bytes)
            path = self.store.held_path(sha256)
            if path is None:
                return False
            try:
                at = shared.put(sha256, path, self._rows.get(sha256, 0), size_bytes if whole else None)
            except FileNotFoundError:
                return False  # another upload has just put it together, and brings it along itself
            self._rows[sha256] = at
            if whole:
                self._rows.pop(sha256, None)
            return whole

    def create(self, request: gateway_pb2.CreatePackRequest) -> gateway_pb2.CreatePackResponse:
        """Registers a pack; durable on return. Blocks.

        Raises:
            PackError: Where the manifest is damaged, unsigned, or signed by someone who may not.
        """
        verify_signature(request.manifest, request.signature or None, self._identities.current().ca, SIGNERS)
        manifest = Manifest.parse(request.manifest)
        sha256 = hashlib.sha256(request.manifest).hexdigest()
        registered = self._registered()
        if sha256 not in registered:
            if len(registered) >= PACKS_MAX:
                raise InvalidInputError(
                    f"this gateway keeps {PACKS_MAX} packs, the most it takes", reason="LIMIT_EXCEEDED"
                )
            if self._shared is None:
                write_durably(self._manifests / f"{sha256}.json", request.manifest)
            else:
                self._shared.put_manifest(request.manifest)
        self._sizes.update((entry.sha256, entry.size_bytes) for entry in manifest.files)
        response = gateway_pb2.CreatePackResponse()
        for entry in manifest.files:
            file = bytes.fromhex(entry.sha256)
            if not self._have(file, entry.size_bytes):
                response.missing.add(name=entry.name, sha256=file, offset=self.store.held_bytes(file))
        return response

    def packs(self) -> list[gateway_pb2.Pack]:
        """Every pack. Blocks."""
        found = []
        for sha256, registered in self._registered().items():
            manifest = Manifest.parse(registered)
            complete = all(self._holds(bytes.fromhex(entry.sha256)) for entry in manifest.files)
            found.append(
                gateway_pb2.Pack(
                    name=manifest.name,
                    manifest_sha256=bytes.fromhex(sha256),
                    size_bytes=manifest.total_bytes,
                    complete=complete,
                )
            )
        return found

    def _holds(self, sha256: bytes) -> bool:
        return self.store.path(sha256) is not None if self._shared is None else self._shared.has(sha256)

    def _fetched(self, sha256: bytes, size_bytes: int) -> Path | None:
        """A file on this disk, from the database where it is not here yet."""
        path = self.store.path(sha256)
        if path is None and self._shared is not None and self._shared.has(sha256):
            at = self.store.held_bytes(sha256)
            while not self.store.append(sha256, at, data := self._shared.read(sha256, at, CHUNK_BYTES), size_bytes):
                at += len(data)
            path = self.store.path(sha256)
        return path

    def text(self, manifest_bytes: bytes) -> Text | None:
        """The tokenizer of a pack; None where it has none. Blocks.

        Raises:
            UnknownModelError: Where the pack's tokenizer is not here.
        """
        key = hashlib.sha256(manifest_bytes).digest()
        if key not in self._texts:
            entries = {entry.name: entry for entry in Manifest.parse(manifest_bytes).files}
            if TOKENIZER_FILE not in entries:
                self._texts[key] = None
            else:
                entry = entries[TOKENIZER_FILE]
                path = self._fetched(bytes.fromhex(entry.sha256), entry.size_bytes)
                if path is None:
                    raise UnknownModelError("this gateway does not hold the pack's tokenizer: upload the pack again")
                self._texts[key] = Text(path)
        return self._texts[key]

    async def serve(self, session: Session) -> None:
        """Takes files in and hands files out over one session, until it ends."""
        may_write = session.peer.role in SIGNERS
        try:
            async for received in session:
                try:
                    if received.info.HasField("file") and may_write:
                        await self._take(received.info.file, received.data)
                    elif received.info.HasField("file_request"):
                        await self._give(session, received.info)
                    else:
                        raise InvalidInputError("a transfer with the gateway is a file or a request for one")
                except MeshError as error:
                    await self._tell(session, received.info, error)
        except MeshError as error:
            self._log.warning("transfer_ended", peer=session.peer.spiffe, reason=error.reason, message=error.message)

    async def _take(self, piece: wire_pb2.FileInfo, data: memoryview) -> None:
        known = self._sizes.get(piece.sha256.hex())
        if known is None:
            raise UnknownModelError("no registered pack names this file: send its manifest first (CreatePack)")
        if piece.size_bytes != known:
            raise InvalidInputError(f"the manifest gives the file {known} bytes, the transfer {piece.size_bytes}")
        await asyncio.to_thread(self.store.append, piece.sha256, piece.offset, data, known)
        if self._shared is not None:
            # As it comes: nobody waits for a whole file at the end.
            await asyncio.to_thread(self._copied_whole, self._shared, piece.sha256, known)

    async def _give(self, session: Session, asked: wire_pb2.TransferInfo) -> None:
        request = asked.file_request
        read, size = await asyncio.to_thread(self._reader, request.sha256)
        if request.offset > size or (request.offset == size and size > 0):
            raise InvalidInputError(f"the file has {size} bytes; nothing begins at {request.offset}")
        offset = request.offset
        while True:
            data = await asyncio.to_thread(read, request.sha256, offset, FRAME_BODY_BYTES)
            piece = wire_pb2.FileInfo(sha256=request.sha256, offset=offset, size_bytes=size)
            await send_when_room(session, wire_pb2.TransferInfo(file=piece, slice=asked.slice), data)
            offset += len(data)
            if offset >= size:
                return

    def _reader(self, sha256: bytes) -> tuple[Callable[[bytes, int, int], bytes], int]:
        """What reads a file that is here, or in the database, and its size in bytes."""
        path = self.store.path(sha256)
        if path is not None:
            return self.store.read, path.stat().st_size
        size_bytes = None if self._shared is None else self._shared.size_bytes(sha256)
        if self._shared is None or size_bytes is None:
            raise UnknownModelError(f"this gateway does not hold file {sha256.hex()[:12]}")
        return self._shared.read, size_bytes

    async def _tell(self, session: Session, about: wire_pb2.TransferInfo, error: MeshError) -> None:
        sha256 = about.file.sha256 or about.file_request.sha256
        failure = wire_pb2.Failure(sha256=sha256, reason=error.reason, message=error.message, metadata=error.metadata)
        await session.send(wire_pb2.TransferInfo(failure=failure))
