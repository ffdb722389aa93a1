"""A run's model answers through the mesh, with the weights of the moment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from orbitmesh import LocalTraining, Mesh
from orbitmesh.errors import InvalidInputError, MeshError
from services.training import flat
from services.training.packaged import read_table
from services.training.task import find_task

NODES = 2


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(nodes=NODES, directory=tmp_path_factory.mktemp("serving")) as local:
        yield local


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return read_table("scikit-learn", "sklearn/datasets/data/digits.csv.gz")[:64, :-1].astype(np.float32)


def test_answers_are_those_of_the_weights(mesh: Mesh, pictures: np.ndarray) -> None:
    """The probabilities that the task's own model gives with the run's weights, whichever shape pictures have; with
    other weights after more rounds other ones; also after the node that answered is gone."""
    run = mesh.train("answering", task="digits", rounds=2, local=LocalTraining(epochs=1, lr=0.1))
    run.wait(timeout=60)
    task = find_task("digits")
    model = task.model(0)

    def expected() -> np.ndarray:
        flat.load_flat(model, run.weights())
        with torch.no_grad():
            return task.predict(model.eval(), torch.from_numpy(pictures)).numpy()

    first = run.predict(pictures)
    assert np.allclose(first, expected(), atol=1e-6) and np.allclose(first.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(run.predict(pictures.reshape(-1, 8, 8)), first)
    run.resume(rounds=4)
    run.wait(timeout=60)
    later = run.predict(pictures)
    assert np.allclose(later, expected(), atol=1e-6) and not np.allclose(later, first, atol=1e-3)
    answered = mesh.training("answering").predict(pictures)
    assert np.array_equal(answered, later)
    mesh.local.kill("sat-1")
    assert np.allclose(run.predict(pictures), later, atol=1e-6)
    mesh.local.restart("sat-1")


def test_what_cannot_be_answered_is_refused_by_name(mesh: Mesh, pictures: np.ndarray) -> None:
    """Pictures of another size, too bright, not finite, none, more than a message holds; a run that is not there."""
    run = mesh.train("refusing", task="digits", rounds=1, local=LocalTraining(steps=1))
    run.wait(timeout=60)
    nan = pictures.copy()
    nan[3, 3] = np.nan
    for bad in (pictures[:, :60], pictures * 100, -pictures - 1, nan, pictures[:0], np.zeros((20_000, 64), np.float32)):
        with pytest.raises(InvalidInputError):
            run.predict(bad)
    with pytest.raises(MeshError) as unknown:
        mesh.training("nobody").predict(pictures)
    assert unknown.value.reason == "NOT_FOUND"
