"""The accepting end: one per service, with every session that peers have opened with it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from orbitmesh.durable import no_room
from orbitmesh.errors import (
    CapacityError,
    InternalError,
    MeshError,
    NodeLostError,
    SealError,
    TransportError,
    error_for,
)
from orbitmesh.limits import SESSION_CREDIT_BYTES, SESSION_IDLE_S, SESSIONS_PER_PEER
from orbitmesh.trust import Identity, IdentitySource
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.dialler import HANDSHAKE_S, REFUSED, REFUSED_FOR_GOOD, REFUSED_ONCE
from orbitmesh.wire.egress import EgressTowards
from orbitmesh.wire.handshake import PROCESS_BYTES, accept_keys, accept_message, check_open, hello, read_header
from orbitmesh.wire.liveness import SILENCE_S
from orbitmesh.wire.records import CutError, RefusedError, Wire
from orbitmesh.wire.session import Session

ENDED_SESSIONS = 1024
"""How many sessions that are over are remembered, so that none of them can be opened or taken up again."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Entry:
    """A session and what its connections need to know of each other."""

    key: tuple[str, bytes]
    session: Session
    secret_check: bytes
    connection: int = 0
    expiry: asyncio.TimerHandle | None = None


class SessionAcceptor:
    """Accepts sessions and takes up again those that were cut.

    Args:
        identity: Who we are.
        on_session: Runs once per session; the session is closed when it returns.
        idle_s: For how long a cut session is kept.
        window: How many bytes of a session may be under way, each way.
        silence_s: After how long a silence, while a session is in use, its connection is given up.
        egress: Who gives frames their turn in a session with a peer, where slices share the way to it.
    """

    def __init__(
        self,
        identity: Identity | IdentitySource,
        on_session: Callable[[Session], Coroutine[Any, Any, None]],
        *,
        idle_s: float = SESSION_IDLE_S,
        window: int = SESSION_CREDIT_BYTES,
        silence_s: float = SILENCE_S,
        egress: EgressTowards | None = None,
    ) -> None:
        self._identity = identity
        self._on_session = on_session
        self._idle_s = idle_s
        self._window = window
        self._silence_s = silence_s
        self._egress = egress
        self._entries: dict[tuple[str, bytes], _Entry] = {}
        self._ended: OrderedDict[tuple[str, bytes], MeshError | None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._process = secrets.token_bytes(PROCESS_BYTES)

    @property
    def sessions(self) -> list[Session]:
        """Those that are open or waited for."""
        return [entry.session for entry in self._entries.values()]

    async def serve(self, wire: Wire, caller_spiffe: str) -> None:
        """Carries a session on one connection; returns when the session is over.

        Args:
            wire: The connection.
            caller_spiffe: Who the TLS certificate at its other end names.

        Raises:
            MeshError: What the other end must be told, as the status of the RPC.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                entry, mine = await self._shake(wire, caller_spiffe)
        except TimeoutError:
            raise TransportError(f"the handshake took longer than {HANDSHAKE_S:g} s") from None
        except CutError as cut:
            raise cut.error from None
        try:
            await entry.session.carry(wire)
        except CutError as cut:
            raise cut.error from None
        except RefusedError as refused:
            how = REFUSED_FOR_GOOD if refused.for_good else REFUSED_ONCE
            error = refused.error
            raise error_for(error.reason, error.message, error.metadata | {REFUSED: how}) from None
        finally:
            self._after(entry, mine)

    async def close(self) -> None:
        """Closes every session and accepts none any more; what has no connection by then cannot come back, and is
        lost."""
        self._closed = True
        for entry in list(self._entries.values()):
            if not entry.session.attached:
                self._lose(entry)
        await asyncio.gather(*(entry.session.close() for entry in list(self._entries.values())))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in list(self._entries.values()):
            self._forget(entry)

    async def _shake(self, wire: Wire, caller_spiffe: str) -> tuple[_Entry, int]:
        """The handshake: the session that the connection is for, and the connection's turn in it."""
        if self._closed:
            raise TransportError("the service is ending and accepts no sessions", reason="DRAINING")
        identity = self._identity.current() if isinstance(self._identity, IdentitySource) else self._identity
        await wire.write(hello(identity, self._process))
        opening = (await read_header(wire, "open")).open
        peer = check_open(opening, caller_spiffe, identity)
        key = (caller_spiffe, opening.session_id)
        entry = self._entries.get(key)
        if entry is None:
            self._check_new(key, opening)
            keys = accept_keys(opening, identity)
            session = Session(
                opening.session_id,
                peer,
                keys,
                window=self._window,
                silence_s=self._silence_s,
                egress=None if self._egress is None else self._egress(peer),
            )
            session.accept()
            entry = self._entries[key] = _Entry(key, session, opening.salt)
            self._start(entry)
        else:
            await self._take_up(entry, opening)
        mine, session = entry.connection, entry.session
        try:
            await wire.write(accept_message(session.next_receive_number, session.credit_limit))
        except BaseException:
            # The session is there all the same, and waited for as after any cut.
            self._after(entry, mine)
            raise
        return entry, mine

    def _check_new(self, key: tuple[str, bytes], opening: wire_pb2.Open) -> None:
        if key in self._ended:
            error = self._ended[key]
            if error is not None:
                raise error_for(error.reason, error.message, error.metadata | {REFUSED: REFUSED_FOR_GOOD})
            if not opening.resume:
                raise SealError(
                    "a session that is over is opened again; open a new one",
                    reason="FRAME_REPLAYED",
                    metadata={REFUSED: REFUSED_FOR_GOOD},
                )
        if opening.resume:
            raise NodeLostError(
                "the session is not known here: this service was started again, or waited for too "
                "long; open a new one and send again what was not answered"
            )
        if sum(caller == key[0] for caller, _ in self._entries) >= SESSIONS_PER_PEER:
            raise CapacityError(
                f"{key[0]} holds {SESSIONS_PER_PEER} sessions here already; close some",
                metadata={"limit": SESSIONS_PER_PEER},
            )

    async def _take_up(self, entry: _Entry, opening: wire_pb2.Open) -> None:
        if not opening.resume and opening.salt != entry.secret_check:
            raise SealError("a session's name is used again with another key; open a new one")
        entry.connection += 1
        mine = entry.connection
        session = entry.session
        while session.attached:
            await session.detach()
        if entry.connection != mine:
            raise TransportError("another connection has taken up the session")
        if entry.expiry is not None:
            entry.expiry.cancel()
        if opening.refused_for_good:
            session.fail(
                error_for(
                    opening.refused_reason,
                    f"{session.peer.spiffe} refused a frame for good",
                    {REFUSED: REFUSED_FOR_GOOD},
                )
            )
            self._forget(entry)
        if session.error is not None:
            raise session.error
        session.resume(opening.next_number)

    def _start(self, entry: _Entry) -> None:
        task = asyncio.get_running_loop().create_task(self._run(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, entry: _Entry) -> None:
        """The application's part of a session; whatever it raises ends this session and no other."""
        session = entry.session
        try:
            await self._on_session(session)
        except MeshError as error:
            session.fail(error)
        except Exception as error:
            full = no_room(error)
            if full is not None:
                session.fail(full)
                return
            _LOG.exception("the application failed in a session with %s", session.peer.spiffe)
            session.fail(InternalError("the service failed in this session; its log has the details"))
        finally:
            await session.close()
            if not session.attached:
                self._forget(entry)

    def _after(self, entry: _Entry, mine: int) -> None:
        """A connection is over: the session is too, or is kept for a while."""
        if entry.connection != mine or entry.key not in self._entries:
            return
        if entry.session.over:
            self._forget(entry)
        elif self._closed:
            self._lose(entry)
        else:
            entry.expiry = asyncio.get_running_loop().call_later(self._idle_s, self._expire, entry)

    def _expire(self, entry: _Entry) -> None:
        if not entry.session.attached:
            entry.session.fail(
                NodeLostError(f"{entry.session.peer.spiffe} did not come back in {self._idle_s:g} s")
            )
            self._forget(entry)

    def _lose(self, entry: _Entry) -> None:
        """Nobody is let in any more to take the session up again: waiting for that would be in vain."""
        entry.session.fail(NodeLostError(f"{entry.session.peer.spiffe} was away when this service ended"))
        self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        if entry.expiry is not None:
            entry.expiry.cancel()
        if self._entries.pop(entry.key, None) is not None:
            self._ended[entry.key] = entry.session.error
            while len(self._ended) > ENDED_SESSIONS:
                self._ended.popitem(last=False)
