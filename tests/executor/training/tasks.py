"""Tasks for tests, installed as any package's are: through its entry points."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from services.training.examples import Examples
from services.training.images import CLASSES, Digits
from services.training.task import seeded

ENTRY_POINTS = """[orbitmesh.tasks]
test-wide = tests.executor.training.tasks:Wide
test-slow = tests.executor.training.tasks:Slow
test-broken = tests.executor.training.tasks:Broken
test-mixing = tests.executor.training.tasks:Mixing
"""


class Wide(Digits):
    """Digits with a perceptron of 153,610 values: three spans."""

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, CLASSES))


class Slow(Digits):
    """Digits whose every step takes a while."""

    def loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        time.sleep(0.02)
        return super().loss(model, batch)


class Broken(Digits):
    """Digits that torch cannot train on: the shapes of a product do not fit."""

    def loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        return (batch.inputs @ batch.inputs).sum()


class Mixing(Digits):
    """Digits whose examples meet in a layer."""

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES))


@contextmanager
def installed(directory: Path) -> Iterator[None]:
    """Installs the tasks of this module for this process."""
    info = directory / "orbitmesh_test_tasks-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orbitmesh-test-tasks\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        yield
