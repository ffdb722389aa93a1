"""Frames that were changed on the way, and what a receiver does with each of them.

A receiver that has taken the first frames of a recording is given changed ones. Each must be refused by name and
change nothing, so that one receiver can be given as many as one likes; then the true frame must still be taken, and
in the end the application must have been given what was sent, to the bit.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from orbitmesh.errors import REASONS, MeshError
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.frames import join_message, parse_header, split_message
from orbitmesh.wire.records import RefusedError, SessionEndError
from orbitmesh.wire.session import Session
from tests.fuzz.recording import Recording

REFUSALS = frozenset({
    "SEAL_BROKEN", "FRAME_MALFORMED", "FRAME_REPLAYED", "FRAME_OUT_OF_ORDER", "FRAME_TRUNCATED", "LIMIT_EXCEEDED",
    "DTYPE_MISMATCH",
})  # fmt: skip
"""Every name that the refusal of a frame may have."""

Change = Callable[["Changer", int], bytes]


@dataclass
class Tally:
    """What became of changed frames."""

    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    changes: Counter[str] = field(default_factory=Counter)
    """By what was done to them."""
    respelled: int = 0
    """Header and body were those of the true frame, in another protobuf spelling: the same frame."""
    control: int = 0
    """What became an acknowledgement, which carries no data and is not sealed."""

    @property
    def frames(self) -> int:
        """How many changed frames were refused."""
        return self.refused.total()


class AcceptedError(AssertionError):
    """A changed frame was taken, or not refused as it must be."""


class Changer:
    """Makes changed frames out of true ones.

    Args:
        frames: What is really sent.
        strange: Frames of other sessions, and of the other direction.
        rng: Decides what is done.
    """

    def __init__(self, frames: Sequence[bytes], strange: Sequence[bytes], rng: random.Random) -> None:
        self.frames = frames
        self._strange = strange
        self.rng = rng

    def make(self, at: int) -> tuple[str, bytes]:
        """A frame that is not the one that must come at a place, and what was done to it."""
        while True:
            name = self.rng.choice(_NAMES)
            message = _CHANGES[name](self, at)
            if self.rng.random() < 0.1:
                second = self.rng.choice(("flip", "cut", "insert"))
                message, name = BYTES[second](self.rng, message or b"\0"), f"{name}, {second}"
            if message != self.frames[at]:
                return name, message

    def replayed(self, at: int) -> bytes:
        return self.frames[self.rng.randrange(max(1, at))]

    def reordered(self, at: int) -> bytes:
        return self.frames[min(len(self.frames) - 1, at + 1 + int(self.rng.expovariate(0.3)))]

    def strange(self, at: int) -> bytes:
        """A frame of another session, or of the other direction of this one."""
        return self.rng.choice(self._strange)

    def spliced(self, at: int) -> bytes:
        """The header of one frame and the body of another."""
        other = self.rng.choice(self.frames)
        pair = (self.frames[at], other) if self.rng.random() < 0.5 else (other, self.frames[at])
        return join_message(split_message(pair[0])[0], bytes(split_message(pair[1])[1]))

    def joined(self, at: int) -> bytes:
        """Two frames in one message."""
        return self.frames[at] + self.rng.choice(self.frames)

    def edited(self, at: int) -> bytes:
        """The true frame, whose header says something else."""
        header, body = split_message(self.frames[at])
        parsed = parse_header(header)
        fields = wire_pb2.Data.DESCRIPTOR.fields
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            self._edit(parsed.data, self.rng.choice(fields).name)
        return join_message(parsed.SerializeToString(), bytes(body))

    def renumbered(self, at: int) -> bytes:
        """A frame of elsewhere that says it is the one that must come."""
        true = parse_header(split_message(self.frames[at])[0]).data
        header, body = split_message(self.rng.choice((*self.frames, *self._strange)))
        parsed = parse_header(header)
        for name in ("number", "transfer", "index", "last"):
            setattr(parsed.data, name, getattr(true, name))
        return join_message(parsed.SerializeToString(), bytes(body))

    def _edit(self, data: wire_pb2.Data, name: str) -> None:
        rng = self.rng
        value = getattr(data, name)
        if name == "info":
            spec = data.info.tensor
            spec.shape[:] = [rng.choice((0, 1, 3, 4096, 2**32 - 1)) for _ in range(rng.randrange(1, 9))]
            spec.dtype = rng.randrange(12)
        elif isinstance(value, bool):
            setattr(data, name, not value)
        elif name == "codec":
            data.codec = rng.choice((0, 1, 2, 3, 4, 5, 6, 99))
        else:
            bits = 32 if name in ("index", "raw_size_bytes") else 64
            near = value + rng.choice((-1, 1, 2, 16, 1 << 20, -value, 2**bits - 1 - value, rng.getrandbits(bits)))
            setattr(data, name, near % 2**bits)


def flip(rng: random.Random, message: bytes) -> bytes:
    """Some bits are others: one, or a burst."""
    out = bytearray(message)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        # The beginning is where lengths, numbers and sizes stand.
        end = len(out) if rng.random() < 0.5 else min(len(out), 48)
        out[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(rng: random.Random, message: bytes) -> bytes:
    """Some bytes are others."""
    at = rng.randrange(len(message))
    return message[:at] + (new := rng.randbytes(rng.choice((1, 2, 4, 16, 64)))) + message[at + len(new) :]


def cut(rng: random.Random, message: bytes) -> bytes:
    """The end, the beginning or something in the middle is missing."""
    at, size = rng.randrange(len(message)), rng.choice((1, 2, 16, len(message)))
    return rng.choice((message[:at], message[at:], message[:at] + message[at + size :]))


def insert(rng: random.Random, message: bytes) -> bytes:
    """Something came between, or behind."""
    at = rng.choice((rng.randrange(len(message) + 1), len(message)))
    what = rng.choice((rng.randbytes(rng.choice((1, 2, 16))), bytes(rng.choice((1, 16, 1000))), message[: at or 1]))
    return message[:at] + what + message[at:]


def noise(rng: random.Random, message: bytes) -> bytes:
    """Nothing of it is left."""
    return rng.randbytes(rng.choice((0, 1, 2, 17, 64, len(message))))


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flip": flip, "overwrite": overwrite, "cut": cut, "insert": insert, "noise": noise,
}  # fmt: skip


def _of_bytes(change: Callable[[random.Random, bytes], bytes]) -> Change:
    return lambda changer, at: change(changer.rng, changer.frames[at])


_CHANGES: dict[str, Change] = {
    "replayed": Changer.replayed, "reordered": Changer.reordered, "of elsewhere": Changer.strange,
    "spliced": Changer.spliced, "joined": Changer.joined, "edited": Changer.edited, "renumbered": Changer.renumbered,
    **{name: _of_bytes(change) for name, change in BYTES.items()},
}  # fmt: skip
_NAMES = tuple(_CHANGES)


class Receiving:
    """The receiving end of a recording, given frames one by one as a connection gives them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.session: Session = recording.fresh()
        self.taken: list[tuple[bytes, bytes]] = []

    def give(self, message: bytes) -> None:
        """What a connection does with a message that it has read.

        Raises:
            MeshError: It is refused.
        """
        if not self.session._receiver.take_whole(message):
            self.session._carrier._take(message)

    async def true(self, at: int) -> None:
        """The frame that must come; what it completes is taken."""
        self.give(self.recording.frames[at])
        await self.session._receiver.decode_room()
        while self.session._receiver.waiting:
            received = await self.session.receive()
            self.taken.append((received.info.SerializeToString(deterministic=True), bytes(received.data)))

    def changed(self, at: int, message: bytes, tally: Tally) -> bool:
        """A frame that must not be taken; True where it was the true one after all, in another spelling.

        Raises:
            AcceptedError: It was taken, or refused in another way than by name, or it changed something.
        """
        before = self._account()
        try:
            self.give(message)
        except RefusedError as error:
            raise AcceptedError(f"a changed frame was held for authentic: {error.error.message}") from error
        except MeshError as error:
            if error.reason not in REFUSALS or error.reason not in REASONS:
                raise AcceptedError(f"refused as {error.reason}: {error.message}") from error
            if self._account() != before:
                raise AcceptedError(f"it was refused ({error.reason}) and changed the receiver's account") from error
            tally.refused[error.reason] += 1
            return False
        if self._account() == before:
            tally.control += 1
            return False
        if not same_frame(message, self.recording.frames[at]):
            raise AcceptedError("a changed frame was taken")
        tally.respelled += 1
        return True

    def _account(self) -> tuple[int, ...]:
        inbox = self.session._receiver.inbox
        return (
            inbox.next_number, inbox.next_transfer, inbox.received, inbox.waiting, inbox.partial_transfers,
            inbox.ended, self.session._receiver.waiting,
        )  # fmt: skip

    async def end(self) -> None:
        """Everything that was sent must have come, to the bit.

        Raises:
            AcceptedError: Something else came.
        """
        with contextlib.suppress(SessionEndError):
            await self.session.receive()
        if tuple(self.taken) != self.recording.transfers:
            raise AcceptedError("the application was given something else than was sent")
        self.session.end()


def same_frame(message: bytes, true: bytes) -> bool:
    """Whether two messages are the same frame to the generated classes, which are the second opinion."""
    try:
        found, expected = (executor_pb2.ExchangeRequest.FromString(each) for each in (message, true))
    except DecodeError:
        return False
    return (found.header, found.body) == (expected.header, expected.body)


async def run(recording: Recording, others: tuple[Recording, ...], seed: int, per_frame: int, tally: Tally) -> None:
    """Gives one receiver the whole recording, and changed frames before each true one.

    Raises:
        AcceptedError: One was taken; the message says which, so that it can be made again.
    """
    rng = random.Random(seed)
    strange = [frame for other in others for frame in other.frames] + list(recording.back)
    changer = Changer(recording.frames, strange, rng)
    receiving = Receiving(recording)
    for at in range(len(recording.frames)):
        for count in range(per_frame):
            name, message = changer.make(at)
            tally.changes[name] += 1
            try:
                if receiving.changed(at, message, tally):
                    # Its receiver has it now; another one is brought to this place.
                    receiving.session.end()
                    receiving = await _until(recording, at)
            except Exception as error:
                where = f"seed {seed}, before frame {at}, change {count} ({name}): {message[:80].hex()}"
                raise AcceptedError(f"{error!r}; {where}") from error
        await receiving.true(at)
    await receiving.end()


async def _until(recording: Recording, at: int) -> Receiving:
    receiving = Receiving(recording)
    for before in range(at):
        await receiving.true(before)
    return receiving


def fuzz(recording: Recording, others: tuple[Recording, ...], seed: int, per_frame: int, tally: Tally) -> None:
    """`run`, on an event loop of its own."""
    asyncio.run(run(recording, others, seed, per_frame, tally))
