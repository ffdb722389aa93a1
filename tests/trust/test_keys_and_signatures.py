"""Wrapped keys against RFC 9180, and signatures that count for one purpose, one mesh and the right roles."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import IdentityError, PackError, SealError
from orbitmesh.trust import (
    Identity,
    Role,
    init_mesh,
    issue,
    sign_bytes,
    unwrap_key,
    verify_signature,
    wrap_key,
)

AES_128_GCM, AES_256_GCM = 1, 2
KEY_BYTES = {AES_128_GCM: 16, AES_256_GCM: 32}


def _hmac(key: bytes, data: bytes) -> bytes:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def _expand(key: bytes, info: bytes, length: int) -> bytes:
    block, out = b"", b""
    for counter in range(1, 256):
        if len(out) >= length:
            break
        block = _hmac(key, block + info + bytes((counter,)))
        out += block
    return out[:length]


def rfc9180_open(
    aead: int, enc: bytes, sealed: bytes, private: X25519PrivateKey, info: bytes, aad: bytes
) -> bytes:
    """RFC 9180 sections 4 and 5, base mode, DHKEM(X25519, HKDF-SHA256): written from the text, for
    comparison."""

    def extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return _hmac(salt or b"\0" * 32, b"HPKE-v1" + suite + label + ikm)

    def expand(suite: bytes, prk: bytes, label: bytes, context: bytes, length: int) -> bytes:
        return _expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context, length)

    kem = b"KEM" + (0x20).to_bytes(2, "big")
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    context = enc + private.public_key().public_bytes_raw()
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", context, 32)
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x20, 1, aead))
    schedule = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    prk = extract(suite, secret, b"secret", b"")
    key = expand(suite, prk, b"key", schedule, KEY_BYTES[aead])
    nonce = expand(suite, prk, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(nonce, sealed, aad)


def test_the_comparison_agrees_with_the_vector_of_the_rfc() -> None:
    """RFC 9180 appendix A.1.1, first message: our reading of the RFC opens its vector."""
    private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    )
    opened = rfc9180_open(
        AES_128_GCM,
        bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"),
        bytes.fromhex(
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
        ),
        private,
        b"Ode on a Grecian Urn",
        b"Count-0",
    )
    assert opened == b"Beauty is truth, truth beauty"


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_a_wrapped_key_is_what_the_rfc_says(secret: bytes, info: bytes) -> None:
    """What we wrap opens by the RFC's text in suite X25519, HKDF-SHA256, AES-256-GCM, and by ourselves."""
    private = X25519PrivateKey.generate()
    wrapped = wrap_key(secret, private.public_key(), info)
    assert len(wrapped) == 81 and wrapped[0] == 1
    bound = b"orbitmesh/v1/wrapped-key\0\x01" + info
    assert rfc9180_open(AES_256_GCM, wrapped[1:33], wrapped[33:], private, bound, b"") == secret
    assert unwrap_key(wrapped, private, info) == secret


def test_a_wrapped_key_opens_for_nothing_else() -> None:
    """Another receiver, another info, any flipped, cut or added byte, or an unknown suite is a SealError."""
    private, secret = X25519PrivateKey.generate(), bytes(range(32))
    wrapped = wrap_key(secret, private.public_key(), b"a to b, transfer 1")
    with pytest.raises(SealError, match="another node"):
        unwrap_key(wrapped, X25519PrivateKey.generate(), b"a to b, transfer 1")
    with pytest.raises(SealError, match="another transfer"):
        unwrap_key(wrapped, private, b"a to b, transfer 2")
    for index in range(len(wrapped)):
        # The top bit of an X25519 public key is ignored by the RFC, so this bit is flipped nowhere.
        bad = bytearray(wrapped)
        bad[index] ^= 0x01
        with pytest.raises(SealError):
            unwrap_key(bytes(bad), private, b"a to b, transfer 1")
    for bad_bytes in (b"", wrapped[:1], wrapped[:-1], wrapped + b"\0", b"\x02" + wrapped[1:]):
        with pytest.raises(SealError):
            unwrap_key(bad_bytes, private, b"a to b, transfer 1")
    with pytest.raises(SealError):
        unwrap_key(b"\x01" + bytes(80), private, b"")
    assert wrap_key(secret, private.public_key(), b"") != wrap_key(secret, private.public_key(), b"")
    for arguments in ((b"short", b""), (secret, b"x" * 5000)):
        with pytest.raises(ValueError, match="bytes"):
            wrap_key(arguments[0], private.public_key(), arguments[1])


@pytest.fixture
def signer(tmp_path: Path) -> Identity:
    init_mesh(tmp_path / "ca")
    return issue(tmp_path / "ca", "operator", "ops", tmp_path / "ops")


SIGNERS = frozenset({Role.OPERATOR, Role.CLIENT})


def test_a_signature_names_its_signer(signer: Identity) -> None:
    """Signed bytes verify to who signed them; one changed byte or another purpose does not."""
    data = b'{"layers": 4}'
    file = sign_bytes(signer, data)
    assert verify_signature(data, file, signer.ca_pem, SIGNERS).title == "operator/ops"
    assert b"PRIVATE" not in file
    for bad in (b"", data + b" ", b'{"layers": 5}'):
        with pytest.raises(PackError, match="not those that operator/ops signed") as caught:
            verify_signature(bad, file, signer.ca, SIGNERS)
        assert caught.value.reason == "PACK_DAMAGED"
    with pytest.raises(PackError, match="'statement' was expected"):
        verify_signature(data, file, signer.ca, SIGNERS, purpose="statement")
    assert verify_signature(
        data, sign_bytes(signer, data, purpose="statement"), signer.ca, SIGNERS, purpose="statement"
    )


def test_edited_signature_files_are_refused(signer: Identity) -> None:
    """Every field is bound: editing one makes the signature worthless or the file damaged."""
    data = b"manifest"
    file = sign_bytes(signer, data)
    record = json.loads(file)
    assert set(record) == {"format", "algorithm", "purpose", "signed_at", "signer", "signature"}
    moved = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for edit in (
        {"signed_at": moved},
        {"signed_at": "yesterday"},
        {"algorithm": "none"},
        {"format": "x"},
        {"signature": ""},
        {"signature": "AAAA"},
        {"signature": "not base64!"},
        {"signature": None},
        {"extra": "x"},
    ):
        with pytest.raises(PackError) as caught:
            verify_signature(data, json.dumps(record | edit).encode(), signer.ca, SIGNERS)
        assert caught.value.reason == "PACK_DAMAGED"
    for junk in (b"junk", b"[]", b"{}", b"\xff", b"[" * 10_000, b" " * 20_000):
        with pytest.raises(PackError) as caught:
            verify_signature(data, junk, signer.ca, SIGNERS)
        assert caught.value.reason == "PACK_DAMAGED"
    for nothing in (None, b""):
        with pytest.raises(PackError) as caught:
            verify_signature(data, nothing, signer.ca, SIGNERS)
        assert caught.value.reason == "PACK_UNSIGNED"


def test_strangers_and_wrong_roles_are_not_trusted(signer: Identity, tmp_path: Path) -> None:
    """A signer of another mesh, of a role that may not sign, or with a sealing certificate is untrusted."""
    data = b"manifest"
    init_mesh(tmp_path / "other")
    stranger = issue(tmp_path / "other", "operator", "ops", tmp_path / "stranger")
    executor = issue(tmp_path / "ca", "executor", "sat-1", tmp_path / "sat-1")
    swapped = json.loads(sign_bytes(signer, data)) | {"signer": signer.seal_cert_pem.decode()}
    for file, words in (
        (sign_bytes(stranger, data), "another mesh"),
        (sign_bytes(executor, data), r"executor/sat-1.*client, operator"),
        (json.dumps(swapped).encode(), "not one for sign"),
    ):
        with pytest.raises(PackError, match=words) as caught:
            verify_signature(data, file, signer.ca, SIGNERS)
        assert caught.value.reason == "PACK_SIGNER_UNTRUSTED"


def test_a_signature_outlives_its_certificate_but_is_never_from_outside_it(
    signer: Identity, tmp_path: Path
) -> None:
    """What was signed in time stays good; an expired signer cannot sign, nor anybody in the future."""
    data, past = b"manifest", datetime.now(UTC) - timedelta(days=3)
    old = issue(tmp_path / "ca", "operator", "old", tmp_path / "old", timedelta(hours=1), now=past)
    file = sign_bytes(old, data, now=past + timedelta(minutes=10))
    assert verify_signature(data, file, signer.ca, SIGNERS).name == "old"
    with pytest.raises(IdentityError, match="expired"):
        sign_bytes(old, data)
    ahead = sign_bytes(signer, data, now=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(PackError, match="future") as caught:
        verify_signature(data, ahead, signer.ca, SIGNERS)
    assert caught.value.reason == "PACK_SIGNER_UNTRUSTED"
