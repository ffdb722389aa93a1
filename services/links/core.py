"""The relay itself: its listener, its connections, and whether it is open. Runs on the engine's thread.

Two hands hold a relay: whoever runs it (`cut`, `pause`, `restore`) and the contact plan that it may follow. It is up
only where both have it up; a restore by hand does not open a window.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from dataclasses import dataclass

from orbitmesh.errors import TransportError
from services.links.engine import Engine
from services.links.flows import Connection, Lane, abort
from services.links.following import Follower, ScheduleStats
from services.links.schedule import ContactCourse, Schedule, Window, shape_in
from services.links.shaper import Pipe, Shape
from services.links.spec import RelaySpec, resolve

MAX_CONNECTIONS = 1024
"""Connections of one relay at once; one more is reset."""
LISTEN_BACKLOG = 128
"""Connections that wait to be accepted."""
SOCKET_BUFFER_BYTES = 512 * 1024
"""The kernel's buffer of each relayed socket in each direction, so that backpressure reaches the sender soon.
The kernel doubles it for its own accounting."""
MIN_SOCKET_BUFFER_BYTES = 64 * 1024
"""The same on a thin link: less than a loopback segment would stall TCP."""
SOCKET_BUFFER_S = 0.05
"""The kernel's buffer holds what the link carries in this many seconds, between the two bounds above."""
ACCEPTS_PER_TURN = 16
"""Connections accepted in one go before other sockets get their turn."""


@dataclass(frozen=True)
class LaneStats:
    """What one direction of a relay has carried."""

    taken_bytes: int
    """Bytes read from the sending side since the start."""
    delivered_bytes: int
    """Bytes written to the receiving side since the start."""
    in_flight_bytes: int
    """Bytes held now, on the link or before a receiver that does not read."""
    corrupted_bytes: int
    """Bytes that were flipped on the way since the start."""


@dataclass(frozen=True)
class RelayStats:
    """What a relay has done and holds."""

    state: str
    """`up`; `cut`, by hand or by the plan; `paused`, by hand; `held`: the plan has an outage that keeps connections."""
    connections: int
    """Connections now."""
    accepted: int
    """Connections since the start."""
    unreachable: int
    """Connections that ended because the target did not accept."""
    forward: LaneStats
    """Client to target."""
    reverse: LaneStats
    """Target to client."""
    schedule: ScheduleStats | None
    """Where the relay stands in its contact plan; None where it follows none."""


class RelayCore:
    """The relay itself; every method but the constructor is for the engine's thread.

    Raises:
        TransportError: the target's name is unknown, or the address to listen on is not free.
    """

    def __init__(self, spec: RelaySpec, engine: Engine) -> None:
        self.spec = spec
        self._engine = engine
        self._target = resolve(spec.target)
        self._lanes = (
            Lane(engine, Pipe(spec.forward, "forward", engine.medium(spec.forward_medium))),
            Lane(engine, Pipe(spec.reverse, "reverse", engine.medium(spec.reverse_medium))),
        )
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._unreachable = 0
        self._asked = "up"  # by hand: up, cut or paused
        self._sky = "up"  # by the plan: up, cut or held
        self._state = "cut"  # what follows from the two; it does not listen yet
        self._schedule: Schedule | None = None
        self._follower: Follower | None = None
        self._window: tuple[Window, ContactCourse, ContactCourse] | None = None
        self._listener: socket.socket | None = None
        family, address = resolve(spec.listen)
        # A bound socket that never listens keeps the port ours while the link is cut.
        self._reservation = socket.socket(family, socket.SOCK_STREAM)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._reservation.bind(address)
        except OSError as error:
            self._reservation.close()
            raise TransportError(
                f"cannot listen on {spec.listen} for {spec.name}: {os.strerror(error.errno or 0)}; "
                "choose another port, or 0 for any"
            ) from error
        self.host, self.port = self._reservation.getsockname()[:2]

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def open(self) -> None:
        """Start to listen.

        Raises:
            TransportError: another socket listens on the address.
        """
        self._apply()

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._asked = "cut"
        self._apply()

    def pause(self) -> None:
        """Hold all bytes where they are and accept nothing; connections stay."""
        if self._asked == "up":
            self._asked = "paused"
            self._apply()

    def restore(self) -> None:
        """End a cut or a pause; an outage of the plan stays.

        Raises:
            TransportError: another socket has taken the address meanwhile.
        """
        self._asked = "up"
        self._apply()

    def follow(self, schedule: Schedule) -> None:
        """Follow a contact plan from now on, instead of any before it.

        Raises:
            InvalidInputError: the emulator cannot carry a contact with this relay's jitter.
        """
        _check_contacts(schedule, self.spec)
        outage = "held" if schedule.outage == "hold" else "cut"
        if self._follower is not None:
            self._follower.stop()
        self._window = None
        self._schedule = schedule
        self._follower = Follower(schedule, self._engine, self._enter, lambda: self._leave(outage))
        self._follower.start()

    def unfollow(self) -> None:
        """Follow no plan any more: up, with the shapes of the spec."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = self._schedule = None
        self._window = None
        self._reshape()
        self._sky = "up"
        self._apply()

    def set(self, spec: RelaySpec, target: tuple[socket.AddressFamily, tuple[object, ...]]) -> None:
        """Change the shapes at once and the target for connections to come; `listen` and `name` stay.

        Raises:
            InvalidInputError: the emulator cannot carry a contact of the plan with these shapes.
        """
        if self._schedule is not None:
            _check_contacts(self._schedule, spec)
        self._target = target
        self.spec = spec
        self._reshape()

    def stats(self) -> RelayStats:
        """What the relay has done and holds."""
        held = [connection.in_flight_bytes for connection in self._connections]
        forward, reverse = (
            LaneStats(lane.taken_bytes, lane.delivered_bytes, sum(pair[index] for pair in held), lane.corrupted_bytes)
            for index, lane in enumerate(self._lanes)
        )
        schedule = None if self._follower is None else self._follower.stats()
        return RelayStats(
            self._state, len(self._connections), self._accepted, self._unreachable, forward, reverse, schedule
        )

    def close(self) -> None:
        """Cut for good and give the port back."""
        if self._follower is not None:
            self._follower.stop()
        self.cut()
        self._reservation.close()

    def _enter(self, window: Window, forward: ContactCourse, reverse: ContactCourse) -> None:
        self._window = window, forward, reverse
        self._reshape()
        self._sky = "up"
        self._apply()

    def _leave(self, outage: str) -> None:
        self._sky = outage
        self._apply()

    def _reshape(self) -> None:
        """Give both directions what the spec and the window that is open say."""
        shapes, courses = self._shapes(), (None, None) if self._window is None else self._window[1:]
        if self._listener is not None:
            _bound_buffers(self._listener, shapes[0])
        for lane, shape, course in zip(self._lanes, shapes, courses, strict=True):
            lane.pipe.reshape(shape, course)
            lane.wake_soon()

    def _shapes(self) -> tuple[Shape, Shape]:
        if self._window is None:
            return self.spec.forward, self.spec.reverse
        window = self._window[0]
        return shape_in(window.forward, self.spec.forward), shape_in(window.reverse, self.spec.reverse)

    def _apply(self) -> None:
        """Pass to the state that follows from both hands."""
        state = next((each for each in ("cut", "held", "paused") if each in (self._asked, self._sky)), "up")
        if state == self._state:
            return
        if state in ("up", "paused") and self._listener is None:
            self._listener = self._listen()
        if self._state == "up" and self._listener is not None:
            self._engine.unwatch(self._listener.fileno())
        self._state = state
        if state in ("cut", "held"):
            self._close_listener()
        if state == "cut":
            for connection in list(self._connections):
                connection.abort()
        for lane in self._lanes:
            if state in ("up", "cut"):
                lane.resume()
            else:
                lane.pause()
            if state == "cut":
                lane.clear()
        if state == "up" and self._listener is not None:
            self._engine.watch(self._listener.fileno(), select.EPOLLIN, self._on_accept)

    def _listen(self) -> socket.socket:
        family, address = self._reservation.family, self._reservation.getsockname()
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit the buffers; one set after the handshake would not bound the window.
            _bound_buffers(listener, self._shapes()[0])
            listener.bind(address)
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            raise TransportError(
                f"cannot listen on {self.address} for {self.spec.name}: "
                f"{os.strerror(error.errno or 0)}; choose another port, or 0 for any"
            ) from error
        return listener

    def _on_accept(self, _mask: int, _now_s: float) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._listener is None:
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                return  # the client is gone already, or no descriptor is left: the next event tries again
            self._accepted += 1
            if len(self._connections) >= MAX_CONNECTIONS:
                abort(client)
            else:
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        family, address = self._target
        try:
            target = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            abort(client)
            return
        for sock in (client, target):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _bound_buffers(target, self._shapes()[1])
        if target.connect_ex(address) not in (0, errno.EINPROGRESS):
            self._unreachable += 1
            target.close()
            abort(client)
            return
        self._connections.add(Connection(self._engine, client, target, self._lanes, self._on_gone))

    def _on_gone(self, connection: Connection, never_connected: bool) -> None:
        self._connections.discard(connection)
        self._unreachable += never_connected

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _check_contacts(schedule: Schedule, spec: RelaySpec) -> None:
    """Refuse contacts that the emulator cannot carry with the jitter that the spec adds."""
    for contact in schedule.plan.between(schedule.source, schedule.target):
        shape_in(contact, spec.forward)
    for contact in schedule.plan.between(schedule.target, schedule.source):
        shape_in(contact, spec.reverse)


def _bound_buffers(sock: socket.socket, receives: Shape) -> None:
    """Bound the kernel's buffers; a receiving one by what the link carries, so that a thin link is felt
    soon."""
    size = SOCKET_BUFFER_BYTES
    if receives.rate_bps is not None:
        size = min(max(int(receives.rate_bps / 8 * SOCKET_BUFFER_S), MIN_SOCKET_BUFFER_BYTES), SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
