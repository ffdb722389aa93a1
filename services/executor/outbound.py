"""What leaves a node for one peer: transfers over one session, those of a slice in order, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from orbitmesh.errors import InternalError, MeshError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import SendReport
from orbitmesh.wire.session import Session


@dataclass(slots=True)
class Parcel:
    """One transfer that waits to leave."""

    info: wire_pb2.TransferInfo
    """What it is for."""
    data: Any
    """Its raw bytes."""
    codec: int
    """How they are encoded."""
    sent: Callable[[SendReport], None] | None
    """Called when it was handed to the transport."""
    failed: Callable[[MeshError], None] | None
    """Called when it cannot be sent."""


class Outbound:
    """Sends parcels to one peer, those of one slice in the order they were put; no slice waits for another one here.

    A parcel that cannot be sent is reported to its owner and dropped; the next one asks for a session anew.
    """

    def __init__(self, name: str, session: Callable[[], Awaitable[Session]]) -> None:
        self.name = name
        self._session = session
        self._held: Session | None = None
        self._opening = asyncio.Lock()
        self._parcels: deque[Parcel] = deque()
        self._lanes: dict[str, deque[Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"outbound to {name}")

    def put(self, parcel: Parcel) -> None:
        """Queues a parcel; whoever puts is bounded by the bytes that it may hold (`runner`)."""
        name = parcel.info.slice
        if not name:
            self._parcels.append(parcel)
            self._wake.set()
        elif (lane := self._lanes.get(name)) is not None:
            lane.append(parcel)
        else:
            self._lanes[name] = deque((parcel,))
            task = asyncio.create_task(self._run_lane(name), name=f"outbound to {self.name} in {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def warm(self) -> None:
        """Opens the session now, so that the first parcel does not pay for the handshake."""
        await self._open()

    def renew(self) -> None:
        """Asks for a session anew before the next parcel: there is a newer one."""
        self._held = None

    async def flush(self) -> None:
        """Waits until the peer has everything that was sent so far.

        Raises:
            MeshError: The session was lost.
        """
        if self._held is not None:
            await self._held.flush()

    async def close(self) -> None:
        """Stops sending; what waits is dropped."""
        tasks = [self._task, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            while not self._parcels:
                self._wake.clear()
                await self._wake.wait()
            await self._send(self._parcels.popleft())

    async def _run_lane(self, name: str) -> None:
        """Sends what is put for a slice, until nothing is left of it."""
        lane = self._lanes[name]
        try:
            while lane:
                await self._send(lane.popleft())
        finally:
            del self._lanes[name]

    async def _send(self, parcel: Parcel) -> None:
        try:
            session = self._held
            if session is None or session.closed:
                session = await self._open()
            report = await session.send(parcel.info, parcel.data, codec=parcel.codec)
        except MeshError as error:
            self._fail(parcel, error)
        except Exception as error:
            self._fail(parcel, InternalError(f"sending to {self.name} failed: {type(error).__name__}: {error}"))
        else:
            if parcel.sent is not None:
                parcel.sent(report)

    async def _open(self) -> Session:
        async with self._opening:  # slices that find none at the same time share one
            if self._held is None or self._held.closed:
                self._held = await self._session()
            return self._held

    def _fail(self, parcel: Parcel, error: MeshError) -> None:
        if parcel.failed is not None:
            parcel.failed(error)
