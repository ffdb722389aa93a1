"""The gate that every call goes through: who calls, may it, has it a deadline, is there room; and errors on
the way out.

One interceptor does it all, so that a call is wrapped once. It works for the four kinds of RPC and for
handlers that are coroutines or asynchronous generators.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.trust.certificates import Peer
from orbitmesh.trust.names import Role
from services.runtime.authz import ADMIN_SERVICES, ALLOWED, Table, authorize
from services.runtime.caller import Call, enter_call
from services.runtime.drain import InFlight
from services.runtime.logs import EventLog, Level
from services.runtime.metrics import Metrics
from services.runtime.peers import PeerReader
from services.runtime.status import as_mesh_error, defect, to_trailer

Context = Any  # grpc.aio.ServicerContext: gRPC ships no types
Body = Callable[[Any, Context], Awaitable[Any]]
_USERS = (Role.CLIENT, Role.OPERATOR)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call in or refuses it, and turns what its handler raises into a status with details.

    Args:
        ca_pem: Gives this mesh's CA certificate of the moment.
        in_flight: Counts the calls.
        log: Where refusals and defects are told.
        allowed: Which roles may call which methods.
        metrics: Where calls are counted.
        closed: Says why no call but those of operators is answered; None where they are.
        meet: What every call but those of operators meets first: faults that were put in on purpose.
    """

    def __init__(
        self,
        ca_pem: Callable[[], bytes],
        in_flight: InFlight,
        log: EventLog,
        *,
        allowed: Table = ALLOWED,
        metrics: Metrics | None = None,
        closed: Callable[[], MeshError | None] = lambda: None,
        meet: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._closed = closed
        self._meet = meet
        self._ca_pem = ca_pem
        self._in_flight = in_flight
        # Answered while the service drains too, and bounded all the same.
        self._admin = InFlight()
        self._log = log
        self._allowed = allowed
        self._peers = PeerReader()
        counted = metrics or Metrics("")
        self._counted = counted.enabled
        self._calls = counted.counter("calls", "{call}", "Calls answered, by method and outcome: ok, or the reason.")
        self._took = counted.times("call.duration", "How long calls with one answer took, by method.")

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        admin = method.removeprefix("/").partition("/")[0] in ADMIN_SERVICES
        needs_deadline = not (admin or handler.request_streaming or handler.response_streaming)
        run = _runner(handler)

        async def guarded(request: Any, context: Context) -> Any:
            caller: Peer | None = None
            outcome, began_s = "cancelled", time.monotonic()
            try:
                caller = self._admit(method, context, needs_deadline)
                if isinstance(request, _Unreadable):
                    raise request.error
                if not admin and (closed := self._closed()) is not None:
                    raise closed
                with _counted(self._admin if admin else self._in_flight, method, caller):
                    if not admin and self._meet is not None:
                        await self._meet()
                    answer = await run(request, context)
                outcome = "ok"
                return answer
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except grpc.aio.InternalError as error:
                # gRPC could not write: whoever called is gone, and nobody is left to be told anything.
                raise asyncio.CancelledError from error
            except NotImplementedError as error:
                # What generated code raises for a method that this process leaves to others, with its code set.
                here = context.code() is grpc.StatusCode.UNIMPLEMENTED
                refusal = _not_here(method) if here else error
                outcome = refusal.reason if isinstance(refusal, MeshError) else "INTERNAL"
                await self._refuse(method, caller, context, refusal)
            # A group of an asyncio.TaskGroup is an Exception where all in it are.
            except Exception as error:
                meant = as_mesh_error(error)
                outcome = meant.reason if meant is not None else "INTERNAL"
                await self._refuse(method, caller, context, error)
            finally:
                if self._counted and not admin:
                    self._calls.add(1, {"method": method, "outcome": outcome})
                    if not handler.response_streaming:
                        self._took.record(time.monotonic() - began_s, {"method": method})

        return _with_body(handler, guarded, _reader(handler, method))

    def _admit(self, method: str, context: Context, needs_deadline: bool) -> Peer:
        caller = self._peers.read(context.auth_context(), self._ca_pem())
        authorize(caller, method, self._allowed)
        left_s = context.time_remaining()
        if left_s is None and needs_deadline:
            raise InvalidInputError(
                f"{method} was called without a deadline; set one (a timeout) on every control call",
                reason="DEADLINE_REQUIRED",
                metadata={"method": method},
            )
        enter_call(Call(caller, method, None if left_s is None else time.monotonic() + left_s))
        return caller

    async def _refuse(self, method: str, caller: Peer | None, context: Context, error: Exception) -> NoReturn:
        meant = as_mesh_error(error)
        who = caller.spiffe if caller else "unknown"
        if meant is None:
            reference = secrets.token_hex(8)
            self._log.error("call_defect", error=error, method=method, caller=who, reference=reference)
            meant = defect(reference, method)
        else:
            self._tell(method, who, meant)
        code, message, trailer = to_trailer(meant)
        # What the handler wanted to send home, timings for instance, goes along.
        trailers = (*(context.trailing_metadata() or ()), trailer)
        try:
            await context.abort(code, message, trailers)
        except grpc.aio.InternalError as gone:
            raise asyncio.CancelledError from gone
        raise AssertionError("abort returned")

    def _tell(self, method: str, who: str, error: MeshError) -> None:
        level = Level.WARNING if error.default_reason != "INTERNAL" else Level.ERROR
        trace = {"trace_id": error.trace_id} if error.trace_id else {}
        told = {"method": method, "caller": who, "reason": error.reason, "message": error.message, **trace}
        self._log.write(level, "call_failed", told)


@contextmanager
def _counted(in_flight: InFlight, method: str, caller: Peer) -> Iterator[None]:
    user = caller.spiffe if caller.role in _USERS else ""
    in_flight.enter(method, user)
    try:
        yield
    finally:
        in_flight.leave(user)


def _runner(handler: Any) -> Body:
    """The handler's own function as a coroutine function, whatever its kind and shape."""
    if handler.request_streaming:
        inner = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        inner = handler.unary_stream if handler.response_streaming else handler.unary_unary

    async def run(request: Any, context: Context) -> Any:
        result = inner(request, context)
        if inspect.isasyncgen(result):
            return await _write_all(result, context)
        return await result if inspect.isawaitable(result) else result

    return run


async def _write_all(messages: AsyncIterator[Any], context: Context) -> None:
    async with aclosing(messages) as source:  # type: ignore[type-var]
        async for message in source:
            await context.write(message)


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a request that is no message of its type, until the call is refused for it."""

    error: InvalidInputError


def _reader(handler: Any, method: str) -> Callable[[bytes], Any] | None:
    """The handler's own reading of messages, whose failures are the caller's and not a defect."""
    read = handler.request_deserializer
    if read is None:
        return None

    def reader(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            refusal = InvalidInputError(
                f"a message to {method} cannot be read ({error}); send one of the type that reflection names",
                metadata={"method": method},
            )
        # Of a stream it is the handler that reads; a single request is read before there is anybody to refuse it.
        if handler.request_streaming:
            raise refusal
        return _Unreadable(refusal)

    return reader


def _not_here(method: str) -> InvalidInputError:
    return InvalidInputError(
        f"this process does not answer {method}; ask the service whose it is",
        reason="FAILED_PRECONDITION",
        metadata={"method": method},
    )


def _with_body(handler: Any, body: Body, read: Callable[[bytes], Any] | None) -> Any:
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
    return make(body, read, handler.response_serializer)
