"""Masks: RFC 8439's vectors, cancelling pairs, and nothing in common between spans, rounds and pairs."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orbitmesh.errors import IdentityError
from services.securesum.masks import Mask, apply_masks, pair_mask, self_mask
from services.securesum.packing import lane


@pytest.mark.parametrize(
    ("key", "span", "start", "expected"),
    [
        (0, 0, 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"),
        (0, 0, 64, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"),
        (1, 0, 64, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"),
        (0, 2 << 88, 0, "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"),
    ],
)
@pytest.mark.parametrize("bits", [8, 11, 16, 20, 32])
def test_a_mask_is_chacha20_as_the_rfc_has_it(bits: int, key: int, span: int, start: int, expected: str) -> None:
    """RFC 8439, A.1, vectors 1, 2, 3 and 5: the span is the nonce, little-endian, and lanes follow each other."""
    words = np.zeros(128 // lane(bits).itemsize, lane(bits))
    apply_masks(words, [Mask(key.to_bytes(32, "big"), True)], span)
    stream = words.astype(words.dtype.newbyteorder("<")).tobytes()
    assert stream[start : start + 32].hex() == expected


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
