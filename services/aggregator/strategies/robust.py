"""Trimmed mean and Krum: a minority of nodes may send anything and moves the weights little.

Both count every update the same, since a node could claim any number of examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.aggregator.strategies.base import Each, Matrix, Need, Strategy, not_finite, span_slices, too_few
from services.aggregator.strategies.options import SERVER_RATE, Option
from services.updates.spans import Floats

NODES_MAX = 10_000


class TrimmedMean(Strategy):
    """Per value, the mean without the largest and the smallest ones (Yin et al., 2018, arXiv 1803.01498)."""

    name = "trimmed_mean"
    needs = Need.EACH
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "trim": Option(0.2, 0.0, 0.49, "Share of the updates left out at each end; at least one where it is not 0."),
        "server_lr": SERVER_RATE,
    }

    def trimmed(self, count: int) -> int:
        """Updates left out at each end, of `count`."""
        share = self.options["trim"]
        return max(1, int(share * count)) if share else 0

    def _prepare(self, weights: Floats, contributions: Each) -> None:  # type: ignore[override]
        if contributions.count <= 2 * (cut := self.trimmed(contributions.count)):
            raise too_few(self.name, contributions.count, 2 * cut + 1, f" to leave out {cut} at each end")

    def _combine(self, weights: Floats, contributions: Each, out: Floats) -> None:
        cut, rate = self.trimmed(contributions.count), self.options["server_lr"]
        for where, matrix in checked_spans(self.name, contributions, weights):
            kept = np.sort(matrix, axis=0)[cut : contributions.count - cut]
            out[where] = weights[where] + rate * kept.mean(axis=0, dtype=np.float64)


class Krum(Strategy):
    """The mean of the updates that have the nearest neighbours (Blanchard et al., 2017, arXiv 1703.02757).

    An update's score is the sum of its squared distances to its n - f - 2 nearest ones; the `select` lowest scores are
    averaged: one is Krum, more are Multi-Krum.
    """

    name = "krum"
    needs = Need.EACH
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "byzantine": Option(1, 0, NODES_MAX, "f, nodes that may send anything; needs 2 f + 3 updates.", whole=True),
        "select": Option(1, 1, NODES_MAX, "Updates that are averaged; at most n - f.", whole=True),
        "server_lr": SERVER_RATE,
    }

    def __init__(self, options: Mapping[str, float]) -> None:
        super().__init__(options)
        self._selected: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def _prepare(self, weights: Floats, contributions: Each) -> None:  # type: ignore[override]
        bad, count = int(self.options["byzantine"]), contributions.count
        least = max(2 * bad + 3, bad + int(self.options["select"]))
        if count < least:
            raise too_few(self.name, count, least, f" with byzantine={bad} and select={self.options['select']:g}")
        distances = squared_distances(count, (matrix for _, matrix in checked_spans(self.name, contributions, weights)))
        nearest = np.sort(distances, axis=1)[:, 1 : count - bad - 1]  # the first is the distance to itself
        order = np.argsort(nearest.sum(axis=1), kind="stable")
        self._selected = np.sort(order[: int(self.options["select"])])

    def _combine(self, weights: Floats, contributions: Each, out: Floats) -> None:
        for where, matrix in checked_spans(self.name, contributions, weights):
            mean = matrix[self._selected].mean(axis=0, dtype=np.float64)
            out[where] = weights[where] + self.options["server_lr"] * mean


def squared_distances(count: int, matrices: Iterator[Matrix]) -> npt.NDArray[np.float64]:
    """Squared Euclidean distances between all pairs of `count` vectors that come span by span, of shape (n, n).

    By |a|^2 + |b|^2 - 2 ab in float64. The first vector is taken off all of them, so that what they have in common
    does not cost digits.
    """
    gram = np.zeros((count, count))
    for matrix in matrices:
        wide = matrix.astype(np.float64)
        wide -= wide[:1].copy()
        gram += wide @ wide.T
    norms = np.diag(gram)
    distances: npt.NDArray[np.float64] = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def checked_spans(name: str, each: Each, weights: Floats) -> Iterator[tuple[slice, Matrix]]:
    """Where each span lies, and the updates' values there.

    Raises:
        InvalidInputError: the spans do not fit the weights, or hold NaN or infinity.
    """
    read = each.read()
    for where in span_slices(weights):
        matrix = next(read, None)
        expected = (each.count, where.stop - where.start)
        if matrix is None or matrix.shape != expected or matrix.dtype != np.float32:
            given = "ended" if matrix is None else f"has shape {matrix.shape} and type {matrix.dtype}"
            raise InvalidInputError(f"the span at {where.start} {given}; {name!r} expected {expected} and float32")
        if not np.isfinite(matrix).all():
            raise not_finite(name)
        yield where, matrix
    if next(read, None) is not None:
        raise InvalidInputError(f"{name!r} was given more values than the model has ({weights.size})")
