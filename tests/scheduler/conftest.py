"""Calls to a scheduler as a gateway makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.trust import Role, issue, load_identity
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.mesh.support import Model, Models, channel_to

CALL_S = 30.0


def scheduler_address(mesh: Mesh) -> str:
    """Where the scheduler listens now: the last line of its log that says so."""
    address = ""
    for line in (mesh.local.directory / "logs" / "scheduler.log").read_text().splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "listening":
            address = str(event["address"])
    assert address, "the scheduler never listened"
    return address


class Scheduler:
    """A scheduler's stub with the calls that these tests need."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

    def deployment(self, name: str) -> scheduler_pb2.Deployment:
        return self.stub.GetDeployment(scheduler_pb2.GetDeploymentRequest(name=name), timeout=CALL_S).deployment

    def replace(self, name: str, index: int, node: str, **how: object) -> list[scheduler_pb2.ReplaceStageResponse]:
        request = scheduler_pb2.ReplaceStageRequest(
            request_id="r", deployment=name, stage_index=index, node=node, why="a test", **how
        )
        return list(self.stub.ReplaceStage(request, timeout=CALL_S))


@contextmanager
def scheduler_of(mesh: Mesh, home: Path) -> Iterator[Scheduler]:
    """The mesh's scheduler, called with a gateway's identity."""
    identity = home / "gateway-identity"
    if not identity.exists():
        issue(mesh.local.directory / "ca", Role.GATEWAY, "another", identity)
    with channel_to(scheduler_address(mesh), load_identity(identity), Role.SCHEDULER, "scheduler") as channel:
        yield Scheduler(channel)


def nodes(deployment: scheduler_pb2.Deployment) -> list[str]:
    return [node.name for node in deployment.pipeline]


def standbys(deployment: scheduler_pb2.Deployment) -> dict[int, str]:
    return {each.stage_index: each.node.name for each in deployment.standbys if each.ready}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Models(tmp_path_factory.mktemp("models")).get("llama", num_hidden_layers=4)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Four nodes, joined directly; every test leaves them, and the scheduler, up."""
    with Mesh.local(nodes=4, directory=tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh
