"""Shares of secrets, against Lagrange's formula in Python's own integers."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.securesum.shamir import LIMB_BITS, LIMBS, PRIME, SECRET_BYTES, join, split


def secrets_of(rng: random.Random, count: int) -> np.ndarray:
    return np.frombuffer(rng.randbytes(count * SECRET_BYTES), np.uint8).reshape(count, SECRET_BYTES)


def lagrange(points: dict[int, int]) -> int:
    """The constant term of the polynomial through the points, as an exact fraction brought into the field."""
    total = Fraction(0)
    for own, value in points.items():
        term = Fraction(value)
        for other in points:
            if other != own:
                term *= Fraction(-other, own - other)
        total += term
    return total.numerator * pow(total.denominator, -1, PRIME) % PRIME


def test_prime_is_the_largest_below_two_to_sixteen() -> None:
    """65,521 has no divisor, and every number from there to 2^16 has one."""

    def divisors(number: int) -> list[int]:
        return [d for d in range(2, int(number**0.5) + 1) if number % d == 0]

    assert not divisors(PRIME)
    assert all(divisors(number) for number in range(PRIME + 1, 1 << 16))


def test_shares_are_those_of_lagranges_formula() -> None:
    """Any three of five shares give, by the formula in exact fractions, the limbs of the secret."""
    rng = random.Random(5)
    secret = secrets_of(rng, 1)
    shares = split(secret, 5, 3, rng.randbytes)
    whole = int.from_bytes(secret.tobytes(), "little")
    for chosen in combinations(range(5), 3):
        for limb in range(LIMBS):
            points = {holder + 1: int(shares[holder, 0, limb]) for holder in chosen}
            assert lagrange(points) == (whole >> (LIMB_BITS * limb)) & ((1 << LIMB_BITS) - 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.data())
def test_any_threshold_of_shares_gives_the_secrets(holders: int, data: st.DataObject) -> None:
    """Whichever holders answer, as long as they are as many as the threshold."""
    threshold = data.draw(st.integers(1, holders))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    secrets = secrets_of(rng, data.draw(st.integers(1, 4)))
    shares = split(secrets, holders, threshold, rng.randbytes)
    chosen = rng.sample(range(holders), threshold)
    assert np.array_equal(join([holder + 1 for holder in chosen], shares[chosen]), secrets)


@pytest.mark.parametrize("byte", [0, 255])
def test_extreme_secrets_survive(byte: int) -> None:
    """All zeros and all ones, among 128 holders with a threshold of 64: the matrix product stays exact."""
    secrets = np.full((3, SECRET_BYTES), byte, np.uint8)
    shares = split(secrets, 128, 64, random.Random(1).randbytes)
    assert np.array_equal(join(list(range(65, 129)), shares[64:]), secrets)


def test_one_share_short_fits_every_secret() -> None:
    """With one share less than needed, each value of a limb is explained by exactly one missing share."""
    rng = random.Random(9)
    shares = split(secrets_of(rng, 1), 3, 3, rng.randbytes)
    known = {1: int(shares[0, 0, 0]), 2: int(shares[1, 0, 0])}
    step = (lagrange({**known, 3: 1}) - lagrange({**known, 3: 0})) % PRIME
    reached = (lagrange({**known, 3: 0}) + step * np.arange(PRIME, dtype=np.int64)) % PRIME
    assert len(np.unique(reached)) == PRIME


def test_a_share_alone_looks_the_same_whatever_the_secret() -> None:
    """Shares of zeros spread evenly over the field: chi-square over 16 classes stays under its 99.99 % bound."""
    shares = split(np.zeros((4000, SECRET_BYTES), np.uint8), 2, 2, random.Random(2).randbytes)
    counts, _ = np.histogram(shares[1], bins=16, range=(0, PRIME))
    expected = shares[1].size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 44.3


def test_shares_that_fit_no_secret_are_refused() -> None:
    """A value outside the field, and shares of which the limbs come out too large."""
    rng = random.Random(3)
    shares = split(secrets_of(rng, 8), 3, 2, rng.randbytes)
    too_large = shares[:2].copy()
    too_large[0, 0, 0] = PRIME
    with pytest.raises(IntegrityError, match="below the prime"):
        join([1, 2], too_large)
    with pytest.raises(IntegrityError) as caught:
        join([1, 3], shares[:2])
    assert caught.value.reason == "SHARES_WRONG"


@pytest.mark.parametrize(("holders", "threshold"), [(3, 4), (3, 0), (0, 0), (5000, 2)])
def test_senseless_numbers_are_refused(holders: int, threshold: int) -> None:
    """More needed than there are, none needed, nobody there, too many."""
    with pytest.raises(InvalidInputError, match="cannot be split"):
        split(np.zeros((1, SECRET_BYTES), np.uint8), holders, threshold, random.Random(1).randbytes)


def test_a_holder_counts_once() -> None:
    """The same share twice is no second share."""
    rng = random.Random(4)
    shares = split(secrets_of(rng, 1), 3, 2, rng.randbytes)
    with pytest.raises(InvalidInputError, match="counts once"):
        join([1, 1], shares[[0, 0]])
