"""Random numbers from ChaCha20: whoever does not have the 256-bit seed cannot tell them from chance.

A stream is (seed, purpose, index); its words do not depend on how many are asked for at once. The same seed gives the
same noise again: a node that was restarted in the middle of a round must not release a second, different one.
"""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from orbitmesh.errors import InvalidInputError

SEED_BYTES = 32
INDEX_MAX = (1 << 64) - 1
PURPOSE_MAX = (1 << 32) - 1
WORDS_MAX = 1 << 32
"""Words of one stream: half of what ChaCha20 gives before its block counter would wrap."""
_CHUNK_WORDS = 1 << 20
_FINE = 2.0**-53

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]


class Keystream:
    """Words of 64 random bits, in order.

    Args:
        seed: 32 secret bytes.
        purpose: Keeps streams of one seed apart that serve different things, 0 to 2^32 - 1.
        index: Keeps streams of one purpose apart, for instance a step or a span, 0 to 2^64 - 1.

    Raises:
        InvalidInputError: The seed has another length, or a number is out of its range.
    """

    def __init__(self, seed: bytes, purpose: int, index: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise InvalidInputError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        if not (0 <= purpose <= PURPOSE_MAX and 0 <= index <= INDEX_MAX):
            raise InvalidInputError(f"purpose {purpose} or index {index} is out of its range")
        # 4 bytes of block counter, then the 12 bytes that make the stream its own.
        nonce = bytes(4) + purpose.to_bytes(4, "little") + index.to_bytes(8, "little")
        self._cipher = Cipher(algorithms.ChaCha20(seed, nonce), mode=None).encryptor()
        self._words_left = WORDS_MAX

    def words(self, count: int) -> Words:
        """The next `count` words, uint64.

        Raises:
            InvalidInputError: The stream has no more.
        """
        if not 0 <= count <= self._words_left:
            raise InvalidInputError(f"{count} words of a stream with {self._words_left} left: use another index")
        self._words_left -= count
        out = np.empty(count, dtype="<u8")
        zeros = bytes(8 * min(count, _CHUNK_WORDS))
        for start in range(0, count, _CHUNK_WORDS):
            part = out[start : start + _CHUNK_WORDS]
            self._cipher.update_into(memoryview(zeros)[: 8 * len(part)], part.view(np.uint8).data)
        return out.astype(np.uint64, copy=False)

    def chosen(self, count: int, rate: float) -> NDArray[np.bool_]:
        """For each of `count` units whether it is in a Poisson sample, by chance `rate` (rounded up to 2^-64)."""
        if rate >= 1:
            return np.ones(count, dtype=np.bool_)
        return self.words(count) < np.uint64(min(math.ceil(rate * 2.0**64), (1 << 64) - 1))

    def gaussian(self, count: int) -> Floats:
        """Standard Gaussian numbers, float64.

        Each is half the sum of four by Box and Muller: which doubles a single one can take depends on its value, and
        gives it away (Mironov 2012); finding the four behind a sum is out of reach (Holohan, Braghin 2021).
        """
        pairs = 2 * count
        uniform = ((self.words(2 * pairs) >> np.uint64(11)).astype(np.float64) + 0.5) * _FINE
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = (2.0 * math.pi) * uniform[pairs:]
        sums = (radius * (np.cos(angle) + np.sin(angle))).reshape(2, count).sum(axis=0)
        half: Floats = sums * 0.5
        return half
