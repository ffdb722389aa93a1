"""Tasks and small data for the tests of local training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from services.training.images import Digits, Mnist5k


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def mnist5k() -> Mnist5k:
    return Mnist5k()
