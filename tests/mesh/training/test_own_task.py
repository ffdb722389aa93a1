"""The page docs/training.md, where it says how to write a task: what stands there, installed on a mesh and trained."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh

pytestmark = pytest.mark.usefixtures("cold")


PAGE = Path(__file__).parents[3] / "docs" / "training.md"
WAIT_S = 60.0


def blocks(language: str) -> list[str]:
    """The blocks of the page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def install(directory: Path) -> None:
    """Puts the page's package where Python finds it, as `pip install` would, without an index."""
    [code] = [block for block in blocks("python") if "class Rain(Task)" in block]
    [project] = blocks("toml")
    table = tomllib.loads(project)["project"]
    (directory / "rain.py").write_text(code)
    info = directory / f"{table['name']}-{table['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {table['name']}\nVersion: {table['version']}\n")
    lines = [f"[{group}]" for group in table["entry-points"]]
    lines += [f"{name} = {target}" for names in table["entry-points"].values() for name, target in names.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def measured(rows: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Three measures, and 1 where their sum is above 0."""
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return np.column_stack([values, values.sum(axis=1) > 0])


def test_the_task_of_the_page_is_trained_by_nodes_that_have_it_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns a rule that the page's class does not know, and its model answers."""
    (tmp_path / "packages").mkdir()
    install(tmp_path / "packages")
    np.save(tmp_path / "mine.npy", measured(400, 1))
    np.save(tmp_path / "held-out.npy", measured(200, 2))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("RAIN_DATA", str(tmp_path))
    with Mesh.local(nodes=2) as mesh:
        run = mesh.train("rain", task="rain", rounds=6, local=LocalTraining(epochs=3, lr=0.2))
        status = run.wait(timeout=WAIT_S)
        assert [each.examples for each in status.nodes] == [400, 400]
        assert status.rounds[-1].figures["accuracy"] > 0.9
        answers = run.predict([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]])
    assert answers.argmax(axis=1).tolist() == [1, 0]
