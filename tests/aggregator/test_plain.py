"""Sums of contributions that the aggregator may see equal numpy's over the decoded updates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.aggregator.plain import OutlierError, Part, check_span, each_of, mean_of
from services.updates.codec import encode
from services.updates.scheme import Scheme
from services.updates.spans import SPAN_VALUES, span_count

SIZE = 2 * SPAN_VALUES + 777
SCHEMES = ["fp32", "fp16", "int8", "int4", "topk:0.01", "blocks:0.25+int4"]


def parts_of(scheme: Scheme, updates: np.ndarray, weights: list[float]) -> tuple[list[Part], np.ndarray]:
    """Contributions as they lie on disk, and what the encoder says that the other end sees."""
    encoded = [encode(scheme, update, round_index=3, rng=None) for update in updates]
    spans = [[data for _, data in each.spans()] for each in encoded]

    def part(node: int) -> Part:
        def read() -> Iterator[bytes]:
            return iter(spans[node])

        return Part(f"sat-{node}", weights[node], 3, read)

    return [part(node) for node in range(len(updates))], np.stack([each.decoded for each in encoded])


@pytest.mark.parametrize("text", SCHEMES)
def test_the_mean_is_that_of_what_was_decoded(text: str) -> None:
    """Weighted by examples, in every scheme, over vectors of several spans; one by one as well."""
    updates = np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.float32)
    weights = [500.0, 20.0, 1.0, 333.0]
    scheme = Scheme.parse(text)
    parts, decoded = parts_of(scheme, updates, weights)
    mean = mean_of(parts, scheme, np.empty(SIZE, np.float32))
    assert (mean.count, mean.weight) == (4, 854.0)
    assert np.allclose(mean.delta, np.average(decoded.astype(np.float64), axis=0, weights=weights), rtol=0, atol=1e-6)
    each = each_of(parts, scheme, SIZE)
    for _ in range(2):  # strategies read twice
        assert np.array_equal(np.concatenate(list(each.read()), axis=1), decoded)


@pytest.mark.parametrize("factor", [101.0, 1000.0, 1e20])
def test_a_contribution_that_stands_out_is_named(factor: float) -> None:
    """A hundred times the median norm is no training; without it the sum is that of the others."""
    updates = np.random.default_rng(2).standard_normal((5, SIZE)).astype(np.float32)
    updates[3] *= np.float32(factor)
    scheme = Scheme.parse("fp32")
    parts, decoded = parts_of(scheme, updates, [1.0] * 5)
    with pytest.raises(OutlierError) as caught:
        mean_of(parts, scheme, np.empty(SIZE, np.float32))
    assert (caught.value.node, caught.value.reason) == ("sat-3", "NORM_OUTLIER")
    others = [part for part in parts if part.node != "sat-3"]
    mean = mean_of(others, scheme, np.empty(SIZE, np.float32))
    assert np.allclose(mean.delta, np.delete(decoded, 3, axis=0).mean(axis=0), atol=1e-6)


def test_large_but_common_updates_are_taken() -> None:
    """It is the comparison that counts: all a thousand times larger is fine, as is one that is 50 times the others."""
    updates = np.random.default_rng(3).standard_normal((4, SIZE)).astype(np.float32) * 1000
    updates[0] *= 50
    scheme = Scheme.parse("fp32")
    parts, _ = parts_of(scheme, updates, [1.0] * 4)
    assert mean_of(parts, scheme, np.empty(SIZE, np.float32)).count == 4


@pytest.mark.parametrize("text", SCHEMES)
def test_a_span_that_no_encoder_wrote_is_refused_as_it_comes(text: str) -> None:
    """Cut, longer, of another span's size, empty, not finite, or of a span that is not there."""
    scheme = Scheme.parse(text)
    check = check_span(scheme, SIZE, 3)
    update = np.random.default_rng(4).standard_normal(SIZE).astype(np.float32)
    good = [data for _, data in encode(scheme, update, round_index=3, rng=None).spans()]
    for index, data in enumerate(good):
        check(index, memoryview(data))
    for bad in (good[0][:-1], good[0] + b"\0", b"", b"\xff" * len(good[0])):
        with pytest.raises(IntegrityError):
            check(0, memoryview(bad))
    with pytest.raises(InvalidInputError):
        check(span_count(SIZE), memoryview(good[0]))
