from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.executor.relay_mesh import Ca
from tests.executor.training.tasks import installed


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("installed")):
        yield


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """The identities of a mesh."""
    return Ca(tmp_path_factory.mktemp("mesh"))
