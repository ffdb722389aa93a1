"""Clipping bounds every finite update and refuses the others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orbitmesh.errors import InvalidInputError
from services.privacy.clipping import clip_factor, clip_update, squared_norm

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(arrays(np.float32, st.integers(0, 200), elements=finite), st.floats(1e-6, 1e6))
@example(np.array([1.4765651e35], np.float32), 1e-6)
@example(np.array([1.476461e35], np.float32), 1e-6)
def test_a_clipped_update_points_the_same_way_and_is_no_longer_than_the_clip(update: np.ndarray, clip: float) -> None:
    """The norm in float64 is at most the clip; a short update comes back unchanged; the true norm is told."""
    clipped, norm = clip_update(update, clip)
    assert norm == pytest.approx(float(np.linalg.norm(update.astype(np.float64))), rel=1e-12)
    assert clipped.dtype == np.float32
    if norm <= clip:
        assert np.array_equal(clipped, update)
    else:
        assert float(np.linalg.norm(clipped.astype(np.float64))) <= clip
        wanted = update.astype(np.float64) * (clip / norm)
        assert np.allclose(clipped, wanted, rtol=1e-5, atol=1e-37)


def test_clipping_span_by_span_is_clipping_the_whole() -> None:
    """Squared norms of spans add up, and one factor for all of them gives what the whole update gives."""
    update = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    spans = [update[start : start + 256] for start in range(0, 1000, 256)]
    factor = clip_factor(math.sqrt(sum(squared_norm(span) for span in spans)), 2.0)
    joined = np.concatenate([span * np.float32(factor) for span in spans])
    assert np.allclose(joined, clip_update(update, 2.0)[0], rtol=1e-6, atol=0)


def test_the_given_update_is_not_changed() -> None:
    """Clipping returns a new array, also where nothing was to be clipped."""
    update = np.array([3.0, 4.0], np.float32)
    for clip in (1.0, 10.0):
        clipped, _ = clip_update(update, clip)
        clipped[:] = 0
    assert update.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_with_a_value_that_is_no_number_is_refused_by_its_place(bad: float) -> None:
    """NaN and Inf have the reason NOT_FINITE, and the message says where they are."""
    update = np.ones(10, np.float32)
    update[7] = bad
    with pytest.raises(InvalidInputError, match="value 7") as caught:
        clip_update(update, 1.0)
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_bounds_nothing_is_refused(clip: float) -> None:
    """Zero, negative and infinite clips have a typed error instead of a division by zero."""
    with pytest.raises(InvalidInputError, match="clip"):
        clip_update(np.ones(3, np.float32), clip)
