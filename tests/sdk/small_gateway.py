"""A small real gateway: grpc.aio over mTLS with identities of its own, answering what each test tells it
to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from orbitmesh.errors import DOMAIN, REASONS
from orbitmesh.trust import Identity
from orbitmesh.v1 import (
    aggregator_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    slices_pb2_grpc,
    wire_pb2,
)

Behaviour = Callable[[gateway_pb2.GenerateRequest, Any], AsyncIterator[gateway_pb2.GenerateResponse]]


@dataclass(frozen=True)
class Identities:
    """Identities of one mesh."""

    gateway: Identity
    """Of the gateway."""
    client: Path
    """The directory of the user's."""


@dataclass
class SmallGateway(gateway_pb2_grpc.GatewayServiceServicer, scheduler_pb2_grpc.SchedulerServiceServicer):
    """Counts from 0 for as many tokens as it is asked for; behaves otherwise where a test says how."""

    address: str = ""
    """host:port."""
    behaviour: Behaviour | None = None
    """What to do instead of counting."""
    delay_s: float = 0.0
    """How long to wait before GetStatus is answered."""
    requests: list[gateway_pb2.GenerateRequest] = field(default_factory=list)
    """What was asked."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a generation was left before its end."""

    async def Generate(self, request: gateway_pb2.GenerateRequest, context: Any) -> Any:  # noqa: N802
        """Streams tokens."""
        self.requests.append(request)
        ended = False
        try:
            async for response in (self.behaviour or count)(request, context):
                yield response
            ended = True
        finally:
            # Cancelled while a token is written, it hears of that by being closed, not as CancelledError.
            if not ended:
                self.cancelled.set()

    async def GetStatus(self, request: Any, context: Any) -> gateway_pb2.GetStatusResponse:  # noqa: N802
        """Says that it is there."""
        await asyncio.sleep(self.delay_s)
        return gateway_pb2.GetStatusResponse(name="gateway", version="0.1.0", address=self.address, scheduler_up=True)

    async def ListNodes(self, request: Any, context: Any) -> scheduler_pb2.ListNodesResponse:  # noqa: N802
        """One node."""
        measures = scheduler_pb2.HeartbeatRequest(kind="satellite", cores=2, memory_free_bytes=1 << 30)
        node = scheduler_pb2.Node(name="sat-1", state=scheduler_pb2.NODE_STATE_UP, measures=measures)
        return scheduler_pb2.ListNodesResponse(nodes=[node])


async def count(request: gateway_pb2.GenerateRequest, context: Any) -> AsyncIterator[gateway_pb2.GenerateResponse]:
    """Token n is n; the end tells fixed figures."""
    yield started()
    for number in range(request.max_new_tokens):
        yield token(number)
    finished = gateway_pb2.GenerationFinished(
        reason=wire_pb2.FINISH_REASON_LENGTH,
        new_tokens=request.max_new_tokens,
        tokens_per_second=12.5,
        first_token_s=0.25,
        total_s=1.5,
        raw_bytes=1000,
        wire_bytes=800,
    )
    yield gateway_pb2.GenerateResponse(finished=finished)


def started() -> gateway_pb2.GenerateResponse:
    """The first event."""
    return gateway_pb2.GenerateResponse(
        started=gateway_pb2.GenerationStarted(trace_id="ab" * 16, generation=7, prompt_tokens=3)
    )


def token(number: int) -> gateway_pb2.GenerateResponse:
    """A token event."""
    return gateway_pb2.GenerateResponse(
        token=gateway_pb2.GeneratedToken(id=number, position=3 + number, text=f" {number}")
    )


async def refuse(context: Any, reason: str, message: str, **metadata: str) -> None:
    """Ends a call as the mesh's services do: with an `ErrorInfo` of our domain."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    code = REASONS[reason].code
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


async def serve(
    gateway: SmallGateway,
    identity: Identity,
    aggregator: aggregator_pb2_grpc.AggregatorServiceServicer | None = None,
    slices: slices_pb2_grpc.SlicesServiceServicer | None = None,
) -> grpc.aio.Server:
    """Starts the gateway with TLS that asks for a certificate, and notes its address; on the one it had, where it had
    one. Where an aggregator or slices are given, it answers these services too."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if aggregator is not None:
        add_aggregator: Any = aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server
        add_aggregator(aggregator, server)
    if slices is not None:
        add_slices: Any = slices_pb2_grpc.add_SlicesServiceServicer_to_server
        add_slices(slices, server)
    add_gateway: Any = gateway_pb2_grpc.add_GatewayServiceServicer_to_server
    add_scheduler: Any = scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server
    add_gateway(gateway, server)
    add_scheduler(gateway, server)
    credentials = grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port(gateway.address or "127.0.0.1:0", credentials)
    gateway.address = f"127.0.0.1:{port}"
    await server.start()
    return server
