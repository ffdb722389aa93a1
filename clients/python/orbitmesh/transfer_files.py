"""Brings the files of a pack to the gateway over a session of sealed frames, sending only what is not there
yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orbitmesh._packs import SignedPack
from orbitmesh._resuming import RESUME_S, asked_again
from orbitmesh._stubs import Stubs
from orbitmesh.errors import InvalidInputError, PackError, TransportError, error_for
from orbitmesh.results import OnProgress, Progress
from orbitmesh.rpc import mapped_errors
from orbitmesh.v1 import gateway_pb2, wire_pb2

if TYPE_CHECKING:
    from orbitmesh.wire.session import Session

TRANSFER_METHOD = "/orbitmesh.v1.PackService/Transfer"
"""The RPC that carries the session."""
PIECE_BYTES = 4 << 20
"""How much of a file one transfer carries, in bytes: what a lost gateway can cost again."""
UPLOAD_ROUNDS = 4
"""How often the rest is sent after a session was lost for good."""
SETTLE_S = 5.0
"""How long the gateway may take to have what was acknowledged on its disk, without getting on, in seconds."""
SETTLE_POLL_S = 0.05
"""How often it is asked for that, in seconds."""


@dataclass(frozen=True)
class Piece:
    """A file, and from where on the gateway lacks it."""

    path: Path
    """Where it is here."""
    name: str
    """Its name in the manifest."""
    sha256: bytes
    """SHA-256 of the whole file, 32 bytes."""
    size_bytes: int
    """The size of the whole file, in bytes."""
    offset: int
    """How much of it is there, in bytes."""


async def upload(stubs: Stubs, pack: SignedPack, on_progress: OnProgress) -> None:
    """Registers a pack and sends the files that the gateway lacks; returns once it has all of them on its
    disk.

    Raises:
        PackError: a file here differs from the manifest, or the signature is not trusted there.
        TransportError: the gateway was lost and stayed lost.
    """
    missing = await _still_missing(stubs, pack)
    for left in reversed(range(UPLOAD_ROUNDS)):
        pieces = missing_pieces(pack, missing)
        if not pieces:
            return
        try:
            missing = await _send_all(stubs, pack, pieces, on_progress)
        except (TransportError, InvalidInputError) as error:
            # `held_bytes` is in the refusal of a piece that comes too late: someone else sends the same file,
            # perhaps an upload of ours that was given up and whose last pieces are still being written.
            if left == 0 or not (isinstance(error, TransportError) or "held_bytes" in error.metadata):
                raise
            missing = await _settled(stubs, pack)
    if missing:
        raise TransportError(
            f"the gateway still lacks {', '.join(file.name for file in missing)} after {UPLOAD_ROUNDS} "
            "rounds of "
            "sending; look into its log and deploy again: what it has is not sent again",
            metadata={"missing": len(missing)},
        )


def missing_pieces(pack: SignedPack, missing: Sequence[gateway_pb2.MissingFile]) -> list[Piece]:
    """What to send, after a look at the files here.

    Raises:
        PackError: the gateway asks for a file that the manifest does not name with this hash, or the file
            here is missing or of another size than the manifest says.
    """
    return [_piece(pack, file) for file in missing]


def _piece(pack: SignedPack, file: gateway_pb2.MissingFile) -> Piece:
    entry = pack.manifest.file(file.name)
    if bytes.fromhex(entry.sha256) != file.sha256 or file.offset > entry.size_bytes:
        raise PackError(
            f"the gateway asks for another {file.name} than the manifest names; is it of this version?",
            metadata={"file": file.name},
        )
    path = pack.directory / file.name
    found = path.stat().st_size if path.is_file() else None
    if found != entry.size_bytes:
        state = "missing" if found is None else f"{found} bytes"
        raise PackError(
            f"{path} is {state} where the manifest says {entry.size_bytes} bytes; build the pack anew or copy it again",
            metadata={"file": file.name},
        )
    return Piece(path, file.name, file.sha256, entry.size_bytes, file.offset)


async def _send_all(
    stubs: Stubs, pack: SignedPack, pieces: Sequence[Piece], on_progress: OnProgress
) -> Sequence[gateway_pb2.MissingFile]:
    """Sends the pieces and returns what is missing still once the gateway has written them."""
    # Here and not at the top: the base install starts without what the wire needs.
    from orbitmesh.wire.streams import dial, open_exchange

    done = 0
    total = sum(piece.size_bytes - piece.offset for piece in pieces)
    open_stream = open_exchange(stubs.channel, TRANSFER_METHOD)
    session = await dial(open_stream, stubs.identity, receiver_role="gateway", receiver_name=None)
    try:
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(_listen(session), name="upload-refusals")
            for piece in pieces:
                done = await _send_file(session, piece, done, total, on_progress)
            await session.flush()
            # Whether the bytes are those of the hash shows only when the gateway has written them: listen
            # until then.
            missing = await _settled(stubs, pack)
            listening.cancel()
            return missing
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await session.close()


async def _send_file(session: Session, piece: Piece, done: int, total: int, on_progress: OnProgress) -> int:
    offset = piece.offset
    while True:
        data = await asyncio.to_thread(_read_at, piece.path, offset, min(PIECE_BYTES, piece.size_bytes - offset))
        # Nothing left to send where all of it is there but was not put together yet: the empty piece does that.
        if not data and offset < piece.size_bytes:
            raise PackError(f"{piece.path} became shorter while it was sent; copy the pack again and deploy it")
        info = wire_pb2.FileInfo(sha256=piece.sha256, offset=offset, size_bytes=piece.size_bytes)
        await session.send(wire_pb2.TransferInfo(file=info), data)
        offset += len(data)
        done += len(data)
        on_progress(Progress(phase="uploading", subject=piece.name, done_bytes=done, total_bytes=total))
        if offset >= piece.size_bytes:
            return done


def _read_at(path: Path, offset: int, count: int) -> bytes:
    """One piece of a file, opened for it alone: a file that stayed open across pieces would be lost to a
    cancellation while a thread opens it."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


async def _listen(session: Session) -> None:
    """Hears refusals while files are on their way; the first one ends the sending."""
    while True:
        received = await session.receive()
        if received.info.HasField("failure"):
            failure = received.info.failure
            raise error_for(failure.reason, failure.message, dict(failure.metadata))


async def _still_missing(stubs: Stubs, pack: SignedPack) -> Sequence[gateway_pb2.MissingFile]:
    request = gateway_pb2.CreatePackRequest(
        request_id=pack.request_id, manifest=pack.manifest_bytes, signature=pack.signature
    )

    async def take() -> gateway_pb2.CreatePackResponse:
        with mapped_errors(address=stubs.address):
            answer: gateway_pb2.CreatePackResponse = await stubs.packs.CreatePack(request, timeout=SETTLE_S)
            return answer

    answer = await asked_again(take, RESUME_S)
    files: Sequence[gateway_pb2.MissingFile] = answer.missing
    return files


async def _settled(stubs: Stubs, pack: SignedPack) -> Sequence[gateway_pb2.MissingFile]:
    """What is missing once the gateway has stopped writing: what a session acknowledged may not be on its
    disk yet."""
    before: list[tuple[str, int]] = []
    loop = asyncio.get_running_loop()
    give_up = loop.time() + SETTLE_S
    while True:
        missing = await _still_missing(stubs, pack)
        now = [(file.name, file.offset) for file in missing]
        if not missing or (now == before and loop.time() > give_up):
            return missing
        if now != before:
            before, give_up = now, loop.time() + SETTLE_S
        await asyncio.sleep(SETTLE_POLL_S)
