"""A relay: one emulated link in front of one TCP address, for development and tests.

    relay = await Relay.start(RelaySpec("sat-1>sat-2", target="127.0.0.1:5000", forward=Shape(latency_ms=20)))
    ... connect to relay.address instead of 127.0.0.1:5000 ...
    await relay.cut()        # connections are reset, new ones refused
    await relay.restore()
    await relay.close()

What it does not emulate: a TCP handshake costs no latency (the client is connected to the relay at once);
nothing is lost or repeated (TCP would hide it; say it as rate and jitter); each relay has its own rate, also
where two relays stand for the same physical link. Only TCP, only Linux.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from orbitmesh.errors import InvalidInputError, TransportError
from services.links.engine import Engine
from services.links.flows import Connection, Lane, abort
from services.links.shaper import Pipe, Shape

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

_SPEC_FIELDS = frozenset({"name", "listen", "target", "forward", "reverse"})
_SHORTHAND_FIELDS = ("latency_ms", "rate_bps", "jitter_ms", "seed")
_T = TypeVar("_T")


@dataclass(frozen=True)
class RelaySpec:
    """One emulated link."""

    name: str
    """What the link is called, for instance `sat-1>sat-2`."""
    target: str
    """`host:port` of the process behind the link; `[host]:port` for IPv6. Looked up when the relay starts."""
    listen: str = "127.0.0.1:0"
    """`host:port` to listen on; port 0 lets the system choose."""
    forward: Shape = field(default_factory=Shape)
    """The direction from the client to the target."""
    reverse: Shape = field(default_factory=Shape)
    """The direction from the target to the client."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInputError(f"name is {self.name!r}; expected some text such as 'sat-1>sat-2'")
        if split_address("target", self.target)[1] == 0:
            raise InvalidInputError(f"target is {self.target!r}; a target needs a port from 1 to 65535")
        split_address("listen", self.listen)

    @classmethod
    def parse(cls, fields: Mapping[str, object], base: RelaySpec | None = None) -> RelaySpec:
        """A spec from JSON fields over `base`.

        `forward` and `reverse` are objects with the fields of `Shape`; the same fields at the top hold for
        both directions, under what the objects say.

        Raises:
            InvalidInputError: a field is missing, unknown, of the wrong type, or out of range.
        """
        unknown = sorted(set(fields) - _SPEC_FIELDS - set(_SHORTHAND_FIELDS))
        if unknown:
            known = ", ".join(sorted(_SPEC_FIELDS | set(_SHORTHAND_FIELDS)))
            raise InvalidInputError(f"unknown field {unknown[0]!r}; a relay has {known}")
        both = {name: fields[name] for name in _SHORTHAND_FIELDS if name in fields}
        shapes = {}
        for direction in ("forward", "reverse"):
            own = fields.get(direction, {})
            if not isinstance(own, Mapping):
                raise InvalidInputError(
                    f'{direction} is {own!r}; expected an object such as {{"latency_ms": 20}}'
                )
            shapes[direction] = Shape.parse({**both, **own}, getattr(base, direction) if base else None)
        texts: dict[str, Any] = {
            "name": fields.get("name", base.name if base else None),
            "target": fields.get("target", base.target if base else None),
            "listen": fields.get("listen", base.listen if base else "127.0.0.1:0"),
        }
        return cls(**texts, forward=shapes["forward"], reverse=shapes["reverse"])  # which checks the types


@dataclass(frozen=True)
class LaneStats:
    """What one direction of a relay has carried."""

    taken_bytes: int
    """Bytes read from the sending side since the start."""
    delivered_bytes: int
    """Bytes written to the receiving side since the start."""
    in_flight_bytes: int
    """Bytes held now, on the link or before a receiver that does not read."""


@dataclass(frozen=True)
class RelayStats:
    """What a relay has done and holds."""

    state: str
    """`up`, `cut` or `paused`."""
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
            Lane(engine, Pipe(spec.forward, "forward")),
            Lane(engine, Pipe(spec.reverse, "reverse")),
        )
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._unreachable = 0
        self._state = "up"
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
        family, address = self._reservation.family, self._reservation.getsockname()
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit the buffers; one set after the handshake would not bound the window.
            _bound_buffers(listener, self.spec.forward)
            listener.bind(address)
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            raise TransportError(
                f"cannot listen on {self.address} for {self.spec.name}: "
                f"{os.strerror(error.errno or 0)}; choose another port, or 0 for any"
            ) from error
        self._listener = listener
        self._engine.watch(listener.fileno(), select.EPOLLIN, self._on_accept)

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._state = "cut"
        self._close_listener()
        for connection in list(self._connections):
            connection.abort()
        for lane in self._lanes:
            lane.resume()
            lane.clear()

    def pause(self) -> None:
        """Hold all bytes where they are and accept nothing; connections stay."""
        if self._state != "up":
            return
        self._state = "paused"
        if self._listener is not None:
            self._engine.unwatch(self._listener.fileno())
        for lane in self._lanes:
            lane.pause()

    def restore(self) -> None:
        """End a cut or a pause."""
        if self._state == "cut":
            self.open()
        elif self._state == "paused":
            if self._listener is not None:
                self._engine.watch(self._listener.fileno(), select.EPOLLIN, self._on_accept)
            for lane in self._lanes:
                lane.resume()
        self._state = "up"

    def set(self, spec: RelaySpec, target: tuple[socket.AddressFamily, tuple[object, ...]]) -> None:
        """Change the shapes at once and the target for connections to come; `listen` and `name` stay."""
        self._target = target
        self.spec = spec
        if self._listener is not None:
            _bound_buffers(self._listener, spec.forward)
        for lane, shape in zip(self._lanes, (spec.forward, spec.reverse), strict=True):
            lane.pipe.reshape(shape)
            lane.wake_soon()

    def stats(self) -> RelayStats:
        """What the relay has done and holds."""
        held = [connection.in_flight_bytes for connection in self._connections]
        forward, reverse = (
            LaneStats(lane.taken_bytes, lane.delivered_bytes, sum(pair[index] for pair in held))
            for index, lane in enumerate(self._lanes)
        )
        return RelayStats(
            self._state, len(self._connections), self._accepted, self._unreachable, forward, reverse
        )

    def close(self) -> None:
        """Cut for good and give the port back."""
        self.cut()
        self._reservation.close()

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
        _bound_buffers(target, self.spec.reverse)
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
            self._engine.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None


class Relay:
    """The asynchronous face of one relay. Use `await Relay.start(spec)`, or `async with await
    Relay.start(spec)`."""

    def __init__(self, core: RelayCore, engine: Engine, owns_engine: bool) -> None:
        self._core = core
        self._engine = engine
        self._owns_engine = owns_engine
        self._closed = False

    @classmethod
    async def start(cls, spec: RelaySpec, engine: Engine | None = None) -> Relay:
        """Listen and relay, on `engine` where given (it may host many relays), else on an engine of its own.

        Raises:
            TransportError: the target's name is unknown, or the address to listen on is not free.
        """
        running = engine or Engine()
        try:
            core = await asyncio.to_thread(RelayCore, spec, running)
        except BaseException:
            if engine is None:
                running.close()
            raise
        relay = cls(core, running, owns_engine=engine is None)
        try:
            await relay._on_engine(core.open)
        except BaseException:
            await relay.close()
            raise
        return relay

    @property
    def spec(self) -> RelaySpec:
        """The link as it is now."""
        return self._core.spec

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self._core.port)

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return self._core.address

    async def cut(self) -> None:
        """Reset every connection and refuse new ones until `restore`."""
        await self._on_engine(self._core.cut)

    async def pause(self) -> None:
        """Hold all bytes where they are until `restore`; connections stay and see silence."""
        await self._on_engine(self._core.pause)

    async def restore(self) -> None:
        """End a cut or a pause."""
        await self._on_engine(self._core.restore)

    async def set(
        self, *, forward: Shape | None = None, reverse: Shape | None = None, target: str | None = None
    ) -> None:
        """Change a direction at once, or the target for connections to come.

        Bytes already on the link keep their times, and none overtakes them.

        Raises:
            TransportError: the target's name is unknown.
        """
        now = self._core.spec
        spec = replace(
            now, forward=forward or now.forward, reverse=reverse or now.reverse, target=target or now.target
        )
        found = await asyncio.to_thread(resolve, spec.target)
        await self._on_engine(lambda: self._core.set(spec, found))

    async def stats(self) -> RelayStats:
        """What the relay has done and holds."""
        return await self._on_engine(self._core.stats)

    async def close(self) -> None:
        """Reset what is connected and give the port back. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await self._on_engine(self._core.close)
        if self._owns_engine:
            await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Relay:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _on_engine(self, command: Callable[[], _T]) -> _T:
        return await asyncio.wrap_future(self._engine.submit(command))


def split_address(what: str, address: object) -> tuple[str, int]:
    """The host and port of `host:port`.

    Raises:
        InvalidInputError: it is something else.
    """
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidInputError(f"{what} is {address!r}; expected host:port such as 127.0.0.1:5000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def resolve(address: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The first socket address that `host:port` stands for; may wait for the name service.

    Raises:
        TransportError: the name is unknown.
    """
    host, port = split_address("address", address)
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise TransportError(
            f"the host of {address} is not known: {error}; check the name or wait for it"
        ) from error
    return family, found


def _bound_buffers(sock: socket.socket, receives: Shape) -> None:
    """Bound the kernel's buffers; a receiving one by what the link carries, so that a thin link is felt
    soon."""
    size = SOCKET_BUFFER_BYTES
    if receives.rate_bps is not None:
        size = min(
            max(int(receives.rate_bps / 8 * SOCKET_BUFFER_S), MIN_SOCKET_BUFFER_BYTES), SOCKET_BUFFER_BYTES
        )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
