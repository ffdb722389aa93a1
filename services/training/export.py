"""`python -m services.training.export KIND TASK WEIGHTS.npy OUT`: a run's weights with the names of the task's tensors.

The command `orbitmesh train weights` runs it, so that the base install needs no torch. KIND is `safetensors`, for a
file with the model's whole `state_dict`, or `directory`, for what the task's own `export` writes: a language model in
the layout that the mesh deploys. It writes one line: `{"path": ...}`, or `{"error": {"reason": ..., "message": ...}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from orbitmesh.durable import made_beside, put_in_place
from orbitmesh.errors import InvalidInputError, MeshError
from services.training.arrays import FloatArray
from services.training.flat import load_flat
from services.training.task import Task, find_task

SEED = 0
"""Of the model that takes the weights; nothing of its own first weights stays."""


def write_tensors(task: Task, name: str, weights: FloatArray, path: Path) -> None:
    """The model's `state_dict` with these weights, as safetensors; the file is there whole, or not at all.

    Raises:
        InvalidInputError: The weights are not those of the task's model, or the file cannot be written.
    """
    model = task.model(SEED)
    load_flat(model, weights)
    # safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in model.state_dict().items()}
    try:
        beside = made_beside(path)
        try:
            save_file(tensors, beside, metadata={"format": "pt", "task": name})
            put_in_place(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; give another path") from None


def write_directory(task: Task, name: str, weights: FloatArray, directory: Path) -> None:
    """What the task makes of a trained model.

    Raises:
        InvalidInputError: The task writes none, or the weights are not those of its model.
    """
    export = getattr(task, "export", None)
    if export is None:
        raise InvalidInputError(
            f"the task {name!r} writes no model directory; give NAME.safetensors or NAME.npy",
            reason="FAILED_PRECONDITION",
        )
    model = task.model(SEED)
    load_flat(model, weights)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        export(model, directory)
    except OSError as error:
        raise InvalidInputError(f"cannot write {directory}: {error.strerror}; give another path") from None


def main(arguments: list[str]) -> int:
    """Runs the command line."""
    kind, name, weights, out = arguments
    try:
        task = find_task(name)
        vector = np.load(weights, allow_pickle=False, mmap_mode="r")
        (write_tensors if kind == "safetensors" else write_directory)(task, name, vector, Path(out))
    except MeshError as error:
        sys.stdout.write(json.dumps({"error": {"reason": error.reason, "message": error.message}}) + "\n")
        return 1
    sys.stdout.write(json.dumps({"path": out}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
