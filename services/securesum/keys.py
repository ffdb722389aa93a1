"""Who a key belongs to: run keys and round keys, signed by the node's identity.

Whoever relays public keys could put its own in their place and read everything. So each is signed with the Ed25519 key
of the node's identity, for which the mesh's CA vouches (`orbitmesh.trust`), together with what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from orbitmesh.errors import IdentityError, PackError
from orbitmesh.trust import Identity, Role, sign_bytes, verify_signature
from services.securesum.fields import join_fields, read_text, split_fields
from services.securesum.masks import KEY_BYTES

KEY_PURPOSE = "secure-sum-key"
"""What a signature under a run key says that it is for."""
OFFER_PURPOSE = "secure-sum-offer"
"""What a signature under an offer says that it is for."""
ROLES = (Role.EXECUTOR,)
"""Whose keys count: nodes'."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A message with the signature of the node that it speaks for."""

    body: bytes
    """The message, as it was signed."""
    signature: bytes
    """What `sign_bytes` made: JSON with the signer's certificate."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        return join_fields(self.body, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Signed:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        body, signature = split_fields(data, "a signed message", 2)
        return cls(body, signature)


@dataclass(frozen=True, slots=True)
class Member:
    """A node of a run, with its proven key."""

    name: str
    """The name in its identity."""
    public: bytes
    """Its X25519 key of the run, 32 bytes: shares are sealed with it."""


def signed_key(identity: Identity, run: str, public: bytes, now: datetime) -> Signed:
    """A node's key of a run, with its signature.

    Args:
        identity: The node's.
        run: What the key is for; no run has the name of another.
        public: X25519, 32 bytes.
        now: The moment of signing.
    """
    return sign_message(identity, join_fields(run.encode(), identity.name.encode(), public), KEY_PURPOSE, now)


def proven_key(signed: Signed, run: str, ca: x509.Certificate, now: datetime) -> Member:
    """Whose key that is.

    Raises:
        IdentityError: `MASK_KEY_UNPROVEN`, the signature is not by the node that the key is said to be of, not by a
            node of this mesh, or for another run.
    """
    claimed_run, member = claimed_key(signed.body)
    check_signer(signed, member.name, KEY_PURPOSE, ca, now)
    if claimed_run != run or len(member.public) != KEY_BYTES:
        raise unproven(member.name, "it is signed for another run, or is no X25519 key")
    return member


def claimed_key(body: bytes) -> tuple[str, Member]:
    """The run and the node that a key says to be of; nothing is checked.

    Raises:
        InvalidInputError: The bytes are no run key.
    """
    run, name, public = split_fields(body, "a run key", 3)
    return read_text(run, "a run key"), Member(read_text(name, "a run key"), public)


def sign_message(identity: Identity, body: bytes, purpose: str, now: datetime) -> Signed:
    """The message with the identity's signature for this purpose."""
    return Signed(body, sign_bytes(identity, body, purpose=purpose, now=now))


def check_signer(signed: Signed, name: str, purpose: str, ca: x509.Certificate, now: datetime) -> None:
    """Refuses a message that is not signed by the node `name` of this mesh for this purpose.

    Raises:
        IdentityError: `MASK_KEY_UNPROVEN`.
    """
    try:
        peer = verify_signature(signed.body, signed.signature, ca, ROLES, purpose=purpose, now=now)
    except PackError as error:
        raise unproven(name, error.message) from None
    if peer.name != name:
        raise unproven(name, f"it is signed by {peer.title}")


def unproven(name: str, why: str) -> IdentityError:
    """The error for a key that is not proven to be the node's."""
    return IdentityError(
        f"a key of {name} for secure sums is not proven to be its own: {why}; do not go on with it, and look at who "
        "relayed it",
        reason="MASK_KEY_UNPROVEN",
        metadata={"node": name},
    )
