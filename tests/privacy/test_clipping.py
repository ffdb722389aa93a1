"""Clipping bounds every finite update and refuses the others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orbitmesh.errors import InvalidInputError
from services.privacy.clipping import clip_factor, squared_norm

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def factor_of(update: np.ndarray, clip: float) -> float:
    """By what an update is multiplied, taken in spans as nodes take it."""
    spans = [update[start : start + 64] for start in range(0, len(update), 64)]
    return clip_factor(math.sqrt(sum(squared_norm(span) for span in spans)), clip)


@given(arrays(np.float32, st.integers(0, 200), elements=finite), st.floats(1e-6, 1e6))
@example(np.array([1.4765651e35], np.float32), 1e-6)
@example(np.array([1.476461e35], np.float32), 1e-6)
def test_a_clipped_update_is_no_longer_than_the_clip(update: np.ndarray, clip: float) -> None:
    """The norm in float64 is at most the clip, and hardly less; a short update is left as it is."""
    norm, factor = float(np.linalg.norm(update.astype(np.float64))), factor_of(update, clip)
    clipped = float(np.linalg.norm(update.astype(np.float64) * factor))
    if norm <= clip * (1 - 1e-12):
        assert factor == 1.0
    assert clipped <= clip
    assert clipped == pytest.approx(min(norm, clip), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_with_a_value_that_is_no_number_is_refused_by_its_place(bad: float) -> None:
    """NaN and Inf have the reason NOT_FINITE, and the message says where they are."""
    update = np.ones(10, np.float32)
    update[7] = bad
    with pytest.raises(InvalidInputError, match="value 7") as caught:
        factor_of(update, 1.0)
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_bounds_nothing_is_refused(clip: float) -> None:
    """Zero, negative and infinite clips have a typed error instead of a division by zero."""
    with pytest.raises(InvalidInputError, match="clip"):
        factor_of(np.ones(3, np.float32), clip)
