"""How the examples of a task are split between nodes: evenly, or with skewed labels.

A split is a function of its seed: every node works out the whole of it by itself and takes its own part, so nothing
about the data travels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.training.arrays import IndexArray

LEAST_EXAMPLES = 32
"""What every node gets at least, in examples: a batch of the usual size."""

NODES_MAX = 10_000
"""The most nodes that a split is made for."""

DRAWS_MAX = 200
"""How often a skewed split is drawn anew before it is called impossible."""


def split(
    labels: npt.NDArray[np.int64], nodes: int, *, seed: int, alpha: float | None = None, least: int = LEAST_EXAMPLES
) -> list[IndexArray]:
    """The indices of each node's examples: `nodes` sorted int64 arrays in which every example occurs exactly once.

    With an `alpha`, the share of a label that each node gets is drawn from a symmetric Dirichlet distribution
    (Hsu et al., 2019, arXiv 1909.06335, per label as in Yurochkin et al., 2019): 100 is nearly even, 0.1 leaves most
    nodes with one to three labels. The split is drawn again, from the same stream, until every node has `least`.

    Args:
        labels: Label of each example, int64 of shape (examples,).
        nodes: Number of nodes.
        seed: Any integer from 0; the same one gives the same split everywhere.
        alpha: Concentration; None splits at random into parts of equal size.
        least: Examples that every node has to get.

    Raises:
        InvalidInputError: a number is out of range, or there are too few examples for this many nodes and this alpha.
    """
    if not 1 <= nodes <= NODES_MAX:
        raise InvalidInputError(f"nodes is {nodes}; a split needs 1 to {NODES_MAX} of them")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise InvalidInputError(f"alpha is {alpha}; it must be a finite number above 0, or left out for an even split")
    if nodes * least > len(labels):
        raise _too_few(len(labels), nodes, alpha, least)
    rng = np.random.default_rng(seed)
    if alpha is None:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), nodes)]
    for _ in range(DRAWS_MAX):
        parts = _skewed(labels, nodes, alpha, rng)
        if min(len(part) for part in parts) >= least:
            return parts
    raise _too_few(len(labels), nodes, alpha, least)


def _skewed(labels: npt.NDArray[np.int64], nodes: int, alpha: float, rng: np.random.Generator) -> list[IndexArray]:
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(nodes, alpha))
        ends = np.rint(np.cumsum(shares) * len(rows)).astype(np.int64)
        ends[-1] = len(rows)  # the shares sum to one only up to rounding
        owner[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
    return [np.flatnonzero(owner == node) for node in range(nodes)]


def deal_sections(sizes: npt.NDArray[np.int64], nodes: int, *, seed: int) -> list[IndexArray]:
    """Whole sections for each node: `nodes` sorted int64 arrays in which every section occurs exactly once.

    Sections are dealt largest first to whoever has least so far; equal ones in an order that the seed gives.

    Args:
        sizes: Examples in each section, int64 of shape (sections,).
        nodes: Number of nodes.
        seed: Any integer from 0.

    Raises:
        InvalidInputError: there are fewer sections than nodes.
    """
    if not 1 <= nodes <= min(NODES_MAX, len(sizes)):
        raise InvalidInputError(
            f"{len(sizes)} sections cannot be dealt to {nodes} nodes: use 1 to {min(NODES_MAX, len(sizes))} nodes"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    # Otherwise the first nodes would get the same largest sections whatever the seed.
    seats = rng.permutation(nodes)
    held = np.zeros(nodes, np.int64)
    owner = np.empty(len(sizes), np.int64)
    for section in order:
        seat = int(np.argmin(held))
        owner[section] = seats[seat]
        held[seat] += sizes[section]
    return [np.flatnonzero(owner == node) for node in range(nodes)]


def check_index(index: int, nodes: int) -> None:
    """Whether `index` names one of `nodes` nodes.

    Raises:
        InvalidInputError: it does not.
    """
    if not 0 <= index < nodes:
        raise InvalidInputError(f"there is no shard {index} of {nodes}: shards are counted from 0 to {nodes - 1}")


def _too_few(examples: int, nodes: int, alpha: float | None, least: int) -> InvalidInputError:
    skew = "evenly" if alpha is None else f"with alpha {alpha}"
    advice = "fewer nodes" if alpha is None else "fewer nodes or a larger alpha"
    return InvalidInputError(
        f"{examples} examples cannot be split {skew} so that each of {nodes} nodes gets at least {least}: use {advice}",
        metadata={"examples": examples, "nodes": nodes, "alpha": alpha, "least": least},
    )
