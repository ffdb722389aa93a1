"""Whole rounds in one process: local training at each node, a strategy over their updates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.aggregator.strategies import Mean, Strategy, parse
from services.training import flat
from services.training.examples import Examples
from services.training.images import Digits, Images, Mnist5k
from services.training.local import epoch_order, train_locally
from services.training.plan import LocalPlan

WORKER = Path(__file__).with_name("ddp_worker.py")
ROOT = Path(__file__).resolve().parents[2]
RANKS, STEPS, BATCH = 2, 12, 32
PLAN = LocalPlan(steps=1, batch_size=BATCH, lr=0.1)


def one_round(
    task: Images, shards: list[Examples], weights: np.ndarray, strategy: Strategy, plan: LocalPlan, round_index: int
) -> np.ndarray:
    """The next weights; every node and round has its own order of examples."""
    plan = plan.with_overrides(strategy.configure(round_index))
    total, weight = np.zeros(weights.shape), 0.0
    for node, shard in enumerate(shards):
        seed = round_index * 1_000 + node
        result = train_locally(task, shard, weights, plan.with_overrides({"seed": seed}))
        counts = strategy.weight(result.examples)
        total, weight = total + counts * result.delta, weight + counts
    return strategy.aggregate(weights, Mean((total / weight).astype(np.float32), weight, len(shards)))


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory: pytest.TempPathFactory, digits: Digits, mnist5k: Mnist5k) -> dict[str, np.ndarray]:
    """The weights after each step of DistributedDataParallel: real processes, all-reduce by gloo on loopback."""
    folder = tmp_path_factory.mktemp("ddp")
    for name, task in (("digits", digits), ("mnist5k", mnist5k)):
        examples = len(task.shard(0, RANKS, seed=3))
        rows = [
            [epoch_order(examples, step * 1_000 + rank, 0)[:BATCH].numpy() for step in range(STEPS)]
            for rank in range(RANKS)
        ]
        np.save(folder / f"{name}.rows.npy", np.array(rows))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(RANKS), str(folder)], env=environment)
        for rank in range(RANKS)
    ]
    try:
        assert [worker.wait(100) for worker in workers] == [0] * RANKS
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return {name: np.load(folder / f"{name}.weights.npy") for name in ("digits", "mnist5k")}


def test_one_local_step_is_distributed_data_parallel(digits: Digits, data_parallel: dict[str, np.ndarray]) -> None:
    """With H = 1 and plain SGD the weights stay those of DistributedDataParallel, step after step."""
    weights, strategy = flat.flatten(digits.model(5)), parse("fedavg")
    shards = [digits.shard(rank, RANKS, seed=3) for rank in range(RANKS)]
    for step, theirs in enumerate(data_parallel["digits"]):
        weights = one_round(digits, shards, weights, strategy, PLAN, step)
        assert np.abs(weights - theirs).max() < 1e-6
    assert np.abs(weights - flat.flatten(digits.model(5))).max() > 1e-2


def test_each_step_of_the_network_is_distributed_data_parallels(
    mnist5k: Mnist5k, data_parallel: dict[str, np.ndarray]
) -> None:
    """From the same weights, a round of one step gives the weights of DistributedDataParallel's step.

    Begun anew at each step: where two pixels of a max-pooling differ by less than rounding, one bit in the weights
    decides which of them has the gradient, and runs that go on by themselves part by more than rounding.
    """
    weights, strategy = flat.flatten(mnist5k.model(5)), parse("fedavg")
    shards = [mnist5k.shard(rank, RANKS, seed=3) for rank in range(RANKS)]
    for step, theirs in enumerate(data_parallel["mnist5k"]):
        ours = one_round(mnist5k, shards, weights, strategy, PLAN, step)
        assert np.abs(ours - theirs).max() < 1e-6 < np.abs(ours - weights).max()
        weights = theirs


def test_fedavg_learns_mnist_in_a_few_rounds(mnist5k: Mnist5k) -> None:
    """Eight nodes with skewed labels get past 85 % of the held-out digits in four rounds of a pass each."""
    shards = [mnist5k.shard(node, 8, seed=1, alpha=0.5) for node in range(8)]
    model = mnist5k.model(1)
    weights, strategy = flat.flatten(model), parse("fedavg")
    plan = LocalPlan(epochs=1, lr=0.05, momentum=0.9)
    for round_index in range(4):
        weights = one_round(mnist5k, shards, weights, strategy, plan, round_index)
    flat.load_flat(model, weights)
    assert mnist5k.evaluate(model)["accuracy"] > 0.85
