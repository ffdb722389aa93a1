"""torch's own data-parallel training, run by a test; knows nothing of ours but the models and the data.

    python ddp_ranks.py FOLDER < CASES

CASES is a JSON list of `{name, task, ranks, seed, alpha, steps, lr}`; of each, FOLDER gets `NAME.npy`, the weights
after each step, of shape (steps, values). Every rank is a process of its own; a step takes all examples of its shard.
DDP gives the mean of the ranks' gradients, each counting the same: where shards differ in size, a rank's loss is
multiplied by the size of its shard over the mean size, so that the mean is that over all examples.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from services.training.images import Digits, Images, Mnist5k


def train(task: Images, case: dict[str, Any], rank: int) -> np.ndarray:
    """The weights after each step."""
    how = {"seed": case["seed"], "alpha": case["alpha"]}
    shard = task.shard(rank, case["ranks"], **how)
    sizes = [len(task.shard(each, case["ranks"], **how)) for each in range(case["ranks"])]
    module = task.model(case["seed"])
    model = DistributedDataParallel(module)
    optimiser = torch.optim.SGD(model.parameters(), lr=case["lr"])
    loss_of = nn.CrossEntropyLoss()
    after = []
    for _ in range(case["steps"]):
        optimiser.zero_grad()
        (loss_of(model(shard.inputs), shard.targets) * (len(shard) / np.mean(sizes))).backward()
        optimiser.step()
        after.append(nn.utils.parameters_to_vector(module.parameters()).detach().numpy().copy())
    return np.stack(after)


def main(task: Images, case: dict[str, Any], rank: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    store = f"file://{folder}/{case['name']}.store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=case["ranks"])
    weights = train(task, case, rank)
    if rank == 0:
        np.save(folder / f"{case['name']}.npy", weights)
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # Forked, so that torch is imported and data is read once.
    forks, tasks = multiprocessing.get_context("fork"), {"digits": Digits(), "mnist5k": Mnist5k()}
    for case in json.load(sys.stdin):
        task = tasks[case["task"]]
        task.held_out()
        ranks = [forks.Process(target=main, args=(task, case, rank, folder)) for rank in range(case["ranks"])]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(1)
