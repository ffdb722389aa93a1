"""One rank of torch's own data-parallel training; run by a test, knows nothing of ours but the models and the data.

    python ddp_worker.py RANK RANKS FOLDER

FOLDER holds `TASK.rows.npy`, the row indices of each rank and step, of shape (ranks, steps, batch); rank 0 writes
`TASK.weights.npy`, the weights after each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from services.training.images import Digits, Images, Mnist5k

LEARNING_RATE = 0.1


def train(task: Images, rows: torch.Tensor, rank: int, ranks: int) -> np.ndarray:
    """The weights after each step, of shape (steps, values)."""
    shard = task.shard(rank, ranks, seed=3)
    module = task.model(5)
    model = DistributedDataParallel(module)
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss_of = nn.CrossEntropyLoss()
    after = []
    for batch in rows:
        optimiser.zero_grad()
        loss_of(model(shard.inputs[batch]), shard.targets[batch]).backward()
        optimiser.step()
        after.append(nn.utils.parameters_to_vector(module.parameters()).detach().numpy().copy())
    return np.stack(after)


def main(rank: int, ranks: int, folder: Path) -> None:
    """Train each task that has rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    for name, kind in (("digits", Digits), ("mnist5k", Mnist5k)):
        rows = torch.from_numpy(np.load(folder / f"{name}.rows.npy")[rank])
        weights = train(kind(), rows, rank, ranks)
        if rank == 0:
            np.save(folder / f"{name}.weights.npy", weights)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
