"""`python -m services.runtime.healthcheck`: whether a service of the mesh serves, for container engines.

It asks gRPC health over mTLS, as the identity given, and ends with 0 where the answer is SERVING, with 1
where it is another or none, and with 2 where the command line is wrong. An engine starts it every few seconds
beside every service, so it imports gRPC alone and nothing of ours: that keeps it at a tenth of a second.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

DEADLINE_S = 3.0
"""How long connecting and answering may take together, in seconds."""
CHECK = "/grpc.health.v1.Health/Check"
"""The method; its messages have one field each, written out below instead of importing protobuf."""
SERVICE_NAME_MAX_BYTES = 127
"""The longest service name: its length must fit one byte of the request."""
SERVING = b"\x08\x01"
"""`HealthCheckResponse(status=SERVING)` on the wire."""


def server_name(role: str, name: str) -> str:
    """The DNS name in a service's TLS certificate: `orbitmesh.trust.dns_name`, without importing it."""
    return f"{name}.{role}.orbitmesh"


def check(address: str, identity: Path, role: str, name: str, service: str = "", deadline_s: float = DEADLINE_S) -> str:
    """Ask a service how it is.

    Args:
        address: `host:port` of the service.
        identity: An identity directory of the same mesh; the service's own will do.
        role: The role that must answer.
        name: The name that must answer.
        service: The full name of one gRPC service; empty asks about the process as a whole.
        deadline_s: How long it may take, in seconds.

    Returns:
        Empty where it serves, otherwise what is wrong.
    """
    try:
        ca, key, certificate = ((identity / file).read_bytes() for file in ("ca.pem", "tls.key", "tls.pem"))
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}; issue it with `orbitmesh pki issue`"
    encoded = service.encode()
    if len(encoded) > SERVICE_NAME_MAX_BYTES:
        return f"--service is longer than {SERVICE_NAME_MAX_BYTES} bytes; give a gRPC service's full name"
    request = bytes((0x0A, len(encoded))) + encoded if encoded else b""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = (("grpc.ssl_target_name_override", server_name(role, name)), ("grpc.enable_retries", 0))
    with grpc.secure_channel(address, credentials, options=options) as channel:
        try:
            # Without serializers gRPC carries the bytes as they are.
            answer: bytes = channel.unary_unary(CHECK)(request, timeout=deadline_s)
        except grpc.RpcError as error:
            return f"{address} did not answer: {error.code().name} ({error.details()})"
    return "" if answer == SERVING else f"{address} answers, but does not serve: it starts or drains"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; 0 serves, 1 does not."""
    parser = argparse.ArgumentParser(prog="python -m services.runtime.healthcheck", description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of the service")
    parser.add_argument("--identity", required=True, type=Path, metavar="DIR", help="an identity of the mesh")
    parser.add_argument("--role", required=True, help="the role that must answer")
    parser.add_argument("--name", required=True, help="the name that must answer")
    parser.add_argument("--service", default="", help="one gRPC service; left out: the process as a whole")
    parser.add_argument("--timeout", type=float, default=DEADLINE_S, metavar="SECONDS", help="default: %(default)s")
    given = parser.parse_args(argv)
    wrong = check(given.address, given.identity, given.role, given.name, given.service, given.timeout)
    if wrong:
        sys.stderr.write(wrong + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
