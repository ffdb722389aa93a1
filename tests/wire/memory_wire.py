"""Connections in memory for the tests of sessions: seeded faults, and a record of what was written."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.frames import parse_header, split_message
from orbitmesh.wire.records import CutError

PIPE_MESSAGES = 8
"""How many messages are in flight each way."""


@dataclass
class Faults:
    """What goes wrong on the connections, each as a probability per message."""

    cut: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    drop: float = 0.0
    swap: float = 0.0


@dataclass
class Direction:
    """Messages on their way one way."""

    queue: deque[bytes] = field(default_factory=deque)
    closed: bool = False


class Pipe:
    """One connection."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.ways = (Direction(), Direction())
        self.changed = asyncio.Event()
        self.broken: CutError | None = None
        self.accepted_from = -1  # what the acceptor said it expects next
        self.first_of_dialler: list[int] = []  # numbers of the data frames that the dialler wrote

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def cut(self, error: MeshError | None = None) -> None:
        """Breaks the connection: a random tail of what is under way is lost."""
        if self.broken is None:
            for way in self.ways:
                for _ in range(self.network.rng.randint(0, len(way.queue))):
                    way.queue.pop()
            self.broken = CutError(error or TransportError("cut by the test"))
            self.notify()


class End:
    """One end of a pipe, as a session sees it."""

    def __init__(self, pipe: Pipe, side: int) -> None:
        self.pipe = pipe
        self.side = side
        self.awaits_end = side == 0

    async def read(self) -> bytes | None:
        way = self.pipe.ways[1 - self.side]
        while not way.queue:
            if self.pipe.broken is not None:
                raise CutError(self.pipe.broken.error)
            if way.closed:
                return None
            await self.pipe.changed.wait()
        message = way.queue.popleft()
        self.pipe.notify()
        return message

    async def write(self, message: bytes) -> None:
        pipe, network = self.pipe, self.pipe.network
        pipe.network.note(pipe, self.side, message)
        way = pipe.ways[self.side]
        while len(way.queue) >= PIPE_MESSAGES and pipe.broken is None:
            await pipe.changed.wait()
        if pipe.broken is not None:
            raise CutError(pipe.broken.error)
        before = len(way.queue)
        network.put(way.queue, message)
        if len(way.queue) == before:
            # What is lost without a trace at the very end shows only when the connection goes too.
            asyncio.get_running_loop().call_later(0.03, pipe.cut)
        if network.rng.random() < network.faults.cut:
            pipe.cut()
        pipe.notify()
        await asyncio.sleep(0)

    async def finish(self) -> None:
        self.pipe.ways[self.side].closed = True
        self.pipe.notify()


class Network:
    """Connects a dialler with an acceptor, over and over."""

    def __init__(
        self, acceptor: SessionAcceptor, caller: str, seed: int, faults: Faults | None = None
    ) -> None:
        self.acceptor = acceptor
        self.caller = caller
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.pipes: list[Pipe] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.unreachable = False
        self.struck: set[bytes] = set()

    def open(self) -> End:
        pipe = Pipe(self)
        if self.unreachable:
            pipe.cut()
            return End(pipe, 0)
        self.pipes.append(pipe)
        task = asyncio.get_running_loop().create_task(self._serve(pipe))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return End(pipe, 0)

    async def _serve(self, pipe: Pipe) -> None:
        try:
            await self.acceptor.serve(End(pipe, 1), self.caller)
        except MeshError as error:
            pipe.ways[1].queue.clear()
            pipe.cut(error)
        else:
            pipe.ways[1].closed = True
            pipe.notify()

    def put(self, queue: deque[bytes], message: bytes) -> None:
        """Queues a message, with what goes wrong on the way; handshakes stay whole."""
        if not parse_header(split_message(message)[0]).HasField("data"):
            queue.append(message)
            return
        roll = self.rng.random()
        if roll < self.faults.corrupt + self.faults.duplicate + self.faults.drop + self.faults.swap:
            # The third refusal of the same frame ends a session, so chance may strike each frame only once.
            if message in self.struck:
                roll = 1.0
            self.struck.add(message)
        if roll < self.faults.corrupt:
            at = self.rng.randrange(len(message))
            message = message[:at] + bytes((message[at] ^ (1 << self.rng.randrange(8)),)) + message[at + 1 :]
        elif (roll := roll - self.faults.corrupt) < self.faults.duplicate:
            queue.append(message)
        elif (roll := roll - self.faults.duplicate) < self.faults.drop:
            return
        elif roll - self.faults.drop < self.faults.swap and queue:
            queue.insert(len(queue) - 1, message)
            return
        queue.append(message)

    def note(self, pipe: Pipe, side: int, message: bytes) -> None:
        """Records what says whether anything acknowledged is sent again."""
        header = parse_header(split_message(message)[0])
        if side == 1 and header.HasField("accept"):
            pipe.accepted_from = header.accept.next_number
        elif side == 0 and header.HasField("data"):
            pipe.first_of_dialler.append(header.data.number)

    async def stop(self) -> None:
        await self.acceptor.close()
        for pipe in self.pipes:
            pipe.cut()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
