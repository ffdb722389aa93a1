"""Sealing of frames: a key per direction, a key and a nonce prefix per transfer, AES-256-GCM per frame.

The shape is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015) as in Tink's AES-GCM-HKDF streaming: the nonce
is 7 bytes of the transfer, the frame's index as 4 bytes big-endian, and one byte that says whether it is the
last. The keys come from the session's secret by HKDF-SHA256 (RFC 5869); a new session draws a new secret,
and a frame that is sent again is the same bytes, so no nonce is ever used for two texts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orbitmesh.errors import SealError
from orbitmesh.wire.tensors import Buffer

TAG_BYTES = 16
"""By how much a sealed body is longer than what it seals."""

SECRET_BYTES = 32
"""Size of a session's secret and of its salt."""

FRAMES_PER_TRANSFER = 1 << 32
"""How many frames the counter in the nonce can tell apart."""

_KEY_BYTES = 32
_PREFIX_BYTES = 7
_NONCE_END = struct.Struct(">I?")


class TransferCipher(Protocol):
    """Seals and opens the frames of one transfer."""

    def seal(self, index: int, last: bool, header: bytes, data: Buffer) -> bytes:
        """The sealed body of a frame."""

    def seal_into(self, index: int, last: bool, header: bytes, data: Buffer, out: memoryview) -> None:
        """The same, into `out`, which is `TAG_BYTES` longer than `data`."""

    def open(self, index: int, last: bool, header: bytes, body: Buffer) -> bytes:
        """What a body seals; `SealError` where it does not open."""

    def open_into(self, index: int, last: bool, header: bytes, body: Buffer, out: memoryview) -> None:
        """The same, into `out`, which is `TAG_BYTES` shorter than `body`."""


class DirectionKeys(Protocol):
    """Gives the cipher of each transfer of one direction."""

    def transfer(self, number: int) -> TransferCipher:
        """The cipher of the transfer of that number."""


class AesGcmCipher:
    """The cipher of one transfer."""

    __slots__ = ("_aead", "_prefix")

    def __init__(self, key: bytes, prefix: bytes) -> None:
        self._aead = AESGCM(key)
        self._prefix = prefix

    def seal(self, index: int, last: bool, header: bytes, data: Buffer) -> bytes:
        """The sealed body of a frame; `header` is authenticated with it."""
        return self._aead.encrypt(self._prefix + _NONCE_END.pack(index, last), data, header)

    def seal_into(self, index: int, last: bool, header: bytes, data: Buffer, out: memoryview) -> None:
        """The same, into `out`."""
        self._aead.encrypt_into(self._prefix + _NONCE_END.pack(index, last), data, header, out)

    def open(self, index: int, last: bool, header: bytes, body: Buffer) -> bytes:
        """What a body seals.

        Raises:
            SealError: Body, header, place in the transfer, transfer, direction or session is another.
        """
        try:
            return self._aead.decrypt(self._prefix + _NONCE_END.pack(index, last), body, header)
        except (InvalidTag, ValueError):
            raise broken_seal() from None

    def open_into(self, index: int, last: bool, header: bytes, body: Buffer, out: memoryview) -> None:
        """The same, into `out`; its content is undefined where an error is raised."""
        try:
            self._aead.decrypt_into(self._prefix + _NONCE_END.pack(index, last), body, header, out)
        except (InvalidTag, ValueError):
            raise broken_seal() from None


class HkdfDirectionKeys:
    """The keys of one direction of a session.

    Args:
        secret: The session's secret, 32 bytes.
        salt: The session's salt, 32 bytes.
        direction: `dialler` or `acceptor`: who seals.
        context: What else the keys are bound to: the session and its two ends.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes, salt: bytes, direction: str, context: bytes) -> None:
        info = b"orbitmesh/v1/" + direction.encode() + b"\x00" + context
        key = HKDF(SHA256(), _KEY_BYTES, salt, info).derive(secret).ljust(sha256().block_size, b"\0")
        # The two hashes of HMAC (RFC 2104), each with the key already in it.
        self._inner = sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in key))

    def transfer(self, number: int) -> AesGcmCipher:
        """The cipher of a transfer: HKDF-Expand (RFC 5869, 2.3) to 39 bytes, two rounds of HMAC-SHA256.

        Written out because hashes that hold the key already take a third of the time of `hmac.digest`, and every
        decode step needs four keys.
        """
        info = b"transfer" + number.to_bytes(8, "big")
        key = self._mac(info + b"\x01")
        return AesGcmCipher(key, self._mac(key + info + b"\x02")[:_PREFIX_BYTES])

    def _mac(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


@dataclass(frozen=True)
class SessionKeys:
    """What one end of a session seals and opens with."""

    sealing: DirectionKeys
    """For what this end sends."""
    opening: DirectionKeys
    """For what this end receives."""


def session_context(session_id: bytes, sender: str, receiver: str, version: int) -> bytes:
    """What a session's keys are bound to, each part with its length before it."""
    parts = (session_id, sender.encode(), receiver.encode(), version.to_bytes(4, "big"))
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def derive_keys(secret: bytes, salt: bytes, context: bytes, *, dialler: bool) -> SessionKeys:
    """Both directions' keys, for the dialling or the accepting end."""
    ours, theirs = ("dialler", "acceptor") if dialler else ("acceptor", "dialler")
    return SessionKeys(
        sealing=HkdfDirectionKeys(secret, salt, ours, context),
        opening=HkdfDirectionKeys(secret, salt, theirs, context),
    )


def broken_seal() -> SealError:
    """The error for a frame that does not open."""
    return SealError(
        "a frame does not open: its bytes were changed, or it was sealed for another transfer, direction or "
        "session; it is asked for again"
    )
