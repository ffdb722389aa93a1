"""Connections through a link: what is read, when it is written, and how ends and resets travel.

A relayed connection has two ends (the client's socket and the target's) and two flows, one per direction. All
flows of one direction of a link share one `Lane`: its `Pipe` says when each chunk comes out, and the lane
takes turns between the connections that have bytes to send. An end of stream and a reset are marks that
travel behind the bytes before them.

Everything here runs on the engine's thread.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from services.links.engine import Engine
from services.links.shaper import Pipe

MAX_READS_PER_TURN = 32
"""Chunks that one lane takes before other lanes get their turn."""
CONNECT_TIMEOUT_S = 10.0
"""How long the target may take to accept a connection."""

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_END = b""


def abort(sock: socket.socket) -> None:
    """Close a socket so that the other side sees a reset, not an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class _End:
    """One socket of a connection and what epoll last said about it.

    Edge-triggered: a flag stays up until a read or write says "would block". So a socket that is not read,
    because the link is busy, costs no wake-ups, and a reset of it is still seen.
    """

    __slots__ = ("closed", "hung_up", "readable", "ready_since_s", "sock", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.readable = False
        self.ready_since_s = 0.0
        self.hung_up = False
        self.writable = False
        self.closed = False


class Flow:
    """One direction of one connection."""

    __slots__ = (
        "blocked",
        "connection",
        "dropped",
        "end_is_due",
        "ended",
        "finished",
        "held",
        "in_flight_bytes",
        "lane",
        "queued",
        "sink",
        "source",
    )

    def __init__(self, connection: Connection, lane: Lane, source: _End, sink: _End) -> None:
        self.connection = connection
        self.lane = lane
        self.source = source
        self.sink = sink
        self.in_flight_bytes = 0
        self.held: deque[bytes | memoryview] = deque()  # out of the link, not yet in the receiver's socket
        self.queued = False  # in the lane's round of senders
        self.blocked = False  # the receiver does not read: the window is full
        self.ended = False  # the sender's end has entered the link
        self.end_is_due = False  # the sender's end has come out of the link
        self.finished = False  # the receiver has been told of the end
        self.dropped = False  # the connection is gone: what is still in the link is thrown away

    def offer(self) -> None:
        """Join the round of senders where there is something to read."""
        if self.source.readable and not (self.queued or self.blocked or self.ended or self.dropped):
            self.queued = True
            self.lane.senders.append(self)

    def read(self, size_bytes: int) -> bytes | None:
        """Up to `size_bytes` from the sender; empty: its end; None: nothing now (or a reset, dealt with)."""
        try:
            data = self.source.sock.recv(size_bytes)
        except BlockingIOError:
            self.source.readable = False
            return None
        except OSError:
            self.connection.reset_by(self.source)
            return None
        if len(data) < size_bytes and not self.source.hung_up:
            self.source.readable = False  # drained; with a hang-up pending the end must still be read
        return data

    def write(self) -> None:
        """Give the receiver what it takes of the bytes that have come out of the link."""
        while self.held and self.sink.writable:
            chunk = self.held[0]
            try:
                sent = self.sink.sock.send(chunk)
            except BlockingIOError:
                self.sink.writable = False
                break
            except OSError:
                self.connection.reset_by(self.sink)
                return
            self.in_flight_bytes -= sent
            self.lane.delivered_bytes += sent
            if sent == len(chunk):
                self.held.popleft()
            else:
                self.held[0] = memoryview(chunk)[sent:]
        if self.end_is_due and not self.held and not self.finished:
            self.finished = True
            self.connection.end_written(self.sink)
        if self.blocked and self.has_room():
            self.blocked = False
            # The link stood idle for this sender meanwhile: that time is not made up for.
            self.source.ready_since_s = time.monotonic()
            self.offer()
            self.lane.wake_soon()

    def has_room(self) -> bool:
        """Whether one more chunk fits between sender and receiver."""
        pipe = self.lane.pipe
        return self.in_flight_bytes + pipe.quantum_bytes <= pipe.window_bytes


class Lane:
    """One direction of one link: all its flows, in the order in which their chunks come out."""

    def __init__(self, engine: Engine, pipe: Pipe) -> None:
        self.engine = engine
        self.pipe = pipe
        self.senders: deque[Flow] = deque()
        self.paused_since_s: float | None = None
        self.taken_bytes = 0
        self.delivered_bytes = 0
        self.corrupted_bytes = 0
        self._link: deque[tuple[float, Flow, bytes | None]] = deque()  # None: a reset; empty: an end

    def wake(self) -> None:
        """Write what is due, take what the link has room for, and ask for the next wake-up."""
        if self.paused_since_s is not None:
            return
        self._deliver()
        self._take()
        self._deliver()
        next_s = self._link[0][0] if self._link else None
        if self.senders:
            more_s = self.pipe.takes_more_at_s
            next_s = more_s if next_s is None else min(next_s, more_s)
        self.engine.wake_at(self, next_s)

    def wake_soon(self) -> None:
        """Ask for a wake-up in the engine's next round."""
        if self.paused_since_s is None:
            self.engine.wake_at(self, 0.0)

    def put_reset(self, flow: Flow) -> None:
        """Send a reset behind all bytes of the flow that are on the link."""
        now_s = time.monotonic()
        self._link.append((self.pipe.admit(0, now_s, now_s), flow, None))
        self.wake_soon()

    def pause(self) -> None:
        """Stop the link's time."""
        self.pipe.medium.leave(self)
        if self.paused_since_s is None:
            self.paused_since_s = time.monotonic()
            self.engine.wake_at(self, None)

    def resume(self) -> None:
        """Let the link's time go on from where it stood."""
        if self.paused_since_s is None:
            return
        now_s = time.monotonic()
        pause_s = now_s - self.paused_since_s
        self.paused_since_s = None
        self.pipe.shift(pause_s)
        self._link = deque((due_s + pause_s, flow, data) for due_s, flow, data in self._link)
        for flow in self.senders:
            flow.source.ready_since_s = now_s
        self.wake_soon()

    def clear(self) -> None:
        """Throw away all that is on the link."""
        self._link.clear()
        self.senders.clear()
        self.pipe.medium.leave(self)
        self.engine.wake_at(self, None)

    def _take(self) -> None:
        medium = self.pipe.medium
        for _ in range(MAX_READS_PER_TURN):
            now_s = time.monotonic()
            if not self.senders:
                medium.leave(self)
                return
            if self.pipe.takes_more_at_s > now_s:
                medium.join(self)
                return
            first = medium.first_waiting()
            if isinstance(first, Lane) and first is not self:
                medium.join(self)
                first.wake_soon()
                return
            flow = self.senders.popleft()
            flow.queued = False
            if flow.dropped:
                continue
            if not flow.has_room():
                flow.blocked = True
                continue
            data = flow.read(self.pipe.quantum_bytes)
            if data is None:
                continue
            due_s = self.pipe.admit(len(data), flow.source.ready_since_s, now_s)
            medium.leave(self)  # to the end of the round
            data, hits = self.pipe.damage(data)
            self.corrupted_bytes += hits
            self._link.append((due_s, flow, data))
            flow.ended = data == _END
            flow.in_flight_bytes += len(data)
            self.taken_bytes += len(data)
            flow.source.ready_since_s = now_s  # what is left there came before the next read
            flow.offer()

    def _deliver(self) -> None:
        now_s = time.monotonic()
        while self._link and self._link[0][0] <= now_s:
            _, flow, data = self._link.popleft()
            if flow.dropped:
                continue
            if data is None:
                flow.connection.abort()
                continue
            if data == _END:
                flow.end_is_due = True
            else:
                flow.held.append(data)
            flow.write()


class Connection:
    """One client's connection, relayed to the target.

    Args:
        engine: Whose thread this runs on.
        client: The accepted socket, non-blocking.
        target: A non-blocking socket on which `connect` has been called.
        lanes: Client to target, target to client.
        on_gone: Called once when the connection no longer exists; True where the target never accepted it.
    """

    def __init__(
        self,
        engine: Engine,
        client: socket.socket,
        target: socket.socket,
        lanes: tuple[Lane, Lane],
        on_gone: Callable[[Connection, bool], None],
    ) -> None:
        self._engine = engine
        self._client = _End(client)
        self._target = _End(target)
        self._forward = Flow(self, lanes[0], self._client, self._target)
        self._reverse = Flow(self, lanes[1], self._target, self._client)
        self._on_gone = on_gone
        self._connecting = True
        self._gone = False
        engine.watch(client.fileno(), _EVENTS, lambda mask, now_s: self._on_event(self._forward, mask, now_s))
        engine.watch(target.fileno(), _EVENTS, lambda mask, now_s: self._on_event(self._reverse, mask, now_s))
        engine.wake_at(self, time.monotonic() + CONNECT_TIMEOUT_S)

    @property
    def in_flight_bytes(self) -> tuple[int, int]:
        """Bytes held for the target, and for the client."""
        return self._forward.in_flight_bytes, self._reverse.in_flight_bytes

    def wake(self) -> None:
        """The target has not accepted in time."""
        self.abort()

    def abort(self) -> None:
        """Reset both sides at once."""
        if self._gone:
            return
        for end in (self._client, self._target):
            self._close(end, reset=True)
        self._leave()

    def reset_by(self, end: _End) -> None:
        """One side has reset the connection: the other hears of it when the mark has crossed the link."""
        if self._connecting:
            self.abort()
            return
        if end.closed:
            return
        self._close(end, reset=True)
        outgoing, incoming = (self._forward, self._reverse) if end is self._client else (self._reverse, self._forward)
        outgoing.ended = True
        _drop(incoming)
        outgoing.lane.put_reset(outgoing)

    def end_written(self, sink: _End) -> None:
        """Pass an end of stream on; the connection is over when both have been passed on."""
        try:
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset_by(sink)
            return
        if self._forward.finished and self._reverse.finished:
            for end in (self._client, self._target):
                self._close(end, reset=False)
            self._leave()

    def _on_event(self, flow: Flow, mask: int, now_s: float) -> None:
        """Note what has happened on the socket that `flow` reads and its twin writes."""
        end = flow.source
        if mask & select.EPOLLERR and end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.reset_by(end)
            return
        if mask & (select.EPOLLRDHUP | select.EPOLLHUP):
            end.hung_up = True
        if mask & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP) and not end.readable:
            end.readable = True
            end.ready_since_s = now_s
        if flow.queued and end.writable:
            return  # more bytes behind those that wait for the link already
        if mask & select.EPOLLOUT:
            end.writable = True
        if self._connecting:
            if end is not self._target or not mask & select.EPOLLOUT:
                return
            self._connecting = False
            self._engine.wake_at(self, None)
            self._client.ready_since_s = max(self._client.ready_since_s, now_s)
            self._forward.offer()
            self._forward.lane.wake()
        flow.offer()
        flow.lane.wake()
        if mask & select.EPOLLOUT and not end.closed:
            (self._reverse if flow is self._forward else self._forward).write()

    def _close(self, end: _End, reset: bool) -> None:
        if end.closed:
            return
        end.closed = True
        self._engine.unwatch(end.sock.fileno())
        if reset:
            abort(end.sock)
        else:
            end.sock.close()

    def _leave(self) -> None:
        self._gone = True
        self._engine.wake_at(self, None)
        _drop(self._forward)
        _drop(self._reverse)
        self._on_gone(self, self._connecting)


def _drop(flow: Flow) -> None:
    flow.dropped = True
    flow.held.clear()
    flow.in_flight_bytes = 0
