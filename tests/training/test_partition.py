"""Splits of a task's examples between nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.training.partition import deal_sections, split

LABELS = np.repeat(np.arange(10), 400)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    nodes=st.integers(1, 12),
    alpha=st.one_of(st.none(), st.floats(0.2, 1000)),
)
def test_every_example_is_in_exactly_one_part(seed: int, nodes: int, alpha: float | None) -> None:
    """Whatever the seed, the nodes and the skew: the parts together are all examples, each once, enough for each."""
    parts = split(LABELS, nodes, seed=seed, alpha=alpha)
    assert len(parts) == nodes
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    assert min(len(part) for part in parts) >= 32
    if alpha is None:
        assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    """Every node works the split out alone, so it has to be the same everywhere."""
    for alpha in (None, 0.5):
        first, again, other = (split(LABELS, 8, seed=seed, alpha=alpha) for seed in (3, 3, 4))
        assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
        assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def mean_entropy(parts: list[np.ndarray]) -> float:
    """Mean entropy of the labels of a part, in nats; log 10 where all ten are equally frequent."""
    entropies = []
    for part in parts:
        share = np.bincount(LABELS[part], minlength=10) / len(part)
        entropies.append(-float((share[share > 0] * np.log(share[share > 0])).sum()))
    return float(np.mean(entropies))


def test_a_smaller_alpha_skews_labels_more() -> None:
    """The labels of a node get fewer as alpha falls, and are as even as in an even split where it is large."""
    falling = [
        np.mean([mean_entropy(split(LABELS, 8, seed=seed, alpha=alpha)) for seed in range(5)])
        for alpha in (1000.0, 1.0, 0.1)
    ]
    assert falling[0] > 0.99 * np.log(10) > falling[1] > falling[2]
    assert falling[2] < 0.6 * np.log(10)


def test_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    """Over many seeds, a node's share of a label has the mean 1/n and the variance (n-1) / n^2 (n alpha + 1)."""
    nodes, alpha = 4, 1.0
    shares = np.array([
        np.bincount(LABELS[part], minlength=10) / 400
        for seed in range(200)
        for part in split(LABELS, nodes, seed=seed, alpha=alpha, least=0)
    ])  # fmt: skip
    assert shares.mean() == pytest.approx(1 / nodes, abs=1e-9)
    assert shares.var() == pytest.approx((nodes - 1) / (nodes**2 * (nodes * alpha + 1)), rel=0.08)


@pytest.mark.parametrize(("nodes", "alpha"), [(126, None), (126, 5.0), (60, 0.001)])
def test_a_split_that_cannot_be_names_nodes_and_alpha(nodes: int, alpha: float | None) -> None:
    """Too many nodes for a batch each, or too sharp a skew: the error says which nodes and which alpha."""
    with pytest.raises(InvalidInputError) as caught:
        split(LABELS, nodes, seed=0, alpha=alpha)
    assert caught.value.metadata["nodes"] == str(nodes)
    assert caught.value.metadata["alpha"] == str(alpha)
    assert str(nodes) in caught.value.message


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    """Alpha is a finite number above zero."""
    with pytest.raises(InvalidInputError, match="alpha"):
        split(LABELS, 2, seed=0, alpha=alpha)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 500), min_size=6, max_size=60), nodes=st.integers(1, 6), seed=st.integers(0, 99))
def test_sections_are_dealt_whole_and_evenly(sizes: list[int], nodes: int, seed: int) -> None:
    """Every section goes to one node, and two nodes differ by no more than the largest section."""
    parts = deal_sections(np.array(sizes), nodes, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(sizes)))
    held = [int(np.array(sizes)[part].sum()) for part in parts]
    assert max(held) - min(held) <= max(sizes)


def test_fewer_sections_than_nodes_are_refused() -> None:
    """A node without a section would have nothing to train on."""
    with pytest.raises(InvalidInputError, match="3 sections"):
        deal_sections(np.array([5, 5, 5]), 4, seed=0)
