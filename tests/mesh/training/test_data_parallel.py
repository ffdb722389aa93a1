"""Synchronous data-parallel training is a run of one full step a round: compared with torch's own over processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh
from services.training import flat
from tests.mesh.training.support import ENDED_WITHIN_S, Weights, each_once, names, task_of

RANKS = Path(__file__).with_name("ddp_ranks.py")
ROOT = Path(__file__).resolve().parents[3]
SEED = 7
ROUNDING = 1e-5
"""What sums of gradients differ by when examples are added in another order, after some steps."""


@dataclass(frozen=True)
class Case:
    name: str
    task: str
    ranks: int
    steps: int
    lr: float
    alpha: float | None = None
    seed: int = SEED

    def sizes(self) -> list[int]:
        task = task_of(self.task)
        return [len(task.shard(each, self.ranks, seed=self.seed, alpha=self.alpha)) for each in range(self.ranks)]


EQUAL = Case("equal", "digits", ranks=2, steps=20, lr=0.5)
UNEQUAL = Case("unequal", "digits", ranks=3, steps=20, lr=0.5, alpha=0.4)
NETWORK = Case("network", "mnist5k", ranks=2, steps=1, lr=0.1)


@pytest.fixture(scope="module")
def theirs(_beside: subprocess.Popen[bytes], mesh: Mesh) -> dict[str, Weights]:
    """The weights after each step of DistributedDataParallel: one process a rank, all-reduce by gloo on loopback."""
    assert _beside.wait(100) == 0
    folder = Path(str(_beside.args[-1]))  # type: ignore[index]
    return {case.name: np.load(folder / f"{case.name}.npy") for case in (EQUAL, UNEQUAL, NETWORK)}


@pytest.fixture(scope="module")
def _beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """Computed while the mesh starts."""
    folder = tmp_path_factory.mktemp("ddp")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    with subprocess.Popen([sys.executable, RANKS, folder], env=environment, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps([asdict(case) for case in (EQUAL, UNEQUAL, NETWORK)]).encode())
        process.stdin.close()
        yield process
        process.kill()


@pytest.mark.parametrize("case", [EQUAL, UNEQUAL], ids=lambda case: str(case.name))
def test_one_full_step_a_round_is_distributed_data_parallel(theirs: dict[str, Weights], mesh: Mesh, case: Case) -> None:
    """After 1, 5 and 20 rounds the weights are those after as many steps of DDP over the same shards."""
    assert (len(set(case.sizes())) == 1) is (case is EQUAL)
    nodes, local = names(mesh, case.ranks), LocalTraining(steps=1, batch_size=2000, lr=case.lr)
    training = mesh.train(
        f"ddp-{case.name}", task=case.task, rounds=1, nodes=nodes, local=local, seed=SEED, alpha=case.alpha,
        evaluate=False,
    )  # fmt: skip
    for rounds in (1, 5, 20):
        if rounds > 1:
            training.resume(rounds=rounds)
        each_once(training.wait(timeout=ENDED_WITHIN_S), nodes)
        difference = np.abs(training.weights() - theirs[case.name][rounds - 1]).max()
        assert difference <= ROUNDING, f"{difference:.2g} after {rounds} rounds"
    assert np.abs(theirs[case.name][19] - theirs[case.name][0]).max() > 0.1, "nothing was learnt that could differ"


def test_a_step_of_a_convolutional_network_is_ddps(theirs: dict[str, Weights], mesh: Mesh) -> None:
    """One round over equal shards of MNIST. Of one step: where two pixels of a max-pooling differ by less than
    rounding, one bit of a weight decides which of them has the gradient, and longer runs part by more than rounding."""
    assert len(set(NETWORK.sizes())) == 1
    nodes, local = names(mesh, NETWORK.ranks), LocalTraining(steps=1, batch_size=4000, lr=NETWORK.lr)
    training = mesh.train("ddp-cnn", task="mnist5k", rounds=1, nodes=nodes, local=local, seed=SEED, evaluate=False)
    each_once(training.wait(timeout=ENDED_WITHIN_S), nodes)
    (after,), before = theirs["network"], flat.flatten(task_of("mnist5k").model(SEED))
    assert np.abs(training.weights() - after).max() <= 1e-6 < 1e-3 < np.abs(after - before).max()
