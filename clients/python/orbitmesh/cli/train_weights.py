"""A run's weights as files: a vector, tensors by name, or a model directory. The last two are the task's to write, in a
process of its own: services are not imported by the SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any

from orbitmesh import Training
from orbitmesh._training import WEIGHTS_DEADLINE_S
from orbitmesh.cli.contacts import need
from orbitmesh.cli.output import plain
from orbitmesh.errors import InternalError, InvalidInputError, error_for

NEEDED_MODULES = ("services.training", "torch", "safetensors")
"""What naming tensors needs beyond the base install."""
WRITE_WAIT_S = 3600.0
"""How long writing them may take, in seconds."""


class Kind(Enum):
    """What is written."""

    VECTOR = "npy"
    TENSORS = "safetensors"
    DIRECTORY = "directory"


def kind_of(out: str) -> Kind:
    """What a path asks for, by its end.

    Raises:
        InvalidInputError: Nothing that is written here, or what it takes is not installed.
    """
    suffix = Path(out).suffix.lower()
    if suffix == ".npy" and not out.endswith("/"):
        return Kind.VECTOR
    if suffix == ".safetensors" and not out.endswith("/"):
        need(NEEDED_MODULES, "writing tensors by name", "mesh")
        return Kind.TENSORS
    if out.endswith("/") or Path(out).is_dir():
        need(NEEDED_MODULES, "writing a model directory", "mesh")
        return Kind.DIRECTORY
    raise InvalidInputError(
        f"--out is {out!r:.120}; give NAME.npy for one vector, NAME.safetensors for tensors by name, or NAME/ for a "
        "model directory"
    )


def fetch(training: Training, out: Path, kind: Kind, timeout: float | None) -> dict[str, Any]:
    """Gets the weights and writes them; what was written, as JSON knows it.

    Raises:
        MeshError: They cannot be had, the task is not installed here or cannot write that, or the place is no good.
    """
    seconds = WEIGHTS_DEADLINE_S if timeout is None else timeout
    if kind is Kind.VECTOR:
        return {"kind": kind.value, **plain(training.save_weights(out, timeout=seconds))}
    task = training.status().spec.task
    with tempfile.TemporaryDirectory(prefix="orbitmesh-weights-") as place:
        saved = training.save_weights(Path(place) / "weights.npy", timeout=seconds)
        _write_named(task, saved.path, out, kind)
    return {"kind": kind.value, "task": task, **plain(saved), "path": str(out)}


def _write_named(task: str, vector: Path, out: Path, kind: Kind) -> None:
    command = [sys.executable, "-P", "-m", "services.training.export", kind.value, task, str(vector), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WRITE_WAIT_S)
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        raise InternalError(f"writing the weights ended with code {done.returncode}: {done.stderr[-2000:]}") from None
    if "error" in said:
        raise error_for(said["error"]["reason"], said["error"]["message"])
