"""One mesh of real processes for all tests that do not break it, and the models that they use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orbitmesh import Mesh
from tests.mesh.support import Models

NODES = 5
"""Executors of the shared mesh: the deepest tiny model that is cut at every layer has as many layers."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Five nodes, joined directly; tests leave it as they found it."""
    with Mesh.local(nodes=NODES, directory=tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The model in this repository."""
    return Path(__file__).parents[2] / "models" / "pydoc"
