"""Calls that outlive their connection: what may be sent twice is asked again while the way to the gateway fails, and
a `Generate` that was cut is taken up where it was, by the name that it gave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from orbitmesh.errors import MeshError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc

RESUME_S = 30.0
"""How long a cut stream is asked for again before its loss is an error; the gateway keeps the generation as long."""
PAUSE_MIN_S = 0.05
"""The first pause before a cut stream is asked for again."""
PAUSE_MAX_S = 1.0
"""The longest."""
FAREWELL_S = 5.0
"""How long the gateway may take to end a generation that was cancelled."""
LOST = frozenset({"TRANSPORT", "DRAINING", "NOT_LEADER"})
"""Reasons that speak of the way to the gateway, not of the generation."""
ENDED = LOST | {"CANCELLED"}
"""The same of a call that is not cancelled from here: a gateway that ends cancels what it has under way."""
WAITING = "the gateway cannot be reached; it is asked again"
"""What is said while a cut stream is taken up again."""


T = TypeVar("T")


async def asked_again(
    take: Callable[[], Awaitable[T]], patience_s: float, reasons: frozenset[str] = LOST
) -> T:
    """What `take` gives, tried anew while the way to it is what fails.

    Args:
        take: Asks once; what it asks may be asked twice.
        patience_s: How long it may fail before that is an error, in seconds.
        reasons: What speaks of the way.

    Raises:
        MeshError: Whatever it failed with last.
    """
    loop = asyncio.get_running_loop()
    until_s, pause_s = loop.time() + patience_s, PAUSE_MIN_S
    while True:
        began_s = loop.time()
        try:
            return await take()
        except MeshError as error:
            if error.reason not in reasons:
                raise
            if loop.time() - began_s > RESUME_S:
                # It got somewhere: a new cut has its own patience.
                until_s, pause_s = loop.time() + patience_s, PAUSE_MIN_S
            if loop.time() + pause_s >= until_s:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_MAX_S, 2 * pause_s)


class ResumingCall:
    """Reads the answers to one request over as many streams as it takes.

    Args:
        stub: The gateway.
        request: What is asked; its `request_id` names the generation.
        timeout_s: How long all of it may take.
        farewells: Collects the tasks that tell the gateway of a cancellation; the connection must outlive them.
    """

    def __init__(
        self,
        stub: gateway_pb2_grpc.GatewayServiceStub,
        request: gateway_pb2.GenerateRequest,
        timeout_s: float,
        farewells: set[asyncio.Task[None]],
    ) -> None:
        self._stub = stub
        self._request = request
        self._deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._received: list[int] = []
        self._started = False
        self._cancelled = False
        self._finished = False
        self._cut: grpc.RpcError | None = None
        self._farewells = farewells
        self._call = self._open()

    def cancel(self) -> bool:
        """Stops it, also where the gateway would otherwise wait for us to come back."""
        if not self._cancelled:
            self._cancelled = True
            self._call.cancel()
            if not self._finished:
                telling = asyncio.get_running_loop().create_task(self._tell())
                self._farewells.add(telling)
                telling.add_done_callback(self._farewells.discard)
        return True

    async def read(self) -> Any:
        """The next answer, or `grpc.aio.EOF`; the beginning of a stream that was taken up again is left out, and that
        it was cut is told as a `waiting` of our own.

        Raises:
            grpc.RpcError: It failed, or could not be taken up again in time.
        """
        while True:
            if self._cut is not None:
                await self._come_back(self._cut)
                self._cut = None
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                if not self._can_come_back(error):
                    raise
                self._cut = error
                if not self._started:
                    continue
                return gateway_pb2.GenerateResponse(waiting=gateway_pb2.GenerationWaiting(reason=WAITING))
            if not isinstance(message, gateway_pb2.GenerateResponse):
                return message
            if message.HasField("started") and self._started:
                continue
            self._started = True
            if message.HasField("token"):
                self._received.append(message.token.id)
            self._finished = self._finished or message.HasField("finished")
            return message

    def _open(self) -> Any:
        left_s = max(self._deadline_s - asyncio.get_running_loop().time(), 0.001)
        return self._stub.Generate(self._request, timeout=left_s)

    def _can_come_back(self, error: grpc.RpcError) -> bool:
        return not self._cancelled and map_rpc_error(error).reason in ENDED

    async def _come_back(self, error: grpc.RpcError) -> None:
        """Opens the stream anew, again and again, or raises what it was cut by."""
        loop = asyncio.get_running_loop()
        until_s = min(loop.time() + RESUME_S, self._deadline_s)
        pause_s = PAUSE_MIN_S
        while True:
            if not self._can_come_back(error):
                raise error
            if loop.time() + pause_s >= until_s:
                raise error
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            self._request.received.CopyFrom(gateway_pb2.TokenIds(ids=self._received))
            self._call = self._open()
            try:
                await self._call.initial_metadata()
                return
            except grpc.RpcError as again:
                error = again

    async def _tell(self) -> None:
        request = gateway_pb2.CancelGenerationRequest(request_id=self._request.request_id)
        # Where it cannot be told, it ends by itself when nobody comes back for it.
        with contextlib.suppress(grpc.RpcError, MeshError):
            await self._stub.CancelGeneration(request, timeout=FAREWELL_S)
