"""Local training that hides each single example (`services.privacy.record_level`). Imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from orbitmesh.errors import CancelledError_, InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.shop import Shop
from services.executor.training.terms import check_private_plan, clip_of
from services.privacy.events import RoundEvent
from services.privacy.record_level import Batch, RecordPlan, clipped_gradient_sum, train_privately
from services.training import flat, turns
from services.training.examples import Examples
from services.training.plan import LocalPlan
from services.updates.spans import Floats


def record_plan(spec: training_pb2.TrainingSpec, plan: LocalPlan, examples: int) -> RecordPlan:
    """What the accountant has to know of a node's training.

    Raises:
        InvalidInputError: No noise was ordered, or the plan is one by which examples cannot be hidden.
    """
    check_private_plan(plan)
    if not spec.privacy.noise_multiplier > 0:
        raise InvalidInputError(
            "privacy of records was ordered without noise: the aggregator has to say how much before the first round",
            reason="FAILED_PRECONDITION",
        )
    return RecordPlan(
        clip=clip_of(spec),
        noise_multiplier=spec.privacy.noise_multiplier,
        examples=examples,
        batch_expected=min(plan.batch_size, examples),
        steps=plan.total_steps(examples),
    )


def event_of(plan: RecordPlan, round_index: int, node: str) -> Callable[[int], RoundEvent]:
    """What a round releases, for the number of releases before it that the round has had with other noise."""

    def make(attempt: int) -> RoundEvent:
        return RoundEvent(
            round_index, node, plan.steps, plan.sample_rate, plan.noise_multiplier, plan.clip, attempt=attempt
        )

    return make


def binding_of(weights: bytes, plan: LocalPlan, records: RecordPlan) -> bytes:
    """What the noise of a round is bound to: the same noise on anything else would reveal what they differ in."""
    facts = json.dumps([weights.hex(), asdict(plan), asdict(records)], sort_keys=True)
    return hashlib.sha256(facts.encode()).digest()


def train_records(
    shop: Shop,
    weights: Floats,
    plan: LocalPlan,
    records: RecordPlan,
    seed: bytes,
    *,
    on_step: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Floats:
    """What training adds to weights, with noise that hides each example: float32 of shape (values,).

    The same seed gives the same noise and batches: a node that was killed begins the round anew and ends with the same
    bits on a CPU. It keeps no checkpoint, whose weights would be of noise that is on the disk beside them.

    Args:
        shop: Task and examples.
        weights: The round's, float32 of shape (values,).
        plan: How.
        records: Clip, noise, batches.
        seed: 32 secret bytes of this round and work alone.
        on_step: Told after each step how many are done.
        stopped: Asked after each step; True ends the training.

    Raises:
        InvalidInputError: Examples meet in a layer (`UNSUPPORTED_MODEL`), or the training left the finite numbers.
        CancelledError_: `stopped` said so.
    """
    model = shop.task.model(plan.seed)
    flat.load_flat(model, weights)
    model.to(shop.device).train()
    shard = shop.shard.to(torch.device(shop.device))

    def loss(of: nn.Module, batch: Batch) -> torch.Tensor:
        return shop.task.loss(of, Examples(*batch))

    def step(done: int) -> None:
        on_step(done)
        if done < records.steps and stopped():
            raise CancelledError_(f"the local training was stopped at step {done} of {records.steps}")
        turns.take()

    turns.take()
    with torch.random.fork_rng(devices=[]):
        # Dropout alone draws from it; the noise and the batches never do.
        torch.manual_seed(plan.seed)
        train_privately(
            model, loss, (shard.inputs, shard.targets), records, _optimiser(model, plan), seed, on_step=step
        )
    turns.rest()
    delta = flat.flatten(model) - weights
    if not np.isfinite(delta).all():
        raise InvalidInputError(
            f"the local training diverged: the weights are no longer finite. Lower the learning rate ({plan.lr})",
            reason="NOT_FINITE",
        )
    return delta


def gradient_sum(shop: Shop, weights: Floats, plan: LocalPlan, clip: float) -> Floats:
    """The sum of the clipped gradients of all of a node's examples, downhill: float32 of shape (values,).

    It hides nothing: noise is added to it in shares before anything of it leaves the node.

    Args:
        shop: Task and examples.
        weights: The round's, float32 of shape (values,).
        plan: Whose seed dropout follows from.
        clip: The largest norm of one example's gradient.

    Raises:
        InvalidInputError: Examples meet in a layer (`UNSUPPORTED_MODEL`), or a gradient is not finite.
    """
    model = shop.task.model(plan.seed)
    flat.load_flat(model, weights)
    model.to(shop.device).train()
    shard = shop.shard.to(torch.device(shop.device))

    def loss(of: nn.Module, batch: Batch) -> torch.Tensor:
        return shop.task.loss(of, Examples(*batch))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        turns.take()
        sums = clipped_gradient_sum(model, loss, (shard.inputs, shard.targets), clip)
    turns.rest()
    trained = (value for value in model.parameters() if value.requires_grad)
    by_place = {value.data_ptr(): total for value, total in zip(trained, sums, strict=True)}
    parts = []
    for tensor in flat.floating(model).values():
        # Tensors that are not trained stay; names of one tensor move together.
        total = by_place.get(tensor.data_ptr())
        part = torch.zeros_like(tensor) if total is None else -total
        parts.append(part.to("cpu", torch.float32).reshape(-1).numpy())
    return np.concatenate(parts)


def _optimiser(model: nn.Module, plan: LocalPlan) -> torch.optim.Optimizer:
    parameters = [one for one in model.parameters() if one.requires_grad]
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=plan.weight_decay)
    return torch.optim.SGD(parameters, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)
