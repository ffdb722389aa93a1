"""A mesh that comes up: what is not known yet is waited for, what is wrong is said at once."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.trust.certificates import Peer
from orbitmesh.v1 import scheduler_pb2
from services.runtime.caller import Call, enter_call
from services.runtime.logs import EventLog
from services.runtime.store import Location
from services.scheduler.deployments import Deployments
from services.scheduler.placement import measuring
from services.scheduler.registry import Registry
from services.scheduler.sky import SkySettings, SkySource
from services.scheduler.store import DeploymentStore
from tests.scheduler.test_registry_and_placement import beat, manifest

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
LONG_S, SHORT_S = 60.0, 0.05
TWO_STAGES = scheduler_pb2.PlanRequest(manifest=manifest().to_bytes(), stages=2)


class Mesh:
    """The scheduler's view of a mesh, as its nodes tell it."""

    def __init__(self, home: Path, lease_s: float) -> None:
        init_mesh(home / "ca", mesh="test")
        issue(home / "ca", Role.SCHEDULER, "scheduler", home / "identity")
        identities, log = IdentitySource(home / "identity"), EventLog("scheduler/test")
        self.registry = Registry(lease_s=lease_s)
        store = DeploymentStore(Location(file=home / "state" / "db"))
        sky = SkySource(SkySettings(), identities, log)
        self.deployments = Deployments(self.registry, store, identities, {}, sky, log)

    def tell(self, name: str, *peers: str, up: bool = True, now_s: float | None = None) -> None:
        links = [scheduler_pb2.LinkMeasure(peer=peer, rtt_ns=40_000_000, rate_bps=1e8, up=up) for peer in peers]
        now_s = time.monotonic() if now_s is None else now_s
        self.registry.heartbeat(name, beat(f"{name}:1", links=links), now_s, time.time_ns())

    async def plan(self, *nodes: str) -> list[str]:
        request = scheduler_pb2.PlanRequest()
        request.CopyFrom(TWO_STAGES)
        request.nodes.extend(nodes)
        return sorted(stage.node for stage in (await self.deployments.plan(request)).stages)


@pytest.fixture
def up_for_long(tmp_path: Path) -> Mesh:
    """A scheduler whose nodes have all had the time to speak to it."""
    mesh = Mesh(tmp_path, SHORT_S)
    time.sleep(2 * SHORT_S)
    mesh.registry.lease_s = LONG_S
    return mesh


async def test_links_that_are_still_to_be_measured_are_waited_for(up_for_long: Mesh) -> None:
    """Two nodes have joined; a plan asked for before they told of their link is made when they have."""
    for name in ("a", "b"):
        up_for_long.tell(name)
    planning = asyncio.create_task(up_for_long.plan())
    await asyncio.sleep(0.6)
    assert not planning.done()
    up_for_long.tell("a", "b")
    up_for_long.tell("b", "a")
    assert await planning == ["a", "b"]


async def test_links_that_were_tried_and_are_down_are_not_waited_for(up_for_long: Mesh) -> None:
    """Both ways were measured: what is down is said to be down at once."""
    up_for_long.tell("a", "b", up=False)
    up_for_long.tell("b", "a", up=False)
    began_s = time.monotonic()
    with pytest.raises(InfeasiblePlanError, match="no ring of links"):
        await up_for_long.plan()
    assert not measuring(up_for_long.registry.up(began_s), float("-inf"))


async def test_a_node_that_nobody_knows_is_an_error_at_once(up_for_long: Mesh) -> None:
    """All who are there have spoken: a name that is wrong is not waited for."""
    up_for_long.tell("a", "b")
    with pytest.raises(InvalidInputError, match="not up: c"):
        await asyncio.wait_for(up_for_long.plan("a", "c"), 5)


async def test_nodes_that_have_not_spoken_to_a_new_scheduler_are_waited_for(tmp_path: Path) -> None:
    """A scheduler that has just begun knows nobody, then one node, then the other with their link."""
    mesh = Mesh(tmp_path, LONG_S)
    planning = asyncio.create_task(mesh.plan("a", "b"))
    await asyncio.sleep(0.3)
    mesh.tell("a")
    await asyncio.sleep(0.3)
    assert not planning.done()
    mesh.tell("b", "a")
    mesh.tell("a", "b")
    assert await planning == ["a", "b"]


async def test_a_caller_hears_why_before_its_time_is_over(tmp_path: Path) -> None:
    """Half of the time that a caller has is for waiting: then it is told what is missing, with time left to hear it."""
    mesh = Mesh(tmp_path, LONG_S)
    began_s = time.monotonic()
    caller = Peer("spiffe://orbitmesh/gateway/g", Role.GATEWAY, "g", datetime.now(UTC), KEY)
    enter_call(Call(caller, "/orbitmesh.v1.SchedulerService/Plan", began_s + 2.0))
    with pytest.raises(InfeasiblePlanError, match="no node is up"):
        await asyncio.wait_for(mesh.plan(), 2.0)
    assert time.monotonic() - began_s > 0.5, "it was waited for"


def test_only_nodes_that_joined_late_have_links_to_measure() -> None:
    """One way told is not both; a node that has been here for long and never reached another is not waited for."""
    registry = Registry(lease_s=LONG_S)
    links = [scheduler_pb2.LinkMeasure(peer="b", rtt_ns=1, rate_bps=1e8, up=True)]
    registry.heartbeat("a", beat(links=links), 100.0, 0)
    registry.heartbeat("b", beat(), 100.0, 0)
    assert measuring(registry.up(101.0), 99.0)
    assert not measuring(registry.up(101.0), 100.0)
    registry.heartbeat("b", beat(links=[scheduler_pb2.LinkMeasure(peer="a")]), 101.0, 0)
    assert not measuring(registry.up(101.0), 99.0)
