"""The relaying of connections: this node as a part of others' ways.

What passes is the TLS connection of others, end to end: nothing here can read it, and a byte changed here ends it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, PermissionError_, TransportError
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2
from services.runtime.caller import current_caller
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.tunnel import CONNECT_PER_HOP_S, Hop, check_path, hops, open_relay
from services.runtime.tunnel_ends import IDLE_S, Context, ContextEnd, End, Meter, SocketEnd, join

TUNNELS_MAX = 128
"""The most tunnels that one node carries at a time: each holds at most two pieces of 256 KiB and what gRPC and the
kernel buffer beside them."""
FIRST_MESSAGE_S = 10.0
"""How long a caller may take to name the path, in seconds."""
DRAIN_TUNNELS_S = 3.0
"""How long tunnels may go on once this node drains, in seconds: their ends look for another way."""

MayReach = Callable[[executor_pb2.PeerAddress], str | None]
"""The address at which this node reaches a peer; None where it must not be reached from here."""


@dataclass(frozen=True, slots=True)
class RelayStats:
    """What a node has relayed."""

    tunnels: int
    """Tunnels now."""
    opened: int
    """Tunnels that were connected, since the start."""
    refused: int
    """Tunnels that were asked for and not connected, since the start."""
    sent_bytes: int
    """Bytes carried from callers."""
    received_bytes: int
    """Bytes carried back to them."""


def known_peers(ways: Mapping[str, str], peers: Callable[[], Mapping[str, executor_pb2.PeerAddress]]) -> MayReach:
    """Lets members of the mesh be reached at the addresses that this node knows, whatever the path says.

    Args:
        ways: The node's own ways, `role/name` to host:port; they go first.
        peers: The executors that the scheduler named last, by name.
    """

    def may_reach(peer: executor_pb2.PeerAddress) -> str | None:
        own = ways.get(f"{peer.role}/{peer.name}")
        if own is not None:
            return own
        known = peers().get(peer.name)
        if known is None or (known.role or Role.EXECUTOR.value) != peer.role:
            return None
        return known.address or None

    return may_reach


class RelayTable:
    """The tunnels that pass through one node.

    Args:
        name: This executor's name.
        channels: Its connections to peers.
        may_reach: Which peers it may connect to, and where.
        log: Where tunnels are told.
        tunnels_max: The most tunnels at a time.
        idle_s: How long a tunnel may carry nothing, in seconds.
        drain_s: How long tunnels may go on once this node drains, in seconds.
    """

    def __init__(
        self,
        name: str,
        channels: ChannelPool,
        may_reach: MayReach,
        log: EventLog,
        *,
        tunnels_max: int = TUNNELS_MAX,
        idle_s: float = IDLE_S,
        drain_s: float = DRAIN_TUNNELS_S,
    ) -> None:
        self._name = name
        self._channels = channels
        self._may_reach = may_reach
        self._log = log
        self._tunnels_max = tunnels_max
        self._idle_s = idle_s
        self._drain_s = drain_s
        self._tunnels: set[Meter] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._opened = 0
        self._refused = 0
        self._sent_bytes = 0
        self._received_bytes = 0

    @property
    def stats(self) -> RelayStats:
        """What was relayed until now."""
        sent = self._sent_bytes + sum(meter.sent_bytes for meter in self._tunnels)
        received = self._received_bytes + sum(meter.received_bytes for meter in self._tunnels)
        return RelayStats(len(self._tunnels), self._opened, self._refused, sent, received)

    async def serve(self, context: Context) -> None:
        """Answers one `Relay`; returns when the tunnel has ended in order.

        Raises:
            InvalidInputError: The path is empty or too long, comes back to a node, or leads through one that cannot
                relay.
            PermissionError_: The next node is none that this one knows.
            CapacityError: As many tunnels as may be are carried.
            TransportError: DRAINING; or the next node cannot be reached; or an end broke, or was idle for too long.
        """
        caller = current_caller().title
        with self._counted() as meter:
            try:
                path = await _path(context)
                check_path(path, f"{Role.EXECUTOR}/{self._name}")
                far = await self._onward(path)
            except BaseException:
                self._refused += 1
                raise
            self._opened += 1
            target = path[-1].title
            self._log.info("tunnel_opened", caller=caller, next=path[0].title, target=target, hops_left=len(path))
            try:
                near = ContextEnd(context, caller)
                await near.connected()
                await join(near, far, meter, idle_s=self._idle_s)
            finally:
                far.abort()
                self._log.info(
                    "tunnel_ended",
                    caller=caller,
                    target=target,
                    sent_bytes=meter.sent_bytes,
                    received_bytes=meter.received_bytes,
                )

    async def drain(self) -> None:
        """Takes no new tunnels, lets those there are go on for a little, then ends them with DRAINING."""
        self._draining = True
        try:
            async with asyncio.timeout(self._drain_s):
                await self._empty.wait()
        except TimeoutError:
            for meter in self._tunnels:
                meter.end(self._drains())

    @contextmanager
    def _counted(self) -> Iterator[Meter]:
        if self._draining:
            self._refused += 1
            raise self._drains()
        if len(self._tunnels) >= self._tunnels_max:
            self._refused += 1
            raise CapacityError(
                f"{self._name} carries {self._tunnels_max} tunnels already; try again later, or another way",
                metadata={"tunnels": len(self._tunnels), "limit": self._tunnels_max, "hop": self._name},
            )
        meter = Meter()
        self._tunnels.add(meter)
        self._empty.clear()
        try:
            yield meter
        finally:
            self._tunnels.discard(meter)
            self._sent_bytes += meter.sent_bytes
            self._received_bytes += meter.received_bytes
            if not self._tunnels:
                self._empty.set()

    def _drains(self) -> MeshError:
        return TransportError(
            f"{self._name} is stopping and relays no more; take another way",
            reason="DRAINING",
            metadata={"hop": self._name},
        )

    async def _onward(self, path: Sequence[Hop]) -> End:
        """The rest of the way, connected."""
        peer, rest = path[0], path[1:]
        address = self._may_reach(peer.message())
        if address is None:
            raise PermissionError_(
                f"{self._name} does not relay to {peer.title}: it is no member that this node knows; name a peer "
                "that the scheduler lists, or give this node a way to it (--peers)",
                reason="RELAY_REFUSED",
                metadata={"hop": peer.name, "relay": self._name},
            )
        if rest:
            channel = self._channels.get(Role.EXECUTOR, peer.name, address)
            return await open_relay(channel, Hop(peer.role, peer.name, address), rest)
        return SocketEnd(await _connect(peer, address), peer.title)


async def _path(context: Context) -> tuple[Hop, ...]:
    """The nodes that are left, from the first message."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first: Any = await context.read()
    except TimeoutError:
        raise InvalidInputError(
            f"no path came within {FIRST_MESSAGE_S:g} s; a tunnel's first message must name it"
        ) from None
    if not isinstance(first, executor_pb2.RelayRequest) or first.data:
        raise InvalidInputError("a tunnel's first message must name the path, and carry no bytes")
    return hops(first.path)


async def _connect(peer: Hop, address: str) -> socket.socket:
    """A connection to the far end, tried at each address that its name stands for."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidInputError(f"the address {address[:80]!r} of {peer.title} is not host:port")
    loop = asyncio.get_running_loop()
    broken: OSError = OSError("the name stands for no address")
    try:
        async with asyncio.timeout(CONNECT_PER_HOP_S):
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            for family, kind, protocol, _, where in found:
                sock = socket.socket(family, kind, protocol)
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, where)
                except BaseException as error:
                    sock.close()
                    if not isinstance(error, OSError):
                        raise
                    broken = error
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
    except TimeoutError:
        broken = OSError(f"no answer within {CONNECT_PER_HOP_S:g} s")
    except OSError as error:
        broken = error
    raise TransportError(
        f"cannot connect to {peer.title} ({broken.strerror or broken}); check that it runs and that the link is up",
        metadata={"hop": peer.name},
    )
