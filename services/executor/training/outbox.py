"""What a run has to say to its aggregator, one after the other, over the newest session.

A session that fails takes with it what was to be sent on it: whatever is missed is asked for again by the next order.
So nothing here waits for a session to come back, and nobody waits for what is said here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from weakref import WeakSet

from orbitmesh.errors import MeshError
from orbitmesh.v1 import training_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.runtime.logs import EventLog
from services.runtime.roomy import send_when_room

WAITING_MAX = 64
"""Answers that wait to be sent at most; whoever asks for more without reading has to ask again."""

Parcel = tuple[training_pb2.TrainingInfo, bytes]
Stream = Callable[[], AsyncGenerator[Parcel, None]]


@dataclass(eq=False)
class _Item:
    stream: Stream
    passing: bool
    """Whether a later order makes it pointless."""
    progress: bool = False


class Outbox:
    """Sends in order, one transfer at a time.

    Args:
        run: The run, for the log.
        log: Where to say what could not be sent.
    """

    def __init__(self, run: str, log: EventLog) -> None:
        self.slice = ""
        """The run's slice, which all that is sent goes in; empty for none, and before the run was joined."""
        self._run = run
        self._log = log
        self._session: Session | None = None
        self._known: WeakSet[Session] = WeakSet()
        self._items: deque[_Item] = deque()
        self._current: _Item | None = None
        self._sending: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def session(self) -> Session | None:
        """The newest session."""
        return self._session

    def heard(self, session: Session) -> None:
        """The aggregator has spoken on this session: a new one takes the place of the one before."""
        if session is self._session or (session in self._known and self._session and not self._session.closed):
            return
        self._known.add(session)
        self._session = session
        self._drop(lambda item: True)

    def say(self, info: training_pb2.TrainingInfo, data: bytes = b"") -> None:
        """Puts an answer behind those that wait."""
        self._put(_Item(_single(info, data), passing=False))

    def progress(self, info: training_pb2.TrainingInfo) -> None:
        """Puts progress behind what waits, unless some waits already."""
        if not any(item.progress for item in self._items):
            self._put(_Item(_single(info, b""), passing=True, progress=True))

    def stream(self, stream: Stream) -> None:
        """Sends all that a stream gives."""
        self._put(_Item(stream, passing=True))

    def interrupt(self) -> None:
        """Stops streams and progress, for an order that asks for something else or for the same again."""
        self._drop(lambda item: item.passing)

    async def idle(self) -> None:
        """Waits until nothing waits to be sent."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def close(self) -> None:
        """Sends nothing any more."""
        self._drop(lambda item: True)
        await self.idle()

    def _put(self, item: _Item) -> None:
        if len(self._items) >= WAITING_MAX:
            self._log.warning("training_answer_dropped", run=self._run, waiting=len(self._items))
            return
        self._items.append(item)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name=f"answers of {self._run}")

    def _drop(self, is_dropped: Callable[[_Item], bool]) -> None:
        self._items = deque(item for item in self._items if not is_dropped(item))
        if self._current is not None and self._sending is not None and is_dropped(self._current):
            self._sending.cancel()

    async def _work(self) -> None:
        while self._items:
            self._current = self._items.popleft()
            self._sending = asyncio.create_task(self._send(self._current))
            await asyncio.wait([self._sending])
            if not self._sending.cancelled():
                self._sending.result()
            self._current = self._sending = None

    async def _send(self, item: _Item) -> None:
        session = self._session
        if session is None:
            return
        try:
            async with aclosing(item.stream()) as parcels:
                async for info, data in parcels:
                    await send_when_room(session, wire_pb2.TransferInfo(training=info, slice=self.slice), data)
        except (MeshError, OSError) as error:
            self._log.info("training_answer_not_sent", run=self._run, detail=str(error))
            if session.closed and session is self._session:
                self._items.clear()


def _single(info: training_pb2.TrainingInfo, data: bytes) -> Stream:
    async def once() -> AsyncGenerator[Parcel, None]:
        yield info, data

    return once
