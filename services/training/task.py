"""What a task is, and how an installed one is found.

A task is code that the owner of a node has installed there: a package names it in the entry point group
`orbitmesh.tasks`. A run names a task; no code and no data travel.

    [project.entry-points."orbitmesh.tasks"]
    digits = "services.training.images:Digits"
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import ClassVar

import torch
from torch import nn

from orbitmesh.errors import InvalidInputError
from services.training import turns
from services.training.examples import Examples

GROUP = "orbitmesh.tasks"
"""The entry point group."""

EVALUATION_EXAMPLES = 250
"""Examples that a model is measured on at once."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Task(ABC):
    """A model, its data, its loss and its metric. Constructed without arguments; must be cheap until asked for data."""

    metric: ClassVar[str]
    """The key of `evaluate` that a run reports: "accuracy" (more is better) or "loss" (less is better)."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A fresh model in float32 on the CPU; the same seed gives the same weights. Leaves torch's generator as is."""

    @abstractmethod
    def shard(self, index: int, nodes: int, *, seed: int, alpha: float | None = None) -> Examples:
        """What node `index` of `nodes` trains on; `alpha` is the Dirichlet skew of the labels, None an even split.

        Raises:
            InvalidInputError: there is no such shard, or the data cannot be split like that.
        """

    @abstractmethod
    def held_out(self) -> Examples:
        """What the model is measured on: in no shard."""

    @abstractmethod
    def per_example_loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """The loss of each example, float of shape (examples,), with its graph."""

    def loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """The mean loss of a batch, a scalar with its graph."""
        return self.per_example_loss(model, batch).mean()

    def correct(self, model: nn.Module, batch: Examples) -> torch.Tensor | None:
        """Whether the model is right about each example, bool of shape (examples,); None where that has no meaning."""
        return None

    def predict(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """What the model says of inputs as users have them, float of shape (examples, ...); without gradients.

        Args:
            model: In evaluation mode.
            inputs: Float32 of shape (examples, ...), on the model's device.

        Raises:
            InvalidInputError: This task answers no such inputs; or they have another shape, or are not finite.
        """
        raise InvalidInputError(
            f"the task {type(self).__name__} says nothing of single inputs: export its model and deploy it",
            reason="FAILED_PRECONDITION",
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean "loss" over the held-out examples and, where it has a meaning, "accuracy" from 0 to 1."""
        device = next(model.parameters()).device
        examples = self.held_out()
        training = model.training
        model.eval()
        loss, right, judged = 0.0, 0, False
        for start in range(0, len(examples), EVALUATION_EXAMPLES):
            turns.take()
            batch = examples.span(start, start + EVALUATION_EXAMPLES).to(device)
            loss += float(self.per_example_loss(model, batch).double().sum())
            correct = self.correct(model, batch)
            if correct is not None:
                judged, right = True, right + int(correct.sum())
        turns.rest()
        model.train(training)
        figures = {"loss": loss / len(examples)}
        return figures | {"accuracy": right / len(examples)} if judged else figures


def installed_tasks() -> tuple[str, ...]:
    """The names of the tasks installed on this node, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def find_task(name: str) -> Task:
    """The installed task of that name.

    Raises:
        InvalidInputError: `NOT_FOUND`, it is not installed; `FAILED_PRECONDITION`, what is installed is no task.
    """
    points = entry_points(group=GROUP, name=name) if _NAME.fullmatch(name) else ()
    for point in points:
        try:
            task = point.load()()
        except (ImportError, AttributeError, TypeError) as error:
            raise _no_task(name, point.value, str(error)) from error
        if not isinstance(task, Task):
            raise _no_task(name, point.value, f"it is a {type(task).__name__}, not a Task")
        return task
    known = installed_tasks()
    raise InvalidInputError(
        f"the task {name[:64]!r} is not installed on this node; installed are: {', '.join(known) or 'none'}. Install "
        f"the package that names it in the entry point group {GROUP!r}, on every node of the run",
        reason="NOT_FOUND",
        metadata={"installed": ",".join(known)},
    )


def _no_task(name: str, value: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the task {name!r} is installed as {value!r} but cannot be used: {why}; repair or remove its package",
        reason="FAILED_PRECONDITION",
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block in which torch draws from `seed` on the CPU, and after which it goes on as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
