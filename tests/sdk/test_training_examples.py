"""The examples in the docstrings of training, carried out on a mesh of real processes, in both faces of the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orbitmesh
from orbitmesh import AsyncMesh, AsyncTraining, Mesh, Training, TrainingStatus
from orbitmesh._loop import LoopThread
from orbitmesh.local import AsyncLocal
from services.training.task import find_task
from tests.sdk.doc_examples import members, show, show_async

WAIT_S = 60.0
ON_A_RUN = ("name", "status", "watch", "wait", "weights", "save_weights", "predict")
"""Methods of a handle whose examples a run that is done answers."""
OF_A_RUN = ("TrainingSpec", "TrainingNode", "TrainingContribution", "TrainingRound", "TrainingStatus", "SavedWeights")
"""Values whose examples such a run has."""


def scope_of(mesh: Any) -> dict[str, Any]:
    """The names that the examples take for granted."""
    return {**vars(orbitmesh), "mesh": mesh, "pictures": find_task("digits").samples(3)[0]}


@pytest.fixture(scope="module")
def local() -> Iterator[AsyncLocal]:
    """Three satellites and a ground node, from `AsyncMesh.local`; tests leave no run behind."""
    loop, mesh = LoopThread(), AsyncMesh.local(nodes=4)
    loop.run(lambda: mesh.open())
    yield mesh.local
    loop.run(lambda: mesh.close())
    loop.stop()


def test_the_examples_of_training_do_what_they_show(
    local: AsyncLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of a run's life: begun, watched, asked, gone on with, cancelled, deleted; one with privacy for the
    ledger, one of each other kind."""
    monkeypatch.chdir(tmp_path)
    with Mesh.connect(local.gateway, identity=local.identity) as mesh:
        scope = scope_of(mesh)
        show(scope, Training, *members(Mesh, "training", "trainings"), *members(Training, *ON_A_RUN))
        show(scope, *(getattr(orbitmesh, name) for name in OF_A_RUN), *members(TrainingStatus, "ended"))
        show(scope, *members(Training, "resume", "cancel", "delete"))
        show(scope, orbitmesh.Privacy)
        mesh.training("run").wait(timeout=WAIT_S)
        scope["training"] = mesh.training("run")
        show(scope, *members(Training, "ledger"), orbitmesh.Ledger, orbitmesh.LedgerEntry)
        for begins in (orbitmesh.LocalTraining, orbitmesh.SecureSums):
            mesh.training("run").delete()
            show(scope, begins)
            mesh.training("run").wait(timeout=WAIT_S)
        mesh.training("run").delete()
        show(scope, *members(Mesh, "train"))
        for run in mesh.trainings():
            mesh.training(run.name).delete()


async def test_the_examples_of_asyncio_do_what_they_show(
    local: AsyncLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same life."""
    monkeypatch.chdir(tmp_path)
    async with AsyncMesh.connect(local.gateway, identity=local.identity) as mesh:
        scope = scope_of(mesh)
        await show_async(scope, AsyncTraining, *members(AsyncMesh, "training", "trainings"))
        await show_async(scope, *members(AsyncTraining, *ON_A_RUN, "resume", "cancel", "delete"))
        await show_async(scope, *members(AsyncMesh, "train"))
