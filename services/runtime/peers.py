"""Who is at the other end of a connection, from what gRPC says of its TLS handshake."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from cryptography import x509

from orbitmesh.errors import AuthError
from orbitmesh.trust.certificates import Peer, Usage, check_validity, parse_certificate, verify_leaf

PEERS_KEPT = 1024
"""How many peers' certificates are kept parsed."""

AuthContext = Mapping[str, Iterable[bytes]]


class PeerReader:
    """Reads and checks the caller of each call; a certificate is parsed and verified once, its time at each
    call.

    A connection may outlive the certificate that opened it; calls on it may not.
    """

    def __init__(self, limit: int = PEERS_KEPT) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[bytes, bytes], tuple[Peer, x509.Certificate]] = OrderedDict()

    def read(self, context: AuthContext, ca_pem: bytes, now: datetime | None = None) -> Peer:
        """The caller of a connection.

        Args:
            context: What `ServicerContext.auth_context()` gave.
            ca_pem: This mesh's CA certificate.
            now: The moment at which the certificate must be valid; the present where left out.

        Raises:
            AuthError: The connection is not TLS 1.3 or shows no certificate.
            IdentityError: The certificate is of another mesh, names no identity, or has expired.
        """
        version = _first(context, "ssl_tls_version")
        if version != b"TLSv1.3":
            raise AuthError(
                f"the connection uses {version.decode('ascii', 'replace') or 'no TLS'}; expected TLSv1.3: "
                "update the client",
                metadata={"tls_version": version.decode("ascii", "replace")},
            )
        pem = _first(context, "x509_pem_cert")
        if not pem:
            raise AuthError("the connection shows no client certificate; dial with an identity of this mesh")
        moment = now or datetime.now(UTC)
        known = self._known.get((ca_pem, pem))
        if known is None:
            certificate = parse_certificate(pem, "the caller's certificate")
            # The handshake has checked the chain already; checked again against the CA in use now, because a
            # connection may be older than the CA.
            known = verify_leaf(pem, ca_pem, usage=Usage.TLS, now=moment), certificate
            self._known[(ca_pem, pem)] = known
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        peer, certificate = known
        check_validity(certificate, peer.title, moment)
        return peer


def _first(context: AuthContext, key: str) -> bytes:
    return next(iter(context.get(key, ())), b"")
