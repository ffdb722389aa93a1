"""The dialling end: opens a session and takes it up again on a new connection as long as that makes sense."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from orbitmesh.errors import CancelledError_, IntegrityError, MeshError, NodeLostError, TransportError
from orbitmesh.limits import SESSION_CREDIT_BYTES
from orbitmesh.trust import Identity, IdentitySource
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.carrying import REFUSALS
from orbitmesh.wire.egress import Egress
from orbitmesh.wire.frames import control_message
from orbitmesh.wire.handshake import Secret, read_header, resume_message, wrap_for
from orbitmesh.wire.liveness import SILENCE_S
from orbitmesh.wire.records import CutError, RefusedError, SessionPeer, SilentError, Wire
from orbitmesh.wire.session import Session

GIVE_UP_AFTER_S = 30.0
"""For how long a cut session is dialled again without progress before it fails."""

HANDSHAKE_S = 10.0
"""How long the first messages of a connection may take."""

GIVE_UP_ROUND_TRIPS = 8
"""But never before so many round trips: a new connection takes four or five of them."""

STEADY_S = 1.0
"""A connection on which the other end was heard for so long was a good one, also where nothing was sent on it."""

BACKOFF_MIN_S = 0.02
"""The pause before the first attempt to come back."""

BACKOFF_MAX_S = 2.0
"""The longest pause between attempts to come back."""

REFUSED = "refused"
"""Key of the metadata of a refused frame: whether it was refused once or for good."""

REFUSED_ONCE = "once"
"""The frame is asked for again."""

REFUSED_FOR_GOOD = "for good"
"""The session is over."""


class Dialler:
    """Keeps one session connected.

    Args:
        open_wire: Starts the RPC.
        identity: Who we are.
        receiver_role: The role that must answer.
        receiver_name: The name that must answer; any of the role where None.
        reconnect: Whether a cut session is taken up again.
        give_up_after_s: For how long, without progress; where the other end fell silent, since it was heard last.
        silence_s: After how long a silence, while the session is in use, a connection is given up; where None, one
            second, or half of `give_up_after_s` where that is less.
        window: How many bytes may be under way, each way.
        egress: Gives frames their turn, where slices share the link.
        jitter: Random numbers from 0 to 1 for the pauses.
    """

    def __init__(
        self,
        open_wire: Callable[[], Wire],
        identity: Identity | IdentitySource,
        *,
        receiver_role: str,
        receiver_name: str | None,
        reconnect: bool = True,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        silence_s: float | None = None,
        window: int = SESSION_CREDIT_BYTES,
        egress: Egress | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._open_wire = open_wire
        self._identity = identity
        self._role = receiver_role
        self._name = receiver_name
        self._reconnect = reconnect
        self._give_up_after_s = give_up_after_s
        self._silence_s = min(SILENCE_S, give_up_after_s / 2) if silence_s is None else silence_s
        self._window = window
        self._egress = egress
        self._jitter = jitter
        self._was_up = False
        self._secret = Secret()
        self._process: bytes | None = None
        self._names = ("", "")
        self._failures = 0
        self._refusals = 0
        self._deadline = 0.0
        self._progress = (0, 0)

    async def start(self) -> Session:
        """Opens the session.

        Raises:
            MeshError: The peer cannot be reached in time, is another than expected, or refuses.
        """
        self._deadline = asyncio.get_running_loop().time() + self._give_up_after_s
        while True:
            try:
                wire, session = await self._begin()
            except (CutError, MeshError, TimeoutError) as error:
                self._count_handshake(error)
                await self._pause(error)
                continue
            self._was_up = True
            session.keep(asyncio.get_running_loop().create_task(self._run(session, wire)))
            return session

    async def _run(self, session: Session, wire: Wire) -> None:
        """Carries the session until it is over."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                began_s = clock()
                try:
                    await session.carry(wire)
                    return
                except (CutError, RefusedError) as error:
                    if isinstance(error, RefusedError) and error.for_good:
                        await self._tell(session)
                        return
                    self._note_progress(session, error, steady=session.heard_s - began_s >= STEADY_S)
                    wire = await self._come_back(session, error)
        except MeshError as error:
            session.fail(error)
        except Exception as error:
            session.fail(TransportError(f"the session's connection failed unexpectedly: {error!r}"))
            raise
        finally:
            session.end()

    async def _come_back(self, session: Session, error: CutError | RefusedError) -> Wire:
        cause: CutError | RefusedError | MeshError | TimeoutError = error
        while True:
            await self._pause(cause)
            try:
                return await self._resume(session)
            except (CutError, MeshError, TimeoutError) as failure:
                cause = failure
                self._count_handshake(failure)

    def _note_progress(self, session: Session, cut: CutError | RefusedError, *, steady: bool) -> None:
        """Frames that arrived give the time to come back anew; so does a good connection that had none to carry."""
        if session.progress != self._progress or (steady and not session.pending):
            self._progress = session.progress
            self._failures = self._refusals = 0
        if self._failures == 0:
            since_s = cut.heard_s if isinstance(cut, SilentError) else asyncio.get_running_loop().time()
            self._deadline = since_s + max(self._give_up_after_s, GIVE_UP_ROUND_TRIPS * session.round_trip_s)

    def _count_handshake(self, failure: Exception) -> None:
        """A handshake whose bytes are damaged again and again will not get better."""
        error = failure.error if isinstance(failure, CutError) else failure
        if isinstance(error, IntegrityError):
            self._refusals += 1
            if self._refusals >= REFUSALS:
                raise error

    async def _pause(self, cause: CutError | RefusedError | MeshError | TimeoutError) -> None:
        """Waits before the next attempt, or raises where there should be none."""
        if isinstance(cause, TimeoutError):
            error: MeshError = TransportError("the handshake was not answered in time")
        else:
            error = cause.error if isinstance(cause, CutError | RefusedError) else cause
        if not (isinstance(cause, RefusedError) or _may_come_back(error)):
            raise error
        loop = asyncio.get_running_loop()
        if not self._reconnect or loop.time() >= self._deadline:
            if not self._was_up:
                raise TransportError(f"the session could not be opened: {error.message}", metadata=error.metadata)
            raise NodeLostError(
                f"the session could not be taken up again: {error.message}", metadata=error.metadata
            )
        pause = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self._failures, 16)) * (0.5 + self._jitter() / 2)
        self._failures += 1
        await asyncio.sleep(min(pause, max(0.0, self._deadline - loop.time())))

    async def _begin(self) -> tuple[Wire, Session]:
        """The handshake of a new session; data may follow at once, within the initial credit."""
        wire = self._open_wire()
        async with asyncio.timeout(HANDSHAKE_S):
            peer, opening = await self._open_message(wire)
            session = Session(
                self._secret.session_id,
                peer,
                self._secret.keys(opening.sender, peer.spiffe),
                window=self._window,
                silence_s=self._silence_s,
                egress=self._egress,
            )
            await wire.write(control_message(wire_pb2.FrameHeader(open=opening)))
        self._names = (opening.sender, peer.spiffe)
        return wire, session

    async def _resume(self, session: Session) -> Wire:
        wire = self._open_wire()
        left_s = self._deadline - asyncio.get_running_loop().time()
        async with asyncio.timeout(min(HANDSHAKE_S, max(left_s, BACKOFF_MIN_S))):
            if session.accepted:
                # Both ends know the session: no need to wait for who is there.
                refusal = session.refusal
                error = refusal.error if refusal else None
                message = resume_message(
                    self._secret,
                    *self._names,
                    session.next_receive_number,
                    error,
                    bool(refusal and refusal.for_good),
                )
                greeted = False
            else:
                # Nobody knows whether the first attempt arrived: the same session is opened once more.
                _, opening = await self._open_message(wire)
                message = control_message(wire_pb2.FrameHeader(open=opening))
                greeted = True
            accept = await _answer_to(wire, message, greeted)
        session.accept()
        session.resume(accept.next_number, accept.credit_limit_bytes)
        return wire

    async def _open_message(self, wire: Wire) -> tuple[SessionPeer, wire_pb2.Open]:
        identity = self._identity.current() if isinstance(self._identity, IdentitySource) else self._identity
        greeting = (await read_header(wire, "hello")).hello
        if greeting.process != self._process and self._process is not None:
            # Its predecessor may have sealed something with the keys of this session.
            if self._was_up:
                raise NodeLostError("the service was started again before it answered; open a new session")
            self._secret = Secret()
        self._process = greeting.process
        return wrap_for(identity, greeting, self._secret, self._role, self._name)

    async def _tell(self, session: Session) -> None:
        """Tells the other end, if it can be reached, that the session was given up for a frame's sake."""
        refusal = session.refusal
        if refusal is None or not session.accepted:
            return
        try:
            wire = self._open_wire()
            async with asyncio.timeout(HANDSHAKE_S):
                await wire.write(
                    resume_message(
                        self._secret, *self._names, session.next_receive_number, refusal.error, True
                    )
                )
                while await wire.read() is not None:
                    pass
        except (CutError, MeshError, TimeoutError):
            pass  # it will find out when its wait for us is over


async def _answer_to(wire: Wire, message: bytes, greeted: bool) -> wire_pb2.Accept:
    """Writes the message that takes a session up and reads what comes.

    Both at once: on a connection that is refused it is the reading that says so, and a write never ends.
    """
    writing = asyncio.ensure_future(wire.write(message))
    try:
        if not greeted:
            await read_header(wire, "hello")
        return (await read_header(wire, "accept")).accept
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def _may_come_back(error: MeshError) -> bool:
    """Whether another attempt may succeed: the link or the other end was away, or a frame was refused
    once."""
    refused = error.metadata.get(REFUSED)
    if refused is not None:
        return refused == REFUSED_ONCE
    if isinstance(error, NodeLostError):
        return False
    return isinstance(error, TransportError | CancelledError_ | IntegrityError)
