"""The keystream's numbers have the distributions that they claim, and rounding keeps its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from orbitmesh.errors import InvalidInputError
from services.privacy.events import SharedNoise
from services.privacy.keystream import Keystream
from services.privacy.noise import DiscreteGaussian, gaussian_noise, share_variance
from services.privacy.rounding import round_span, rounded_norm

SEED = bytes(range(32))
LEAST_P = 1e-4
"""Seeds are fixed, so that a test either always passes or always fails."""


def exact_probabilities(variance: int, places: np.ndarray) -> np.ndarray:
    """Of a discrete Gaussian, by its definition."""
    reach = math.ceil(40 * math.sqrt(variance))
    bell = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float64) ** 2) / (2 * variance))
    return np.exp(-(places.astype(np.float64) ** 2) / (2 * variance)) / bell.sum()


def chi_square_p(draws: np.ndarray, variance: int) -> float:
    """The chance of counts at least this far from the exact ones; places that expect less than 10 draws share a bin."""
    edge = int(np.abs(draws).max()) + 1
    places = np.arange(-edge, edge + 1)
    expected = exact_probabilities(variance, places) * len(draws)
    counts = np.bincount(draws + edge, minlength=len(places))
    common = expected >= 10
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], len(draws) - expected[common].sum())
    return float(stats.chisquare(seen, wanted).pvalue)


@pytest.mark.parametrize("variance", [16, 17, 100, 2500, 250_000])
def test_discrete_gaussian_has_its_exact_probabilities(variance: int) -> None:
    """200,000 draws fit the definition by a chi-square test."""
    draws = DiscreteGaussian(variance).span(SEED, 0, 200_000)
    assert chi_square_p(draws, variance) > LEAST_P


def test_the_test_of_probabilities_can_fail() -> None:
    """Draws of a variance that is 10 % off do not pass the same chi-square test."""
    assert chi_square_p(DiscreteGaussian(275).span(SEED, 0, 200_000), 250) < LEAST_P


def test_draws_whose_first_word_lies_on_a_border_are_settled_by_the_next() -> None:
    """Where the first 64 bits equal a border's, both sides of it come up, in the border's own proportion."""
    sampler = DiscreteGaussian(16)
    border = len(sampler._exact) // 2
    word = sampler._exact[border] >> 128
    below = (sampler._exact[border] & ((1 << 128) - 1)) / 2.0**128
    more = Keystream(SEED, 7)
    settled = [sampler._settle(word, more) for _ in range(4000)]
    assert set(settled) <= {border, border + 1}
    assert stats.binomtest(settled.count(border), len(settled), below).pvalue > LEAST_P


@pytest.mark.parametrize("shares", [2, 6])
def test_shares_add_up_to_a_discrete_gaussian_of_the_added_variances(shares: int) -> None:
    """The sum of independent shares passes the chi-square test of one with the summed variance."""
    sampler = DiscreteGaussian(16)
    total = sum(sampler.span(bytes([node]) * 32, 3, 200_000) for node in range(shares))
    assert chi_square_p(np.asarray(total), 16 * shares) > LEAST_P


def test_shares_carry_what_the_ledger_counts() -> None:
    """The promised number of shares has at least the promised noise after the lattice took its part."""
    clip_steps, multiplier, promised = 50.0, 1.2, 6
    variance = share_variance(multiplier * clip_steps, promised)
    counted = SharedNoise(multiplier, promised, 5, clip_steps=clip_steps).multiplier * clip_steps
    assert 5 * variance - 4 >= counted**2
    assert promised * variance - 4 >= (multiplier * clip_steps) ** 2


def test_noise_is_the_same_for_a_seed_and_span_and_other_for_another() -> None:
    """A node that starts again makes the same noise; spans and seeds have nothing in common."""
    sampler = DiscreteGaussian(10_000)
    first = sampler.span(SEED, 5, 1000)
    assert np.array_equal(first, DiscreteGaussian(10_000).span(SEED, 5, 1000))
    for other in (sampler.span(SEED, 6, 1000), sampler.span(bytes(32), 5, 1000)):
        assert abs(float(np.corrcoef(first, other)[0, 1])) < 0.12


def test_words_are_chacha20_and_do_not_depend_on_how_they_are_asked_for() -> None:
    """The words are OpenSSL's keystream for the documented nonce, in one go or in pieces."""
    nonce = bytes(4) + (9).to_bytes(4, "little") + (77).to_bytes(8, "little")
    plain = Cipher(algorithms.ChaCha20(SEED, nonce), mode=None).encryptor().update(bytes(8 * 1000))
    stream = Keystream(SEED, 9, 77)
    pieces = np.concatenate([stream.words(count) for count in (1, 7, 0, 992)])
    assert np.array_equal(pieces, np.frombuffer(plain, "<u8"))
    assert np.array_equal(pieces, Keystream(SEED, 9, 77).words(1000))


def test_gaussian_numbers_are_normal() -> None:
    """A Kolmogorov-Smirnov test against the normal distribution passes, and the spread scales."""
    draws = gaussian_noise(SEED, 0, 100_000, 3.0)
    assert stats.kstest(draws / 3.0, "norm").pvalue > LEAST_P
    assert stats.kstest(draws / 3.15, "norm").pvalue < LEAST_P


def test_poisson_samples_have_their_rate() -> None:
    """Sizes of samples are binomial; rates 0 and 1 take none and all."""
    sizes = [int(Keystream(SEED, 1, step).chosen(500, 0.064).sum()) for step in range(2000)]
    assert stats.binomtest(sum(sizes), 500 * 2000, 0.064).pvalue > LEAST_P
    assert float(np.var(sizes)) == pytest.approx(500 * 0.064 * 0.936, rel=0.15)
    assert not Keystream(SEED, 1).chosen(500, 0.0).any()
    assert Keystream(SEED, 1).chosen(500, 1.0).all()


@pytest.mark.parametrize("count", [1, 3, 1000, 65_536])
def test_rounding_takes_a_neighbour_keeps_the_mean_and_the_norm(count: int) -> None:
    """Each value goes to one of its two neighbours, on average to itself, and no vector gets longer than promised."""
    values = np.random.default_rng(count).normal(0, 5, count)
    limit = rounded_norm(float(np.linalg.norm(values)), count, 65_536)
    rounds = [round_span(values, Keystream(SEED, 2, index)) for index in range(50)]
    assert all(np.abs(rounded - values).max() < 1 for rounded in rounds)
    assert all(float(np.linalg.norm(rounded)) <= limit + 1e-9 for rounded in rounds)
    error = float(np.mean([rounded - values for rounded in rounds]))
    assert abs(error) < 5 * 0.5 / math.sqrt(50 * count)


def test_the_bound_on_a_rounded_norm_covers_spans_and_is_far_below_the_worst_case() -> None:
    """Over spans of a long vector the bound holds, and adds a twentieth of what the worst case adds."""
    values = np.random.default_rng(3).normal(0, 1, 200_000) * 5
    norm = float(np.linalg.norm(values))
    rounded = np.concatenate(
        [
            round_span(values[start : start + 65_536], Keystream(SEED, 2, start))
            for start in range(0, len(values), 65_536)
        ]
    )
    bound = rounded_norm(norm, len(values), 65_536)
    assert float(np.linalg.norm(rounded)) <= bound < norm + math.sqrt(len(values)) / 20


def test_whole_numbers_stay_what_they_are() -> None:
    """Rounding whole numbers changes nothing."""
    values = np.array([-3.0, 0.0, 7.0, 2.0**40])
    assert round_span(values, Keystream(SEED, 2)).tolist() == [-3, 0, 7, 2**40]


@pytest.mark.parametrize(
    "call",
    [
        lambda: Keystream(bytes(31), 0),
        lambda: Keystream(SEED, -1),
        lambda: Keystream(SEED, 0, 1 << 64),
        lambda: Keystream(SEED, 0).words(1 << 33),
        lambda: DiscreteGaussian(15),
        lambda: DiscreteGaussian((1 << 28) + 1),
        lambda: share_variance(0.0, 3),
        lambda: share_variance(math.inf, 3),
        lambda: share_variance(100.0, 0),
        lambda: share_variance(4.0, 8),
        lambda: gaussian_noise(SEED, 0, 4, math.nan),
    ],
)
def test_bad_seeds_and_sizes_are_refused(call: object) -> None:
    """Each has a typed error before any noise is made."""
    with pytest.raises(InvalidInputError):
        call()  # type: ignore[operator]
