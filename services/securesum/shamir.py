"""Shamir's secret sharing of many 32-byte secrets at once (Shamir, "How to share a secret", 1979).

A secret is cut into 18 limbs of 15 bits, and each limb is the constant term of its own random polynomial of degree
t - 1 over the integers modulo 65,521, the largest prime below 2^16. Any t points of a polynomial give its constant
term; t - 1 of them fit every constant term equally well, so fewer than t holders know nothing.

The prime is that small so that all polynomials of all secrets are evaluated by ONE matrix product in float64, exactly:
a sum of t products is below t * 65,521^2, and that is below 2^53 for every t up to 2^20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import IntegrityError, InvalidInputError

PRIME = 65_521
"""The modulus: the largest prime below 2^16."""
SECRET_BYTES = 32
"""Size of a secret, in bytes."""
LIMB_BITS = 15
"""Bits of a secret in one polynomial: the most that always stay below the prime."""
LIMBS = -(-SECRET_BYTES * 8 // LIMB_BITS)
"""Polynomials per secret."""
SHARE_BYTES = LIMBS * 2
"""Size of a share of one secret, in bytes: 16 bits, little-endian, per limb."""
HOLDERS_MAX = 1 << 12
"""The most holders that a secret is split among."""

Draw = Callable[[int], bytes]
"""A source of random bytes: `os.urandom`, or a seeded stream."""
Shares = NDArray[np.uint16]


def split(secrets: NDArray[np.uint8], holders: int, threshold: int, draw: Draw) -> Shares:
    """Shares of secrets, any `threshold` of which give them back.

    Args:
        secrets: Shape (m, 32).
        holders: How many shares are made of each; holder number h (from 0) stands at x = h + 1.
        threshold: How many of them are needed.
        draw: Where the polynomials come from.

    Returns:
        Shape (holders, m, 18), values below `PRIME`.

    Raises:
        InvalidInputError: The threshold or the number of holders makes no sense.
    """
    if not 1 <= threshold <= holders <= HOLDERS_MAX:
        raise InvalidInputError(
            f"a secret cannot be split among {holders} holders so that {threshold} of them are needed; expected "
            f"1 <= threshold <= holders <= {HOLDERS_MAX}"
        )
    polynomials = np.empty((threshold, len(secrets) * LIMBS), np.float64)
    polynomials[0] = _limbs(secrets).reshape(-1)
    polynomials[1:] = _uniform(polynomials[1:].size, draw).reshape(polynomials[1:].shape)
    points = np.arange(1, holders + 1, dtype=np.int64)
    powers = np.ones((holders, threshold), np.int64)
    for degree in range(1, threshold):
        powers[:, degree] = powers[:, degree - 1] * points % PRIME
    values = (powers.astype(np.float64) @ polynomials) % PRIME
    return values.astype(np.uint16).reshape(holders, len(secrets), LIMBS)


def join(points: Sequence[int], shares: Shares) -> NDArray[np.uint8]:
    """The secrets behind exactly as many shares of each as are needed.

    Args:
        points: The x of each holder (its number from 0, plus 1), all different.
        shares: Shape (t, m, 18), a row per holder in the order of `points`.

    Returns:
        Shape (m, 32).

    Raises:
        InvalidInputError: A holder comes twice.
        IntegrityError: `SHARES_WRONG`, the shares are not of 32-byte secrets. Wrong shares are not always found
            out here: compare the secret with what its owner committed to.
    """
    weights = np.array(_weights_at_zero(points), np.float64)
    if np.any(shares >= PRIME):
        raise wrong_shares("a share is no number below the prime")
    flat = shares.reshape(len(points), -1).astype(np.float64)
    limbs = ((weights @ flat) % PRIME).astype(np.uint16).reshape(-1, LIMBS)
    padding_bits = LIMBS * LIMB_BITS - SECRET_BYTES * 8
    if np.any(limbs >> LIMB_BITS) or np.any(limbs[:, -1] >> (LIMB_BITS - padding_bits)):
        raise wrong_shares("together they are no share of a secret of 32 bytes")
    bits = (limbs[:, :, None] >> np.arange(LIMB_BITS, dtype=np.uint16)) & 1
    whole = bits.reshape(len(limbs), -1)[:, : SECRET_BYTES * 8].astype(np.uint8)
    return np.packbits(whole, axis=1, bitorder="little")


def wrong_shares(why: str) -> IntegrityError:
    """The error for shares that give no secret, or a wrong one."""
    return IntegrityError(
        f"the shares of a secret do not fit together: {why}; ask further holders for theirs", reason="SHARES_WRONG"
    )


def _limbs(secrets: NDArray[np.uint8]) -> NDArray[np.int64]:
    bits = np.zeros((len(secrets), LIMBS * LIMB_BITS), np.int64)
    bits[:, : SECRET_BYTES * 8] = np.unpackbits(secrets, axis=1, bitorder="little")
    return bits.reshape(len(secrets), LIMBS, LIMB_BITS) @ (1 << np.arange(LIMB_BITS, dtype=np.int64))


def _uniform(count: int, draw: Draw) -> NDArray[np.uint16]:
    """Numbers below the prime, all equally likely: 16-bit words of the source, those above thrown away."""
    values = np.empty(0, np.uint16)
    while len(values) < count:
        # A word is too large in 15 of 65,536 cases; a little more than needed makes a second turn rare.
        missing = count - len(values)
        words = np.frombuffer(draw(2 * (missing + missing // 1024 + 8)), "<u2")
        values = np.concatenate([values, words[words < PRIME]])
    return values[:count]


def _weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange's weights for the constant term: the product over the others of x_j / (x_j - x_i)."""
    if len(set(points)) != len(points) or not all(1 <= point <= HOLDERS_MAX for point in points):
        raise InvalidInputError("each holder's share counts once; expected different holders")
    weights = []
    for own in points:
        above = below = 1
        for other in points:
            if other != own:
                above = above * other % PRIME
                below = below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
