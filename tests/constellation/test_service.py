"""The service over real connections and as a process, and the command on top of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from orbitmesh.cli.contacts import need
from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.contacts_proto import fetch_plan, from_proto, mesh_time, stamp, to_proto
from orbitmesh.errors import InvalidInputError
from orbitmesh.rpc import mapped_errors, open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import constellation_pb2, constellation_pb2_grpc
from services.constellation.planning import plan_contacts
from services.constellation.scenario import Scenario, load_scenario
from services.constellation.server import SERVICE, ConstellationServicer
from services.constellation.sky import Sky
from services.runtime.server import ServiceHost

ROOT = Path(__file__).resolve().parents[2]
IRIDIUM = ROOT / "examples" / "iridium" / "scenario.toml"
TIMEOUT_S = 20.0
STATES = constellation_pb2.SkyLinkState


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(IRIDIUM)


@pytest.fixture(scope="module")
def plan(scenario: Scenario) -> ContactPlan:
    return plan_contacts(scenario, scenario.start_s, scenario.start_s + 3 * 3600)


@pytest.fixture
def identities(tmp_path: Path) -> tuple[Identity, Identity]:
    """A constellation's and an executor's: any role may read."""
    init_mesh(tmp_path / "ca")
    return tuple(issue(tmp_path / "ca", role, "x", tmp_path / role) for role in ("constellation", "executor"))  # type: ignore[return-value]


@asynccontextmanager
async def served(
    scenario: Scenario, identities: tuple[Identity, Identity], clock: MeshClock, hours: float = 3.0
) -> AsyncIterator[tuple[grpc.aio.Channel, Any, Sky]]:
    sky = Sky(scenario, clock, hours)
    await sky.renew()
    host = ServiceHost(identities[0].directory)
    adder = constellation_pb2_grpc.add_ConstellationServiceServicer_to_server
    host.add(SERVICE, adder, ConstellationServicer(sky, host.draining))
    async with host, open_channel(f"127.0.0.1:{host.port}", identities[1], Role.CONSTELLATION, "x") as channel:
        yield channel, constellation_pb2_grpc.ConstellationServiceStub(channel), sky


def still(scenario: Scenario, into_s: float = 0.0) -> MeshClock:
    """A clock that stands, near enough, at a moment of the scenario."""
    return MeshClock(scenario.start_s + into_s, MeshClock.real().origin_wall_s, 1e-6)


def test_plans_come_back_from_messages(plan: ContactPlan) -> None:
    """A plan through its message and its bytes is an equal plan."""
    data = to_proto(plan).SerializeToString()
    assert from_proto(constellation_pb2.SkyContactPlan.FromString(data)) == plan
    assert mesh_time(stamp(1_663_200_000.123456)) == pytest.approx(1_663_200_000.123456, abs=1e-6)


async def test_a_plan_is_fetched_page_by_page(
    scenario: Scenario, plan: ContactPlan, identities: tuple[Identity, Identity]
) -> None:
    """What pages give together is what the planner gives; a stale or made-up token is an error, not half a plan."""
    async with served(scenario, identities, still(scenario)) as (channel, stub, _):
        fetched = await fetch_plan(channel, start_s=scenario.start_s, span_s=3 * 3600)
        assert fetched == plan
        pair = await fetch_plan(channel, start_s=scenario.start_s, span_s=3 * 3600, nodes=["berlin", "iridium-33"])
        assert pair.contacts == tuple(
            each for each in plan.contacts if {each.source, each.target} == {"berlin", "iridium-33"}
        )
        rolling = await fetch_plan(channel, nodes=["berlin"])
        assert rolling.contacts
        assert rolling.nodes & {"berlin", "svalbard"} == {"berlin", "svalbard"}
        assert all("berlin" in (each.source, each.target) for each in rolling.contacts)
        small = constellation_pb2.GetContactPlanRequest(page_size=7)
        first = await stub.GetContactPlan(small, timeout=TIMEOUT_S)
        assert len(first.plan.contacts) == 7
        for token in ("nonsense", "never@7", first.next_page_token + "9999"):
            with pytest.raises(InvalidInputError, match="page token"), mapped_errors():
                await stub.GetContactPlan(
                    constellation_pb2.GetContactPlanRequest(page_token=token), timeout=TIMEOUT_S
                )


async def test_a_link_is_told_at_any_time(
    scenario: Scenario, plan: ContactPlan, identities: tuple[Identity, Identity]
) -> None:
    """Down before a window, acquiring at its start, up inside with the latency of the geometry, down after; also a
    month later, outside the plan that the service keeps."""
    (window, *_) = [each for each in plan.between("iridium-33", "berlin") if not each.truncated_start]

    async with served(scenario, identities, still(scenario)) as (_, stub, _):

        async def at(moment_s: float) -> Any:
            request = constellation_pb2.GetLinkRequest(source="iridium-33", target="berlin", at=stamp(moment_s))
            return (await stub.GetLink(request, timeout=TIMEOUT_S)).link

        before = await at(window.start_s - 1)
        assert (before.state, before.rate_bps) == (STATES.SKY_LINK_STATE_DOWN, 0)
        assert mesh_time(before.changes_at) == pytest.approx(window.start_s, abs=1e-3)
        assert (await at(window.start_s + 1)).state == STATES.SKY_LINK_STATE_ACQUIRING
        inside = await at(window.start_s + 60)
        assert inside.state == STATES.SKY_LINK_STATE_UP
        assert inside.latency_s == pytest.approx(window.latency_at(window.start_s + 60), abs=1e-4)
        assert inside.contact.max_elevation_deg == pytest.approx(window.max_elevation_deg)
        assert (await at(window.end_s + 1)).state == STATES.SKY_LINK_STATE_DOWN
        month = await at(scenario.start_s + 31 * 86_400)
        assert month.HasField("changes_at")
        with pytest.raises(InvalidInputError, match="did you mean 'berlin'"), mapped_errors():
            await stub.GetLink(constellation_pb2.GetLinkRequest(source="berln", target="x"), timeout=TIMEOUT_S)


async def test_changes_are_told_as_a_fast_clock_reaches_them(
    scenario: Scenario, identities: tuple[Identity, Identity]
) -> None:
    """At 1,800x the watch tells what is open, then every opening and closing of two hours, each once and in order.

    The plan is made anew underneath several times: nothing is told twice and nothing lost.
    """
    told: dict[str, list[int]] = {"berlin": [], "svalbard": []}
    times_s: list[float] = []
    clock = MeshClock(scenario.start_s, MeshClock.real().origin_wall_s, 1_800.0)
    async with served(scenario, identities, clock, hours=1.0) as (_, stub, sky):
        first_plan = sky.plan
        renewing = asyncio.create_task(sky.keep())
        call = stub.WatchLinks(constellation_pb2.WatchLinksRequest(nodes=["iridium-33"]))
        async with asyncio.timeout(TIMEOUT_S):
            async for message in call:
                times_s.append(mesh_time(message.at))
                for link in message.links:
                    if link.source == "iridium-33" and link.target in told:
                        told[link.target].append(link.state)
                if times_s[-1] > scenario.start_s + 2 * 3600:
                    break
        call.cancel()
        renewing.cancel()
    assert sky.plan.start_s > first_plan.start_s
    assert times_s == sorted(times_s)
    plan = plan_contacts(scenario, scenario.start_s - 3600, times_s[-1] + 3600)
    changes = 0
    for target, states in told.items():
        windows = plan.between("iridium-33", target)
        closings = sum(times_s[0] < each.end_s <= times_s[-1] for each in windows)
        openings = sum(each.start_s <= times_s[-1] and each.end_s > times_s[0] for each in windows)
        down = STATES.SKY_LINK_STATE_DOWN
        assert states.count(down) == closings
        # Two seconds of acquisition are a millisecond here: a link may come up acquiring and up, or up at once.
        assert sum(now != down and before == down for before, now in itertools.pairwise([down, *states])) == openings
        changes += openings + closings
    assert changes >= 4


async def test_the_scenario_and_its_nodes_are_told(scenario: Scenario, identities: tuple[Identity, Identity]) -> None:
    """Name, clock and warnings; every node with its kind, and satellites at their height, page by page."""
    async with served(scenario, identities, still(scenario)) as (_, stub, sky):
        told = await stub.GetScenario(constellation_pb2.GetScenarioRequest(), timeout=TIMEOUT_S)
        assert (told.name, told.contacts) == ("iridium", len(sky.plan.contacts))
        assert mesh_time(told.now) == pytest.approx(scenario.start_s, abs=1.0)
        nodes: list[Any] = []
        request = constellation_pb2.ListSkyNodesRequest(page_size=10)
        while True:
            answer = await stub.ListSkyNodes(request, timeout=TIMEOUT_S)
            nodes += answer.nodes
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert [node.name for node in nodes] == list(scenario.names)
        for node in nodes:
            assert node.kind == scenario.kind(node.name)
            assert not node.lost
            assert (node.altitude_m > 300e3) == (node.kind == "satellite")


async def test_the_service_runs_as_a_process(identities: tuple[Identity, Identity], tmp_path: Path) -> None:
    """`python -m services.constellation` listens, answers on the scenario's clock and ends on SIGTERM."""
    command = [sys.executable, "-m", "services.constellation", "--identity", str(identities[0].directory)]
    command += ["--listen", "127.0.0.1:0", "--scenario", str(IRIDIUM), "--clock", "scenario", "--hours", "1"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(TIMEOUT_S * 2):
            while True:
                event = json.loads(await process.stderr.readline())
                if event.get("event") == "listening":
                    break
            async with open_channel(event["address"], identities[1], Role.CONSTELLATION, "x") as channel:
                plan = await fetch_plan(channel, nodes=["berlin"])
            assert plan.contacts
            assert plan.start_s == pytest.approx(load_scenario(IRIDIUM).start_s, abs=700)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_bad_scenario_ends_the_process_with_the_reason(tmp_path: Path, identities: tuple[Identity, Identity]) -> None:
    """A scenario that is wrong is exit code 2 and one line with file and line, before anything listens."""
    (tmp_path / "bad.toml").write_text("start = 2022-09-15T00:00:00Z\nhuors = 2\n")
    command = [sys.executable, "-m", "services.constellation", "--identity", str(identities[0].directory)]
    command += ["--listen", "127.0.0.1:0", "--scenario", str(tmp_path / "bad.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "bad.toml, line 2: unknown key 'huors'; did you mean 'hours'?" in done.stderr


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orbitmesh.cli.main", "contacts", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_the_command_prints_a_table_and_writes_plan_and_picture(tmp_path: Path) -> None:
    """One call: a table with the windows, a plan that loads, and a PNG."""
    out, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    done = run_cli(str(IRIDIUM), "--hours", "1", "--out", str(out), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    plan = ContactPlan.load(out)
    assert plan.end_s - plan.start_s == 3600
    assert "berlin" in done.stdout
    assert f"over {1} h" in done.stdout
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000


def test_the_command_speaks_json_and_refuses_nonsense(tmp_path: Path) -> None:
    """`--json` writes the plan itself; a bad time, an unknown node and a bad scenario are errors with a reason."""
    span = ("--hours", "2", "--from", "2022-09-15T06:00:00Z")
    done = run_cli(str(IRIDIUM), *span, "--between", "berlin", "svalbard", "--json")
    assert done.returncode == 0
    plan = ContactPlan.parse(done.stdout)
    assert [each.kind for each in plan.contacts] == ["wired", "wired"]
    for words, expected in (
        (("--from", "yesterday"), "expected a time, for instance"),
        (("--between", "berlin", "moon"), "there is no node 'moon'"),
        (("--hours", "-1"), "expected above 0"),
        (("--plot", str(tmp_path / "x.gif"), "--hours", "1"), "writes PNG"),
    ):
        failed = run_cli(str(IRIDIUM), *words, "--json")
        assert failed.returncode == 1
        assert expected in json.loads(failed.stdout)["error"]["message"]


def test_what_is_not_installed_is_said_with_the_command_that_installs_it() -> None:
    """Without a package of an extra the command ends before any work and names the extra."""
    with pytest.raises(InvalidInputError, match=r"drawing needs nothere.*pip install 'orbitmesh\[plot\]'"):
        need(("nothere.inside",), "drawing", "plot")


def test_the_command_says_that_nodes_never_meet_and_that_elements_are_old(tmp_path: Path) -> None:
    """Doubts of a plan are shown below the table, and the command still succeeds."""
    (tmp_path / "iridium.tle").write_text((IRIDIUM.parent / "iridium.tle").read_text())
    text = 'start = 2022-11-15T00:00:00Z\nhours = 0.1\n[[satellites]]\ntle = "iridium.tle"\n'
    text += 'select = ["IRIDIUM 7 [-]"]\n'
    (tmp_path / "lonely.toml").write_text(text + '[[sites]]\nname = "berlin"\nlatitude_deg = 52\nlongitude_deg = 13\n')
    done = run_cli(str(tmp_path / "lonely.toml"))
    assert done.returncode == 0, done.stderr
    assert "0 windows (none) over 0.1 h" in done.stdout
    assert "warning: no two nodes of the scenario see each other in this span" in done.stdout
    assert "its elements are 61 days older than the start; expect positions off by 61 to 184 km" in done.stdout
