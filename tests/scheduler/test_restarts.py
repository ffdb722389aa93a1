"""A scheduler that is killed and started again: what it had said holds, and what it was doing is done."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from orbitmesh import Mesh
from orbitmesh.errors import MeshError
from orbitmesh.results import Progress
from orbitmesh.v1 import scheduler_pb2
from tests.mesh.support import Model, deployed, until
from tests.scheduler.conftest import nodes, scheduler_of, standbys


def test_deployments_standbys_and_versions_survive(mesh: Mesh, tmp_path: Path, tiny: Model) -> None:
    """The same pipeline, standbys and version, still ready; a replacement made before the kill is still made."""
    with deployed(mesh, tiny, "kept", stages=2, standbys=1, kv_tokens=256):
        with scheduler_of(mesh, tmp_path) as scheduler:
            # Nodes that have just joined may not have measured the links yet that a standby needs.
            until(lambda: set(standbys(scheduler.deployment("kept"))) == {0, 1}, "both have a standby", 40)
            first = scheduler.deployment("kept")
            replaced = scheduler.replace("kept", 0, nodes(first)[0])[-1].deployment
        mesh.local.kill("scheduler")
        mesh.local.restart("scheduler")
        with scheduler_of(mesh, tmp_path) as scheduler:
            after = scheduler.deployment("kept")
            assert nodes(after) == nodes(replaced) != nodes(first)
            assert after.version >= replaced.version
            assert standbys(after)[1] == standbys(first)[1]
            assert after.state == scheduler_pb2.DEPLOYMENT_STATE_READY, "nodes had no time to speak"
            again = scheduler.replace("kept", 0, nodes(first)[0])
            assert nodes(again[-1].deployment) == nodes(replaced)
            until(lambda: set(standbys(scheduler.deployment("kept"))) == {0, 1}, "the used standby is refilled", 40)
            assert nodes(scheduler.deployment("kept")) == nodes(replaced)


@pytest.mark.parametrize("delay_s", [0.05, 0.3])
def test_a_deployment_is_there_and_gets_ready_or_was_never_said_to_be(
    mesh: Mesh, tmp_path: Path, tiny: Model, delay_s: float
) -> None:
    """Killed at some moment of its making: what was stored is loaded to the end, unasked; its caller gets an error."""
    planning = threading.Event()
    said: list[object] = []

    def deploy() -> None:
        try:
            said.append(mesh.deploy(tiny.pack, name="cut", stages=2, kv_tokens=256, on_progress=tell, timeout=60))
        except MeshError as error:
            said.append(error)

    def tell(progress: Progress) -> None:
        if progress.phase == "planning":
            planning.set()

    thread = threading.Thread(target=deploy)
    thread.start()
    try:
        assert planning.wait(60), said
        time.sleep(delay_s)
        mesh.local.kill("scheduler")
        mesh.local.restart("scheduler")
        thread.join(90)
        assert len(said) == 1
        if not isinstance(said[0], MeshError):
            assert "cut" in [each.name for each in mesh.deployments()], "it was said to be there"
        with scheduler_of(mesh, tmp_path) as scheduler:
            for each in [each for each in mesh.deployments() if each.name == "cut"]:
                until(
                    lambda each=each: scheduler.deployment(each.name).state == scheduler_pb2.DEPLOYMENT_STATE_READY,
                    "it is brought up to the end",
                    40,
                )
                assert len(scheduler.deployment("cut").stages) == 2
    finally:
        mesh.delete("cut")


def test_a_plan_may_be_asked_for_right_after_a_restart(mesh: Mesh, tiny: Model) -> None:
    """Nodes have yet to speak to the new process, and to tell it of their links: the plan waits for them by itself."""
    mesh.local.kill("scheduler")
    mesh.local.restart("scheduler")
    nodes_asked = ["sat-1", "sat-2"]
    plan = mesh.plan(tiny.pack, stages=2, nodes=nodes_asked, kv_tokens=64)
    assert sorted(stage.node for stage in plan.stages) == nodes_asked
