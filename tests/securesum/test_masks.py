"""Masks: RFC 8439's vectors, cancelling pairs, and nothing in common between spans, rounds and pairs."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orbitmesh.errors import IdentityError
from services.securesum import masks
from services.securesum.masks import Mask, apply_masks, keystream, pair_mask, self_mask
from services.securesum.packing import lane
from services.updates import spans


def test_keystream_is_that_of_the_rfc() -> None:
    """RFC 8439, 2.3.2 (a block) and A.1 (test vector 1: key, nonce and counter zero)."""
    block = keystream(bytes(range(32)), bytes.fromhex("000000090000004a00000000"), 64, block=1)
    assert block == bytes.fromhex(
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert keystream(bytes(32), bytes(12), 64) == bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


@pytest.mark.parametrize("bits", [8, 11, 16, 20, 32])
def test_a_mask_is_the_spans_keystream(bits: int) -> None:
    """What is added to span 7 is the keystream under nonce 7, lane by lane, little-endian."""
    words = np.zeros(1000, lane(bits))
    apply_masks(words, [Mask(bytes(range(32)), True)], 7)
    nonce = (7).to_bytes(12, "little")
    expected = np.frombuffer(keystream(bytes(range(32)), nonce, words.nbytes), words.dtype.newbyteorder("<"))
    assert words.tolist() == expected.tolist()


def test_both_ends_of_a_pair_cancel() -> None:
    """One adds what the other takes away, in every span; another context, name or key gives another mask."""
    one, two = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    keys = {"a": one.public_key().public_bytes_raw(), "b": two.public_key().public_bytes_raw()}
    here, there = pair_mask(one, "a", keys["b"], "b", b"r1"), pair_mask(two, "b", keys["a"], "a", b"r1")
    assert here == there.turned()
    words = np.arange(500, dtype=np.uint16)
    apply_masks(words, [here], 3)
    assert not np.array_equal(words, np.arange(500))
    apply_masks(words, [there], 3)
    assert np.array_equal(words, np.arange(500))
    others = [
        pair_mask(one, "a", keys["b"], "b", b"r2"),
        pair_mask(one, "a", keys["b"], "c", b"r1"),
        pair_mask(two, "a", keys["b"], "b", b"r1"),
        self_mask(here.seed, "a", b"r1"),
    ]
    assert len({mask.seed for mask in [here, *others]}) == 5


def test_a_key_without_a_secret_is_refused() -> None:
    """A point of low order gives everybody the same shared secret."""
    with pytest.raises(IdentityError) as caught:
        pair_mask(X25519PrivateKey.generate(), "a", bytes(32), "b", b"r")
    assert caught.value.reason == "MASK_KEY_UNPROVEN"


def test_a_mask_does_not_show_its_seed() -> None:
    """A log line or a traceback with a mask in it tells nothing."""
    assert b"\x07".hex() not in repr(Mask(b"\x07" * 32, True))


def test_spans_are_those_of_updates() -> None:
    """An update's span fits into one of ours."""
    assert masks.SPAN_VALUES == spans.SPAN_VALUES
