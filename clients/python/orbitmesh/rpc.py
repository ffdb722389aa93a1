"""The client side of every gRPC connection of a mesh: channels that prove both ends, and errors in our own
tree."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc._cython import cygrpc

from orbitmesh.errors import (
    DOMAIN,
    AuthError,
    CancelledError_,
    CapacityError,
    DeadlineError,
    IdentityError,
    IntegrityError,
    InternalError,
    InvalidInputError,
    MeshError,
    PermissionError_,
    TransportError,
    error_for,
)
from orbitmesh.limits import MESSAGE_BYTES
from orbitmesh.trust.identity import Identity
from orbitmesh.trust.names import Role, dns_name, role_dns_name

KEEPALIVE_INTERVAL_MS = 20_000
"""How often an idle connection is probed, in milliseconds."""
KEEPALIVE_TIMEOUT_MS = 10_000
"""How long a probe may stay unanswered before the connection counts as lost, in milliseconds."""
SEVERAL_INTERVAL_MS = 4_000
"""How often a connection is probed where another process could be called instead, in milliseconds: one that was
stopped, or whose machine is gone, ends no connection."""
SEVERAL_TIMEOUT_MS = 3_000
"""How long such a probe may stay unanswered, in milliseconds."""
METADATA_BYTES = 64 * 1024
"""The most metadata one call may carry each way, in bytes: trailers bring timings home."""
RECONNECT_MIN_MS = 100
"""The shortest pause before a lost connection is dialled again, in milliseconds."""
CONNECT_ATTEMPT_MS = 10_000
"""How long one attempt to connect may last, in milliseconds."""
RECONNECT_MAX_MS = 200
"""The longest pause before a lost connection is dialled again, in milliseconds: so late may the opening of a window be
noticed."""
RESOLVE_MIN_MS = 2_000
"""The shortest time between two lookups of a name, in milliseconds."""
STATUS_WAIT_S = 2.0
"""How long a failed write waits for the status that explains it, in seconds."""
STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries a `google.rpc.Status`."""

_RETRY_POLICY: Mapping[str, object] = MappingProxyType(
    {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
)

ChannelOption = tuple[str, int | str]


ANSWERED_BY: Mapping[Role, str] = MappingProxyType(
    {
        Role.SCHEDULER: "orbitmesh.v1.SchedulerService",
        Role.GATEWAY: "orbitmesh.v1.GatewayService",
        Role.SLICES: "orbitmesh.v1.SlicesService",
        Role.AGGREGATOR: "orbitmesh.v1.AggregatorService",
    }
)
"""Of which service health is asked where several processes of a role may answer."""


def channel_options(
    idempotent_methods: Sequence[str] = (), health_of: str | None = None
) -> list[ChannelOption]:
    """The options of every channel; methods named `/package.Service/Method` are retried while UNAVAILABLE.

    With `health_of`, the channel connects to every address of its target, and calls go to those alone where health says
    SERVING of that service.
    """
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS if health_of is None else SEVERAL_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS if health_of is None else SEVERAL_TIMEOUT_MS),
        # Without it gRPC gives an unanswered probe a minute, whatever the keepalive's own timeout says.
        *(() if health_of is None else (("grpc.http2.ping_timeout_ms", SEVERAL_TIMEOUT_MS),)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
        # gRPC also takes this as the time that one attempt may last: a handshake over a late link is three round trips.
        ("grpc.min_reconnect_backoff_ms", CONNECT_ATTEMPT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        # A name's processes come and go: it is looked up again when one of them cannot be reached.
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MIN_MS),
        # Else a new channel would wait out the pauses, or share the silent connection, of the one that it replaces.
        ("grpc.use_local_subchannel_pool", 1),
        # A call above this size would silently not be retried; the default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", MESSAGE_BYTES),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _service_config(idempotent_methods, health_of)),
    ]


def _service_config(methods: Sequence[str], health_of: str | None) -> str:
    names = []
    for method in methods:
        service, slash, name = method.removeprefix("/").partition("/")
        if not slash or not service or not name:
            raise ValueError(f"{method!r} is no method; expected /package.Service/Method")
        names.append({"service": service, "method": name})
    config: dict[str, object] = {"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}}
    if health_of is not None:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": health_of}
    waits = {} if health_of is None else {"waitForReady": True}
    configs: list[dict[str, object]] = []
    if names:
        configs.append({"name": names, "retryPolicy": dict(_RETRY_POLICY), **waits})
    if waits:
        # Between two leaders a call waits for the next one, as long as its time allows, and then is sent once.
        configs.append({"name": [{}], **waits})
    if configs:
        config["methodConfig"] = configs
    return json.dumps(config)


def is_several(address: str) -> bool:
    """Whether an address names, or may name, several processes of one role: host:port,host:port, or dns:///NAME:PORT."""
    return "," in address or address.startswith(("dns:", "ipv4:", "ipv6:"))


def target_of(address: str) -> str:
    """What gRPC connects to: host:port as it is; several of them as the addresses that they stand for now.

    Raises:
        InvalidInputError: One of several is no host:port.
        TransportError: None of several has an address.
    """
    if "," not in address or address.startswith(("dns:", "ipv4:", "ipv6:")):
        return address
    found: dict[socket.AddressFamily, dict[str, None]] = {}
    unknown = []
    for each in filter(None, (part.strip() for part in address.split(","))):
        host, colon, port = each.rpartition(":")
        if not colon or not host or not port.isdecimal():
            raise InvalidInputError(f"{each[:80]!r} is no host:port; several are written host:port,host:port")
        try:
            known = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:
            unknown.append(each)
            continue
        for family, _, _, _, at in known:
            text = f"[{at[0]}]:{port}" if family == socket.AF_INET6 else f"{at[0]}:{port}"
            found.setdefault(family, {})[text] = None
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        if family in found:
            return f"{scheme}:{','.join(found[family])}"
    raise TransportError(f"no address is known of {', '.join(unknown)}: see to the names, or to the resolver")


def open_channel(
    address: str,
    identity: Identity,
    server_role: Role,
    server_name: str | None,
    *,
    idempotent_methods: Sequence[str] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[ChannelOption] = (),
) -> grpc.aio.Channel:
    """A channel on which both ends prove who they are. It connects at the first call.

    Args:
        address: `host:port`, or several of one role with commas between them, of which the one that leads is called;
            the certificate, not the address, says who answers.
        identity: Who we are.
        server_role: The role that must answer.
        server_name: The name that must answer; any of the role where None.
        idempotent_methods: Full names of unary methods that may be sent again while UNAVAILABLE.
        interceptors: gRPC client interceptors.
        options: Channel options on top of `channel_options`.

    Raises:
        IdentityError: Our own certificate is outside its time, so no server would let us in.
        TransportError: Several addresses are given, and none of their names is known.
    """
    identity.check_valid()
    expected = role_dns_name(server_role) if server_name is None else dns_name(server_role, server_name)
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.tls_key_pem, identity.tls_cert_pem)
    return grpc.aio.secure_channel(
        target_of(address),
        credentials,
        options=[
            *channel_options(idempotent_methods, ANSWERED_BY.get(server_role) if is_several(address) else None),
            ("grpc.ssl_target_name_override", expected),
            *options,
        ],
        interceptors=list(interceptors),
    )


CallT = TypeVar("CallT")


def keep_status(call: CallT) -> CallT:
    """Let a call that streams requests report the server's own status; use it on every such call as it is
    made.

    When a server ends a stream while the client is writing, grpc.aio replaces the status that came in by
    INTERNAL "Internal error from Core" (grpc/grpc#36066, open in grpcio 1.85): the reason for a refused frame
    would be lost. Where gRPC no longer has the attribute that this reaches for, the call is returned
    untouched.
    """
    inner = getattr(call, "_cython_call", None)
    if inner is not None and not isinstance(inner, _StatusKeeper):
        call._cython_call = _StatusKeeper(inner)  # type: ignore[attr-defined]
    return call


class _StatusKeeper:
    """Stands before gRPC's inner call and gives the server's status time to arrive when a write fails."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send_serialized_message(self, message: bytes) -> None:
        try:
            await self._inner.send_serialized_message(message)
        except cygrpc.InternalError:
            try:
                async with asyncio.timeout(STATUS_WAIT_S):
                    await self._inner.status()
            except TimeoutError:
                pass
            raise

    def set_internal_error(self, text: str) -> None:
        if not self._inner.done():
            self._inner.set_internal_error(text)


@contextmanager
def mapped_errors(*, address: str | None = None, server: str = "") -> Iterator[None]:
    """Within it, gRPC's errors leave as orbitmesh's; everything else passes untouched.

    Args:
        address: The server's address, for messages.
        server: What the server is, for messages where its address alone would tell nobody.

    Raises:
        MeshError: Whatever the call failed with.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise map_rpc_error(error, address=address, server=server) from error


def map_rpc_error(error: grpc.RpcError, *, address: str | None = None, server: str = "") -> MeshError:
    """The error of our tree that a failed call stands for.

    The server's `ErrorInfo` decides where it is of our domain; else the status code and, for failed
    handshakes, the text.
    """
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = (error.details() if hasattr(error, "details") else None) or "no details given"
    trailers = (error.trailing_metadata() if hasattr(error, "trailing_metadata") else None) or ()
    info = _error_info(trailers)
    if info is not None:
        reason, message, metadata = info
        trace_id = metadata.pop("trace_id", None)
        mapped = error_for(reason, message, metadata)
        mapped.trace_id = trace_id
        return mapped
    who = " at ".join(filter(None, (server, address)))
    where = f" by {who}" if who else ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(text, address, who or "the server")
    if code in _BROKEN_CODES and any(sign in text for sign in _BROKEN_STREAM):
        return TransportError(f"the connection{where} broke during the call ({text}); try again")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return InvalidInputError(
            f"a message is larger than {MESSAGE_BYTES} bytes ({text}); send less in one message",
            reason="LIMIT_EXCEEDED",
        )
    kind, reason_of_code, words = _BY_CODE.get(
        code, (InternalError, "INTERNAL", "failed without a known reason")
    )
    return kind(f"the call was answered{where} with {code.name}: {words} ({text})", reason=reason_of_code)


_BROKEN_STREAM = ("RST_STREAM", "Internal error from Core", "Stream removed")
# A connection that breaks under a call, for instance on a TLS record that was damaged, is UNKNOWN to gRPC at times.
_BROKEN_CODES = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})

_Code = grpc.StatusCode
_BY_CODE: Mapping[grpc.StatusCode, tuple[type[MeshError], str, str]] = MappingProxyType(
    {
        _Code.DEADLINE_EXCEEDED: (
            DeadlineError,
            "DEADLINE",
            "its time was spent; allow more or ask for less",
        ),
        _Code.CANCELLED: (CancelledError_, "CANCELLED", "it was given up"),
        _Code.UNAUTHENTICATED: (AuthError, "UNAUTHENTICATED", "the server does not know who we are"),
        _Code.PERMISSION_DENIED: (PermissionError_, "ROLE_NOT_ALLOWED", "our role may not call this"),
        _Code.NOT_FOUND: (InvalidInputError, "NOT_FOUND", "there is no such thing"),
        _Code.ALREADY_EXISTS: (InvalidInputError, "ALREADY_EXISTS", "it exists already"),
        _Code.INVALID_ARGUMENT: (InvalidInputError, "INVALID_INPUT", "the request is wrong"),
        _Code.OUT_OF_RANGE: (InvalidInputError, "INVALID_INPUT", "the request is out of range"),
        _Code.FAILED_PRECONDITION: (InvalidInputError, "FAILED_PRECONDITION", "its condition does not hold"),
        _Code.UNIMPLEMENTED: (
            InvalidInputError,
            "FAILED_PRECONDITION",
            "the server does not have this method; check the address and that both run one version",
        ),
        _Code.RESOURCE_EXHAUSTED: (
            CapacityError,
            "CAPACITY_EXHAUSTED",
            "the server is full; try again later",
        ),
        _Code.ABORTED: (TransportError, "TRANSPORT", "it was aborted; try again"),
        _Code.DATA_LOSS: (IntegrityError, "INTEGRITY", "bytes were damaged"),
    }
)


def _unavailable(text: str, address: str | None, who: str) -> MeshError:
    metadata = {"address": address} if address else {}
    if "certificate has expired" in text:
        return IdentityError(
            f"the certificate that {who} shows has expired; renew it there with `orbitmesh pki issue`",
            metadata=metadata,
        )
    if "Hostname Verification" in text:
        return IdentityError(
            f"{who} is another identity of the mesh than the one expected; check the address and the name",
            metadata=metadata,
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return IdentityError(
            f"{who} shows a certificate of another mesh ({text}); use an identity of its mesh or dial a "
            "server of ours",
            metadata=metadata,
        )
    if "Tls handshake failed" in text or "WRONG_VERSION_NUMBER" in text:
        return IdentityError(
            f"{who} did not complete a TLS handshake ({text}); expected a service of the mesh on that port",
            metadata=metadata,
        )
    hint = "check that it runs and that the link is up"
    if "Socket closed" in text:
        hint += (
            "; a server also closes at once where it refuses our certificate: see its log, and "
            "`orbitmesh pki show` for ours"
        )
    return TransportError(f"cannot reach {who} ({text}); {hint}", metadata=metadata)


def _error_info(trailers: object) -> tuple[str, str, dict[str, str]] | None:
    """Reason, message and metadata of the `ErrorInfo` of our domain, where the trailers carry one."""
    for key, value in trailers if isinstance(trailers, grpc.aio.Metadata | tuple | list) else ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info.reason, status.message, dict(info.metadata)
        except DecodeError:
            return None
    return None
