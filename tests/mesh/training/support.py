"""What the tests of training over real processes share: the same run as one loop in the test's own process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitmesh import Mesh
from orbitmesh.training_results import TrainingStatus
from services.executor.training.work import local_seed
from services.training import flat
from services.training.checkpoint import Checkpoint
from services.training.local import LocalResult, train_locally
from services.training.plan import LocalPlan
from services.training.task import Task, find_task

Weights = npt.NDArray[np.float32]

ENDED_WITHIN_S = 60.0
"""How long a run may take; far above what it takes, for machines that are busy."""


Deltas = npt.NDArray[np.float64]
Outer = Callable[[Weights, Deltas, list[int]], npt.NDArray[Any]]
"""From weights of shape (values,), updates of shape (nodes, values) and examples of each to the next weights."""


def averaging(weights: Weights, deltas: Deltas, examples: list[int]) -> npt.NDArray[Any]:
    """Federated averaging: the mean of the updates, each weighted by its node's examples."""
    return weights + np.average(deltas, axis=0, weights=examples)


@dataclass
class Plain:
    """A run without a mesh: every node's training one after the other, and what is made of the updates.

    Local training is the nodes' own code, which has tests of its own; orders, weights on their way, contributions,
    rounds and their sums are what the mesh adds, and none of that is here.
    """

    task: Task
    nodes: int
    plan: LocalPlan
    seed: int = 0
    alpha: float | None = None
    outer: Outer = averaging
    folder: Path | None = None
    """Where momenta are kept between rounds, for a plan that keeps them."""
    weights: Weights = field(init=False)
    rounds: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.weights = flat.flatten(self.task.model(self.seed))
        self._shards = [
            self.task.shard(index, self.nodes, seed=self.seed, alpha=self.alpha) for index in range(self.nodes)
        ]

    @property
    def examples(self) -> list[int]:
        """How many each node has."""
        return [len(shard) for shard in self._shards]

    def train(self, node: int, round_index: int | None = None, weights: Weights | None = None) -> LocalResult:
        """What one node makes of the weights in this round, or of other weights in an earlier one."""
        index = self.rounds if round_index is None else round_index
        plan = self.plan.with_overrides({"seed": local_seed(self.seed, index, node)})
        how: dict[str, Any] = {}
        if plan.keep_optimiser and self.folder is not None:
            how["checkpoint"] = Checkpoint(self.folder / f"{node}-{index}")
            how["optimiser_from"] = self.folder / f"{node}-{index - 1}"
        return train_locally(self.task, self._shards[node], self.weights if weights is None else weights, plan, **how)

    def round(self, nodes: Sequence[int] | None = None) -> Weights:
        """One round: the updates of these nodes, all where none is named, and what is made of them."""
        results = [self.train(node) for node in (range(self.nodes) if nodes is None else nodes)]
        deltas = np.stack([result.delta for result in results]).astype(np.float64)
        self.weights = self.outer(self.weights, deltas, [result.examples for result in results]).astype(np.float32)
        self.rounds += 1
        return self.weights

    def figures(self) -> dict[str, float]:
        """What the weights are worth."""
        return evaluate(self.task, self.weights)


def evaluate(task: Task, weights: Weights, seed: int = 0) -> dict[str, float]:
    """What weights are worth, by the task itself."""
    model = task.model(seed)
    flat.load_flat(model, weights)
    return task.evaluate(model)


@cache
def task_of(name: str) -> Task:
    """An installed task; its data is read once."""
    return find_task(name)


def names(mesh: Mesh, count: int) -> list[str]:
    """Nodes of a mesh, in an order that is not that of their names."""
    return sorted(mesh.local.processes(), reverse=True)[:count]


def digest(weights: Weights) -> str:
    """What names weights to the bit."""
    return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()


def each_once(status: TrainingStatus, nodes: Sequence[str]) -> None:
    """Every round of the run is there once and counts every node once."""
    assert status.state == "done", status.why
    assert [each.index for each in status.rounds] == list(range(status.spec.rounds)) == list(range(status.rounds_done))
    for each in status.rounds:
        assert sorted(each.contributed) == sorted(nodes), each
        assert not each.given_up, each


def kept_by(mesh: Mesh, node: str) -> list[str]:
    """The training runs of which a node keeps anything on its disk."""
    return sorted(path.name for path in (mesh.local.directory / "state" / node / "training").glob("*"))


def spooled(mesh: Mesh, run: str) -> list[Path]:
    """The contributions to a run that are on the aggregator's disk."""
    return sorted((mesh.local.directory / "state" / "aggregator" / run).rglob("*.spans"))
