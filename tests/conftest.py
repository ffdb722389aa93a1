"""What holds for every test: how long an example takes says nothing on a machine that others use, too."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from services.runtime.store import Location
    from tests.postgres import Server

settings.register_profile("orbitmesh", deadline=None)
settings.load_profile("orbitmesh")

# What tests import stays until the end: the collector would look at all of torch again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """Everything is imported: what comes now is collected as ever."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Where tests run side by side, all of them do: their meshes are forked from one process of each worker, which has
    imported everything once. A file that is run alone starts its mesh as everybody does."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    from services.localmesh.forks import SUPPORTED, WARM, start_warm

    with tempfile.TemporaryDirectory(prefix="warm-") as directory, pytest.MonkeyPatch.context() as patch:
        if SUPPORTED:
            server = start_warm(Path(directory) / "forks", Path(directory) / "forks.log")
            patch.setenv(WARM, str(Path(directory) / "forks"))
        yield
        if SUPPORTED:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def cold() -> Iterator[None]:
    """For what looks at the processes of a mesh itself: it starts them all, as it does for everybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ORBITMESH_WARM", raising=False)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; each test makes a database of its own in it."""
    from tests.postgres import running

    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where a store keeps its state, one kind after the other, empty."""
    from services.runtime.store import Location

    if request.param == "sqlite":
        return Location(file=tmp_path / "state" / "store.sqlite")
    return Location.parse(request.getfixturevalue("postgres").fresh())
