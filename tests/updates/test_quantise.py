"""Quantisers: their promised error, on any data, and no bias where none is promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.updates.integers import (
    MAX_BITS,
    MIN_BITS,
    from_integers,
    largest_integer,
    scale_for,
    to_integers,
)
from services.updates.quantise import BLOCK_VALUES, LEVELS, MAX_MAGNITUDE, from_steps, largest_scale, to_steps

WIDE = st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 600), elements=WIDE | st.floats(-1, 1, width=32), fill=st.just(0.0))
BITS = st.sampled_from(sorted(LEVELS))


def scale_of_each(scales: np.ndarray, count: int) -> np.ndarray:
    """Second opinion on bf16: torch-free, by widening the bits in float64."""
    widened = np.array([np.frombuffer(b"\0\0" + int(s).to_bytes(2, "little"), "<f4")[0] for s in scales], np.float64)
    return np.repeat(widened, BLOCK_VALUES)[:count]


@settings(max_examples=200)
@given(VECTORS, BITS)
def test_rounding_to_nearest_errs_by_half_a_step_at_most(values: np.ndarray, bits: int) -> None:
    """|error| <= scale / 2 for every value of any size, and the scale is at most 1/64 over the least that fits."""
    scales, steps = to_steps(values, bits, None)
    decoded = from_steps(scales, steps, bits)
    each = scale_of_each(scales, values.size)
    exact = values.astype(np.float64)
    assert decoded.dtype == np.float32 and np.isfinite(decoded).all()
    assert (np.abs(decoded.astype(np.float64) - exact) <= each * 0.5 * (1 + 1e-4)).all()
    for block in range(scales.size):
        at = slice(block * BLOCK_VALUES, (block + 1) * BLOCK_VALUES)
        least = np.abs(exact[at]).max() / LEVELS[bits]
        assert each[at][0] <= max(least * (1 + 1 / 64), 2.0**-125)


@settings(max_examples=100)
@given(VECTORS, BITS, st.integers(0, 2**32))
def test_stochastic_rounding_errs_by_a_step_at_most(values: np.ndarray, bits: int, seed: int) -> None:
    """|error| <= scale, whatever is drawn."""
    scales, steps = to_steps(values, bits, np.random.default_rng(seed))
    error = from_steps(scales, steps, bits).astype(np.float64) - values
    assert (np.abs(error) <= scale_of_each(scales, values.size) * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", sorted(LEVELS))
def test_stochastic_rounding_has_no_bias(bits: int) -> None:
    """The mean over many draws is the value: |z| < 4.5 for each of 256 values, and their z are N(0, 1) together."""
    values = np.random.default_rng(1).uniform(-1, 1, BLOCK_VALUES).astype(np.float32)
    rng = np.random.default_rng(2)
    draws = np.stack([from_steps(*to_steps(values, bits, rng), bits) for _ in range(4_000)]).astype(np.float64)
    deviation = draws.std(axis=0) / np.sqrt(len(draws))
    moving = deviation > 0
    z = (draws.mean(axis=0) - values)[moving] / deviation[moving]
    assert moving.sum() > 250
    assert np.abs(z).max() < 4.5
    assert abs(z.mean()) * np.sqrt(z.size) < 4


def test_rounding_to_nearest_is_biased_and_so_the_test_above_can_fail() -> None:
    """The same test on rounding to nearest finds the bias that it has."""
    values = np.full(BLOCK_VALUES, 0.3, np.float32)
    values[0] = 7
    decoded = from_steps(*to_steps(values, 4, None), 4)
    assert (decoded[1:] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(MAX_MAGNITUDE) * np.float32(1.01)])
@pytest.mark.parametrize("bits", sorted(LEVELS))
def test_what_cannot_be_quantised_is_refused(bits: int, bad: float) -> None:
    """One NaN would ruin its whole block without a word."""
    values = np.ones(700, np.float32)
    values[600] = bad
    with pytest.raises(InvalidInputError) as caught:
        to_steps(values, bits, None)
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize("bits", sorted(LEVELS))
@pytest.mark.parametrize("scale", [0x7FC0, 0x7F80, 0xFF80, 0x8000, 0xBF80, 0x0001, "above"])
def test_scales_that_no_encoder_writes_are_refused(bits: int, scale: int | str) -> None:
    """NaN, infinite, negative, minus zero, subnormal, and so large that a step would be infinite."""
    number = largest_scale(bits) + 1 if isinstance(scale, str) else scale
    with pytest.raises(IntegrityError) as caught:
        from_steps(np.array([number], np.uint16), np.ones(3, np.int8), bits)
    assert caught.value.reason == "UPDATE_MALFORMED"
    largest = from_steps(
        np.array([largest_scale(bits)], np.uint16), np.array([LEVELS[bits], -LEVELS[bits]], np.int8), bits
    )
    assert np.isfinite(largest).all()


@pytest.mark.parametrize(("bits", "step"), [(8, -128), (4, -8), (4, 8)])
def test_steps_that_no_encoder_writes_are_refused(bits: int, step: int) -> None:
    """The scales are symmetric: there is no step below the largest one's negative."""
    with pytest.raises(IntegrityError):
        from_steps(np.array([0x3F80], np.uint16), np.array([0, step], np.int8), bits)
    with pytest.raises(IntegrityError):
        from_steps(np.array([0x3F80], np.uint16), np.zeros(257, np.int8), bits)


@given(
    hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-2, 2, width=32)),
    st.integers(MIN_BITS, MAX_BITS),
    st.floats(0.015625, 4, width=32),
)
def test_integers_on_a_shared_scale_err_by_half_of_it_or_are_counted(
    values: np.ndarray, bits: int, largest: float
) -> None:
    """|error| <= scale / 2 for all that fit; the others are the largest integer, and their number is told."""
    scale = scale_for(largest, bits)
    integers, clipped = to_integers(values, scale, bits, None)
    limit = largest_integer(bits)
    assert integers.dtype == np.int32 and np.abs(integers).max(initial=0) <= limit
    fits = np.abs(values.astype(np.float64)) <= (limit + 0.5) * scale
    assert clipped == np.count_nonzero(~fits)
    assert (integers[~fits] == limit * np.sign(values[~fits])).all()
    error = np.abs(integers[fits] * scale - values[fits].astype(np.float64))
    assert (error <= scale * 0.5 * (1 + 1e-9)).all()


def test_a_sum_of_integers_is_the_sum_of_the_values_without_bias() -> None:
    """The mean over many nodes with stochastic rounding is the value: |z| < 4.5 at 8 bits and at 24."""
    values = np.random.default_rng(3).uniform(-1, 1, 200).astype(np.float32)
    for bits in (8, 24):
        scale = scale_for(1.0, bits)
        rng = np.random.default_rng(4)
        nodes = 3_000
        total = np.zeros(values.size, np.int64)
        for _ in range(nodes):
            total += to_integers(values, scale, bits, rng)[0]
        fraction = np.mod(values.astype(np.float64) / scale, 1)
        deviation = np.sqrt(fraction * (1 - fraction) * nodes)
        z = (total - nodes * values.astype(np.float64) / scale)[deviation > 0.5] / deviation[deviation > 0.5]
        assert z.size > 50 and np.abs(z).max() < 4.5
        np.testing.assert_allclose(from_integers(total, scale) / nodes, values, atol=scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-60, 1e30])
def test_scales_that_would_ruin_a_sum_are_refused(scale: float) -> None:
    """Zero, negative, NaN, infinite, or out of float32's range with sums in mind."""
    with pytest.raises(InvalidInputError, match="scale"):
        to_integers(np.ones(3, np.float32), scale, 8, None)
    with pytest.raises(InvalidInputError, match="scale"):
        from_integers(np.ones(3, np.int64), scale)


def test_integers_refuse_what_is_no_number_and_odd_bits() -> None:
    """NaN has no integer, and bits are 2 to 24."""
    with pytest.raises(InvalidInputError) as caught:
        to_integers(np.array([1, np.nan], np.float32), 0.1, 8, None)
    assert caught.value.reason == "NOT_FINITE"
    for bits in (1, 25, -3):
        with pytest.raises(InvalidInputError, match="bits"):
            largest_integer(bits)
