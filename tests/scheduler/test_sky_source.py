"""The contact plan on its way into plans: files read and replaced, what nodes and plans say of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.errors import InvalidInputError
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import scheduler_pb2
from services.runtime.logs import EventLog
from services.runtime.meshclock import read_clock
from services.runtime.store import Location
from services.scheduler.deployments import Deployments
from services.scheduler.registry import Registry
from services.scheduler.sky import SkySettings, SkySource
from services.scheduler.store import DeploymentStore
from tests.scheduler.test_registry_and_placement import beat, manifest

IRIDIUM = Path(__file__).parents[2] / "examples" / "iridium" / "scenario.toml"
ORIGIN_S = 1_800_000_000.0


@pytest.fixture
def identities(tmp_path: Path) -> IdentitySource:
    init_mesh(tmp_path / "ca", mesh="test")
    issue(tmp_path / "ca", Role.SCHEDULER, "scheduler", tmp_path / "identity")
    return IdentitySource(tmp_path / "identity")


def window(a: str, b: str, start_s: float, end_s: float, latency_s: float = 0.01, **how: float) -> list[Contact]:
    start_s, end_s = ORIGIN_S + start_s, ORIGIN_S + end_s
    points = (LatencyPoint(start_s, latency_s),)
    return [Contact(s, t, start_s, end_s, 1e8, points, **how) for s, t in ((a, b), (b, a))]  # type: ignore[arg-type]


def files(tmp_path: Path, *contacts: list[Contact], factor: float = 1.0) -> SkySettings:
    plan = ContactPlan(ORIGIN_S, ORIGIN_S + 10_000, tuple(c for pair in contacts for c in pair))
    (tmp_path / "contacts.json").write_text(plan.dump())
    clock = {"origin_mesh_s": ORIGIN_S, "origin_wall_s": time.time(), "factor": factor}
    (tmp_path / "clock.json").write_text(json.dumps(clock))
    places = ("gateway=ground", "scheduler=ground")
    return SkySettings(tmp_path / "contacts.json", tmp_path / "clock.json", places=places)


def scheduler(tmp_path: Path, identities: IdentitySource, settings: SkySettings, *nodes: str) -> Deployments:
    registry = Registry(lease_s=1e6)
    for name in nodes:
        registry.heartbeat(name, beat(f"{name}:1"), time.monotonic(), time.time_ns())
    log = EventLog("scheduler/test")
    store = DeploymentStore(Location(file=tmp_path / "state" / "db"))
    return Deployments(registry, store, identities, {}, SkySource(settings, identities, log), log)


async def test_a_plan_says_which_windows_which_relays_and_what_came_second(
    tmp_path: Path, identities: IdentitySource
) -> None:
    """sat-1 is fast, sets in 20 s and hands over; sat-2 stays, over a relay, and would finish later by itself. The
    gateway, at a place of its own, sees all of them."""
    settings = files(
        tmp_path,
        window("edge", "sat-1", 0, 20, 0.003, max_elevation_deg=61.5),
        window("edge", "relay", 0, 5000, 0.004, max_elevation_deg=33.0),
        window("relay", "sat-2", 0, 4000, 0.006),
        *(window("ground", name, 0, 6000, 0.003) for name in ("edge", "sat-1", "sat-2")),
    )
    deployments = scheduler(tmp_path, identities, settings, "edge", "sat-1", "sat-2", "relay")
    request = scheduler_pb2.PlanRequest(
        manifest=manifest_bytes(), stages=2, nodes=["edge", "sat-1", "sat-2"], work_tokens=100
    )
    plan = await deployments.plan(request)
    assert sorted(stage.node for stage in plan.stages) == ["edge", "sat-1"]
    (step,) = plan.sky.hand_overs
    assert (getattr(step, "from"), step.to, step.in_s) == ("sat-1", "sat-2", pytest.approx(20, abs=2))
    assert sorted(plan.sky.runner_up.nodes) == ["edge", "sat-2"]
    assert "later" in plan.sky.runner_up.reason
    assert any("is handed over from sat-1 to sat-2" in reason for reason in plan.reasons)
    del request.nodes[:]
    request.nodes.extend(["edge", "sat-2"])
    plan = await deployments.plan(request)
    ways = {(getattr(way, "from"), way.to): way for way in plan.sky.ways}
    way = ways["edge", "sat-2"]
    assert list(way.via) == ["relay"]
    assert way.latency_s == pytest.approx(0.010)
    assert [window.max_elevation_deg for window in way.windows if window.HasField("max_elevation_deg")] == [33.0]
    assert way.closes_in_s == pytest.approx(4000, abs=60)
    assert plan.sky.starts_in_s >= 0
    assert plan.sky.finishes_in_s > plan.sky.starts_in_s
    text = "\n".join(plan.reasons)
    assert "via relay: window" in text
    assert "33.0 deg high" in text
    assert not plan.sky.warnings
    await deployments.close()


def manifest_bytes() -> bytes:
    return manifest().to_bytes()


async def test_where_nothing_lasts_a_warning_says_so(tmp_path: Path, identities: IdentitySource) -> None:
    """One pair, two windows of 20 s, work of a minute: it is planned, with its wait, and a warning."""
    settings = files(tmp_path, window("ground", "sat-1", 0, 20), window("ground", "sat-1", 100, 120))
    deployments = scheduler(tmp_path, identities, settings, "ground", "sat-1")
    plan = await deployments.plan(scheduler_pb2.PlanRequest(manifest=manifest_bytes(), stages=2, work_tokens=10))
    assert "nothing lasts" in plan.sky.warnings[0]
    assert any(reason.startswith("warning: nothing lasts") for reason in plan.reasons)
    await deployments.close()


async def test_without_a_contact_plan_nothing_is_said_of_one(tmp_path: Path, identities: IdentitySource) -> None:
    """The plan is the one of before: no sky in it, and nodes say nothing of contacts."""
    deployments = scheduler(tmp_path, identities, SkySettings(), "ground")
    plan = await deployments.plan(scheduler_pb2.PlanRequest(manifest=manifest_bytes()))
    assert not plan.HasField("sky")
    node = scheduler_pb2.Node(name="ground")
    SkySource(SkySettings(), identities, EventLog("scheduler/test")).describe(node)
    assert not node.HasField("in_contact")
    await deployments.close()


def test_a_node_out_of_contact_as_planned_is_said_to_be(tmp_path: Path, identities: IdentitySource) -> None:
    """In contact now, in contact later with when, and never again: each in its own words, by a fast clock."""
    settings = files(
        tmp_path, window("ground", "up", 0, 5000), window("ground", "later", 600, 900), window("up", "never", 0, 9),
        factor=10.0,
    )  # fmt: skip
    source = SkySource(settings, identities, EventLog("scheduler/test"))
    up, later, never, wired = (scheduler_pb2.Node(name=name) for name in ("up", "later", "never", "wired"))
    for node in (up, later, never, wired):
        source.describe(node)
    assert (up.in_contact, later.in_contact, never.in_contact) == (True, False, False)
    assert later.next_contact_in_s == pytest.approx(60, abs=5)
    assert later.next_contact.seconds == ORIGIN_S + 600
    assert not never.HasField("next_contact")
    # 1e8 bit/s: what is left of the contact of now, all of the one to come, in real seconds at ten times the speed.
    assert up.contact_bytes == pytest.approx(1e8 / 8 * 500, rel=0.02)
    assert later.contact_bytes == pytest.approx(1e8 / 8 * 30, rel=0.001)
    assert not never.HasField("contact_bytes") and not wired.HasField("contact_bytes")
    assert not wired.HasField("in_contact")
    assert "out of contact as planned, for " in source.absence("later")
    assert "no next one" in source.absence("never")
    assert source.absence("up") == source.absence("wired") == ""


async def test_files_that_are_replaced_are_read_again_and_bad_ones_leave_the_old(
    tmp_path: Path, identities: IdentitySource
) -> None:
    """A plan that became unreadable is told of in the log; planning goes on with the one of before."""
    settings = files(tmp_path, window("ground", "sat-1", 0, 20))
    source = SkySource(settings, identities, EventLog("scheduler/test"))
    before = source.plan
    (tmp_path / "contacts.json").write_text("no plan")
    with pytest.raises(InvalidInputError, match=r"contacts\.json"):
        source._read_files()
    assert source.plan is before
    files(tmp_path, window("ground", "sat-1", 0, 20), window("ground", "sat-2", 0, 20))
    source._read_files()
    assert source.plan is not None
    assert "sat-2" in source.plan.nodes


@pytest.mark.parametrize(
    "text", ["", "[]", '{"origin_mesh_s": 1}', '{"origin_mesh_s": 1e999, "origin_wall_s": 1, "factor": 1}']
)
def test_a_file_that_holds_no_clock_is_refused_with_what_was_expected(tmp_path: Path, text: str) -> None:
    """The message names the file and the numbers that it must hold."""
    (tmp_path / "clock.json").write_text(text)
    with pytest.raises(InvalidInputError, match=r"clock\.json holds no clock .*origin_mesh_s, origin_wall_s, factor"):
        read_clock(tmp_path / "clock.json")


def test_two_sources_of_one_plan_are_refused(tmp_path: Path, identities: IdentitySource) -> None:
    """A file and a service: which of them is right?"""
    with pytest.raises(InvalidInputError, match="one source"):
        SkySource(SkySettings(tmp_path / "x", constellation="a:1"), identities, EventLog("scheduler/test"))
    with pytest.raises(InvalidInputError, match="service=node"):
        SkySource(SkySettings(places=("ground-1",)), identities, EventLog("scheduler/test"))


async def test_plan_and_clock_are_asked_of_a_constellation_service(tmp_path: Path, identities: IdentitySource) -> None:
    """A real service in a process of its own: its windows, on its clock, before the first plan is made with them."""
    issue(tmp_path / "ca", Role.CONSTELLATION, "sky", tmp_path / "sky")
    command = [sys.executable, "-m", "services.constellation", "--identity", str(tmp_path / "sky"), "--listen"]
    command += ["127.0.0.1:0", "--scenario", str(IRIDIUM), "--clock", "scenario", "--hours", "1", "--time-factor", "5"]
    process = await asyncio.create_subprocess_exec(*command, cwd=IRIDIUM.parents[2], stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            event: dict[str, str] = {}
            while event.get("event") != "listening":
                event = json.loads(await process.stderr.readline())
            settings = SkySettings(constellation=event["address"], constellation_name="sky", places=("gateway=berlin",))
            source = SkySource(settings, identities, EventLog("scheduler/test"))
            assert source.view([]) is None
            assert source.place("gateway") is None
            following = asyncio.create_task(source.follow())
            while source.plan is None:  # noqa: ASYNC110 - the source has no event for it
                await asyncio.sleep(0.05)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert source.place("gateway") == "berlin"
        assert source.clock.factor == 5.0
        sky = source.view([])
        assert sky is not None
        assert sky.plan.start_s <= sky.now_s < sky.plan.end_s
        assert sky.stretch == 5.0
        await source.close()
    finally:
        process.kill()
        await process.wait()
