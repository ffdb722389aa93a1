"""Tasks that `bench/train.py` installs on its local mesh, as any package does: through its entry points.

Three have nothing but a size: a perceptron on the small digits, so wide that it has so many values. One is MNIST-5k
with a linear model, which noise hurts less than a network of 56,970 values.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from services.training.images import CLASSES, Digits, Mnist5k
from services.training.task import seeded

PIXELS = 64


class Wide(Digits):
    """A perceptron with one hidden layer of `hidden` units: 75 values for each of them, and 10."""

    hidden: ClassVar[int]

    def model(self, seed: int) -> nn.Module:
        """The perceptron, from a seed."""
        with seeded(seed):
            return nn.Sequential(nn.Linear(PIXELS, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))


class Thousands(Wide):
    """99,985 values."""

    hidden = 1_333


class Million(Wide):
    """999,985 values."""

    hidden = 13_333


class Millions(Wide):
    """50,000,035 values: 200 MB in float32."""

    hidden = 666_667


class Linear(Mnist5k):
    """MNIST-5k and a linear model of 7,850 values."""

    def model(self, seed: int) -> nn.Module:
        """The model, from a seed."""
        with seeded(seed):
            return nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES))
