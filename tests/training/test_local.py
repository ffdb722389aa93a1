"""A node's part of a round, compared with plain torch loops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from orbitmesh.errors import CancelledError_, IntegrityError, InvalidInputError
from services.training import checkpoint, flat
from services.training.checkpoint import Checkpoint
from services.training.examples import Examples
from services.training.images import Digits
from services.training.local import LocalProgress, LocalResult, epoch_order, train_locally
from services.training.plan import LocalPlan
from services.training.task import Task, seeded

PLANS = {
    "sgd": LocalPlan(epochs=2, lr=0.1, seed=4),
    "momentum": LocalPlan(steps=9, lr=0.05, momentum=0.9, weight_decay=0.01, seed=5),
    "prox": LocalPlan(steps=9, lr=0.1, prox_mu=0.7, seed=6),
    "clipped": LocalPlan(steps=9, lr=0.1, gradient_norm=0.5, seed=6),
    "adamw": LocalPlan(epochs=1, optimiser="adamw", lr=0.01, weight_decay=0.1, seed=7),
}


def plain_loop(task: Digits, shard: Examples, weights: np.ndarray, plan: LocalPlan) -> np.ndarray:
    """The same training as torch's manual would write it; the penalty of FedProx is part of the loss."""
    model = task.model(0)
    nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), model.parameters())
    begin = [one.detach().clone() for one in model.parameters()]
    if plan.optimiser == "adamw":
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(), lr=plan.lr, weight_decay=plan.weight_decay
        )
    else:
        optimiser = torch.optim.SGD(
            model.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay
        )
    step = 0
    for epoch in range(plan.epochs or 1_000):
        for rows in epoch_order(len(shard), plan.seed, epoch).split(plan.batch_size):
            if step == plan.steps:
                break
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(shard.inputs[rows]), shard.targets[rows])
            distance = sum(((one - two) ** 2).sum() for one, two in zip(model.parameters(), begin, strict=True))
            (loss + plan.prox_mu / 2 * distance).backward()
            if plan.gradient_norm:
                nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_norm)
            optimiser.step()
            step += 1
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


@pytest.mark.parametrize("name", PLANS)
def test_local_training_is_a_plain_torch_loop(digits: Digits, name: str) -> None:
    """For each optimiser and penalty, the weights after the training are those of a loop without our code."""
    plan = PLANS[name]
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    before = weights.copy()
    result = train_locally(digits, shard, weights, plan)
    assert np.array_equal(weights, before)
    assert result.delta.dtype == np.float32
    assert result.examples == 180
    assert result.steps == plan.total_steps(180)
    np.testing.assert_allclose(weights + result.delta, plain_loop(digits, shard, weights, plan), atol=2e-6)


def test_a_pass_takes_every_example_once() -> None:
    """The order of a pass is a permutation, another one in each pass and for each seed."""
    orders = [epoch_order(100, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(torch.equal(order.sort().values, torch.arange(100)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


class Dropping(Digits):
    """Digits with dropout, batch norm and an integer buffer: everything that has a state of its own."""

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


def same(one: LocalResult, two: LocalResult) -> bool:
    """Whether all bits of two results are equal."""
    return np.array_equal(one.delta, two.delta) and (one.loss, one.steps) == (two.loss, two.steps)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_training_that_stopped_goes_on_bit_for_bit(tmp_path: Path, name: str, dtype: str) -> None:
    """Stopped between two checkpoints and resumed, it ends as if it had never stopped: dropout and momenta too."""
    task = Dropping()
    plan = replace(PLANS[name], dtype=dtype)
    shard, weights = task.shard(0, 8, seed=1), flat.flatten(task.model(1))
    whole = train_locally(task, shard, weights, plan)
    place = Checkpoint(tmp_path / "round.safetensors", every_steps=2)
    asked = iter(range(100))
    with pytest.raises(CancelledError_):
        train_locally(task, shard, weights, plan, checkpoint=place, stop=lambda: next(asked) >= 5)
    resumed = train_locally(task, shard, weights, plan, checkpoint=place)
    assert resumed.resumed_at == 4
    assert same(whole, resumed)
    again = train_locally(task, shard, weights, plan, checkpoint=place)
    assert again.resumed_at == again.steps
    assert same(whole, again)


def test_a_checkpoint_of_other_work_is_not_used(digits: Digits, tmp_path: Path) -> None:
    """Another plan, other weights or another shard begin anew, and give what they give without the file."""
    place = Checkpoint(tmp_path / "round.safetensors")
    plan = LocalPlan(steps=3)
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    other_shard, other_weights = digits.shard(1, 8, seed=1), flat.flatten(digits.model(2))
    for work in ((shard, weights, replace(plan, seed=9)), (shard, other_weights, plan), (other_shard, weights, plan)):
        train_locally(digits, shard, weights, plan, checkpoint=place)
        result = train_locally(digits, *work, checkpoint=place)
        assert result.resumed_at == 0
        assert same(result, train_locally(digits, *work))


def test_a_damaged_checkpoint_is_refused(digits: Digits, tmp_path: Path) -> None:
    """Cut or overwritten, the file gives a typed error that says to delete it."""
    place = Checkpoint(tmp_path / "round.safetensors")
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    train_locally(digits, shard, weights, LocalPlan(steps=2), checkpoint=place)
    whole = place.path.read_bytes()
    for damage in (b"", whole[:7], whole[:-100], b"\x00" * len(whole), whole.replace(b"work", b"wxrk")):
        place.path.write_bytes(damage)
        with pytest.raises(IntegrityError, match="delete it"):
            train_locally(digits, shard, weights, LocalPlan(steps=2), checkpoint=place)


CHILD = """
import sys, time
from pathlib import Path
import torch
from services.training import flat
from services.training.checkpoint import Checkpoint
from services.training.images import Digits
from services.training.local import train_locally
from services.training.plan import LocalPlan
torch.set_num_threads(1)
task = Digits()
train_locally(task, task.shard(0, 8, seed=1), flat.flatten(task.model(1)), LocalPlan(steps=400, momentum=0.9, lr=0.01),
              checkpoint=Checkpoint(Path(sys.argv[1]), every_steps=1), on_progress=lambda one: time.sleep(0.005))
"""


def test_kill_9_in_the_middle_costs_no_more_than_a_checkpoint(digits: Digits, tmp_path: Path) -> None:
    """A real process is killed while it trains; another goes on from its file and ends with the same bits."""
    path = tmp_path / "round.safetensors"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not path.exists():
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    step = checkpoint.read(path).step
    assert 0 < step < 400
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    plan = LocalPlan(steps=400, momentum=0.9, lr=0.01)
    resumed = train_locally(digits, shard, weights, plan, checkpoint=Checkpoint(path, every_steps=400))
    assert resumed.resumed_at == step
    assert same(resumed, train_locally(digits, shard, weights, plan))


def test_momenta_can_go_on_into_the_next_round(digits: Digits, tmp_path: Path) -> None:
    """Two rounds of three AdamW steps with kept momenta are six steps in one go, on the same batches."""
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    whole_batch = LocalPlan(steps=3, batch_size=180, optimiser="adamw", lr=0.01, keep_optimiser=True)
    one = Checkpoint(tmp_path / "0.safetensors")
    first = train_locally(digits, shard, weights, whole_batch, checkpoint=one, optimiser_from=tmp_path / "none")
    between = weights + first.delta
    second = train_locally(digits, shard, between, whole_batch, optimiser_from=one.path)
    expected = plain_loop(digits, shard, weights, replace(whole_batch, steps=6))
    np.testing.assert_allclose(between + second.delta, expected, atol=1e-5)
    forgetful = train_locally(digits, shard, between, replace(whole_batch, keep_optimiser=False))
    assert np.abs(between + forgetful.delta - expected).max() > 1e-3


def test_kept_momenta_of_another_model_are_refused(digits: Digits, tmp_path: Path) -> None:
    """Momenta that do not fit give a typed error, not a crash in the optimiser."""
    other = Dropping()
    place = Checkpoint(tmp_path / "0.safetensors")
    plan = LocalPlan(steps=2, optimiser="adamw", lr=0.01, keep_optimiser=True)
    train_locally(other, other.shard(0, 8, seed=1), flat.flatten(other.model(1)), plan, checkpoint=place)
    with pytest.raises(InvalidInputError, match="does not fit"):
        train_locally(
            digits, digits.shard(0, 8, seed=1), flat.flatten(digits.model(1)), plan, optimiser_from=place.path
        )


def test_progress_and_stop_are_asked_at_each_step(digits: Digits) -> None:
    """Progress counts every step with its loss; a stop ends the training before the next one with a typed error."""
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    seen: list[LocalProgress] = []
    result = train_locally(digits, shard, weights, LocalPlan(epochs=1), on_progress=seen.append)
    assert [one.step for one in seen] == [1, 2, 3, 4, 5, 6]
    sizes = [32] * 5 + [20]
    mean = sum(one.loss * size for one, size in zip(seen, sizes, strict=True)) / 180
    assert result.loss == pytest.approx(mean)
    with pytest.raises(CancelledError_, match="step 2 of 6"):
        train_locally(digits, shard, weights, LocalPlan(epochs=1), on_progress=seen.append, stop=lambda: len(seen) == 8)


def test_a_loss_that_is_no_number_ends_the_training(digits: Digits) -> None:
    """A learning rate that blows the weights up is refused with the step at which it happened."""
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    with pytest.raises(InvalidInputError, match="learning rate") as caught:
        train_locally(digits, shard, weights, LocalPlan(steps=500, lr=1e5, weight_decay=1e5))
    assert caught.value.reason == "NOT_FINITE"
    assert int(caught.value.metadata["step"]) > 0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_learns_about_the_same(digits: Digits, dtype: str) -> None:
    """Under autocast the update is close to that in float32, is not equal to it, and weights stay float32."""
    shard, weights = digits.shard(0, 8, seed=1), flat.flatten(digits.model(1))
    full = train_locally(digits, shard, weights, LocalPlan(epochs=2, lr=0.1))
    half = train_locally(digits, shard, weights, LocalPlan(epochs=2, lr=0.1, dtype=dtype))
    assert half.delta.dtype == np.float32
    gap = np.linalg.norm(half.delta - full.delta) / np.linalg.norm(full.delta)
    assert 0 < gap < 0.1


def test_an_empty_shard_is_refused(digits: Digits) -> None:
    """A node without examples has no part in a round."""
    with pytest.raises(InvalidInputError, match="empty"):
        train_locally(digits, digits.held_out().span(0, 0), flat.flatten(digits.model(1)), LocalPlan(steps=1))


@pytest.mark.soak
def test_the_small_language_model_learns() -> None:
    """A few steps of AdamW bring the loss on held-out text well under that of a fresh model."""
    from services.training.language import PyDocSmall

    task: Task = PyDocSmall()
    model = task.model(1)
    weights = flat.flatten(model)
    held_out = task.held_out().span(0, 8)
    with torch.no_grad():
        before = float(task.loss(model, held_out))
    plan = LocalPlan(steps=12, batch_size=8, optimiser="adamw", lr=3e-3)
    flat.load_flat(model, weights + train_locally(task, task.shard(0, 4, seed=1), weights, plan).delta)
    with torch.no_grad():
        assert float(task.loss(model, held_out)) < before - 1.0
