"""Changed frames, and true ones that mean nothing, sent to the sessions of real processes.

One end of the session is ours and knows its keys; what lies between changes frames, as a relay that ends TLS could.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orbitmesh.errors import REASONS, MeshError, SealError
from orbitmesh.rpc import keep_status
from orbitmesh.trust import Identity
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.dialler import REFUSED, REFUSED_FOR_GOOD
from orbitmesh.wire.frames import control_message, data_header, join_message
from orbitmesh.wire.handshake import Secret, read_header, resume_message, wrap_for
from orbitmesh.wire.records import CutError, SessionPeer
from orbitmesh.wire.seal import SessionKeys
from orbitmesh.wire.streams import CallWire
from services.runtime.authz import roles_for
from tests.fuzz.frames import REFUSALS, AcceptedError, Changer, same_frame
from tests.fuzz.messages import Maker
from tests.fuzz.recording import tensor
from tests.fuzz.rpcs import Caller, Method

FRAMES = 8
CHANGES = 2
"""Before each true frame: the third refusal of the same frame would end the session."""
HEADER, BODY = 1, 1000
"""The numbers of the two fields of a frame, by which a method that carries sessions is known."""


def of_sessions(methods: Iterable[Method]) -> list[Method]:
    """The methods whose messages are frames, each as every role that may call it."""
    carrying = (each for each in methods if set(each.descriptor.input_type.fields_by_number) == {HEADER, BODY})
    return [replace(method, role=role) for method in carrying for role in sorted(roles_for(method.full))]


@dataclass
class SessionTally:
    """What became of what was sent."""

    refused: Counter[str] = field(default_factory=Counter)
    """Changed frames, by reason."""
    respelled: int = 0
    """Those that were the true frame in another protobuf spelling."""
    nonsense: Counter[str] = field(default_factory=Counter)
    """True frames that mean nothing, by what came of it: `taken`, or why the process ended the session."""


class Attack:
    """One session with one process.

    Args:
        caller: Whose channels are used.
        method: What carries the session.
        identity: Who we are.
        rng: Decides what is sent.
    """

    def __init__(self, caller: Caller, method: Method, identity: Identity, rng: random.Random) -> None:
        self._method = method
        channel = caller.channel(method.server, method.role)
        self._open = lambda: CallWire(keep_status(channel.stream_stream(method.full)()))
        self._identity = identity
        self._rng = rng
        self._secret = Secret()
        self._peer: SessionPeer | None = None

    async def connect(self) -> tuple[CallWire, int]:
        """A connection, and the number of the frame that the process expects.

        Raises:
            CutError: It does not take the session.
        """
        wire = self._open()
        server, me = self._method.server, self._identity
        greeting = (await read_header(wire, "hello")).hello
        if self._peer is None:
            self._peer, opening = wrap_for(me, greeting, self._secret, server.role, server.name)
            await wire.write(control_message(wire_pb2.FrameHeader(open=opening)))
        else:
            await wire.write(resume_message(self._secret, me.spiffe, self._peer.spiffe, 0, None, False))
        return wire, (await read_header(wire, "accept")).accept.next_number

    async def close(self) -> None:
        """Gives the session up: so many a peer may hold."""
        if self._peer is not None:
            wire, me = self._open(), self._identity.spiffe
            why = SealError("the attack is over")
            with contextlib.suppress(CutError):
                await read_header(wire, "hello")
                await wire.write(resume_message(self._secret, me, self._peer.spiffe, 0, why, True))
                while await wire.read() is not None:
                    pass

    def keys(self) -> SessionKeys:
        """What seals our frames, once a connection was made."""
        assert self._peer is not None
        return self._secret.keys(self._identity.spiffe, self._peer.spiffe)

    async def send(self, *messages: bytes) -> tuple[int, MeshError | None]:
        """Sends messages on a connection of their own; gives what was expected before, and how the process ended it."""
        wire, expected = await self.connect()
        for message in messages:
            await wire.write(message)
        await wire.finish()
        try:
            while await wire.read() is not None:
                pass
        except CutError as cut:
            return expected, cut.error
        return expected, None


def sealed(keys: SessionKeys, number: int, info: wire_pb2.TransferInfo, data: bytes) -> bytes:
    """A transfer of one frame, as a session writes it."""
    header = data_header(number, number, 0, True, 1, len(data), info.SerializeToString())
    return join_message(header, keys.sealing.transfer(number).seal(0, True, header, data))


async def attack_session(caller: Caller, method: Method, identity: Identity, seed: int, tally: SessionTally) -> None:
    """Sends a session's frames, and changed ones before each.

    Raises:
        AcceptedError: One was taken, or refused in another way than by name.
    """
    rng = random.Random(seed)
    attack = Attack(caller, method, identity, rng)
    await attack.send()
    ours = attack.keys()
    theirs = SessionKeys(ours.opening, ours.sealing)
    frames, back = ([sealed(keys, n, *tensor(rng, 64)) for n in range(FRAMES)] for keys in (ours, theirs))
    changer = Changer(frames, back, rng)
    at = 0
    while at < FRAMES - 1:
        for _ in range(CHANGES):
            name, message = changer.make(at)
            where = f"{method.title}, seed {seed}, before frame {at}, {name}: {message[:80].hex()}"
            expected, error = await attack.send(message)
            if expected != at:
                raise AcceptedError(f"frame {expected} is expected, not {at}; {where}")
            if error is not None and error.reason in REFUSALS:
                tally.refused[error.reason] += 1
                continue
            # Our end ended the connection: whatever it was, it was taken.
            expected, error = await attack.send()
            if expected != at + 1 or not same_frame(message, frames[at]):
                raise AcceptedError(f"it was not refused ({error}), and frame {expected} comes next; {where}")
            tally.respelled += 1
            at += 1
            break
        else:
            await attack.send(frames[at])
            at += 1
    if (await attack.send())[0] != at:
        raise AcceptedError(f"the true frames were not taken; {method.title}, seed {seed}")
    await attack.close()


async def talk_nonsense(caller: Caller, method: Method, identity: Identity, seed: int, tally: SessionTally) -> None:
    """Sends true frames whose transfers mean nothing; a session that ends for it must end by name.

    Raises:
        AcceptedError: It did not.
    """
    rng = random.Random(seed)
    maker = Maker(rng, (method.server.name,))
    attack = Attack(caller, method, identity, rng)
    await attack.send()
    for number in range(FRAMES):
        info = wire_pb2.TransferInfo.FromString(maker.message(wire_pb2.TransferInfo.DESCRIPTOR).SerializeToString())
        info.ClearField("tensor")
        try:
            _, error = await attack.send(sealed(attack.keys(), number, info, rng.randbytes(rng.choice((0, 8, 300)))))
        except CutError as cut:
            error = cut.error
        if error is None or error.reason == "TRANSPORT":
            tally.nonsense["taken"] += 1
            continue
        if error.reason not in REASONS or error.reason == "INTERNAL":
            raise AcceptedError(f"{method.title}, seed {seed}: {error.reason}: {error.message}; for {info}")
        tally.nonsense[error.reason] += 1
        if error.metadata.get(REFUSED) == REFUSED_FOR_GOOD:
            return
    await attack.close()
