"""The packs that a gateway keeps: registered by a signed manifest, filled by uploads, handed to executors."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

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
    """Packs on disk below one directory."""

    def __init__(self, directory: Path, identities: IdentitySource, log: EventLog) -> None:
        self.store = ContentStore(directory / "files")
        self._manifests = directory / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)
        self._identities = identities
        self._log = log
        self._texts: dict[bytes, Text | None] = {}
        # Asked for every piece of an upload: read from the manifests once.
        self._sizes = {
            entry.sha256: entry.size_bytes
            for path in self._manifests.glob("*.json")
            for entry in Manifest.parse(path.read_bytes()).files
        }

    def create(self, request: gateway_pb2.CreatePackRequest) -> gateway_pb2.CreatePackResponse:
        """Registers a pack; durable on return. Blocks.

        Raises:
            PackError: Where the manifest is damaged, unsigned, or signed by someone who may not.
        """
        verify_signature(request.manifest, request.signature or None, self._identities.current().ca, SIGNERS)
        manifest = Manifest.parse(request.manifest)
        path = self._manifests / f"{hashlib.sha256(request.manifest).hexdigest()}.json"
        if not path.exists():
            if sum(1 for _ in self._manifests.glob("*.json")) >= PACKS_MAX:
                raise InvalidInputError(
                    f"this gateway keeps {PACKS_MAX} packs, the most it takes", reason="LIMIT_EXCEEDED"
                )
            write_durably(path, request.manifest)
        self._sizes.update((entry.sha256, entry.size_bytes) for entry in manifest.files)
        response = gateway_pb2.CreatePackResponse()
        for entry in manifest.files:
            sha256 = bytes.fromhex(entry.sha256)
            if not self.store.complete(sha256, entry.size_bytes):
                response.missing.add(name=entry.name, sha256=sha256, offset=self.store.held_bytes(sha256))
        return response

    def packs(self) -> list[gateway_pb2.Pack]:
        """Every pack. Blocks."""
        found = []
        for path in sorted(self._manifests.glob("*.json")):
            manifest = Manifest.parse(path.read_bytes())
            complete = all(self.store.path(bytes.fromhex(entry.sha256)) is not None for entry in manifest.files)
            found.append(
                gateway_pb2.Pack(
                    name=manifest.name,
                    manifest_sha256=bytes.fromhex(path.stem),
                    size_bytes=manifest.total_bytes,
                    complete=complete,
                )
            )
        return found

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
                path = self.store.path(bytes.fromhex(entries[TOKENIZER_FILE].sha256))
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

    async def _give(self, session: Session, asked: wire_pb2.TransferInfo) -> None:
        request = asked.file_request
        path = self.store.path(request.sha256)
        if path is None:
            raise UnknownModelError(f"this gateway does not hold file {request.sha256.hex()[:12]}")
        size = path.stat().st_size
        if request.offset > size or (request.offset == size and size > 0):
            raise InvalidInputError(f"the file has {size} bytes; nothing begins at {request.offset}")
        offset = request.offset
        while True:
            data = await asyncio.to_thread(self.store.read, request.sha256, offset, FRAME_BODY_BYTES)
            piece = wire_pb2.FileInfo(sha256=request.sha256, offset=offset, size_bytes=size)
            await send_when_room(session, wire_pb2.TransferInfo(file=piece, slice=asked.slice), data)
            offset += len(data)
            if offset >= size:
                return

    async def _tell(self, session: Session, about: wire_pb2.TransferInfo, error: MeshError) -> None:
        sha256 = about.file.sha256 or about.file_request.sha256
        failure = wire_pb2.Failure(sha256=sha256, reason=error.reason, message=error.message, metadata=error.metadata)
        await session.send(wire_pb2.TransferInfo(failure=failure))
