"""A node's part of a round: from the round's weights through some optimiser steps to an update.

On a CPU with one thread the result is a function of weights, shard and plan; a training that is killed and goes on from
its checkpoint ends with the same bits. torch's random generator is the process's own: two trainings with dropout may
not run in two threads of one process.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from orbitmesh.errors import CancelledError_, IntegrityError, InvalidInputError
from services.training import checkpoint as files
from services.training import flat, turns
from services.training.arrays import FloatArray
from services.training.checkpoint import Checkpoint, Saved
from services.training.examples import Examples
from services.training.plan import LocalPlan
from services.training.task import Task

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LocalProgress:
    """How far a node's part of a round is."""

    step: int
    """Optimiser steps done."""
    steps: int
    """Optimiser steps in all."""
    loss: float
    """Mean loss of the last batch, in the task's unit."""


@dataclass(frozen=True)
class LocalResult:
    """What a node's part of a round gave."""

    delta: FloatArray
    """Weights after the training less those before, float32 of shape (values,)."""
    examples: int
    """Size of the shard: the weight of this update in a mean over nodes."""
    steps: int
    """Optimiser steps done, those before a resume included."""
    resumed_at: int
    """Steps that a checkpoint had already; 0 where the training began anew."""
    loss: float
    """Mean training loss over all examples seen, in the task's unit."""


def epoch_order(examples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order in which one pass takes the examples: a permutation, int64 of shape (examples,)."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(examples))


def train_locally(
    task: Task,
    shard: Examples,
    weights: FloatArray,
    plan: LocalPlan,
    *,
    device: str | torch.device = "cpu",
    on_progress: Callable[[LocalProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
    optimiser_from: Path | None = None,
) -> LocalResult:
    """Train on a shard, each step in a turn of its own (`services.training.turns`).

    Args:
        task: Gives model and loss.
        shard: What this node trains on.
        weights: The round's weights, float32 of shape (values,); not changed.
        plan: How.
        device: Where.
        on_progress: Called after each step.
        stop: Asked before each step; True ends the training.
        checkpoint: Where to write the state down, and to go on from if it is of this same work.
        optimiser_from: With `plan.keep_optimiser`, the finished checkpoint whose momenta this training begins with;
            not there in a node's first round.

    Raises:
        InvalidInputError: `NOT_FINITE`, the loss or the weights left the finite numbers; or the weights, shard or
            momenta do not fit the task.
        CancelledError_: `stop` said so.
        IntegrityError: a checkpoint is damaged.
    """
    if not len(shard):
        raise InvalidInputError("this node's shard is empty: give it examples, or leave it out of the cohort")
    with _own_random(torch.device(device)):
        training = _Training(task, shard, weights, plan, torch.device(device))
        work = _digest(task, shard, weights, plan) if checkpoint is not None else ""
        resumed = checkpoint is not None and training.resume(checkpoint.path, work)
        if not resumed and plan.keep_optimiser and optimiser_from is not None and optimiser_from.exists():
            training.adopt_optimiser(files.read(optimiser_from))
        resumed_at = training.step
        while training.step < training.steps:
            turns.take()
            if stop is not None and stop():
                raise CancelledError_(f"the local training was stopped at step {training.step} of {training.steps}")
            loss = training.one_step()
            done = training.step == training.steps
            if checkpoint is not None and (done or training.step % checkpoint.every_steps == 0):
                turns.rest()
                files.write(checkpoint.path, training.saved(work))
            if on_progress is not None:
                on_progress(LocalProgress(training.step, training.steps, loss))
        turns.rest()
        delta = flat.flatten(training.model)
        np.subtract(delta, weights, out=delta)
    if not np.isfinite(delta).all():
        raise _diverged(training.step, math.nan, plan)
    return LocalResult(delta, len(shard), training.step, resumed_at, training.loss_sum / training.seen)


class _Training:
    """Model, optimiser and how far they are."""

    def __init__(self, task: Task, shard: Examples, weights: FloatArray, plan: LocalPlan, device: torch.device) -> None:
        self._task, self._plan, self._device = task, plan, device
        self.model = task.model(plan.seed)
        flat.load_flat(self.model, weights)
        self.model.to(device).train()
        self._shard = shard.to(device)
        self._parameters = [one for one in self.model.parameters() if one.requires_grad]
        self._begin = [one.detach().clone() for one in self._parameters] if plan.prox_mu else []
        self._optimiser = _optimiser(self._parameters, plan)
        # In half precision small gradients vanish; the scaler multiplies the loss and skips steps that overflow.
        self._scaler = torch.amp.GradScaler(device.type, enabled=plan.dtype == "fp16")
        self._order: tuple[int, torch.Tensor] | None = None
        self.steps = plan.total_steps(len(shard))
        self.step = 0
        self.loss_sum = 0.0
        self.seen = 0

    def one_step(self) -> float:
        """One optimiser step; the mean loss of its batch before it."""
        batch = self._batch()
        # Drawn anew for each step, so that a resumed training needs no state of the generator.
        torch.manual_seed(int(np.random.SeedSequence([self._plan.seed, self.step]).generate_state(1)[0]))
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, _AUTOCAST.get(self._plan.dtype), enabled=self._plan.dtype in _AUTOCAST):
            mean = self._task.loss(self.model, batch)
        loss = float(mean.detach())
        if not math.isfinite(loss):
            raise _diverged(self.step, loss, self._plan)
        torch.autograd.backward(self._scaler.scale(mean))
        self._scaler.unscale_(self._optimiser)
        self._shape_gradients()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.step += 1
        self.loss_sum += loss * len(batch)
        self.seen += len(batch)
        return loss

    def _shape_gradients(self) -> None:
        for parameter, begin in zip(self._parameters, self._begin, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - begin, alpha=self._plan.prox_mu)
        if self._plan.gradient_norm:
            nn.utils.clip_grad_norm_(self._parameters, self._plan.gradient_norm)

    def _batch(self) -> Examples:
        size = self._plan.batch_size
        epoch, position = divmod(self.step, math.ceil(len(self._shard) / size))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self._shard), self._plan.seed, epoch).to(self._device))
        return self._shard.take(self._order[1][position * size : (position + 1) * size])

    def saved(self, work: str) -> Saved:
        """The state, to be written down."""
        state = self._optimiser.state_dict()["state"]
        tensors = {
            int(number): {name: one for name, one in parts.items() if isinstance(one, torch.Tensor)}
            for number, parts in state.items()
        }
        scaler = self._scaler.state_dict()
        return Saved(work, self.step, self.loss_sum, self.seen, self.model.state_dict(), tensors, scaler)

    def resume(self, path: Path, work: str) -> bool:
        """Go on from a file, if it is there and of this work."""
        if not path.exists():
            return False
        saved = files.read(path)
        if saved.work != work:
            return False
        try:
            self.model.load_state_dict(saved.model)
        except RuntimeError as error:
            raise IntegrityError(f"the training checkpoint {path.name} holds another model: delete it") from error
        self.adopt_optimiser(saved)
        self.step, self.loss_sum, self.seen = saved.step, saved.loss_sum, saved.seen
        return True

    def adopt_optimiser(self, saved: Saved) -> None:
        """Take over the momenta of a file, and the scale of gradients."""
        for number, parts in saved.optimiser.items():
            for name, tensor in parts.items():
                fits = number < len(self._parameters) and tensor.shape in ((), self._parameters[number].shape)
                if not fits:
                    raise InvalidInputError(
                        f"the kept optimiser state does not fit this model ({name} of parameter {number} has shape "
                        f"{tuple(tensor.shape)}): delete the node's checkpoints of this run"
                    )
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": saved.optimiser, "param_groups": groups})
        if saved.scaler and self._scaler.is_enabled():
            self._scaler.load_state_dict(saved.scaler)


def _optimiser(parameters: list[nn.Parameter], plan: LocalPlan) -> torch.optim.Optimizer:
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=plan.weight_decay)
    return torch.optim.SGD(parameters, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)


def _digest(task: Task, shard: Examples, weights: FloatArray, plan: LocalPlan) -> str:
    kind = type(task)
    facts = {"task": f"{kind.__module__}:{kind.__qualname__}", "plan": asdict(plan), "shape": list(shard.inputs.shape)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (shard.inputs.numpy(force=True), shard.targets.numpy(force=True), weights):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


@contextmanager
def _own_random(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _diverged(step: int, loss: float, plan: LocalPlan) -> InvalidInputError:
    return InvalidInputError(
        f"the local training diverged at step {step}: the loss or the weights are no longer finite (loss {loss}). "
        f"Lower the learning rate ({plan.lr}), or set gradient_norm",
        reason="NOT_FINITE",
        metadata={"step": step, "loss": loss},
    )
