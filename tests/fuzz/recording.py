"""A real transfer of tensors, recorded: what one end of a session wrote, and all that its receiver needs to take it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.trust import Identity, init_mesh, issue
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.catalog import CodecId
from orbitmesh.wire.dialler import Dialler
from orbitmesh.wire.egress import Turn
from orbitmesh.wire.frames import parse_header, split_message
from orbitmesh.wire.handshake import accept_keys, check_open
from orbitmesh.wire.session import Session
from tests.wire.memory_wire import Network, Pipe

FRAME_BYTES = 3000
"""The frames of the recording: small, so that there are many; what a receiver checks does not depend on it."""
CODECS = (CodecId.RAW, CodecId.ZSTD, CodecId.EXPONENT_SPLIT_ZSTD)
SIZES = (0, 4, 64, 300, 1024, 7000, 12_000)


class SmallFrames:
    """An egress that lets everything go at once, in small frames."""

    def frame_bytes(self, slice_name: str) -> int:
        return FRAME_BYTES

    def ask(self, slice_name: str, size: int) -> Turn:
        return Turn(0, "")

    def give_back(self, turn: Turn) -> None:
        pass

    def occupy(self, size: int) -> None:
        pass


class Tape(Network):
    """A network that keeps what each end wrote."""

    def note(self, pipe: Pipe, side: int, message: bytes) -> None:
        super().note(pipe, side, message)
        self.written: tuple[list[bytes], list[bytes]]
        self.written[side].append(message)


@dataclass(frozen=True)
class Recording:
    """One direction of a session that carried tensors."""

    opening: wire_pb2.Open
    frames: tuple[bytes, ...]
    """The data frames that the dialling end wrote, in order; the last one ends the session."""
    back: tuple[bytes, ...]
    """The data frames of the other direction."""
    transfers: tuple[tuple[bytes, bytes], ...]
    """What the application at the other end was given: what each is for, serialised, and its bytes."""
    sender: Identity
    receiver: Identity

    def fresh(self) -> Session:
        """The receiving end as it was before the first frame. Needs a running event loop."""
        peer = check_open(self.opening, self.sender.spiffe, self.receiver)
        return Session(self.opening.session_id, peer, accept_keys(self.opening, self.receiver))


def tensor(rng: random.Random, size: int) -> tuple[wire_pb2.TransferInfo, bytes]:
    """A tensor of a decode step, as a stage sends it."""
    spec = wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[1, size // 4])
    step = wire_pb2.StepInfo(generation=rng.getrandbits(60), position=rng.getrandbits(20), sample=True)
    data = b"".join(rng.randbytes(2) + b"\x3d\x3e" for _ in range(size // 4))
    return wire_pb2.TransferInfo(tensor=spec, step=step), data


def make_recording(directory: Path, seed: int = 0) -> Recording:
    """Lets one session carry tensors of all sizes and codecs, some side by side, both ways.

    Args:
        directory: Where the mesh of the two ends goes.
        seed: Of what is sent.
    """
    ca = init_mesh(directory / "ca")
    one, two = (issue(ca, "executor", f"sat-{n}", directory / f"sat-{n}") for n in (1, 2))
    return asyncio.run(_record(one, two, random.Random(seed)))


async def _record(one: Identity, two: Identity, rng: random.Random) -> Recording:
    arrived: list[tuple[bytes, bytes]] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            arrived.append((received.info.SerializeToString(deterministic=True), bytes(received.data)))
            await session.send(*tensor(rng, 64))

    acceptor = SessionAcceptor(two, on_session)
    tape = Tape(acceptor, one.spiffe, 0)
    tape.written = ([], [])
    dialler = Dialler(tape.open, one, receiver_role="executor", receiver_name="sat-2", egress=SmallFrames())
    session = await dialler.start()
    for codec in CODECS:
        for size in SIZES:
            await session.send(*tensor(rng, size), codec=codec)
        async with asyncio.TaskGroup() as together:
            for size in SIZES[-3:]:
                together.create_task(session.send(*tensor(rng, size), codec=codec))
        await session.send(wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=codec)), rng.randbytes(500))
    await session.flush()
    await session.close()
    await tape.stop()
    data = [[m for m in way if parse_header(split_message(m)[0]).HasField("data")] for way in tape.written]
    opening = next(h.open for h in (parse_header(split_message(m)[0]) for m in tape.written[0]) if h.HasField("open"))
    return Recording(opening, tuple(data[0]), tuple(data[1]), tuple(arrived), one, two)
