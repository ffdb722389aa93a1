"""A disk that is full: what cannot be kept is refused by name, and nothing that was acknowledged is lost.

Each service's state lies on a file system of its own that is really full; making those takes root.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orbitmesh import Mesh
from orbitmesh.errors import CapacityError, MeshError
from tests.mesh.support import Model, Models, tokens_of, until

ROOM = "size=24m"
NODE = "ground-1"
SERVICES = ("gateway", "scheduler", "slices", "aggregator", NODE)
CHUNKS = (1 << 16, 512, 1)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a mesh, with a file system of 24 MiB for each service's state."""
    directory = tmp_path_factory.mktemp("full")
    mounted: list[Path] = []
    try:
        for name in SERVICES:
            place = directory / "state" / name
            place.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", ROOM, "tmpfs", str(place)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip("file systems cannot be mounted here: there is no mount")
            if done.returncode:
                pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
            mounted.append(place)
        yield directory
    finally:
        for place in mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def small(disks: Path) -> Iterator[Mesh]:
    with Mesh.local(nodes=1, directory=disks) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("qwen3", seed=5)


@contextmanager
def full(disks: Path, name: str) -> Iterator[None]:
    """While the block runs there is no room for one byte more in the state of a service."""
    filler = disks / "state" / name / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in CHUNKS:
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


def names(mesh: Mesh) -> list[str]:
    return [deployment.name for deployment in mesh.deployments()]


@pytest.mark.parametrize("name", ["gateway", NODE, "scheduler"])
def test_a_deployment_that_cannot_be_kept_somewhere_is_refused_and_leaves_nothing(
    small: Mesh, disks: Path, model: Model, name: str
) -> None:
    """The gateway has no room for the pack, the node for its layers, or the scheduler for the deployment."""
    with full(disks, name), pytest.raises(CapacityError, match=r"room|full"):
        small.deploy(model.pack, name="kept")
    assert names(small) == []


def test_what_was_acknowledged_outlives_full_disks_and_kills(small: Mesh, disks: Path, model: Model) -> None:
    """Deployed, defined and trained with room; then without: refused, one after the other; then every process is
    killed and started again, and what had been acknowledged is there."""
    small.deploy(model.pack, name="kept")
    small.slices.define("kept", template="urllc")
    run = small.train("kept", task="digits", rounds=1)
    run.wait()
    weights = run.weights()
    with full(disks, "scheduler"), pytest.raises(CapacityError, match="full"):
        small.delete("kept")
    assert names(small) == ["kept"], "what could not be deleted is there as before"
    with full(disks, "gateway"), pytest.raises(CapacityError, match="room"):
        tokens_of(small, "kept", [1, 2, 3], 4)
    with full(disks, "slices"), pytest.raises(CapacityError, match="full"):
        small.slices.define("more", template="urllc")
    with full(disks, "aggregator"), pytest.raises(CapacityError, match="full"):
        small.train("more", task="digits", rounds=1)
    for name in ("slices", "scheduler", "aggregator", "gateway", NODE):
        small.local.restart(name)
    until(lambda: names(small) == ["kept"] and _answers(small, model), "the mesh answers again")
    assert [each.name for each in small.slices.list().slices] == ["kept"]
    assert small.training("kept").weights().tobytes() == weights.tobytes()


def _answers(mesh: Mesh, model: Model) -> bool:
    try:
        return tokens_of(mesh, "kept", [1, 2, 3], 4) == model.answer([1, 2, 3], 4)
    except MeshError:
        return False


@pytest.mark.soak
def test_a_run_whose_contributions_cannot_be_kept_goes_on_once_there_is_room(small: Mesh, disks: Path) -> None:
    """The aggregator's disk fills up in the middle: rounds that were done stay done, none is counted twice; with room
    again the run goes on, or has given the round up, pauses and goes on as it is resumed."""
    run = small.train("middle", task="digits", rounds=20)
    until(lambda: run.status().rounds_done >= 2, "two rounds are done")
    with full(disks, "aggregator"):
        before = -1
        while before != (before := run.status().rounds_done):
            time.sleep(3)
    until(lambda: run.status().state != "running", "the run ends or pauses", within_s=300)
    if run.status().state == "paused":
        run.resume()
    status = run.wait()
    assert (status.state, status.rounds_done) == ("done", 20)
    assert [each.index for each in status.rounds] == list(range(20))
