"""Examples to learn from or to be measured on, as two tensors of the same length."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Examples:
    """Some examples of a task."""

    inputs: torch.Tensor
    """What the model sees, of shape (examples, ...)."""
    targets: torch.Tensor
    """What it should say, of shape (examples, ...), int64."""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: torch.Tensor) -> Examples:
        """The examples at `rows`, int64 of shape (count,)."""
        return Examples(self.inputs[rows], self.targets[rows])

    def span(self, start: int, stop: int) -> Examples:
        """The examples from `start` up to `stop`, without a copy."""
        return Examples(self.inputs[start:stop], self.targets[start:stop])

    def to(self, device: torch.device) -> Examples:
        """The same on another device."""
        return Examples(self.inputs.to(device), self.targets.to(device))
