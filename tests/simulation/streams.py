"""Connections of bytes between processes in virtual time, under the real session code.

A connection carries messages as gRPC frames them: five bytes in front, then the message, in order and whole while it
lives. A link has a latency, a rate and a buffer; a cut loses a tail of the bytes under way, so a message may break off
anywhere; a black hole swallows nothing and delivers nothing until it is over; damage changes bytes where TLS would not
notice: in a relay that reads and writes messages.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.frames import parse_header, split_message
from orbitmesh.wire.records import CutError

SEGMENT_BYTES = 16 << 10
"""What arrives at once."""

MESSAGE_BYTES = 4 << 20
"""The longest message that is taken, as by every service."""

PREFIX = struct.Struct(">BI")


@dataclass
class Link:
    """How connections behave; both ways alike. Changes hold at once, also for connections that live."""

    latency_s: float = 0.01
    """One way, in seconds."""
    jitter_s: float = 0.0
    """The most that a segment is later than that, in seconds; order is kept."""
    rate_bps: float = 100e6
    """Bits per second."""
    buffer_bytes: int = 256 << 10
    """How much may be under way before a writer waits."""
    corrupt: float = 0.0
    """Probability that a message is damaged on the way."""
    duplicate: float = 0.0
    """That it comes twice."""
    drop: float = 0.0
    """That it does not come."""
    swap: float = 0.0
    """That it comes after the one that follows."""
    dark: set[int] = field(default_factory=set)
    """From which sides nothing passes: 0 the dialling, 1 the accepting one. New connections hang too."""
    refuses: bool = False
    """Whether new connections are refused."""


@dataclass
class Harm:
    """What happened: a test that meant to see it can ask."""

    cuts: int = 0
    torn: int = 0
    damaged: int = 0
    moved: int = 0


@dataclass(eq=False)
class _Way:
    """Bytes on their way one way."""

    side: int
    under_way: deque[bytes] = field(default_factory=deque)
    size: int = 0
    clear_s: float = 0.0
    arrived_s: float = 0.0
    arrived: bytearray = field(default_factory=bytearray)
    ended: bool = False
    end_arrived: bool = False
    withheld: bytes | None = None
    timer: asyncio.TimerHandle | None = None
    due: deque[float] = field(default_factory=deque)


class Connection:
    """One connection; `ends` are what the two sessions read and write."""

    def __init__(self, net: Net, link: Link) -> None:
        self.net = net
        self.link = link
        self.loop = asyncio.get_running_loop()
        self.ways = (_Way(0), _Way(1))
        self.ends = (End(self, 0), End(self, 1))
        self.broken: MeshError | None = None
        self.changed = asyncio.Event()

    def notify(self) -> None:
        """Lets both ends look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def cut(self, error: MeshError | None = None) -> None:
        """Breaks the connection: what is under way is lost, and a random tail of what arrived and was not read."""
        if self.broken is not None:
            return
        self.broken = error or TransportError("the connection was cut")
        self.net.harm.cuts += 1
        if self in self.net.connections:
            self.net.connections.remove(self)
        for way in self.ways:
            if way.timer is not None:
                way.timer.cancel()
            if way.size:
                self.net.harm.torn += 1
            keep = self.net.random.randint(0, len(way.arrived))
            del way.arrived[keep:]
        self.notify()

    def put(self, way: _Way, message: bytes) -> None:
        """Starts a message on its way."""
        data = PREFIX.pack(0, len(message)) + message
        now = self.loop.time()
        for at in range(0, len(data), SEGMENT_BYTES):
            segment = data[at : at + SEGMENT_BYTES]
            way.clear_s = max(way.clear_s, now) + len(segment) * 8 / self.link.rate_bps
            jitter_s = self.link.jitter_s * self.net.random.random() if self.link.jitter_s else 0.0
            way.arrived_s = max(way.arrived_s, way.clear_s + self.link.latency_s + jitter_s)
            way.under_way.append(segment)
            way.due.append(way.arrived_s)
            way.size += len(segment)
        self._wait(way)

    def finish(self, way: _Way) -> None:
        """The end of the stream goes behind everything else."""
        way.ended = True
        way.under_way.append(b"")
        way.due.append(max(way.arrived_s, self.loop.time() + self.link.latency_s))
        self._wait(way)

    def _wait(self, way: _Way) -> None:
        if way.timer is None and way.due and way.side not in self.link.dark and self.broken is None:
            way.timer = self.loop.call_at(way.due[0], self._arrive, way)

    def _arrive(self, way: _Way) -> None:
        way.timer = None
        if way.side in self.link.dark:
            return
        now = self.loop.time()
        while way.due and way.due[0] <= now + 1e-9:
            way.due.popleft()
            segment = way.under_way.popleft()
            way.size -= len(segment)
            way.arrived += segment
            way.end_arrived = way.end_arrived or not segment
        self._wait(way)
        self.notify()

    def light(self) -> None:
        """Lets what a black hole held arrive, where it is over."""
        for way in self.ways:
            self._wait(way)


class End:
    """One end of a connection, as a session sees it."""

    def __init__(self, connection: Connection, side: int) -> None:
        self.connection = connection
        self.side = side
        self.awaits_end = side == 0

    async def read(self) -> bytes | None:
        connection = self.connection
        way = connection.ways[1 - self.side]
        while True:
            if len(way.arrived) >= PREFIX.size:
                flag, size = PREFIX.unpack_from(way.arrived)
                if flag or size > MESSAGE_BYTES:
                    raise CutError(TransportError("the transport read a prefix that is none"))
                if len(way.arrived) >= PREFIX.size + size:
                    message = bytes(way.arrived[PREFIX.size : PREFIX.size + size])
                    del way.arrived[: PREFIX.size + size]
                    return message
            if connection.broken is not None:
                raise CutError(connection.broken)
            if way.end_arrived:
                return None
            await connection.changed.wait()

    async def write(self, message: bytes) -> None:
        connection, net = self.connection, self.connection.net
        way = connection.ways[self.side]
        net.wrote(connection, self.side, message)
        while way.size >= connection.link.buffer_bytes and connection.broken is None:
            await connection.changed.wait()
        if connection.broken is not None:
            raise CutError(connection.broken)
        for each in net.relayed(connection.link, way, message):
            connection.put(way, each)

    async def finish(self) -> None:
        connection = self.connection
        if connection.broken is None:
            connection.finish(connection.ways[self.side])


class Net:
    """Links between one process that dials and one that accepts; either can be killed and started again.

    Args:
        seed: Decides everything that chance decides.
        link: Of all connections.
    """

    def __init__(self, seed: int, link: Link) -> None:
        self.random = random.Random(seed)
        self.link = link
        self.harm = Harm()
        self.connections: list[Connection] = []
        self.acceptor: SessionAcceptor | None = None
        self.caller = ""
        self.watch_writes: Callable[[Connection, int, bytes], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._struck: set[bytes] = set()

    def open(self) -> End:
        """What a dialler starts connections with."""
        connection = Connection(self, self.link)
        if self.link.refuses or self.acceptor is None:
            connection.broken = TransportError("connection refused")
            return connection.ends[0]
        self.connections.append(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection, self.acceptor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection.ends[0]

    async def _serve(self, connection: Connection, acceptor: SessionAcceptor) -> None:
        try:
            await acceptor.serve(connection.ends[1], self.caller)
        except MeshError as error:
            # The status of the RPC comes behind what was written before, and later than that by the link.
            asyncio.get_running_loop().call_later(self.link.latency_s, self._status, connection, error)
        else:
            connection.finish(connection.ways[1])

    def _status(self, connection: Connection, error: MeshError) -> None:
        if 1 in connection.link.dark:
            asyncio.get_running_loop().call_later(0.05, self._status, connection, error)
        else:
            connection.cut(error)

    def wrote(self, connection: Connection, side: int, message: bytes) -> None:
        """Tells a test of every message as it is written."""
        if self.watch_writes is not None:
            self.watch_writes(connection, side, message)

    def relayed(self, link: Link, way: _Way, message: bytes) -> list[bytes]:
        """What a broken relay makes of a message. Each frame is struck once: the third refusal of one is final."""
        risk = link.corrupt + link.duplicate + link.drop + link.swap
        out = [message]
        if risk and parse_header(split_message(message)[0]).HasField("data") and message not in self._struck:
            roll = self.random.random()
            if roll < risk:
                self._struck.add(message)
                out = self._harmed(link, way, message, roll)
        if way.withheld is not None and out:
            out, way.withheld = [*out, way.withheld], None
        return out

    def _harmed(self, link: Link, way: _Way, message: bytes, roll: float) -> list[bytes]:
        if roll < link.corrupt:
            self.harm.damaged += 1
            at = self.random.randrange(len(message))
            return [message[:at] + bytes((message[at] ^ (1 << self.random.randrange(8)),)) + message[at + 1 :]]
        self.harm.moved += 1
        if roll < link.corrupt + link.duplicate:
            return [message, message]
        if roll < link.corrupt + link.duplicate + link.swap and way.withheld is None:
            way.withheld = message
        return []

    def cut(self) -> None:
        """Cuts every connection."""
        for connection in list(self.connections):
            connection.cut()

    def dark(self, *sides: int) -> None:
        """Starts a black hole for what comes from these sides and ends it for the others."""
        self.link.dark = set(sides)
        for connection in self.connections:
            connection.light()

    async def kill(self) -> None:
        """Kills the accepting process: nobody is told but by the cut of its connections."""
        acceptor, self.acceptor = self.acceptor, None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if acceptor is not None:
            for task in list(acceptor._tasks):
                task.cancel()
            await asyncio.gather(*acceptor._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Ends everything."""
        acceptor, self.acceptor = self.acceptor, None
        if acceptor is not None:
            await acceptor.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
