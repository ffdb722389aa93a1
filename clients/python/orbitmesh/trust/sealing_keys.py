"""Wrapping of transfer keys to a node's sealing key by HPKE (RFC 9180, base mode, single shot).

A wrapped key is one byte that names the suite, then HPKE's `enc || ct`. HPKE's base mode proves nothing
about the
sender: whoever wraps must say in `info` what the key is for and between whom (the caller builds it), and the
sender is proven by mTLS or by a signature beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from orbitmesh.errors import SealError

KEY_BYTES = 32
"""Size of a transfer key, in bytes."""
INFO_MAX_BYTES = 4096
"""Largest `info` that is bound to a wrapped key, in bytes."""
SUITE_X25519_SHA256_AES256GCM = 1
"""DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The number 2 is kept for X-Wing."""
WRAPPED_KEY_BYTES = 1 + 32 + KEY_BYTES + 16
"""Size of a key wrapped by suite 1, in bytes: suite, encapsulated key, ciphertext, tag."""

_LABEL = b"orbitmesh/v1/wrapped-key\x00"
_SUITES: Mapping[int, Suite] = MappingProxyType(
    {SUITE_X25519_SHA256_AES256GCM: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)}
)


def wrap_key(secret: bytes, recipient: X25519PublicKey, info: bytes) -> bytes:
    """Encrypt a transfer key so that only `recipient` can read it, and only with the same `info`.

    Args:
        secret: 32 bytes.
        recipient: The receiver's sealing key, from `verify_leaf(..., usage=Usage.SEAL)`.
        info: What the key is bound to: sender, receiver, transfer, direction; at most 4,096 bytes.

    Returns:
        81 bytes.

    Raises:
        ValueError: The sizes are wrong.
    """
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a transfer key has {KEY_BYTES} bytes, not {len(secret)}")
    if len(info) > INFO_MAX_BYTES:
        raise ValueError(f"info has {len(info)} bytes; at most {INFO_MAX_BYTES} are bound to a key")
    suite_id = SUITE_X25519_SHA256_AES256GCM
    sealed = _SUITES[suite_id].encrypt(secret, recipient, info=_bound(suite_id, info))
    return bytes((suite_id,)) + sealed


def unwrap_key(wrapped: bytes, private: X25519PrivateKey, info: bytes) -> bytes:
    """Read a transfer key that was wrapped to us.

    Raises:
        SealError: It was wrapped to another node or for another transfer, was altered, or is of an unknown
            suite.
    """
    suite = _SUITES.get(wrapped[0]) if wrapped else None
    if suite is None:
        raise SealError(
            "the wrapped key is of a suite that this version does not know; expected suite 1 "
            "(X25519, HKDF-SHA256, AES-256-GCM); update this node or the sender"
        )
    if len(wrapped) != WRAPPED_KEY_BYTES:
        raise SealError(
            f"a wrapped key has {WRAPPED_KEY_BYTES} bytes, this one {len(wrapped)}: it was cut or padded"
        )
    try:
        return suite.decrypt(wrapped[1:], private, info=_bound(wrapped[0], info))
    except (InvalidTag, ValueError):
        raise SealError(
            "the transfer key does not open: it was wrapped to another node or for another transfer, or "
            "altered; "
            "fetch the receiver's current seal certificate and send again"
        ) from None


def _bound(suite_id: int, info: bytes) -> bytes:
    return _LABEL + bytes((suite_id,)) + info
