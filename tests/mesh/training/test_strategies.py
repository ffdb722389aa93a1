"""Every strategy over real processes: it learns, and its weights are those of its formula, written down here anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from orbitmesh import LocalTraining, Mesh, Training
from services.training.plan import LocalPlan
from tests.mesh.support import until
from tests.mesh.training.support import (
    ENDED_WITHIN_S,
    Deltas,
    Outer,
    Plain,
    Weights,
    averaging,
    each_once,
    evaluate,
    names,
    task_of,
)

NODES, ROUNDS, SEED = 5, 6, 17
ACCURACY = 0.6
"""Chance is 0.1; all of them get past 0.7 here."""
ROUNDING = 2e-5
"""Six rounds of float32, some of them divided by a small root."""


def adaptive(yogi: bool) -> Outer:
    """FedAdam and FedYogi, as in arXiv 2003.00295, with the defaults of the mesh."""
    rate, beta_1, beta_2, tau = 0.05, 0.9, 0.99, 1e-3
    moments: list[np.ndarray] = []

    def outer(weights: Weights, deltas: Deltas, examples: list[int]) -> np.ndarray:
        mean = np.average(deltas, axis=0, weights=examples)
        first, second = moments or (np.zeros(mean.shape), np.full(mean.shape, tau**2))
        first = beta_1 * first + (1 - beta_1) * mean
        if yogi:
            second = second - (1 - beta_2) * mean**2 * np.sign(second - mean**2)
        else:
            second = beta_2 * second + (1 - beta_2) * mean**2
        moments[:] = [first, second]
        return weights + rate * first / (np.sqrt(second) + tau)

    return outer


def nesterov() -> Outer:
    """DiLoCo's outer step, by torch's own SGD in float64."""
    parameter = torch.nn.Parameter(torch.empty(0))
    made: list[tuple[torch.nn.Parameter, torch.optim.Optimizer]] = []

    def outer(weights: Weights, deltas: Deltas, examples: list[int]) -> np.ndarray:
        if not made:
            begin = torch.nn.Parameter(torch.from_numpy(weights.astype(np.float64)))
            made.append((begin, torch.optim.SGD([begin], lr=0.7, momentum=0.9, nesterov=True)))
        parameter, optimiser = made[0]
        parameter.grad = -torch.from_numpy(deltas.mean(axis=0))
        optimiser.step()
        return parameter.detach().numpy().copy()

    del parameter
    return outer


def trimmed(weights: Weights, deltas: Deltas, examples: list[int]) -> np.ndarray:
    """The mean without the largest and the smallest of five, by scipy."""
    found: np.ndarray = weights + stats.trim_mean(deltas, 0.2, axis=0)
    return found


def krum(weights: Weights, deltas: Deltas, examples: list[int]) -> np.ndarray:
    """The update that is nearest to its 5 - 1 - 2 nearest ones, pair by pair."""
    distances = {(a, b): float(((deltas[a] - deltas[b]) ** 2).sum()) for a, b in combinations(range(len(deltas)), 2)}
    scores = []
    for one in range(len(deltas)):
        mine = sorted(value for pair, value in distances.items() if one in pair)
        scores.append(sum(mine[: len(deltas) - 1 - 2]))
    found: np.ndarray = weights + deltas[int(np.argmin(scores))]
    return found


CASES: dict[str, tuple[dict[str, Any], LocalPlan, Callable[[], Outer]]] = {
    "fedavg": ({}, LocalPlan(epochs=1, lr=0.1), lambda: averaging),
    "fedprox": ({"mu": 0.3}, LocalPlan(epochs=1, lr=0.1, prox_mu=0.3), lambda: averaging),
    "fedadam": ({"server_lr": 0.05}, LocalPlan(epochs=1, lr=0.1), lambda: adaptive(False)),
    "fedyogi": ({"server_lr": 0.05}, LocalPlan(epochs=1, lr=0.1), lambda: adaptive(True)),
    "trimmed_mean": ({"trim": 0.2}, LocalPlan(epochs=1, lr=0.1), lambda: trimmed),
    "krum": ({"byzantine": 1}, LocalPlan(epochs=1, lr=0.1), lambda: krum),
    "diloco": (
        {"inner_steps": 10},
        LocalPlan(steps=10, lr=0.002, optimiser="adamw", keep_optimiser=True),
        nesterov,
    ),
}


@pytest.mark.parametrize("strategy", CASES)
def test_a_strategy_learns_and_is_its_formula(mesh: Mesh, tmp_path: Path, strategy: str) -> None:
    """Six rounds over five nodes with skewed labels get far beyond chance."""
    options, plan, outer = CASES[strategy]
    nodes = names(mesh, NODES)
    local = LocalTraining(epochs=plan.epochs or 0, steps=plan.steps or 0, lr=plan.lr, optimiser=plan.optimiser)
    training = mesh.train(
        f"strategy-{strategy}".replace("_", "-"),
        task="digits", rounds=ROUNDS, nodes=nodes, strategy=strategy, strategy_options=options, local=local,
        seed=SEED, alpha=2.0,
    )  # fmt: skip
    status = training.wait(timeout=ENDED_WITHIN_S)
    each_once(status, nodes)
    plain = Plain(task_of("digits"), NODES, plan, SEED, 2.0, outer(), tmp_path)
    for _ in range(ROUNDS):
        plain.round()
    weights = training.weights()
    assert np.abs(weights - plain.weights).max() <= ROUNDING
    accuracy = status.rounds[-1].figures["accuracy"]
    assert accuracy == evaluate(plain.task, weights, SEED)["accuracy"] > ACCURACY


@contextmanager
def stopped(mesh: Mesh, nodes: list[str]) -> Iterator[None]:
    """The nodes' processes stand still within the block."""
    processes = [mesh.local.processes()[node].pid for node in nodes]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def rounds_pass(training: Training, count: int) -> None:
    """Waits until so many more rounds are done, or all."""
    enough = training.status().rounds_done + count

    def reached() -> bool:
        status = training.status()
        return status.rounds_done >= enough or status.ended

    until(reached, f"round {enough} is done")


def test_a_buffer_takes_late_contributions_and_counts_them_less(mesh: Mesh) -> None:
    """One of four nodes is stopped for some rounds: they close without it, and what it learned from old weights counts
    later, with the weight of its staleness. The weights are those of FedBuff's formula over what was counted."""
    nodes, lazy = names(mesh, 4), names(mesh, 4)[0]
    training = mesh.train(
        "buffered", task="digits", rounds=80, nodes=nodes, strategy="fedbuff", strategy_options={"buffer_size": 3},
        local=LocalTraining(epochs=1, lr=0.1), seed=SEED, evaluate=False, patience_s=30,
    )  # fmt: skip

    def late() -> bool:
        parts = [part for each in training.status().rounds for part in each.contributions]
        return any(part.node == lazy and part.staleness >= 2 for part in parts)

    rounds_pass(training, 1)
    # It may be stopped just when it has nothing to do: again, then.
    while not late() and not training.status().ended:
        with stopped(mesh, [lazy]):
            rounds_pass(training, 3)
        rounds_pass(training, 1)
    rounds_pass(training, ROUNDS)
    training.cancel()
    status = training.status()

    plain = Plain(task_of("digits"), len(nodes), LocalPlan(epochs=1, lr=0.1), SEED)
    past = [plain.weights]
    for each in status.rounds[: status.rounds_done]:
        assert len(each.contributions) == 3
        summed = np.zeros(plain.weights.shape)
        for part in each.contributions:
            begun = each.index - part.staleness
            delta = plain.train(nodes.index(part.node), begun, past[begun]).delta
            summed += delta / np.sqrt(1 + part.staleness)
        past.append((past[-1] + summed / len(each.contributions)).astype(np.float32))
    assert np.abs(training.weights() - past[-1]).max() <= ROUNDING * status.rounds_done / ROUNDS
    assert late(), "what the stopped node had begun was never counted"
    assert evaluate(plain.task, past[-1], SEED)["accuracy"] > ACCURACY


def test_what_comes_too_late_for_a_buffer_is_refused_and_its_node_asked_anew(mesh: Mesh) -> None:
    """Buffers of two among four nodes that take no stale contribution: whoever is late begins again, and counts."""
    nodes = names(mesh, 4)
    training = mesh.train(
        "fresh-only", task="digits", rounds=40, nodes=nodes, strategy="fedbuff",
        strategy_options={"buffer_size": 2, "max_staleness": 0}, seed=SEED, evaluate=False,
    )  # fmt: skip
    rounds_pass(training, 1)
    with stopped(mesh, nodes[:2]):
        rounds_pass(training, 3)
    with stopped(mesh, nodes[2:]):
        rounds_pass(training, 3)
    status = training.wait(timeout=ENDED_WITHIN_S)
    assert status.state == "done"
    assert [[part.staleness for part in each.contributions] for each in status.rounds] == [[0, 0]] * 40
    assert {part.node for each in status.rounds for part in each.contributions} == {*nodes}
