"""A service's connections to its peers: one per peer and way, opened anew when its own identity is renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, IdentitySource, Role
from orbitmesh.wire.streams import StreamCall, open_exchange

RETIRE_GRACE_S = 30.0
"""How long calls on a connection with the identity of before may go on, in seconds; sessions are then taken up again on
the new one."""
LOOK_INTERVAL_S = 1.0
"""How often it is looked whether the identity was renewed, in seconds."""

Key = tuple[str, str, str]


class ChannelPool:
    """Connections by role, name and address.

    gRPC for Python cannot exchange the certificate of a client's connection, and a server refuses calls on a connection
    whose certificate has run out: a service that lives longer than its certificate must connect again.

    Args:
        identities: Who we are.
        ways: Other ways to peers, `role/name` to host:port, where their own address is not the one to use.
    """

    def __init__(self, identities: IdentitySource, ways: dict[str, str]) -> None:
        self._identities = identities
        self._ways = ways
        self._channels: dict[Key, tuple[Identity, grpc.aio.Channel]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self, role: Role, name: str, address: str) -> grpc.aio.Channel:
        """The connection to a peer; it connects at the first call.

        Raises:
            IdentityError: Our own certificate is outside its time.
        """
        way = self._ways.get(f"{role}/{name}", address)
        key = (role.value, name, way)
        identity = self._identities.current(LOOK_INTERVAL_S)
        held = self._channels.get(key)
        if held is not None and held[0] is identity:
            return held[1]
        channel = open_channel(way, identity, role, name)
        self._channels[key] = (identity, channel)
        if held is not None:
            retiring = asyncio.create_task(held[1].close(RETIRE_GRACE_S), name=f"retiring the way to {name}")
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        return channel

    def exchange(self, role: Role, name: str, address: str, method: str) -> Callable[[], StreamCall]:
        """What `dial` opens a session's stream with, each time on the newest connection."""
        return lambda: open_exchange(self.get(role, name, address), method)()

    async def close(self) -> None:
        """Closes every connection."""
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for _, channel in self._channels.values():
            await channel.close()
