"""A run's weights written with the names of the task's tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from services.training.flat import count, flatten
from services.training.task import find_task


def export(kind: str, task: str, vector: np.ndarray, place: Path, out: str) -> dict[str, Any]:
    """What the program says."""
    np.save(place / "weights.npy", vector)
    command = [sys.executable, "-m", "services.training.export", kind, task, str(place / "weights.npy"), out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == int("error" in said), done.stderr
    return said


@pytest.mark.parametrize("name", ["digits", pytest.param("pydoc-small", marks=pytest.mark.soak)])
def test_tensors_stand_under_the_names_that_torch_gives_them(name: str, tmp_path: Path) -> None:
    """Each is the part of the vector that torch would take for it, tied ones twice."""
    model = find_task(name).model(5)
    vector = flatten(model)
    out = tmp_path / "w.safetensors"
    assert export("safetensors", name, vector, tmp_path, str(out)) == {"path": str(out)}
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "task": name}
        written = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    expected = model.state_dict()
    assert set(written) == set(expected)
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["w.safetensors", "weights.npy"]


def test_a_language_model_becomes_a_directory_that_transformers_loads(tmp_path: Path) -> None:
    """Its weights are the vector, to the bit."""
    model = find_task("pydoc").model(5)
    vector = flatten(model)
    out = tmp_path / "trained"
    assert export("directory", "pydoc", vector, tmp_path, str(out)) == {"path": str(out)}
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert flatten(loaded).tobytes() == vector.tobytes()
    assert (out / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("kind", "task", "values", "reason", "words"),
    [
        ("safetensors", "nothing", 5, "NOT_FOUND", "not installed"),
        ("safetensors", "digits", 5, "INVALID_INPUT", "shape"),
        ("directory", "digits", 4810, "FAILED_PRECONDITION", "no model directory"),
    ],
)
def test_what_does_not_fit_is_a_typed_error(
    kind: str, task: str, values: int, reason: str, words: str, tmp_path: Path
) -> None:
    """A task that is not here, weights of another model, a task that cannot write that; nothing is written."""
    assert count(find_task("digits").model(0)) == 4810
    error = export(kind, task, np.zeros(values, np.float32), tmp_path, str(tmp_path / "out"))["error"]
    assert (error["reason"], words in error["message"]) == (reason, True)
    assert not (tmp_path / "out").exists()
