"""Gradients that hide single examples: DP-SGD (Abadi et al. 2016), for one node's local run.

Each example's own gradient is clipped, the clipped ones are summed, noise of `clip` times the multiplier is added, and
the sum is divided by the batch size that is *expected*: the actual one is not public. Batches are Poisson samples, as
the accountant assumes: each example is in each batch by a chance of its own, and a batch may be empty. Noise and
samples come from a keystream, not from torch's generator, whose state can be told from its output.

The loss takes a batch and returns its mean, as every task's does; it is called with one example at a time under
`torch.func.vmap`. A layer in which examples meet, such as BatchNorm, has no gradient of one example and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from orbitmesh.errors import InvalidInputError
from services.privacy.events import Release
from services.privacy.keystream import Keystream

Batch = tuple[Tensor, ...]
"""Tensors with one row for each example."""
LossFn = Callable[[nn.Module, Batch], Tensor]
"""The mean loss of a batch, shape ()."""
_Gradients = Callable[[dict[str, Tensor], Batch], dict[str, Tensor]]

_PER_EXAMPLE_VALUES_MAX = 1 << 25
"""Values of single gradients held at once: 128 MiB in float32. Larger batches are taken in parts."""
_PURPOSE_SAMPLE, _PURPOSE_NOISE = 0x73616D70, 0x67726164
_ROUND_DOWN = 1.0 - 2.0**-20
"""Scaled gradients are float32: without this their norm could end a rounding above the clip."""
_MIXING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers in which examples meet: in the batch's mean, or in running averages, which would leave without noise."""


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """How one node trains so that its examples stay hidden.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    clip: float
    """The largest norm of one example's gradient."""
    noise_multiplier: float
    """Standard deviation of the noise, in clips."""
    examples: int
    """How many the node holds."""
    batch_expected: int
    """Examples in a batch on average; their share of all is the sample rate."""
    steps: int
    """Batches."""

    def __post_init__(self) -> None:
        _check_noise(self.clip, self.noise_multiplier)
        if not (1 <= self.batch_expected <= self.examples and self.steps >= 0):
            raise InvalidInputError(
                f"expected a batch of 1 to {self.examples} examples and no negative steps, got a batch of "
                f"{self.batch_expected} and {self.steps} steps"
            )

    @property
    def sample_rate(self) -> float:
        """The chance of each example to be in each batch."""
        return self.batch_expected / self.examples

    def release(self) -> Release:
        """What the accountant has to know about the whole plan."""
        return Release(self.noise_multiplier, self.sample_rate, self.steps)


def refuse_mixing_layers(model: nn.Module) -> None:
    """Raises for a model in which one example's gradient depends on the others of its batch.

    Raises:
        InvalidInputError: Names the first such layer (`UNSUPPORTED_MODEL`).
    """
    for name, module in model.named_modules():
        if isinstance(module, _MIXING) and (
            module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            raise InvalidInputError(
                f"layer {name or 'the model itself'!r} is a {type(module).__name__}: examples meet in it, so that "
                "none can be hidden alone; use GroupNorm or LayerNorm in its place",
                reason="UNSUPPORTED_MODEL",
                metadata={"layer": name},
            )


def sample_batch(seed: bytes, step: int, examples: int, sample_rate: float) -> Tensor:
    """Indices of one Poisson sample, int64, ascending; it may be empty.

    Args:
        seed: 32 secret bytes: who knows a sample knows whom the noise does not hide.
        step: Which sample of this seed.
        examples: How many there are.
        sample_rate: The chance of each.
    """
    chosen = Keystream(seed, _PURPOSE_SAMPLE, step).chosen(examples, sample_rate)
    return torch.from_numpy(np.flatnonzero(chosen))


def clipped_gradient_sum(model: nn.Module, loss_fn: LossFn, batch: Batch, clip: float) -> list[Tensor]:
    """The sum of the clipped gradients of all examples, one tensor for each trainable parameter, in their order.

    Without noise it hides nothing: it is for a caller that adds noise in shares before anything leaves the node.

    Args:
        model: Its parameters with `requires_grad` are differentiated; it is not changed.
        loss_fn: The mean loss of a batch.
        batch: Shape (n, ...) each; n may be 0.
        clip: The largest norm of one example's gradient over all parameters together.

    Raises:
        InvalidInputError: The model mixes examples, the clip is not above 0, the rows of the batch differ in number, a
            gradient is NaN or infinite (`NOT_FINITE`), or the model has nothing to train.
    """
    refuse_mixing_layers(model)
    _check_noise(clip, 0.0)
    if not batch or len({len(part) for part in batch}) != 1:
        raise InvalidInputError(f"a batch has tensors of equally many rows, not {[len(part) for part in batch]}")
    holder = _Loss(model, loss_fn)
    trained = {name: value.detach() for name, value in holder.named_parameters() if value.requires_grad}
    if not trained:
        raise InvalidInputError("the model has no trainable parameter")
    fixed = {name: value.detach() for name, value in holder.named_parameters() if not value.requires_grad}
    fixed |= dict(holder.named_buffers())

    def loss_of_one(values: dict[str, Tensor], example: Batch) -> Tensor:
        rows = tuple(part.unsqueeze(0) for part in example)
        loss: Tensor = functional_call(holder, {**fixed, **values}, (rows,))
        return loss

    gradient_of_one = grad(loss_of_one)
    # Examples draw their own dropout masks.
    each: _Gradients = vmap(gradient_of_one, in_dims=(None, 0), randomness="different")
    sums = [torch.zeros_like(value) for value in trained.values()]
    at_once = max(1, _PER_EXAMPLE_VALUES_MAX // sum(value.numel() for value in trained.values()))
    for start in range(0, len(batch[0]), at_once):
        part = tuple(tensor[start : start + at_once] for tensor in batch)
        try:
            gradients = each(trained, part)
        except RuntimeError:
            # A layer that branches on values, for instance a router of experts, has no vectorised form.
            each = _one_by_one(gradient_of_one)
            gradients = each(trained, part)
        for total, clipped in zip(sums, _clipped(list(gradients.values()), clip), strict=True):
            total += clipped
    return sums


def private_gradient(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Batch,
    *,
    clip: float,
    noise_multiplier: float,
    batch_expected: float,
    stream: Keystream,
) -> list[Tensor]:
    """The noisy mean gradient of one step, one tensor for each trainable parameter, in their order.

    Args:
        model: Its parameters with `requires_grad` are differentiated; it is not changed.
        loss_fn: The mean loss of a batch.
        batch: A Poisson sample; with no rows the gradient is noise alone.
        clip: The largest norm of one example's gradient.
        noise_multiplier: Standard deviation of the noise, in clips.
        batch_expected: The batch size on average, by which the sum is divided.
        stream: Where the noise comes from: one stream for one step.

    Raises:
        InvalidInputError: As `clipped_gradient_sum`; or the noise or the expected size is out of its range.
    """
    _check_noise(clip, noise_multiplier)
    if not (math.isfinite(batch_expected) and batch_expected > 0):
        raise InvalidInputError(f"an expected batch size is above 0, not {batch_expected}")
    noisy = []
    for total in clipped_gradient_sum(model, loss_fn, batch, clip):
        noise = torch.from_numpy(stream.gaussian(total.numel())).reshape(total.shape)
        # In float64 to the end: the noise's low bits must not be lost beside a large sum before they are added.
        mean = (total.double().cpu() + noise * (noise_multiplier * clip)) / batch_expected
        noisy.append(mean.to(total.dtype).to(total.device))
    return noisy


def train_privately(
    model: nn.Module,
    loss_fn: LossFn,
    data: Batch,
    plan: RecordPlan,
    optimizer: torch.optim.Optimizer,
    seed: bytes,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> Release:
    """One node's local run: `plan.steps` noisy steps of the optimiser over Poisson samples.

    Args:
        model: Trained in place.
        loss_fn: The mean loss of a batch.
        data: All examples of the node, one row each.
        plan: Clip, noise, batch and steps.
        optimizer: Of the model's parameters; weight decay and momentum cost no privacy.
        seed: 32 secret bytes of this run alone: noise that is used twice hides nothing.
        on_step: Called with the number of steps done after each.

    Returns:
        What the accountant has to know about it.

    Raises:
        InvalidInputError: As `private_gradient`; or the data has another number of examples than the plan.
    """
    if any(len(part) != plan.examples for part in data):
        raise InvalidInputError(f"the plan is for {plan.examples} examples, the data has {[len(p) for p in data]}")
    trained = [value for value in model.parameters() if value.requires_grad]
    for step in range(plan.steps):
        rows = sample_batch(seed, step, plan.examples, plan.sample_rate)
        gradients = private_gradient(
            model,
            loss_fn,
            tuple(part[rows.to(part.device)] for part in data),
            clip=plan.clip,
            noise_multiplier=plan.noise_multiplier,
            batch_expected=plan.batch_expected,
            stream=Keystream(seed, _PURPOSE_NOISE, step),
        )
        for value, gradient in zip(trained, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
        on_step(step + 1)
    optimizer.zero_grad(set_to_none=True)
    return plan.release()


class _Loss(nn.Module):
    """A loss as a module, so that `functional_call` reaches the model inside it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, batch: Batch) -> Tensor:
        return self._loss_fn(self.model, batch)


def _one_by_one(gradient_of_one: _Gradients) -> _Gradients:
    def each(values: dict[str, Tensor], part: Batch) -> dict[str, Tensor]:
        rows = [gradient_of_one(values, example) for example in zip(*part, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in values}

    return each


def _clipped(gradients: list[Tensor], clip: float) -> list[Tensor]:
    """Sums over the examples of gradients scaled to at most `clip`; each has shape (n, ...)."""
    norms = torch.stack([each.reshape(len(each), -1).double().square().sum(1) for each in gradients]).sum(0).sqrt()
    if not bool(torch.isfinite(norms).all()):
        raise InvalidInputError(
            "the gradient of an example is NaN or infinite, and no clip bounds that: lower the learning rate or look "
            "for damaged examples",
            reason="NOT_FINITE",
        )
    factors = torch.where(norms <= clip, 1.0, clip / norms * _ROUND_DOWN)
    return [torch.tensordot(factors.to(each.dtype), each, dims=1) for each in gradients]


def _check_noise(clip: float, noise_multiplier: float) -> None:
    if not (math.isfinite(clip) and clip > 0):
        raise InvalidInputError(f"a clip is a finite norm above 0, not {clip}: at 0 nothing could be learnt")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise InvalidInputError(f"a noise multiplier is a finite number of at least 0, not {noise_multiplier}")
