"""Where a node is in its local training, in one file: safetensors, with the numbers beside them as JSON in its header.

The file is replaced whole, so that a crash leaves the one before. It names the work that it belongs to (plan, shard and
first weights); a file of other work is not used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from orbitmesh.durable import put_in_place
from orbitmesh.errors import IntegrityError

HEADER = "orbitmesh.training"
"""The key of the JSON in the safetensors header."""
EVERY_STEPS = 100
"""How often a checkpoint is written unless told otherwise, in steps."""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often local training is written down."""

    path: Path
    """The file; it stays when the training is complete."""
    every_steps: int = EVERY_STEPS
    """Optimiser steps between two checkpoints."""


@dataclass(frozen=True)
class Saved:
    """What a file holds."""

    work: str
    """Digest of the work that it belongs to, in hexadecimal."""
    step: int
    """Optimiser steps done."""
    loss_sum: float
    """Sum of the losses of all examples seen, in the task's unit."""
    seen: int
    """Examples seen, repeats included."""
    model: dict[str, torch.Tensor]
    """The whole `state_dict`."""
    optimiser: dict[int, dict[str, torch.Tensor]]
    """The optimiser's tensors by parameter number and name."""
    scaler: dict[str, float]
    """The gradient scaler's numbers; empty where there is none."""


def write(path: Path, saved: Saved) -> None:
    """Replace the file; durable once this returns."""
    tensors = {f"model.{name}": _own(tensor) for name, tensor in saved.model.items()}
    for number, parts in saved.optimiser.items():
        tensors |= {f"optimiser.{number}.{name}": _own(tensor) for name, tensor in parts.items()}
    values = {
        "work": saved.work, "step": saved.step, "loss_sum": saved.loss_sum, "seen": saved.seen, "scaler": saved.scaler,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    save_file(tensors, beside, metadata={HEADER: json.dumps(values)})
    put_in_place(beside, path)


def read(path: Path) -> Saved:
    """What the file holds, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        IntegrityError: it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        model = {name.removeprefix("model."): one for name, one in tensors.items() if name.startswith("model.")}
        optimiser: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, part = name.split(".", 2)
                optimiser.setdefault(int(number), {})[part] = tensor
        return Saved(
            work=str(values["work"]),
            step=int(values["step"]),
            loss_sum=float(values["loss_sum"]),
            seen=int(values["seen"]),
            model=model,
            optimiser=optimiser,
            scaler={str(name): value for name, value in values["scaler"].items()},
        )
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the training checkpoint {path.name} is damaged ({error}): delete it, and the node's part of the round "
            "begins anew"
        ) from error


def _own(tensor: torch.Tensor) -> torch.Tensor:
    # safetensors refuses tensors that share memory, as tied weights do.
    return tensor.detach().to("cpu", copy=True).contiguous()
