"""A service's connections to its peers: one per peer and way, opened anew when its own identity is renewed.

A peer that this node has no link to is reached through others, by a tunnel (`tunnel`): the connection is still made
with the peer itself, and proven by its certificate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import grpc
import grpc.aio

from orbitmesh.errors import MeshError
from orbitmesh.rpc import CONNECT_ATTEMPT_MS, open_channel, target_of
from orbitmesh.trust import Identity, IdentitySource, Role
from orbitmesh.wire.streams import StreamCall, open_exchange
from services.runtime.tunnel import (
    CONNECT_PER_HOP_S,
    PATH_MAX,
    AnyHop,
    Entrance,
    Explained,
    ExplainedStream,
    Hop,
    check_path,
    hops,
    open_relay,
)
from services.runtime.tunnel_ends import CallEnd

RETIRE_GRACE_S = 30.0
"""How long calls on a connection with the identity of before, or by the way of before, may go on, in seconds; sessions
are then taken up again on the new one."""
RETIRING_MAX = 64
"""The most connections that wait for their calls to end; one more ends the one that waits longest at once."""
LOOK_UP_S = 5.0
"""How often names are looked up again where several were given, in seconds."""
LOOK_INTERVAL_S = 1.0
"""How often it is looked whether the identity was renewed, in seconds."""

Key = tuple[str, str, bool]


@dataclass(frozen=True, eq=False, slots=True)
class _Way:
    """One connection to a peer."""

    identity: Identity
    """Who we are on it."""
    address: str
    """host:port of the peer, from here or from the last relay."""
    via: tuple[Hop, ...]
    """The relays, in order."""
    channel: grpc.aio.Channel
    """The connection."""
    entrance: Entrance | None
    """The way into its tunnel, where there are relays."""

    async def close(self, grace_s: float | None) -> None:
        await self.channel.close(grace_s)
        if self.entrance is not None:
            await self.entrance.close()


class _Names:
    """The addresses behind names where several are given at once: processes that are started anew may be at others."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}
        self._asking: set[asyncio.Future[str]] = set()

    def target(self, address: str) -> str:
        """What to connect to; looked up at the first call, and again beside a later one.

        Raises:
            TransportError: None of the names has an address.
        """
        if "," not in address:
            return address
        now_s = time.monotonic()
        held = self._known.get(address)
        if held is None:
            held = self._known[address] = target_of(address), now_s
        elif now_s - held[1] > LOOK_UP_S:
            self._known[address] = held[0], now_s
            asked = asyncio.get_running_loop().run_in_executor(None, target_of, address)
            self._asking.add(asked)
            asked.add_done_callback(lambda done: self._took(address, done))
        return held[0]

    def _took(self, address: str, done: asyncio.Future[str]) -> None:
        self._asking.discard(done)
        # Where nobody knows the names at the moment, the addresses of before may still be right.
        if not done.cancelled() and done.exception() is None:
            self._known[address] = done.result(), time.monotonic()


class ChannelPool:
    """Connections by role and name: one to each peer directly, and one through relays.

    gRPC for Python cannot exchange the certificate of a client's connection, and a server refuses calls on a connection
    whose certificate has run out: a service that lives longer than its certificate must connect again.

    Args:
        identities: Who we are.
        ways: Other ways to peers, `role/name` to host:port, where their own address is not the one to use.
        on_tunnel_failure: Told of every tunnel that failed, with the peer and the reason.
    """

    def __init__(
        self,
        identities: IdentitySource,
        ways: dict[str, str],
        on_tunnel_failure: Callable[[str, MeshError], None] | None = None,
    ) -> None:
        self._identities = identities
        self._ways = ways
        self._on_tunnel_failure = on_tunnel_failure
        self._names = _Names()
        self._held: dict[Key, _Way] = {}
        self._retiring: dict[asyncio.Task[None], _Way] = {}

    def get(self, role: Role, name: str, address: str, via: Iterable[AnyHop] = ()) -> grpc.aio.Channel:
        """The connection to a peer; it connects at the first call.

        Call on it at once, and ask again for the next call: a connection that was retired meanwhile takes no new calls
        (`grpc.aio.UsageError`), and certificates are renewed and peers move at any moment.

        Another address than before, or other relays, open another connection and retire the old one. The direct
        connection and the one through relays are kept side by side.

        Args:
            role: The peer's role.
            name: Its name.
            address: host:port where we reach it, or where the last relay does.
            via: The executors that relay, in order; a tunnel is opened through them.

        Raises:
            IdentityError: Our own certificate is outside its time.
            InvalidInputError: The relays are too many, form a loop, or cannot relay.
        """
        return self._way(role, name, address, via).channel

    def exchange(
        self, role: Role, name: str, address: str, method: str, via: Iterable[AnyHop] = ()
    ) -> Callable[[], StreamCall]:
        """What `dial` opens a session's stream with, each time on the newest connection by this way."""
        relays = hops(via)

        def open_stream() -> StreamCall:
            way = self._way(role, name, address, relays)
            call = open_exchange(way.channel, method)()
            return call if way.entrance is None else cast("StreamCall", ExplainedStream(call, way.entrance))

        return open_stream

    def renew(self, role: Role, name: str) -> None:
        """Connects anew at the next call: a peer fell silent, and a connection whose packets were swallowed for a while
        may wait for minutes before it sends the next one."""
        for relayed in (False, True):
            held = self._held.pop((role.value, name, relayed), None)
            if held is not None:
                self._retire(held, name)

    def tunnel_failure(self, role: Role, name: str) -> MeshError | None:
        """Why the tunnel to a peer does not carry; None where it does, or was not tried."""
        way = self._held.get((role.value, name, True))
        return None if way is None or way.entrance is None else way.entrance.failure

    async def close(self) -> None:
        """Closes every connection."""
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for way in [*self._held.values(), *self._retiring.values()]:
            await way.close(None)

    def _way(self, role: Role, name: str, address: str, via: Iterable[AnyHop]) -> _Way:
        relays = hops(via)
        there = address if relays else self._names.target(self._ways.get(f"{role}/{name}", address))
        key = (role.value, name, bool(relays))
        identity = self._identities.current(LOOK_INTERVAL_S)
        held = self._held.get(key)
        if held is not None and held.identity is identity and held.address == there and held.via == relays:
            return held
        way = (
            self._tunnelled(identity, Hop(role, name, there), relays)
            if relays
            else _direct(identity, role, name, there)
        )
        self._held[key] = way
        if held is not None:
            self._retire(held, name)
        return way

    def _tunnelled(self, identity: Identity, peer: Hop, relays: tuple[Hop, ...]) -> _Way:
        check_path((*relays, peer), f"{identity.role}/{identity.name}", PATH_MAX + 1)
        first, rest = relays[0], (*relays[1:], peer)

        async def open_far() -> CallEnd:
            return await open_relay(self.get(first.role, first.name, first.address), first, rest)

        entrance = Entrance(peer.title, open_far, self._on_tunnel_failure)
        # One attempt to connect takes in the opening of the tunnel, relay by relay.
        attempt_ms = CONNECT_ATTEMPT_MS + int(CONNECT_PER_HOP_S * 1000) * len(relays)
        channel = open_channel(
            entrance.target,
            identity,
            peer.role,
            peer.name,
            interceptors=[Explained(entrance)],
            options=[("grpc.min_reconnect_backoff_ms", attempt_ms)],
        )
        return _Way(identity, peer.address, relays, channel, entrance)

    def _retire(self, way: _Way, name: str) -> None:
        if len(self._retiring) >= RETIRING_MAX:
            oldest, _ = next(iter(self._retiring.items()))
            oldest.cancel()
        task = asyncio.create_task(_end(way), name=f"retiring the way to {name}")
        self._retiring[task] = way
        task.add_done_callback(lambda done: self._retiring.pop(done, None))


async def _end(way: _Way) -> None:
    try:
        await way.close(RETIRE_GRACE_S)
    finally:
        await way.close(None)


def _direct(identity: Identity, role: Role, name: str, address: str) -> _Way:
    return _Way(identity, address, (), open_channel(address, identity, role, name), None)
