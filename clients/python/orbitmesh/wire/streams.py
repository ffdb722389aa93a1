"""Sessions over gRPC: the bidirectional RPCs `Exchange` and `Transfer`, both ends.

Messages pass as bytes, without the generated classes: `frames` writes and reads the same bytes. A peer that
uses the generated stubs understands them and is understood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from orbitmesh.errors import DOMAIN, REASONS, AuthError, MeshError, TransportError
from orbitmesh.limits import SESSION_CREDIT_BYTES, SESSION_IDLE_S
from orbitmesh.rpc import STATUS_DETAILS_KEY, map_rpc_error
from orbitmesh.trust import Identity, IdentitySource
from orbitmesh.wire.acceptor import SessionAcceptor as _Acceptor
from orbitmesh.wire.dialler import GIVE_UP_AFTER_S, Dialler
from orbitmesh.wire.egress import Egress, EgressTowards
from orbitmesh.wire.liveness import SILENCE_S
from orbitmesh.wire.records import CutError
from orbitmesh.wire.session import Session

EXCHANGE = "/orbitmesh.v1.ExecutorService/Exchange"
"""The sessions between executors, and from the gateway to them."""

TRANSFER = "/orbitmesh.v1.PackService/Transfer"
"""The sessions to the gateway."""

StreamCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


def open_exchange(channel: grpc.aio.Channel, method: str = EXCHANGE) -> Callable[[], StreamCall]:
    """What `dial` starts connections with: calls of `method` that carry messages as bytes."""
    multicallable = channel.stream_stream(method, request_serializer=None, response_deserializer=None)
    return lambda: multicallable()


async def dial(
    open_stream: Callable[[], StreamCall],
    identity: Identity | IdentitySource,
    *,
    receiver_role: str,
    receiver_name: str | None,
    reconnect: bool = True,
    give_up_after_s: float = GIVE_UP_AFTER_S,
    silence_s: float | None = None,
    window: int = SESSION_CREDIT_BYTES,
    egress: Egress | None = None,
) -> Session:
    """Opens a session; it may be used at once and takes itself up again after a cut.

    Args:
        open_stream: Starts the RPC, from `open_exchange`.
        identity: Who we are.
        receiver_role: The role that must answer.
        receiver_name: The name that must answer; any of the role where None.
        reconnect: Whether a cut session is taken up again.
        give_up_after_s: For how long without progress, until it fails with `NodeLostError`; where the other end fell
            silent, since it was heard last. Never before eight round trips.
        silence_s: After how long a silence, while the session is in use, its connection is given up and another one
            tried; never before four round trips. One second where None, or half of `give_up_after_s` where that is
            less.
        window: How many bytes may be under way, each way.
        egress: Gives frames their turn, where slices share the link.

    Raises:
        MeshError: The peer cannot be reached in time, is another than expected, or refuses.
    """
    return await Dialler(
        lambda: CallWire(open_stream()),
        identity,
        receiver_role=receiver_role,
        receiver_name=receiver_name,
        reconnect=reconnect,
        give_up_after_s=give_up_after_s,
        silence_s=silence_s,
        window=window,
        egress=egress,
    ).start()


class SessionAcceptor(_Acceptor):
    """Accepts sessions over gRPC; one per service.

    Args:
        identity: Who we are.
        on_session: Runs once per session; the session is closed when it returns.
        idle_s: For how long a cut session is kept.
        window: How many bytes of a session may be under way, each way.
        silence_s: After how long a silence, while a session is in use, its connection is given up.
        egress: Who gives frames their turn in a session with a peer, where slices share the way to it.
    """

    def __init__(
        self,
        identity: Identity | IdentitySource,
        on_session: Callable[[Session], Coroutine[Any, Any, None]],
        *,
        idle_s: float = SESSION_IDLE_S,
        window: int = SESSION_CREDIT_BYTES,
        silence_s: float = SILENCE_S,
        egress: EgressTowards | None = None,
    ) -> None:
        super().__init__(identity, on_session, idle_s=idle_s, window=window, silence_s=silence_s, egress=egress)

    async def handle(self, request_iterator: object, context: Context, *, caller_spiffe: str) -> None:
        """Answers one RPC of a method that is registered by `exchange_handler`.

        Args:
            request_iterator: Not used: messages are read from `context`.
            context: Of the RPC.
            caller_spiffe: Who called, as its TLS certificate proves.
        """
        try:
            await self.serve(ContextWire(context), caller_spiffe)
        except MeshError as error:
            await abort(context, error)


def exchange_handler(
    acceptor: SessionAcceptor, caller: Callable[[Context], str] | None = None
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """The handler of a session's RPC, for `grpc.aio.Server.add_registered_method_handlers`.

    Args:
        acceptor: Where its sessions go.
        caller: Who calls; by default whom the TLS certificate names.
    """
    who = caller or peer_spiffe

    async def behavior(request_iterator: AsyncIterator[bytes], context: Context) -> None:
        await acceptor.handle(request_iterator, context, caller_spiffe=who(context))

    return grpc.stream_stream_rpc_method_handler(behavior)


def add_exchange(server: grpc.aio.Server, acceptor: SessionAcceptor, method: str = EXCHANGE) -> None:
    """Registers the session's RPC. Call it after the generated `add_...Servicer_to_server`: the last one
    counts."""
    service, _, name = method.removeprefix("/").partition("/")
    handlers = {name: exchange_handler(acceptor)}
    server.add_registered_method_handlers(service, handlers)


def peer_spiffe(context: Context) -> str:
    """The SPIFFE name in the caller's TLS certificate.

    Raises:
        AuthError: The connection shows none.
    """
    names = context.auth_context().get("peer_spiffe_id", ())
    for name in names:
        return bytes(name).decode("utf-8", "replace")
    raise AuthError("the connection shows no certificate of the mesh; sessions need mTLS")


class CallWire:
    """A connection at the dialling end."""

    awaits_end = True

    def __init__(self, call: StreamCall) -> None:
        self._call = call

    async def read(self) -> bytes | None:
        """The next message."""
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            _raise_if_cancelled()
            raise CutError(TransportError("the call was given up")) from None
        except grpc.RpcError as error:
            raise CutError(map_rpc_error(error)) from None
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """Hands a message to the transport."""
        try:
            await self._call.write(message)
        except asyncio.CancelledError:
            _raise_if_cancelled()
            raise CutError(TransportError("the call was given up")) from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The call is over. `read` finds what it brought until then, and its status.
            await asyncio.get_running_loop().create_future()

    async def finish(self) -> None:
        """Half-closes the call."""
        await self._call.done_writing()


class ContextWire:
    """A connection at the accepting end."""

    awaits_end = False

    def __init__(self, context: Context) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        """The next message."""
        try:
            message = await self._context.read()
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise CutError(TransportError(f"the connection broke: {error}")) from None
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """Hands a message to the transport."""
        try:
            await self._context.write(message)
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise CutError(TransportError(f"the connection broke: {error}")) from None

    async def finish(self) -> None:
        """Nothing to do: the RPC ends when its handler returns."""


def _raise_if_cancelled() -> None:
    """Raises where it is this task that was cancelled, not the call that it waits for."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def abort(context: Context, error: MeshError) -> None:
    """Ends an RPC with a typed error."""
    code = REASONS[error.reason].code
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    status = status_pb2.Status(code=code.value[0], message=error.message, details=[detail])
    await context.abort(code, error.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))
