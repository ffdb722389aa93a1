"""X.509 certificates of a mesh: made by its CA, checked by everybody.

One CA key per mesh (ECDSA P-256). Its fingerprint is the SHA-256 of its public key; the CA's certificate
carries it as SubjectKeyIdentifier and each leaf as AuthorityKeyIdentifier, so a leaf can say which mesh it
is of.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orbitmesh.errors import IdentityError
from orbitmesh.trust.names import Role, dns_name, parse_spiffe, role_dns_name, spiffe_id

CLOCK_SKEW_S = 300
"""How far clocks of two machines of a mesh may differ, in seconds: certificates begin this long before they
are made."""

LeafKey = EllipticCurvePublicKey | X25519PublicKey | Ed25519PublicKey


class Usage(StrEnum):
    """What the key in a leaf certificate is for."""

    TLS = "tls"
    SEAL = "seal"
    SIGN = "sign"


@dataclass(frozen=True)
class Peer:
    """Another identity of this mesh, as proven by a certificate of it."""

    spiffe: str
    """`spiffe://orbitmesh/<role>/<name>`."""
    role: Role
    """What the identity is for."""
    name: str
    """Its name within the role."""
    not_after: datetime
    """When the certificate ends, in UTC."""
    public_key: LeafKey
    """The key that the certificate vouches for."""

    @property
    def title(self) -> str:
        """`role/name`, as people write it."""
        return f"{self.role.value}/{self.name}"

    @property
    def seal_public(self) -> X25519PublicKey:
        """The key to wrap transfer keys to.

        Raises:
            IdentityError: The certificate was not one for sealing.
        """
        if not isinstance(self.public_key, X25519PublicKey):
            raise IdentityError(f"the certificate of {self.title} holds no sealing key; ask for its seal.pem")
        return self.public_key


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """One PEM certificate.

    Raises:
        IdentityError: The bytes are not one; the message names `what`.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise IdentityError(
            f"{what} is no PEM certificate; issue it anew with `orbitmesh pki issue`"
        ) from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's public key, in hexadecimal."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def short(fingerprint_hex: str) -> str:
    """The first 16 digits of a fingerprint: enough to tell two meshes apart in a message."""
    return fingerprint_hex[:16]


def mesh_name(ca: x509.Certificate) -> str:
    """The name that the mesh was given when its CA was made."""
    names = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "unnamed"


def build_ca(
    key: EllipticCurvePrivateKey, mesh: str, begin: datetime, lifetime: timedelta
) -> x509.Certificate:
    """The self-signed certificate of a mesh's CA."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "orbitmesh"),
            x509.NameAttribute(NameOID.COMMON_NAME, mesh),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(begin + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(_key_id(key.public_key())), critical=False)
        .sign(key, hashes.SHA256())
    )


def build_leaf(
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    public_key: LeafKey,
    usage: Usage,
    role: Role,
    name: str,
    begin: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A certificate by which the mesh vouches that `public_key` is `role/name`'s for `usage`."""
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(role, name))]
    if usage is Usage.TLS:
        alternatives += [x509.DNSName(dns_name(role, name)), x509.DNSName(role_dns_name(role))]
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "orbitmesh"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(begin + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(_key_id(ca_key.public_key()), None, None), critical=False)
        .add_extension(
            _key_usage(key_agreement=True) if usage is Usage.SEAL else _key_usage(digital_signature=True),
            critical=True,
        )
    )
    extended = _EXTENDED[usage]
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


# A signing certificate names code signing, so that no TLS stack takes it for a server's or a client's.
_EXTENDED = {
    Usage.TLS: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    Usage.SIGN: [ExtendedKeyUsageOID.CODE_SIGNING],
    Usage.SEAL: [],
}
_KEY_TYPES = {Usage.TLS: EllipticCurvePublicKey, Usage.SEAL: X25519PublicKey, Usage.SIGN: Ed25519PublicKey}


def verify_leaf(
    pem: bytes,
    ca: x509.Certificate | bytes,
    *,
    usage: Usage,
    role: Role | None = None,
    name: str | None = None,
    now: datetime | None = None,
) -> Peer:
    """Check that the mesh of `ca` vouches for a certificate, for this use and moment.

    Args:
        pem: The certificate.
        ca: The mesh's CA certificate, parsed or as PEM.
        usage: What its key must be for.
        role: The role that it must be of; any where left out.
        name: The name that it must be of; any where left out.
        now: The moment at which it must be valid; the present where left out.

    Returns:
        The identity that the certificate proves.

    Raises:
        IdentityError: It is of another mesh, outside its validity, for another use or of another identity.
    """
    certificate = parse_certificate(pem, f"the {usage.value} certificate of a peer")
    authority = parse_certificate(ca, "the CA certificate") if isinstance(ca, bytes) else ca
    _check_issuer(certificate, authority)
    peer = _peer_of(certificate, usage)
    check_validity(certificate, peer.title, now or datetime.now(UTC))
    if (role is not None and peer.role is not role) or (name is not None and peer.name != name):
        expected = f"{role.value if role else 'any role'}/{name or 'any name'}"
        raise IdentityError(
            f"the certificate is of {peer.title} where {expected} was expected; check the address that was "
            "dialled",
            metadata={"spiffe": peer.spiffe},
        )
    return peer


def check_validity(certificate: x509.Certificate, title: str, now: datetime) -> None:
    """Refuse a certificate outside its time.

    Raises:
        IdentityError: It has expired or has not begun; the message says when, and how to renew it.
    """
    end, begin = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > end:
        raise IdentityError(
            f"the certificate of {title} expired at {stamp(end)}, {_ago(now - end)} ago; renew it: "
            f"`orbitmesh pki issue CA_DIR {title} --out IDENTITY_DIR` (a running service takes it without a "
            "restart)",
            metadata={"identity": title, "not_after": stamp(end)},
        )
    if now < begin:
        raise IdentityError(
            f"the certificate of {title} begins only at {stamp(begin)} and it is {stamp(now)} here; set this "
            "machine's clock",
            metadata={"identity": title, "not_before": stamp(begin)},
        )


def stamp(moment: datetime) -> str:
    """A moment as text, in UTC to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_issuer(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    try:
        # The byte before the signature counts the unused bits of its BIT STRING. No signature covers it and parsers
        # take a 1 there where the last bit is 0, so two encodings of one certificate would pass; DER of whole bytes
        # has a 0.
        if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1] != 0:
            raise InvalidSignature
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        ours, theirs = fingerprint(ca), _issuer_fingerprint(certificate)
        if ours == theirs:
            text = (
                "the certificate names this mesh's CA but its signature is not by it: it was edited or forged"
            )
        else:
            text = (
                f"the certificate is of another mesh: signed by the CA {short(theirs)}, and this mesh's CA "
                "is "
                f"{short(ours)} ({mesh_name(ca)})"
            )
        raise IdentityError(
            f"{text}; issue it from this mesh's CA directory with `orbitmesh pki issue`",
            metadata={"ca": ours, "issuer": theirs},
        ) from None


def _peer_of(certificate: x509.Certificate, usage: Usage) -> Peer:
    extensions = certificate.extensions
    try:
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key_usage = extensions.get_extension_for_class(x509.KeyUsage).value
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise IdentityError(
            "the certificate lacks what every certificate of a mesh carries; issue it anew"
        ) from error
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(
            f"the certificate names {len(uris)} identities where one was expected; issue it anew"
        )
    role, name = parse_spiffe(uris[0])
    key = certificate.public_key()
    wanted = key_usage.key_agreement if usage is Usage.SEAL else key_usage.digital_signature
    usable = isinstance(key, _KEY_TYPES[usage]) and wanted and not constraints.ca
    if not usable or not isinstance(key, EllipticCurvePublicKey | X25519PublicKey | Ed25519PublicKey):
        raise IdentityError(
            f"the certificate of {role.value}/{name} is not one for {usage.value}; expected its "
            f"{usage.value}.pem"
        )
    return Peer(
        spiffe=uris[0], role=role, name=name, not_after=certificate.not_valid_after_utc, public_key=key
    )


def _issuer_fingerprint(certificate: x509.Certificate) -> str:
    try:
        value = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return "unknown"
    return (value.key_identifier or b"").hex() or "unknown"


def _key_id(key: EllipticCurvePublicKey) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _key_usage(
    *,
    digital_signature: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _ago(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size_s, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size_s:
            count = seconds // size_s
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds} s"
