"""Masks: ChaCha20 keystreams (RFC 8439) from 256-bit seeds, added to words modulo 2^b.

A pair of nodes has one seed per round, derived by HKDF (RFC 5869) from the X25519 secret of their keys for that round
(RFC 7748); the node whose name comes first adds the mask, the other takes it away, so it is gone from their sum. Every
node adds one more mask of its own, whose seed comes from a secret that nobody else knows.

Keystream is cut into lanes of 8, 16 or 32 bits and of each the low b bits count: every word is equally likely, as 2^b
divides 2^lane. A span has a nonce of its own, its index, so that any span can be made alone and twice a keystream is
never used: a seed belongs to one round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orbitmesh.errors import IdentityError
from services.securesum.fields import join_fields
from services.securesum.packing import Words

KEY_BYTES = 32
"""Size of a seed, of a secret and of a key, in bytes."""
NONCE_BYTES = 12
"""Size of a nonce of ChaCha20, in bytes."""

_LABEL = b"orbitmesh/v1/secure-sum/mask"


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask over all spans of one round."""

    seed: bytes
    """The key of its keystream, 32 bytes. Secret."""
    added: bool
    """Whether it is added; taken away where not."""

    def __repr__(self) -> str:
        return f"Mask(added={self.added})"

    def turned(self) -> Mask:
        """The mask that undoes this one."""
        return Mask(self.seed, not self.added)


def pair_mask(own: X25519PrivateKey, own_name: str, peer_public: bytes, peer_name: str, context: bytes) -> Mask:
    """The mask between two nodes in one round, as the first of them applies it.

    Args:
        own: Its private key of the round.
        own_name: Its name.
        peer_public: The other's public key of the round, 32 bytes.
        peer_name: The other's name.
        context: What names the round, its cohort and the keys of all.

    Raises:
        IdentityError: `MASK_KEY_UNPROVEN`, the public key is a point of low order, which gives anybody the secret.
    """
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError:
        raise IdentityError(
            f"the round key of {peer_name} is none that keeps a secret; leave that node out of the cohort",
            reason="MASK_KEY_UNPROVEN",
        ) from None
    first, second = sorted((own_name, peer_name))
    return Mask(_derive(shared, b"pair", context, first.encode(), second.encode()), own_name == first)


def self_mask(secret: bytes, name: str, context: bytes) -> Mask:
    """The mask that a node adds from its own secret of the round."""
    return Mask(_derive(secret, b"self", context, name.encode()), True)


def apply_masks(words: Words, masks: Sequence[Mask], span: int) -> None:
    """Adds masks to the words of one span, in place and modulo the lane.

    Args:
        words: Shape (up to SPAN_VALUES,), of the lane's type.
        masks: Which.
        span: The index of the span.
    """
    size = words.nbytes
    zeros, stream = bytes(size), bytearray(size)
    # The keystream's bytes are little-endian whatever this machine is.
    lanes = np.frombuffer(stream, words.dtype.newbyteorder("<"))
    nonce = bytes(4) + span.to_bytes(NONCE_BYTES, "little")
    for mask in masks:
        Cipher(algorithms.ChaCha20(mask.seed, nonce), None).encryptor().update_into(zeros, stream)
        if mask.added:
            np.add(words, lanes, out=words)
        else:
            np.subtract(words, lanes, out=words)


def _derive(secret: bytes, *what: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=join_fields(_LABEL, *what)).derive(secret)
