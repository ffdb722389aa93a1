"""What every process answers to operators: health, reflection, channelz, OpsService; on its port and, where one is
named, on a port of its own, which a firewall can leave to operators and which users cannot fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from orbitmesh.errors import TransportError
from orbitmesh.trust.identity import Identity, IdentitySource
from orbitmesh.v1 import ops_pb2_grpc
from services.runtime.authz import CHANNELZ, HEALTH, OPS, REFLECTION

CLOSE_GRACE_S = 0.2
"""How long the last replies may take to leave, in seconds."""


class _Settings(Protocol):
    @property
    def probe(self) -> str: ...

    @property
    def ops(self) -> str: ...


@dataclass(frozen=True)
class SidePorts:
    """Where a process listens besides the port of its service; nowhere where empty."""

    probe: str = ""
    """host:port where health is answered in plain text, for a kubelet."""
    ops: str = ""
    """host:port where operators are answered apart from users, under mutual TLS as everywhere."""

    @classmethod
    def of(cls, settings: _Settings) -> SidePorts:
        """Those that the settings of a service name."""
        return cls(settings.probe, settings.ops)


NO_SIDE_PORTS = SidePorts()


def add_admin(
    server: grpc.aio.Server, states: health.aio.HealthServicer, ops: object, services: Sequence[str]
) -> None:
    """Has a server answer operators.

    Args:
        server: One that was not started yet.
        states: What the process says of its services.
        ops: What answers `OpsService`.
        services: Full names of the services that reflection tells of.
    """
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    channelz.add_channelz_servicer(server)
    ops_pb2_grpc.add_OpsServiceServicer_to_server(ops, server)
    names = (*services, HEALTH, CHANNELZ, OPS, *REFLECTION)
    reflection.enable_server_reflection(names, server)
    # The package offers v1alpha only; v1 has the same messages, and newer tools ask for it first.
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(REFLECTION[0], {"ServerReflectionInfo": handler}),)
    )


def listen_on(
    server: grpc.aio.Server,
    listen: str,
    identities: IdentitySource,
    renewed: Callable[[Identity], None] = lambda identity: None,
) -> int:
    """Has a server listen under mutual TLS, with the newest certificate at each handshake.

    Args:
        server: One that was not started yet.
        listen: `host:port`; port 0 takes a free one.
        identities: Who we are.
        renewed: Called with each new identity when it is first shown.

    Returns:
        The port.

    Raises:
        TransportError: The address cannot be listened on.
    """
    served = identities.current()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        # What gRPC asks before each handshake: None where it is still the same.
        nonlocal served
        found = identities.current()
        if found is served:
            return None
        served = found
        renewed(found)
        return _configuration(found)

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(served), newest, require_client_authentication=True
    )
    try:
        return int(server.add_secure_port(listen, credentials))
    except RuntimeError as error:
        raise TransportError(
            f"cannot listen on {listen} ({error}); choose another address or end what holds it",
            metadata={"listen": listen},
        ) from error


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.tls_key_pem, identity.tls_cert_pem)], root_certificates=identity.ca_pem
    )
