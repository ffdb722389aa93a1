"""The ends of a tunnel and the way between them: sockets, both sides of the RPC `Relay`, and the pump that joins two.

Every end is read and written with plain bytes; `b""` stands for the end of one direction, the other may go on. In the
RPC an empty message says it, both ways: a server cannot half-close a call, and cannot tell a client's half-close from
a call that broke. A pump holds one piece per direction and reads the next one only when the receiving end took it, so a
reader that stops also stops the sender, hop by hop: what is under way is bounded by the pieces, the windows of HTTP/2
(which gRPC sizes by what the hop carries in a round trip) and the kernel's buffers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio

from orbitmesh.errors import InvalidInputError, MeshError, TransportError
from orbitmesh.rpc import STATUS_WAIT_S, map_rpc_error
from orbitmesh.v1 import executor_pb2
from services.runtime.status import as_mesh_error

CHUNK_BYTES = 256 << 10
"""The most bytes in one message of a tunnel, and the most that a pump holds in each direction."""
IDLE_S = 90.0
"""How long a tunnel may carry nothing either way, in seconds: three times what gRPC takes to give up a silent
connection, which probes it all along."""
END_WAIT_S = 5.0
"""How long a tunnel whose two directions have ended waits for the far end to say so, in seconds."""

_RESET = struct.pack("ii", 1, 0)
_Broken = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)

RelayCall: TypeAlias = "grpc.aio.StreamStreamCall[executor_pb2.RelayRequest, executor_pb2.RelayResponse]"
Context: TypeAlias = "grpc.aio.ServicerContext[executor_pb2.RelayRequest, executor_pb2.RelayResponse]"


class End(Protocol):
    """One end of a tunnel."""

    async def read(self) -> bytes:
        """The next bytes, at most `CHUNK_BYTES`; `b""` where this direction has ended."""

    async def write(self, data: bytes) -> None:
        """Hands bytes on; returns when there is room for more."""

    async def finish(self) -> None:
        """Ends the direction that is written; the other one may go on."""

    async def close(self) -> None:
        """Both directions have ended in order: wait for the far end to know it."""

    def abort(self) -> None:
        """Ends both directions at once, so that the far end sees a reset. Idempotent; nothing after `close`."""


class SocketEnd:
    """A connected socket. It becomes this object's own.

    Args:
        sock: Non-blocking.
        peer: What is behind it, for messages.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self._peer = peer

    async def read(self) -> bytes:
        """The next bytes."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._sock, CHUNK_BYTES)
        except OSError as error:
            raise self._broken(error) from error

    async def write(self, data: bytes) -> None:
        """Waits until the kernel took all of it."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError as error:
            raise self._broken(error) from error

    async def finish(self) -> None:
        """Half-closes the connection."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._broken(error) from error

    async def close(self) -> None:
        """Lets the socket go."""
        self._sock.close()

    def abort(self) -> None:
        """Resets the connection, where its kind knows a reset."""
        if self._sock.fileno() < 0:
            return
        if self._sock.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()

    def _broken(self, error: OSError) -> TransportError:
        return TransportError(f"{self._peer} broke the connection ({error.strerror or error}); connect again")


class CallEnd:
    """The calling side of a `Relay`.

    Args:
        call: The RPC, kept from hiding its status by `keep_status`.
        name: Who answers it.
        address: Where.
    """

    def __init__(self, call: RelayCall, name: str, address: str) -> None:
        self._call = call
        self._name = name
        self._address = address
        self._far_ended = False

    async def start(self, path: list[executor_pb2.PeerAddress], wait_s: float) -> None:
        """Asks for the way and waits until the far end took the connection.

        Raises:
            MeshError: What a relay on the way refused it with, or that there was no answer within `wait_s` seconds.
        """
        try:
            async with asyncio.timeout(wait_s):
                await self._send(executor_pb2.RelayRequest(path=path))
                answer = await self._receive()
        except TimeoutError:
            self.abort()
            target = path[-1].name[:80]
            raise TransportError(
                f"the relay {self._name} gave no answer within {wait_s:g} s to the wish for a tunnel to {target!r}; "
                "check the links behind it",
                metadata={"hop": self._name},
            ) from None
        except BaseException:
            self.abort()
            raise
        if answer is None or not answer.connected or answer.data:
            self.abort()
            raise TransportError(
                f"the relay {self._name} did not say that the tunnel is connected; update it",
                metadata={"hop": self._name},
            )

    async def read(self) -> bytes:
        """The next bytes from the far end."""
        if self._far_ended:
            return b""
        answer = await self._receive()
        if answer is None:
            raise await self._status()
        self._far_ended = not answer.data
        return bytes(answer.data)

    async def write(self, data: bytes) -> None:
        """Waits until gRPC took it, which flow control decides."""
        await self._send(executor_pb2.RelayRequest(data=data))

    async def finish(self) -> None:
        """Says that this direction has ended."""
        await self._send(executor_pb2.RelayRequest())

    async def close(self) -> None:
        """Waits for the status, so that what is still under way is not cancelled."""
        try:
            async with asyncio.timeout(END_WAIT_S):
                await self._call.code()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cancels the call, which the far end sees at once."""
        self._call.cancel()

    async def _send(self, message: executor_pb2.RelayRequest) -> None:
        try:
            await self._call.write(message)
        except (*_Broken, asyncio.CancelledError):
            _raise_if_cancelled()
            raise await self._status() from None

    async def _receive(self) -> executor_pb2.RelayResponse | None:
        try:
            message: Any = await self._call.read()
        except (*_Broken, asyncio.CancelledError):
            _raise_if_cancelled()
            raise await self._status() from None
        return None if message is grpc.aio.EOF else message

    async def _status(self) -> MeshError:
        """Why the call is over; a relay's own reason where it gave one."""
        call: Any = self._call
        try:
            async with asyncio.timeout(STATUS_WAIT_S):
                code, details = await call.code(), await call.details()
                leading, trailing = await call.initial_metadata(), await call.trailing_metadata()
        except TimeoutError:
            return TransportError(f"the relay {self._name} broke the tunnel", metadata={"hop": self._name})
        if code is grpc.StatusCode.OK:
            return TransportError(f"the relay {self._name} ended the tunnel", metadata={"hop": self._name})
        failed = grpc.aio.AioRpcError(code, leading, trailing, details)
        error = map_rpc_error(failed, address=f"the relay {self._name} at {self._address}")
        error.metadata.setdefault("hop", self._name)
        return error


class ContextEnd:
    """The answering side of a `Relay`, after its first message.

    Args:
        context: Of the RPC.
        caller: Who called.
    """

    def __init__(self, context: Context, caller: str) -> None:
        self._context = context
        self._caller = caller
        self._caller_ended = False

    async def read(self) -> bytes:
        """The next bytes from the caller."""
        if self._caller_ended:
            return b""
        try:
            message: Any = await self._context.read()
        except _Broken as error:
            raise self._broken(str(error)) from None
        if message is grpc.aio.EOF:
            raise self._broken("it ended the call")  # which is also how a cancelled call looks at first
        if message.path:
            raise InvalidInputError("only a tunnel's first message carries its path; open another tunnel")
        if len(message.data) > CHUNK_BYTES:
            raise InvalidInputError(
                f"a message of a tunnel carries at most {CHUNK_BYTES} bytes, not {len(message.data)}; cut it",
                reason="LIMIT_EXCEEDED",
            )
        self._caller_ended = not message.data
        return bytes(message.data)

    async def write(self, data: bytes) -> None:
        """Waits until gRPC took it, which flow control decides."""
        await self._send(executor_pb2.RelayResponse(data=data))

    async def finish(self) -> None:
        """Says that this direction has ended."""
        await self._send(executor_pb2.RelayResponse())

    async def close(self) -> None:
        """Nothing to do: the RPC ends when its handler returns."""

    def abort(self) -> None:
        """Nothing to do: the RPC ends with what its handler raises."""

    async def connected(self) -> None:
        """Tells the caller that the far end took the connection."""
        await self._send(executor_pb2.RelayResponse(connected=True))

    async def _send(self, message: executor_pb2.RelayResponse) -> None:
        try:
            await self._context.write(message)
        except _Broken as error:
            raise self._broken(str(error)) from None

    def _broken(self, why: str) -> TransportError:
        return TransportError(f"{self._caller} broke the tunnel ({why})", metadata={"hop": self._caller})


@dataclass(eq=False)
class Meter:
    """What one tunnel carries, and the wish that it ends."""

    sent_bytes: int = 0
    """Bytes carried from the side that opened the tunnel."""
    received_bytes: int = 0
    """Bytes carried back to it."""
    moved_s: float = field(default_factory=time.monotonic)
    """When bytes were last carried, either way, monotonic, in seconds."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to end the tunnel."""
    stop_reason: MeshError | None = None
    """What both ends are told then."""

    def end(self, reason: MeshError) -> None:
        """Ends the tunnel."""
        self.stop_reason = reason
        self.stop.set()


async def join(opener: End, far: End, meter: Meter, *, idle_s: float = IDLE_S) -> None:
    """Carries bytes between two ends until both directions have ended.

    Args:
        opener: The side that opened the tunnel.
        far: The other side.
        meter: Counts the bytes.
        idle_s: How long nothing may be carried, in seconds.

    Raises:
        MeshError: One end broke, nothing was carried for too long, or `meter.end` was called; both ends are aborted.
    """
    try:
        async with asyncio.TaskGroup() as group:
            there = group.create_task(_pump(opener, far, meter, there=True))
            back = group.create_task(_pump(far, opener, meter, there=False))
            watch = group.create_task(_watch(meter, idle_s))
            await asyncio.wait((there, back))
            watch.cancel()
        await far.close()
        await opener.close()
    except BaseExceptionGroup as group_error:
        meant = as_mesh_error(group_error)
        if meant is None:
            raise
        raise meant from group_error
    finally:
        far.abort()
        opener.abort()


async def _pump(source: End, sink: End, meter: Meter, *, there: bool) -> None:
    while data := await source.read():
        await sink.write(data)
        meter.moved_s = time.monotonic()
        if there:
            meter.sent_bytes += len(data)
        else:
            meter.received_bytes += len(data)
    await sink.finish()


async def _watch(meter: Meter, idle_s: float) -> None:
    while (left_s := meter.moved_s + idle_s - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left_s):
                await meter.stop.wait()
        except TimeoutError:
            continue
        raise meter.stop_reason or TransportError("the tunnel was ended; open it again")
    raise TransportError(f"the tunnel carried nothing for {idle_s:g} s and was ended; open it again when it is needed")


def _raise_if_cancelled() -> None:
    """Raises where it is this task that was cancelled, not the call that it waits for."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
