"""An identity of a mesh, read from its directory: `ca.pem`, three certificates with their keys, and one key more.

tls.pem  tls.key     ECDSA P-256: who speaks on a connection (BoringSSL has no Ed25519 in TLS)
seal.pem seal.key    X25519: transfer keys are wrapped to it (HPKE)
sign.pem sign.key    Ed25519: manifests and statements are signed by it
         rest.key    X25519: files that only this identity reads; the others are new with every renewal, this one stays
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from orbitmesh.errors import IdentityError
from orbitmesh.trust.certificates import (
    Peer,
    Usage,
    check_validity,
    fingerprint,
    mesh_name,
    parse_certificate,
    verify_leaf,
)
from orbitmesh.trust.files import read_private, read_public
from orbitmesh.trust.names import Role, dns_name

REST_KEY = "rest.key"
"""The file of the key that protects other files."""
READ_ATTEMPTS = 4
"""How often a directory that does not fit together is read before it is refused: it may be being renewed."""
READ_PAUSE_S = 0.05
"""Pause between two such readings, in seconds."""

PrivateKey = EllipticCurvePrivateKey | X25519PrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, eq=False)
class Identity:
    """Who this process is in which mesh, with what it needs to prove it. `repr` shows no secret."""

    role: Role
    """What the identity is for."""
    name: str
    """Its name within the role."""
    spiffe: str
    """`spiffe://orbitmesh/<role>/<name>`."""
    mesh: str
    """The mesh's name, from its CA."""
    ca_fingerprint: str
    """SHA-256 of the CA's public key, in hexadecimal: two meshes never share it."""
    not_before: datetime
    """When the certificates begin, in UTC."""
    not_after: datetime
    """When the first of the certificates ends, in UTC."""
    directory: Path
    """Where it was read from."""
    ca_pem: bytes = field(repr=False)
    """The mesh's CA certificate."""
    ca: x509.Certificate = field(repr=False)
    """The same, parsed."""
    tls_cert_pem: bytes = field(repr=False)
    """The TLS certificate."""
    tls_key_pem: bytes = field(repr=False)
    """The TLS key. Secret."""
    seal_cert_pem: bytes = field(repr=False)
    """The certificate that others wrap transfer keys by; meant to be given away."""
    seal_private: X25519PrivateKey = field(repr=False)
    """Opens transfer keys. Secret."""
    rest_private: X25519PrivateKey = field(repr=False)
    """Opens the keys of files that this identity wrote. Secret."""
    sign_cert_pem: bytes = field(repr=False)
    """The certificate that others check signatures by; meant to be given away."""
    sign_private: Ed25519PrivateKey = field(repr=False)
    """Signs manifests and statements. Secret."""

    @property
    def title(self) -> str:
        """`role/name`, as people write it."""
        return f"{self.role.value}/{self.name}"

    @property
    def dns(self) -> str:
        """The name that clients expect in this identity's TLS certificate."""
        return dns_name(self.role, self.name)

    def check_valid(self, now: datetime | None = None) -> None:
        """Refuse to go on with an identity outside its time.

        Raises:
            IdentityError: It has expired or has not begun.
        """
        check_validity(parse_certificate(self.tls_cert_pem, "tls.pem"), self.title, now or datetime.now(UTC))


def load_identity(
    directory: Path | str, *, now: datetime | None = None, allow_expired: bool = False
) -> Identity:
    """Read and check an identity directory.

    Args:
        directory: Where `orbitmesh pki issue` wrote it.
        now: The moment at which it must be valid; the present where left out.
        allow_expired: Skip the check of the time, to look at an identity.

    Raises:
        IdentityError: A file is missing or readable by everybody, a key does not match its certificate, the
            certificates are of another mesh than `ca.pem`, of several identities, or outside their time.
    """
    path = Path(directory).expanduser()
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return _load_once(path, now, allow_expired)
        except _TornError:
            time.sleep(READ_PAUSE_S)
    return _load_once(path, now, allow_expired)


class _TornError(IdentityError):
    """The files do not fit together, which a renewal under way also looks like."""


def _load_once(path: Path, now: datetime | None, allow_expired: bool) -> Identity:
    cure = f"issue the identity: `orbitmesh pki issue CA_DIR ROLE/NAME --out {path}`"
    if not path.is_dir():
        raise IdentityError(f"there is no identity directory {path}; {cure}", metadata={"path": path})
    ca_pem = read_public(path / "ca.pem", cure)
    ca = parse_certificate(ca_pem, str(path / "ca.pem"))
    peers: dict[Usage, Peer] = {}
    pems: dict[Usage, bytes] = {}
    keys: dict[Usage, PrivateKey] = {}
    key_pems: dict[Usage, bytes] = {}
    for usage in Usage:
        cert_path, key_path = path / f"{usage.value}.pem", path / f"{usage.value}.key"
        pems[usage] = read_public(cert_path, cure)
        key_pems[usage] = read_private(key_path, cure)
        keys[usage] = _parse_key(key_pems[usage], key_path, cure)
        certificate = parse_certificate(pems[usage], str(cert_path))
        moment = certificate.not_valid_after_utc if allow_expired else now
        peers[usage] = _verify(pems[usage], ca, usage, moment, cert_path)
        if keys[usage].public_key() != peers[usage].public_key:
            raise _TornError(
                f"the key {key_path} does not belong to {cert_path}; {cure}", metadata={"path": key_path}
            )
    if len({peer.spiffe for peer in peers.values()}) != 1:
        found = ", ".join(f"{usage.value}.pem of {peer.title}" for usage, peer in peers.items())
        raise _TornError(f"{path} mixes several identities ({found}); {cure}", metadata={"path": path})
    rest = path / REST_KEY
    # A directory of an earlier version has none: there the sealing key protects files, too.
    at_rest = _parse_key(read_private(rest, cure), rest, cure) if rest.exists() else keys[Usage.SEAL]
    return _assemble(path, ca_pem, ca, peers[Usage.TLS], peers, pems, keys, key_pems[Usage.TLS], at_rest)


def _assemble(
    path: Path,
    ca_pem: bytes,
    ca: x509.Certificate,
    me: Peer,
    peers: dict[Usage, Peer],
    pems: dict[Usage, bytes],
    keys: dict[Usage, PrivateKey],
    tls_key_pem: bytes,
    at_rest: PrivateKey,
) -> Identity:
    seal, sign = keys[Usage.SEAL], keys[Usage.SIGN]
    if not isinstance(seal, X25519PrivateKey) or not isinstance(sign, Ed25519PrivateKey):
        raise IdentityError(
            f"{path} holds keys of another kind than X25519 (seal) and Ed25519 (sign); issue it anew"
        )
    if not isinstance(at_rest, X25519PrivateKey):
        raise IdentityError(f"{path / REST_KEY} is no X25519 key: restore it; no file of this identity opens without")
    return Identity(
        role=me.role,
        name=me.name,
        spiffe=me.spiffe,
        mesh=mesh_name(ca),
        ca_fingerprint=fingerprint(ca),
        not_before=max(parse_certificate(pem, "certificate").not_valid_before_utc for pem in pems.values()),
        not_after=min(peer.not_after for peer in peers.values()),
        directory=path,
        ca_pem=ca_pem,
        ca=ca,
        tls_cert_pem=pems[Usage.TLS],
        tls_key_pem=tls_key_pem,
        seal_cert_pem=pems[Usage.SEAL],
        seal_private=seal,
        rest_private=at_rest,
        sign_cert_pem=pems[Usage.SIGN],
        sign_private=sign,
    )


def _verify(pem: bytes, ca: x509.Certificate, usage: Usage, now: datetime | None, path: Path) -> Peer:
    try:
        return verify_leaf(pem, ca, usage=usage, now=now)
    except IdentityError as error:
        # ca.pem is replaced before the leaves when a mesh is made anew, so this too may be a renewal under
        # way.
        kind = _TornError if "issuer" in error.metadata else IdentityError
        raise kind(f"{path}: {error.message}", metadata=error.metadata | {"path": str(path)}) from None


def _parse_key(pem: bytes, path: Path, cure: str) -> PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        # Without `from`: the parser's own text might quote what it read.
        raise IdentityError(f"{path} is no PEM private key; {cure}", metadata={"path": path}) from None
    if not isinstance(key, EllipticCurvePrivateKey | X25519PrivateKey | Ed25519PrivateKey):
        raise IdentityError(
            f"{path} holds a key of a kind that no mesh uses; {cure}", metadata={"path": path}
        )
    return key


class IdentitySource:
    """The newest good identity of a directory that is renewed while the process runs.

    `current()` costs one `stat` a file, unless asked for less, and may be called from any thread. A renewal
    that is incomplete or wrong is told to `on_refused` and the identity in use stays.
    """

    def __init__(
        self, directory: Path | str, *, on_refused: Callable[[IdentityError], None] | None = None
    ) -> None:
        self._directory = Path(directory).expanduser()
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._stamp = self._read_stamp()
        self._identity = load_identity(self._directory)

    @property
    def directory(self) -> Path:
        """Where the identity is read from."""
        return self._directory

    def current(self, max_age_s: float = 0.0) -> Identity:
        """The identity to use from now on.

        Args:
            max_age_s: Do not look at the directory again where that was done this recently, in seconds.
        """
        with self._lock:
            moment = time.monotonic()
            if moment - self._looked_at < max_age_s:
                return self._identity
            self._looked_at = moment
            seen = self._read_stamp()
            if seen != self._stamp:
                try:
                    # One reading, without pauses: this runs in the handshake of a connection.
                    self._identity = _load_once(self._directory, None, False)
                    self._stamp = seen
                except (IdentityError, OSError) as caught:
                    error = caught if isinstance(caught, IdentityError) else IdentityError(str(caught))
                    if self._on_refused is not None:
                        self._on_refused(error)
            return self._identity

    def _read_stamp(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for name in ("ca.pem", REST_KEY, *(f"{usage.value}.{end}" for usage in Usage for end in ("pem", "key"))):
            try:
                info = (self._directory / name).stat()
                stamps.append((info.st_mtime_ns, info.st_ino))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)
