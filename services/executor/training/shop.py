"""A run's task, examples and model at a node. Lives on the training thread; imports torch."""

from __future__ import annotations

import hashlib

from orbitmesh.v1 import training_pb2
from services.executor.training.work import check_values
from services.privacy.record_level import refuse_mixing_layers
from services.training import flat
from services.training.task import Task, find_task
from services.updates.layout import Layout
from services.updates.spans import Floats


class Shop:
    """What a node trains with in one run.

    Args:
        work: The order with which it takes part.
        device: Where torch computes.

    Raises:
        InvalidInputError: `NOT_FOUND`, the task is not installed; or it has no such shard, or no values to train.
    """

    def __init__(self, work: training_pb2.TrainingWork, device: str) -> None:
        spec = work.spec
        self.device = device
        self.seed = spec.seed
        self.task: Task = find_task(spec.task)
        self.shard = self.task.shard(
            work.node_index, work.nodes, seed=spec.seed, alpha=spec.alpha if spec.HasField("alpha") else None
        )
        model = self.task.model(spec.seed)
        self.values = check_values(flat.count(model))
        self.layout = Layout.of({name: one.numpy(force=True) for name, one in flat.floating(model).items()})

    def initial(self) -> Floats:
        """The weights that the run begins with, float32 of shape (values,)."""
        return flat.flatten(self.task.model(self.seed))

    def refuse_mixing(self) -> None:
        """Refuses a model in which one example's gradient depends on others'.

        Raises:
            InvalidInputError: `UNSUPPORTED_MODEL`, and which layer it is.
        """
        refuse_mixing_layers(self.task.model(self.seed))

    def evaluate(self, weights: Floats) -> dict[str, float]:
        """What weights are worth on what no node trains on.

        Raises:
            InvalidInputError: They do not fit the model, or are not finite (`NOT_FINITE`).
        """
        model = self.task.model(self.seed)
        flat.load_flat(model, weights)
        return self.task.evaluate(model.to(self.device))


def digest(weights: Floats) -> bytes:
    """SHA-256 of weights as they travel: float32, little-endian."""
    return hashlib.sha256(weights.astype("<f4", copy=False).data).digest()
