"""Health in plain text, for a kubelet: its gRPC probe speaks no TLS and shows no certificate.

A second port, off unless an address is given, that answers `grpc.health.v1.Health/Check` and nothing else: no service
of ours, no reflection, no `Watch`. What can be learned from it is whether a service serves, by its name; so it is for
the network of the machine that asks, and everything about it is bounded.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2

from orbitmesh.errors import TransportError
from orbitmesh.rpc import ChannelOption
from services.runtime.authz import HEALTH
from services.runtime.metrics import host_and_port

LIVENESS = "liveness"
"""Asked by this name, a process says SERVING for as long as its event loop answers, also while it drains: one that
drains is not ready, and killing it for that would end what it drains for."""
CALLS = 16
"""The most questions at a time."""
CONNECTIONS = 64
"""The most connections at a time."""
CONNECTION_AGE_MS = 30_000
"""How long one connection may last, in milliseconds: a kubelet opens a new one for every question."""
QUESTION_BYTES = 1024
"""The longest question, in bytes: it is the name of a service."""
METADATA_BYTES = 8192
"""The most metadata of one question, in bytes."""

_OPTIONS: tuple[ChannelOption, ...] = (
    ("grpc.max_receive_message_length", QUESTION_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.max_concurrent_streams", CALLS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_MS),
    ("grpc.max_connection_idle_ms", CONNECTION_AGE_MS),
    ("grpc.server_handshake_timeout_ms", CONNECTION_AGE_MS),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 0),
)


class ProbePort:
    """The plain-text port of one process.

    Args:
        listen: `host:port`; port 0 takes a free one.
        states: What the process says of its services.

    Raises:
        InvalidInputError: `listen` is no address.
    """

    def __init__(self, listen: str, states: health.aio.HealthServicer) -> None:
        host_and_port(listen, "--probe")
        self._listen = listen
        self._states = states
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=CALLS)
        handler = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH, {"Check": handler}),))

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            TransportError: The address cannot be listened on.
        """
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise TransportError(
                f"cannot answer probes on {self._listen} ({error}); choose another address or end what holds it",
                metadata={"listen": self._listen},
            ) from error
        await self._server.start()
        return int(port)

    async def close(self) -> None:
        """Stop at once."""
        await self._server.stop(0)

    async def _check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if request.service == LIVENESS:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        answer: health_pb2.HealthCheckResponse = await self._states.Check(request, context)
        return answer
