"""Tunnels: a connection to a peer that this node has no link to, carried by nodes in between that cannot read it.

The way in is a listener of this process. What connects to it (gRPC's own channel to the far peer, with mTLS from end
to end) is carried by the RPC `Relay` from relay to relay; the last one opens the connection to the far peer. So the
relays see TLS records and nothing else, and a byte that one of them changes ends the connection.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

from orbitmesh.errors import InternalError, InvalidInputError, MeshError
from orbitmesh.rpc import STATUS_DETAILS_KEY, keep_status
from orbitmesh.trust.names import Role, check_name, parse_role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from services.runtime.status import as_mesh_error, to_trailer
from services.runtime.tunnel_ends import CallEnd, Meter, SocketEnd, join

PATH_MAX = 8
"""The most nodes on a path after the one that opens it: up to seven relays more than the first, and the far end."""
CONNECT_PER_HOP_S = 5.0
"""How long a tunnel may take to be connected, in seconds for each hop that is left: the node before a hop that does
not answer notices first and can say which one it is."""
CONNECTIONS_MAX = 16
"""The most connections through one way in at a time; gRPC needs one, and a second while it changes over."""
ADDRESS_MAX_CHARS = 255
"""The longest address on a path, in characters."""
ACCEPT_PAUSE_S = 0.1
"""How long nothing is accepted after the system could not, in seconds."""

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Hop:
    """A node on the way."""

    role: Role
    """Its role; relays are executors."""
    name: str
    """Its name."""
    address: str
    """host:port where the node before it reaches it."""

    @property
    def title(self) -> str:
        """`role/name`."""
        return f"{self.role}/{self.name}"

    def message(self) -> executor_pb2.PeerAddress:
        """As a message."""
        return executor_pb2.PeerAddress(role=self.role.value, name=self.name, address=self.address)


AnyHop: TypeAlias = Hop | executor_pb2.PeerAddress


def hops(path: Iterable[AnyHop]) -> tuple[Hop, ...]:
    """Nodes of a path as values that compare and hash.

    Raises:
        InvalidInputError: A role, name or address is none.
    """
    return tuple(each if isinstance(each, Hop) else _hop(each) for each in path)


def _hop(message: executor_pb2.PeerAddress) -> Hop:
    if len(message.address) > ADDRESS_MAX_CHARS:
        raise InvalidInputError(
            f"the address of {message.name[:80]!r} has more than {ADDRESS_MAX_CHARS} characters",
            reason="LIMIT_EXCEEDED",
        )
    return Hop(parse_role(message.role or Role.EXECUTOR.value), check_name(message.name), message.address)


def check_path(path: Sequence[Hop], this: str, limit: int = PATH_MAX) -> None:
    """Lets pass what can be a way from here.

    Args:
        path: The nodes that are left, in order.
        this: This node, `role/name`.
        limit: How many they may be.

    Raises:
        InvalidInputError: The path is empty or too long, comes back to a node, or leads through one that cannot relay.
    """
    if not path:
        raise InvalidInputError("a tunnel's first message must name the nodes that are left to pass")
    if len(path) > limit:
        raise InvalidInputError(
            f"a tunnel passes at most {limit} more nodes, not {len(path)}; take a shorter way",
            reason="LIMIT_EXCEEDED",
        )
    seen = {this}
    for hop in path:
        if hop.title in seen:
            raise InvalidInputError(
                f"the path of a tunnel comes back to {hop.title}; take a way without a loop", metadata={"hop": hop.name}
            )
        seen.add(hop.title)
    for hop in path[:-1]:
        if hop.role is not Role.EXECUTOR:
            raise InvalidInputError(
                f"{hop.title} cannot relay, only executors do; take another way", metadata={"hop": hop.name}
            )


async def open_relay(channel: grpc.aio.Channel, first: Hop, rest: Sequence[Hop]) -> CallEnd:
    """A tunnel over the relay `first`, connected.

    Args:
        channel: The connection to `first`.
        first: The relay.
        rest: The nodes after it, in order; the last one is the far end.

    Raises:
        MeshError: What a relay refused it with, or which one did not answer; `metadata["hop"]` names it.
    """
    call = keep_status(executor_pb2_grpc.ExecutorServiceStub(channel).Relay())
    end = CallEnd(call, first.name, first.address)
    await end.start([hop.message() for hop in rest], CONNECT_PER_HOP_S * (len(rest) + 1))
    return end


class Entrance:
    """The way into tunnels to one far peer; made in the event loop's thread, open until `close`.

    Args:
        peer: The far peer, for messages.
        open_far: Opens a tunnel; called once per connection that comes in.
        on_failure: Told of every tunnel that failed.
    """

    def __init__(
        self,
        peer: str,
        open_far: Callable[[], Awaitable[CallEnd]],
        on_failure: Callable[[str, MeshError], None] | None = None,
    ) -> None:
        self._peer = peer
        self._open_far = open_far
        self._on_failure = on_failure
        self._listening, self.target = _listen()
        self._carried: set[asyncio.Task[None]] = set()
        self.failure: MeshError | None = None
        """Why the last tunnel could not be opened or ended; None where it is well."""
        self._resting: asyncio.TimerHandle | None = None
        self._watch()

    def explained(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What a call through the tunnel failed with, with the tunnel's reason where that is why."""
        told = dict(error.trailing_metadata() or ())
        if self.failure is None or error.code() is not grpc.StatusCode.UNAVAILABLE or STATUS_DETAILS_KEY in told:
            return error
        code, message, trailer = to_trailer(self.failure)
        return grpc.aio.AioRpcError(code, error.initial_metadata(), grpc.aio.Metadata(trailer), message)

    async def close(self) -> None:
        """Closes the way in and ends its tunnels."""
        if self._listening.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
        if self._resting is not None:
            self._resting.cancel()
        tasks = list(self._carried)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    def _watch(self) -> None:
        # Not `sock_accept`: where that is cancelled as a connection comes in, the connection is nobody's any more.
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # out of descriptors, for instance
            loop.remove_reader(self._listening.fileno())
            self._resting = loop.call_later(ACCEPT_PAUSE_S, self._watch)
            return
        if not _is_own(sock) or len(self._carried) >= CONNECTIONS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        task = asyncio.create_task(self._carry(SocketEnd(sock, "the local end")), name=f"a tunnel to {self._peer}")
        self._carried.add(task)
        task.add_done_callback(self._carried.discard)
        task.add_done_callback(lambda _: sock.close())  # one that is cancelled before it began closes nothing itself

    async def _carry(self, near: SocketEnd) -> None:
        try:
            far = await self._open_far()
            self.failure = None
            await join(near, far, Meter())
        except Exception as error:
            self.failure = as_mesh_error(error) or InternalError(f"the tunnel to {self._peer} failed: {error!r}")
            if self._on_failure is not None:
                self._on_failure(self._peer, self.failure)
        finally:
            near.abort()


def _listen() -> tuple[socket.socket, str]:
    """A listener for this process, and the target for gRPC that connects to it."""
    if sys.platform == "linux":
        # A name without a file: nothing to clean up, and the kernel tells which process connects.
        name = f"orbitmesh-tunnel-{secrets.token_hex(16)}"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(f"\0{name}")
        target = f"unix-abstract:{name}"
    else:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{listening.getsockname()[1]}"
    listening.setblocking(False)
    listening.listen(CONNECTIONS_MAX)
    return listening, target


def _is_own(sock: socket.socket) -> bool:
    """Whether it is this process that connected, where the system tells.

    Where it does not, a stranger on this machine could open a tunnel, but has no identity to show at its far end.
    """
    if sys.platform != "linux":
        return True
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(pid == os.getpid())


class Explained(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Gives control calls through a tunnel the tunnel's reason when they fail with it."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Makes the call."""
        call = await continuation(client_call_details, request)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise self._entrance.explained(error) from None
        return call


class ExplainedStream:
    """A session's stream through a tunnel; a read that fails says the tunnel's reason."""

    def __init__(self, call: Any, entrance: Entrance) -> None:
        self._call = call
        self._entrance = entrance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def read(self) -> Any:
        """The next message."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._entrance.explained(error) from None
