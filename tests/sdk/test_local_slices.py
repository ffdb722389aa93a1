"""Slices on a mesh of real processes, from the SDK and the command line, and the script that shows them."""

from __future__ import annotations

import json
import math
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from orbitmesh import (
    AsyncMesh,
    CapacityError,
    InfeasiblePlanError,
    InvalidInputError,
    Link,
    Mesh,
    PermissionError_,
    Slice,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SliceShare,
    TransportError,
)
from orbitmesh.cli.main import main
from orbitmesh.slice_results import RESOURCES

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
ROUNDING = 1e-5
"""The service reserves whole millionths; of the smallest amounts here that is this part."""
SMALL = {"CPU": 0.5, "GPU": 0, "MemoryGB": 0.5, "BandwidthGbps": 0.1}
NODE_42 = SliceNode("node-42", {"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40})


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two satellites and a ground node, with emulated links of 1 Gbit/s."""
    with Mesh.local(nodes=3, link=Link(latency_ms=2, rate_mbps=1000)) as local:
        yield local


@pytest.fixture
def empty(mesh: Mesh) -> Iterator[Mesh]:
    """The same without a slice, before and after."""
    yield mesh
    for each in mesh.slices.list().slices:
        mesh.slices.release(each)
    assert mesh.slices.list().slices == ()


@pytest.fixture(autouse=True)
def handler_is_put_back() -> Iterator[None]:
    """`main` takes SIGTERM; the test's own comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def best(goal: str, profiles: dict[str, SliceProfile], capacity: dict[str, float]) -> float:
    """What scipy's linear programming says of slices on one node: the greatest least part, or weighted sum of parts.

    The variables are the part of each slice that is served, what is reserved of each resource, and the least part.
    """
    names, kinds = list(profiles), len(RESOURCES)
    count = len(names)
    width = count + count * kinds + 1
    above, limits, bounds = [], [], []
    for index, name in enumerate(names):
        profile = profiles[name]
        most = 1.0
        for kind, resource in enumerate(RESOURCES):
            need, share = profile.resources.get(resource, 0.0), profile.shares.get(resource, SliceShare())
            if need:
                most = min(most, (1.0 if share.max is None else share.max) * capacity[resource] / need)
            row = np.zeros(width)
            row[index], row[count + index * kinds + kind] = need, -1.0
            above.append(row)
            limits.append(0.0)
        bounds.append((profile.least_served, most))
        least = np.zeros(width)
        least[index], least[-1] = -1.0, 1.0
        above.append(least)
        limits.append(0.0)
    for name in names:
        for resource in RESOURCES:
            share = profiles[name].shares.get(resource, SliceShare())
            bounds.append((share.min * capacity[resource], None))
    for kind, resource in enumerate(RESOURCES):
        row = np.zeros(width)
        row[count + kind : count + count * kinds : kinds] = 1.0
        above.append(row)
        limits.append(capacity[resource])
    bounds.append((0.0, 1.0))
    costs = np.zeros(width)
    if goal == "balanced":
        costs[-1] = -1.0
    else:
        costs[:count] = [-weight(goal, profiles[name]) for name in names]
    found = linprog(costs, A_ub=np.array(above), b_ub=np.array(limits), bounds=bounds)
    assert found.status == 0, found.message
    return -float(found.fun)


def weight(goal: str, profile: SliceProfile) -> float:
    """What a part of a slice's traffic counts for that goal."""
    return profile.weight / (profile.latency_ms if goal == "latency_sensitive" else 1.0)


def cores(mesh: Mesh, node: str) -> int:
    """As the scheduler knows it."""
    return next(each.cores for each in mesh.nodes() if each.name == node)


def test_a_slice_lives_its_life_on_a_real_mesh(empty: Mesh) -> None:
    """Defined, optimised, applied, resized, refused where somebody was faster, released: all of it is free again."""
    slices = empty.slices
    free = slices.list()
    assert {node.name: node.capacity["CPU"] for node in free.nodes} == {
        node.name: float(node.cores) for node in empty.nodes()
    }
    slices.define("cam", resources=SMALL, latency_ms=20)
    outcome = slices.optimize("balanced", traffic={"cam": 0.5})
    assert (outcome.served, outcome.objective, outcome.goal) == ({"cam": 1.0}, 1.0, "balanced")
    assert slices.list().slices[0].allocations == ()
    (cam,) = slices.apply(outcome).slices
    assert (cam.state, cam.served, cam.allocations) == ("active", 1.0, outcome.allocations)
    held = slices.list()
    node = next(each for each in held.nodes if each.name == cam.allocations[0].node)
    assert node.reserved == cam.allocations[0].resources
    assert node.reserved["CPU"] >= 0.25 * (1 - ROUNDING)

    with pytest.raises(InvalidInputError) as late:
        slices.apply(outcome)
    assert late.value.reason == "STALE_ETAG"
    grown = slices.resize(cam, resources={"CPU": 0.75})
    with pytest.raises(InvalidInputError) as stale:
        slices.resize(cam, resources={"CPU": 0.25})
    assert stale.value.reason == "STALE_ETAG"
    assert slices.get("cam") == grown
    assert grown.profile.resources["CPU"] == 0.75

    assert slices.release(grown) is None
    assert slices.list().nodes == free.nodes
    with pytest.raises(PermissionError_) as gone:
        slices.get("cam")
    assert gone.value.reason == "SLICE_NOT_YOURS"


def test_what_does_not_fit_all_is_shared_as_linear_programming_shares_it(empty: Mesh) -> None:
    """Two slices that each want every core of one node: scipy says what each gets at best, and no node gives more than
    the scheduler says that it has."""
    slices, have = empty.slices, cores(empty, "sat-1")
    wanted = SMALL | {"CPU": have}
    for name in ("one", "two"):
        slices.define(name, "embb", resources=wanted, nodes=["sat-1"])
    profiles = {each.name: each.profile for each in slices.list().slices}
    capacity = dict(next(node.capacity for node in slices.list().nodes if node.name == "sat-1"))
    capacity.setdefault("GPU", 0.0)
    for goal in ("balanced", "throughput_max"):
        outcome = slices.optimize(goal)
        assert outcome.objective == pytest.approx(best(goal, profiles, capacity), rel=ROUNDING), goal
    applied = slices.apply(slices.optimize("balanced"))
    assert [each.served for each in applied.slices] == pytest.approx([0.5, 0.5], rel=ROUNDING)
    assert math.fsum(part.resources["CPU"] for each in applied.slices for part in each.allocations) <= have
    with pytest.raises(InfeasiblePlanError, match="CPU") as refused:
        slices.resize("one", shares={"CPU": SliceShare(min=0.8, max=0.9)})
    assert refused.value.reason == "SLICES_INFEASIBLE"
    assert [each.served for each in slices.list().slices] == [each.served for each in applied.slices]


def test_work_is_admitted_within_what_a_slice_has(empty: Mesh) -> None:
    """What is in use is neither given twice nor released; it is free as soon as the block ends, or the slice drains."""
    slices = empty.slices
    slices.define("cam", resources=SMALL)
    slices.apply(slices.optimize())
    with slices.admit("cam", resources={"CPU": 0.4}) as admission:
        assert admission.nodes == (slices.get("cam").allocations[0].node,)
        with pytest.raises(CapacityError) as full, slices.admit("cam", resources={"CPU": 0.2}):
            pytest.fail("it was let in")
        assert (full.value.reason, full.value.retryable) == ("SLICE_FULL", True)
        with pytest.raises(InvalidInputError) as used:
            slices.release("cam")
        assert (used.value.reason, slices.get("cam").admitted) == ("SLICE_IN_USE", 1)
    assert slices.get("cam").admitted == 0
    with slices.admit("cam", resources={"CPU": 0.4}):
        ending = slices.release("cam", drain=True)
        assert ending is not None
        assert ending.state == "releasing"
    assert slices.list().slices == ()


def test_a_watch_and_the_slices_outlive_a_restart_of_their_service(empty: Mesh) -> None:
    """Killed in the middle: a call is a typed error, a watch goes on, and what was promised is still promised."""
    slices = empty.slices
    slices.define("cam", resources=SMALL)
    (before,) = slices.apply(slices.optimize()).slices
    told: list[Slice] = []
    for overview in slices.watch():
        told.append(overview.slices[0])
        if len(told) == 1:
            empty.local.kill("slices")
            with pytest.raises(TransportError) as away:
                slices.list(timeout=5)
            assert away.value.retryable
            empty.local.restart("slices")
        elif told[-1].etag == before.etag:
            break
    assert (told[-1].allocations, told[-1].etag) == (before.allocations, before.etag)
    assert slices.resize(before, resources={"CPU": 0.25}).profile.resources["CPU"] == 0.25


@pytest.mark.parametrize(
    ("goal", "documented"),
    [("balanced", (66.7, 66.7, 100)), ("latency_sensitive", (95.8, 25, 100)), ("throughput_max", (40, 100, 100))],
)
def test_the_example_of_node_42_is_answered(
    goal: str, documented: tuple[float, ...], mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its file, for each goal: within the node, as the page says (embb, mmtc, urllc), and as scipy finds it by
    linear programming; nothing of the mesh is touched."""
    where = ["--gateway", mesh.local.gateway, "--identity", str(mesh.local.identity)]
    before = mesh.slices.list().etag
    arguments = ["--what-if", str(ROOT / "examples" / "slices" / "node-42.toml"), "--goal", goal, "--json"]
    assert main(["slices", "optimize", *arguments, *where]) == 0
    [told] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outcome = told["outcome"]
    profiles = {each.name: each.profile for each in mesh.slices.templates()}
    assert sorted(told["served"]) == sorted(profiles)
    for resource, all_of_it in NODE_42.capacity.items():
        reserved = math.fsum(each["resources"].get(resource, 0.0) for each in outcome["allocations"])
        assert reserved <= all_of_it * (1 + 1e-9), resource
    for name, profile in profiles.items():
        assert told["served"][name] >= profile.least_served * (1 - ROUNDING)
    served = told["served"]
    assert [served[name] * 100 for name in ("embb", "mmtc", "urllc")] == pytest.approx(documented, abs=0.05)
    reached = sum(weight(goal, profile) * served[name] for name, profile in profiles.items())
    if goal == "balanced":
        reached = min(served.values())
    assert reached == pytest.approx(best(goal, profiles, NODE_42.capacity), rel=ROUNDING)
    assert mesh.slices.list().etag == before


def test_the_command_line_does_the_whole_of_it(empty: Mesh, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Defined, kept, applied from the file, which is stale the second time, resized, shown, released."""
    where = ["--gateway", empty.local.gateway, "--identity", str(empty.local.identity)]

    def run(*arguments: str) -> str:
        assert main(["slices", *arguments, *where]) == 0
        return capsys.readouterr().out

    run("define", "cam", "--resource", "CPU=0.5,GPU=0,MemoryGB=0.5,BandwidthGbps=0.1", "--share", "CPU:min=0.2,max=0.6")
    plan = str(tmp_path / "plan.json")
    assert "the least served slice gets 100%" in run("optimize", "--out", plan)
    assert "applied to cam" in run("apply", plan)
    assert main(["slices", "apply", plan, *where]) == 1
    assert "reason: STALE_ETAG" in capsys.readouterr().err
    assert "applied to cam" in run("optimize", "--goal", "latency_sensitive", "--apply")
    assert "cam is resized: 0.75 CPU" in run("resize", "cam", "--resource", "CPU=0.75")
    assert "cam: active, of local, urllc" in run("show", "cam")
    assert "cam" in run("top", "--once")
    assert "cam is released" in run("release", "cam")


def test_two_operators_at_once_do_not_overwrite_each_other(empty: Mesh) -> None:
    """Both decide on the same outcome's state at the same moment: one holds, the other is stale."""
    slices = empty.slices
    slices.define("cam", resources=SMALL)
    outcomes = [slices.optimize("balanced"), slices.optimize("throughput_max")]
    ended: list[str] = []

    def apply(outcome: SliceOutcome) -> None:
        try:
            slices.apply(outcome)
            ended.append("applied")
        except InvalidInputError as refused:
            ended.append(refused.reason)

    threads = [threading.Thread(target=apply, args=(each,)) for each in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(ended) == ["STALE_ETAG", "applied"]


def test_what_an_answer_sends_in_its_slice_is_told(
    empty: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokens are those of an answer without one; every frame of it is counted once, with its wait, and shown."""
    empty.deploy(ROOT / "models" / "pydoc", name="demo", stages=2, nodes=["sat-1", "sat-2"])
    empty.slices.define("cam", resources=SMALL, nodes=["sat-1"])
    empty.slices.apply(empty.slices.optimize())
    where = ["--gateway", empty.local.gateway, "--identity", str(empty.local.identity)]
    plain = empty.generate("demo", prompt="The with", max_new_tokens=8).wait()
    assert plain.token_ids == empty.generate("demo", prompt="The with", max_new_tokens=8, slice="cam").wait().token_ids
    for overview in empty.slices.watch():
        (cam,) = overview.slices
        if cam.traffic.frames:
            break
        # Nodes may have heard of the slice after that answer.
        empty.generate("demo", prompt="The with", max_new_tokens=8, slice="cam").wait()
    assert 0 < cam.traffic.sent_bytes <= cam.traffic.offered_bytes
    assert sum(cam.traffic.wait_buckets) == cam.traffic.frames
    assert cam.error_budget_left is not None
    assert main(["slices", "top", "--once", "--json", *where]) == 0
    [told] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told["slices"][0]["traffic"]["frames"] >= cam.traffic.frames
    empty.delete("demo")


async def test_asyncio_does_the_same(empty: Mesh) -> None:
    """A life of a slice over a connection of its own."""
    async with AsyncMesh.connect(empty.local.gateway, identity=empty.local.identity) as mesh:
        await mesh.slices.define("cam", resources=SMALL)
        (active,) = (await mesh.slices.apply(await mesh.slices.optimize())).slices
        async with mesh.slices.admit("cam", resources={"CPU": 0.25}) as admission:
            assert admission.until is not None
        assert await mesh.slices.release(active) is None


def test_the_script_of_the_examples_runs_to_its_end(
    empty: Mesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows each refusal that it wants to show, and leaves nothing behind."""
    script = str(ROOT / "examples" / "slices.py")
    monkeypatch.setattr(sys, "argv", [script, empty.local.gateway, str(empty.local.identity)])
    runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr().out
    for words in ("SLICES_INFEASIBLE", "STALE_ETAG", "SLICE_FULL", "SLICE_IN_USE", "cam is active", "left: []"):
        assert words in said, said


def test_the_status_of_the_mesh_tells_of_its_slices(empty: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    """How many there are and how many of them have something; where the service is gone the rest is shown all the
    same, and it comes back where it was, with what it had."""
    where = ["--gateway", empty.local.gateway, "--identity", str(empty.local.identity)]
    assert main(["status", *where]) == 0
    assert "slices up" in capsys.readouterr().out
    empty.slices.define("one", resources=SMALL)
    empty.slices.define("two", resources=SMALL)
    empty.slices.apply(empty.slices.optimize(slices=["one"]))
    assert main(["status", *where]) == 0
    assert "1 of 2 slices are active" in capsys.readouterr().out
    empty.local.kill("slices")
    try:
        assert main(["status", *where, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["slices"] == {"service": "unreachable", "known": 0, "active": 0}
        assert told["nodes"]
    finally:
        empty.local.restart("slices")
    assert [each.state for each in empty.slices.list().slices] == ["active", "defined"]
