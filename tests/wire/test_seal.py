"""The key schedule against `cryptography`'s own HKDF, and tampered frames, each refused for its reason."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import MeshError, SealError
from orbitmesh.limits import FRAME_BODY_BYTES, TRANSFER_BYTES
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.frames import data_header, join_message, parse_header, split_message
from orbitmesh.wire.inbox import Inbox
from orbitmesh.wire.seal import SessionKeys, derive_keys, session_context

SECRET, SALT = bytes(range(32)), bytes(range(32, 64))
CONTEXT = session_context(b"s" * 16, "spiffe://orbitmesh/executor/a", "spiffe://orbitmesh/executor/b", 1)
INFO = wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=1)).SerializeToString()
REFUSALS = {
    "SEAL_BROKEN", "FRAME_MALFORMED", "FRAME_REPLAYED", "FRAME_OUT_OF_ORDER", "FRAME_TRUNCATED",
    "LIMIT_EXCEEDED",
}  # fmt: skip


def ends(secret: bytes = SECRET) -> tuple[SessionKeys, Inbox]:
    """A sender's keys and the receiver's inbox."""
    return (
        derive_keys(secret, SALT, CONTEXT, dialler=True),
        Inbox(derive_keys(secret, SALT, CONTEXT, dialler=False).opening),
    )


def transfer(keys: SessionKeys, number: int, transfer_: int, parts: list[bytes]) -> list[bytes]:
    """The messages of a transfer."""
    out = []
    cipher = keys.sealing.transfer(transfer_)
    for index, part in enumerate(parts):
        last = index + 1 == len(parts)
        total = sum(map(len, parts)) if index == 0 and not last else 0
        header = data_header(
            number + index, transfer_, index, last, 1, len(part), b"" if index else INFO, total
        )
        out.append(join_message(header, cipher.seal(index, last, header, part)))
    return out


def feed(inbox: Inbox, message: bytes) -> bytes | None:
    """Opens a message; gives the transfer where it completes one."""
    header, body = split_message(message)
    parsed = parse_header(header)
    if not parsed.HasField("data"):
        raise SealError("no data", reason="FRAME_MALFORMED")
    opened = inbox.open(header, parsed.data, body, 0, len(message))
    return bytes(opened.incoming.data) if opened.complete and opened.incoming else None


def refused(inbox: Inbox, message: bytes) -> str:
    """The reason of a refusal, which must leave the inbox as it was."""
    before = (inbox.next_number, inbox.next_transfer, inbox.received, inbox.partial_transfers)
    with pytest.raises(MeshError) as raised:
        feed(inbox, message)
    assert (inbox.next_number, inbox.next_transfer, inbox.received, inbox.partial_transfers) == before
    return raised.value.reason


def test_keys_are_those_of_rfc_5869() -> None:
    """Direction and transfer keys equal HKDF and HKDF-Expand as `cryptography` computes them."""
    keys = derive_keys(SECRET, SALT, CONTEXT, dialler=True)
    direction = HKDF(SHA256(), 32, SALT, b"orbitmesh/v1/dialler\x00" + CONTEXT).derive(SECRET)
    okm = HKDFExpand(SHA256(), 39, b"transfer" + (7).to_bytes(8, "big")).derive(direction)
    nonce = okm[32:] + (3).to_bytes(4, "big") + b"\x01"
    expected = AESGCM(okm[:32]).encrypt(nonce, b"data", b"header")
    assert keys.sealing.transfer(7).seal(3, True, b"header", b"data") == expected


def test_the_two_directions_have_their_own_keys() -> None:
    """A frame that is sent back where it came from does not open."""
    keys, _ = ends()
    body = keys.sealing.transfer(0).seal(0, True, b"h", b"data")
    with pytest.raises(SealError):
        keys.opening.transfer(0).open(0, True, b"h", body)


Attack = Callable[[SessionKeys, list[bytes]], tuple[int, bytes]]


def _edit(message: bytes, **fields: object) -> bytes:
    header, body = split_message(message)
    parsed = parse_header(header)
    for name, value in fields.items():
        setattr(parsed.data, name, value)
    return join_message(parsed.SerializeToString(), bytes(body))


def _cut(message: bytes) -> bytes:
    header, body = split_message(message)
    return join_message(header, bytes(body[:-1]))


def _elsewhere(secret: bytes) -> bytes:
    return transfer(ends(secret)[0], 0, 0, [b"a" * 10, b"b" * 10, b"c" * 10])[1]


ATTACKS: dict[str, tuple[Attack, str]] = {
    "a body cut short": (lambda k, m: (1, _cut(m[1])), "FRAME_MALFORMED"),
    "the last frame claimed early": (lambda k, m: (1, _edit(m[1], last=True)), "FRAME_TRUNCATED"),
    "a frame repeated": (lambda k, m: (2, m[1]), "FRAME_REPLAYED"),
    "a frame left out": (lambda k, m: (1, m[2]), "FRAME_OUT_OF_ORDER"),
    "the first frame left out": (lambda k, m: (0, m[1]), "FRAME_OUT_OF_ORDER"),
    "a frame renumbered": (lambda k, m: (1, _edit(m[2], number=1, index=1, last=False)), "SEAL_BROKEN"),
    "a frame with another index": (lambda k, m: (1, _edit(m[1], index=2)), "FRAME_OUT_OF_ORDER"),
    "a frame of another session": (lambda k, m: (1, _elsewhere(bytes(32))), "SEAL_BROKEN"),
    "a finished transfer continued": (
        lambda k, m: (3, transfer(k, 3, 0, [b"x"])[0]), "FRAME_REPLAYED"),
    "a transfer moved to another": (
        lambda k, m: (3, _edit(transfer(k, 0, 0, [b"x"])[0], number=3, transfer=1)), "SEAL_BROKEN"),
    "another codec named": (lambda k, m: (1, _edit(m[1], codec=2)), "SEAL_BROKEN"),
    "another purpose named": (lambda k, m: (0, _edit(m[0], total_size_bytes=31)), "SEAL_BROKEN"),
    "a size beyond the frame": (
        lambda k, m: (1, _edit(m[1], raw_size_bytes=FRAME_BODY_BYTES + 1)), "LIMIT_EXCEEDED"),
    "a transfer beyond the limit": (
        lambda k, m: (0, _edit(m[0], total_size_bytes=TRANSFER_BYTES + 1)), "LIMIT_EXCEEDED"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_for_its_reason_and_the_true_frame_still_opens(name: str) -> None:
    """What was done to the frames is named, changes nothing, and the sender's own frames go on."""
    attack, reason = ATTACKS[name]
    keys, inbox = ends()
    parts = [b"a" * 10, b"b" * 10, b"c" * 10]
    messages = transfer(keys, 0, 0, parts)
    position, forged = attack(keys, messages)
    whole = None
    for message in messages[:position]:
        whole = feed(inbox, message)
    assert refused(inbox, forged) == reason
    for message in messages[position:]:
        whole = feed(inbox, message)
    assert whole == b"".join(parts)


def test_a_tensor_that_does_not_fit_its_bytes_is_refused() -> None:
    """A shape of another size than announced is refused before anything is allocated."""
    keys, inbox = ends()
    info = wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[1 << 20, 1 << 20])
    )
    header = data_header(0, 0, 0, True, 1, 4, info.SerializeToString())
    message = join_message(header, keys.sealing.transfer(0).seal(0, True, header, b"1234"))
    assert refused(inbox, message) == "LIMIT_EXCEEDED"


@given(st.data())
def test_no_flipped_bit_passes(data: st.DataObject) -> None:
    """Any one bit: in the body it breaks the seal, in the header it is refused for what it says."""
    keys, inbox = ends()
    message = transfer(keys, 0, 0, [os.urandom(40)])[0]
    at = data.draw(st.integers(0, len(message) * 8 - 1))
    forged = bytearray(message)
    forged[at // 8] ^= 1 << (at % 8)
    reason = refused(inbox, bytes(forged))
    assert reason in REFUSALS
    if at // 8 >= len(message) - 56:
        assert reason == "SEAL_BROKEN"
    assert feed(inbox, message) is not None


def test_a_session_that_ends_inside_a_transfer_is_truncated() -> None:
    """The end of the session is sealed too, and refused while a transfer is not whole."""
    keys, inbox = ends()
    feed(inbox, transfer(keys, 0, 0, [b"a", b"b"])[0])
    header = data_header(1, 1, 0, True, 1, 0, ends_session=True)
    message = join_message(header, keys.sealing.transfer(1).seal(0, True, header, b""))
    assert refused(inbox, message) == "FRAME_TRUNCATED"
