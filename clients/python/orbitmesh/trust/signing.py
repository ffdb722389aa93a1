"""Signatures of manifests and statements: a small JSON file beside what it signs.

What is signed is the purpose, the moment and the SHA-256 of the data, so a signature for one purpose is
worth nothing for another and its time cannot be edited. A pack outlives the hours of its signer's
certificate: the certificate must have been valid **when it was signed**. Who steals a signing key can
therefore sign as of its past; the cure for a stolen key is to make the mesh anew.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orbitmesh.errors import IdentityError, InvalidInputError, PackError
from orbitmesh.trust.certificates import CLOCK_SKEW_S, Peer, Usage, stamp, verify_leaf
from orbitmesh.trust.identity import Identity
from orbitmesh.trust.names import Role

FORMAT = "orbitmesh-signature-v1"
"""What a signature file says that it is."""
MANIFEST_PURPOSE = "pack-manifest"
"""The purpose under which packs are signed."""
SIGNATURE_MAX_BYTES = 16 * 1024
"""Largest signature file that is read, in bytes; a real one has under 2 KiB."""

_FIELDS = ("format", "algorithm", "purpose", "signed_at", "signer", "signature")


def sign_bytes(
    identity: Identity, data: bytes, *, purpose: str = MANIFEST_PURPOSE, now: datetime | None = None
) -> bytes:
    """A signature file for `data`.

    Args:
        identity: The signer; its certificates must be valid at `now`.
        data: What is signed; only its SHA-256 goes into the signature.
        purpose: What the signature is for; the reader must ask for the same.
        now: The moment of signing; the present where left out.

    Returns:
        UTF-8 JSON with the algorithm, purpose, moment, the signer's certificate and the signature.

    Raises:
        IdentityError: The identity has expired: nobody would accept the signature.
    """
    moment = now or datetime.now(UTC)
    identity.check_valid(moment)
    signed_at = stamp(moment)
    signature = identity.sign_private.sign(_message(purpose, signed_at, data))
    record = {
        "format": FORMAT,
        "algorithm": "ed25519",
        "purpose": purpose,
        "signed_at": signed_at,
        "signer": identity.sign_cert_pem.decode("ascii"),
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    return (json.dumps(record, indent=2) + "\n").encode()


def verify_signature(
    data: bytes,
    signature_file: bytes | None,
    ca: x509.Certificate | bytes,
    allowed_roles: Collection[Role],
    *,
    purpose: str = MANIFEST_PURPOSE,
    now: datetime | None = None,
) -> Peer:
    """Who signed `data`, where that is someone this mesh trusts to.

    Args:
        data: The bytes as received, never re-serialised.
        signature_file: What `sign_bytes` made, or nothing where there is none.
        ca: This mesh's CA certificate.
        allowed_roles: Roles whose signature counts.
        purpose: The purpose that the signature must be for.
        now: The present, for refusing signatures from the future.

    Raises:
        PackError: `PACK_UNSIGNED` (no signature), `PACK_SIGNER_UNTRUSTED` (another mesh, role or time) or
            `PACK_DAMAGED` (the signature file is not one, or does not fit the data).
    """
    if not signature_file:
        raise PackError(
            "there is no signature; sign it with an identity of this mesh (`orbitmesh model pack` does)",
            reason="PACK_UNSIGNED",
        )
    record = _parse(signature_file)
    signed_at = _moment(record["signed_at"])
    if signed_at > (now or datetime.now(UTC)) + timedelta(seconds=CLOCK_SKEW_S):
        raise _untrusted(
            f"it says to be signed at {record['signed_at']}, which is in the future; check both clocks"
        )
    try:
        peer = verify_leaf(record["signer"].encode(), ca, usage=Usage.SIGN, now=signed_at)
    except (IdentityError, InvalidInputError) as error:
        raise _untrusted(error.message, error.metadata) from None
    if peer.role not in allowed_roles:
        may = ", ".join(sorted(role.value for role in allowed_roles))
        raise _untrusted(
            f"it is signed by {peer.title}; only these roles may sign: {may}", {"signer": peer.spiffe}
        )
    if record["purpose"] != purpose:
        raise PackError(
            f"the signature is for {record['purpose'][:80]!r} where one for {purpose!r} was expected"
        )
    _check(peer, record, _message(purpose, record["signed_at"], data))
    return peer


def _check(peer: Peer, record: dict[str, str], message: bytes) -> None:
    key = peer.public_key
    try:
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidSignature
        key.verify(base64.b64decode(record["signature"], validate=True), message)
    except (InvalidSignature, binascii.Error, ValueError):
        raise PackError(
            f"the bytes are not those that {peer.title} signed at {record['signed_at']}; fetch or pack them "
            "again",
            metadata={"signer": peer.spiffe},
        ) from None


def _parse(signature_file: bytes) -> dict[str, str]:
    problem = None
    record: object = None
    if len(signature_file) > SIGNATURE_MAX_BYTES:
        problem = f"more than {SIGNATURE_MAX_BYTES} bytes"
    else:
        try:
            record = json.loads(signature_file)
        except (ValueError, RecursionError):
            problem = "no JSON"
    if problem is None:
        if not isinstance(record, dict) or sorted(record) != sorted(_FIELDS):
            problem = f"not the fields {', '.join(_FIELDS)}"
        elif not all(isinstance(value, str) for value in record.values()):
            problem = "a field that is no text"
        elif (record["format"], record["algorithm"]) != (FORMAT, "ed25519"):
            problem = "a format or algorithm that this version does not know"
    if problem is not None or not isinstance(record, dict):
        raise PackError(f"the signature file is damaged ({problem}); fetch it again or sign anew")
    return record


def _moment(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise PackError(
            "the signature file is damaged (its time is no time); fetch it again or sign anew"
        ) from None


def _untrusted(text: str, metadata: dict[str, str] | None = None) -> PackError:
    return PackError(
        f"the signature is not trusted: {text}", reason="PACK_SIGNER_UNTRUSTED", metadata=metadata
    )


def _message(purpose: str, signed_at: str, data: bytes) -> bytes:
    parts = (FORMAT.encode(), purpose.encode(), signed_at.encode(), hashlib.sha256(data).digest())
    # Each part behind its length: no two different triples give the same bytes.
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
