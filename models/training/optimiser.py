"""Muon for the matrices inside the layers and AdamW for the rest, as one optimiser with one schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's quintic iteration (Jordan et al., 2024), which pushes singular values towards 1."""

NEWTON_SCHULZ_STEPS = 5
"""Iterations of it; five bring the singular values into about 0.7 to 1.2."""

MOMENTUM = 0.95

UPDATE_RMS = 0.4
"""Root mean square of a Muon update before the learning rate: AdamW's rates then fit (arXiv 2502.16982)."""

WEIGHT_DECAY = 0.3
"""Per step, times the learning rate; a text seen many times wants several times the usual 0.1
(arXiv 2509.14786)."""

WARMUP_STEPS = 40
"""Steps over which the learning rate rises from zero."""

DECAY_SHARE = 0.2
"""Part of the steps, at the end, over which the learning rate falls to zero."""


def decay_start(steps: int) -> int:
    """The step, counted from 0, at which the learning rate starts to fall in a training of `steps` steps."""
    return steps - math.ceil(steps * DECAY_SHARE)


def steps_from_decay_start(step: int) -> int:
    """The least number of steps whose decay starts at `step`: the inverse of `decay_start`."""
    steps = step + 1
    while decay_start(steps) < step:
        steps += 1
    return steps


def rate_share(step: int, steps: int) -> float:
    """Learning rate over its peak, at a step counted from 0, in a training of `steps` steps.

    A warm-up, a level stretch, a straight fall. Until the fall starts, it does not depend on `steps`
    (arXiv 2404.06395), so a training told to end while it runs is still the training of some number of steps.
    """
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    return rise * min(1.0, (steps - step) / (steps - decay_start(steps)))


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly; of shape (matrices, rows, columns), in bfloat16."""
    first, second, third = NEWTON_SCHULZ
    tall = update.shape[-2] > update.shape[-1]
    x: torch.Tensor = update.mT if tall else update
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix; a parameter of three dimensions is a stack of matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM)  # Nesterov
                stacked = update if update.ndim == 3 else update.unsqueeze(0)
                scale = UPDATE_RMS * math.sqrt(max(stacked.shape[-2:]))
                parameter.mul_(1 - group["lr"] * WEIGHT_DECAY)
                parameter.add_(orthogonalised(stacked).view_as(parameter), alpha=-group["lr"] * scale)


class Optimiser:
    """Both optimisers under one learning rate."""

    def __init__(self, model: nn.Module, peak_lr: float) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inside = ".layers." in name and parameter.ndim >= 2 and not name.endswith("gate.weight")
            (matrices if inside else rest).append(parameter)
        plain = [parameter for parameter in rest if parameter.ndim < 2]
        tables = [parameter for parameter in rest if parameter.ndim >= 2]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": tables, "weight_decay": WEIGHT_DECAY}]
        self._both = (Muon(matrices, peak_lr), torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95)))
        self._peak_lr = peak_lr

    def step(self, share: float) -> None:
        """Apply the gradients at `share` of the peak rate and forget them."""
        for optimiser in self._both:
            for group in optimiser.param_groups:
                group["lr"] = self._peak_lr * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
