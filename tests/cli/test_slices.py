"""`orbitmesh slices` where a small service tells it what a test needs: what is sent, what is shown, what is refused."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orbitmesh import InvalidInputError, SlicesOverview
from orbitmesh._loop import LoopThread
from orbitmesh._slices_proto import a_slice
from orbitmesh.cli import slices_files, slices_top
from orbitmesh.cli.main import main
from orbitmesh.cli.output import Output
from orbitmesh.cli.slices import share
from orbitmesh.slice_results import RESOURCES, SliceNode, SliceProfile, SliceShare
from orbitmesh.trust import Role, init_mesh, issue
from orbitmesh.v1 import slices_pb2
from tests.interruptible import interrupted, interruptible
from tests.sdk.small_gateway import SmallGateway, serve
from tests.sdk.small_slices import SmallSlices

NODE_42 = Path(__file__).parents[2] / "examples" / "slices" / "node-42.toml"


@pytest.fixture(autouse=True)
def handler_is_put_back() -> Iterator[None]:
    """`main` takes SIGTERM; the test's own comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def gateway() -> SmallGateway:
    """A gateway that counts."""
    return SmallGateway()


@pytest.fixture(scope="module")
def place(
    gateway: SmallGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SmallSlices, list[str]]]:
    """A service behind that gateway, and the options that lead to it."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    identity = issue(base / "ca", Role.GATEWAY, "gateway", base / "gateway")
    issue(base / "ca", Role.CLIENT, "me", base / "me")
    loop, small = LoopThread(), SmallSlices()
    server = loop.run(lambda: serve(gateway, identity, slices=small))
    yield small, ["--gateway", gateway.address, "--identity", str(base / "me")]
    loop.run(lambda: server.stop(None))
    loop.stop()


@pytest.fixture
def service(place: tuple[SmallSlices, list[str]]) -> SmallSlices:
    """The service, as if it were new."""
    small = place[0]
    small.slices.clear()
    small.admitted.clear()
    small.refusing.clear()
    small.asked.clear()
    small.etag = 1
    return small


class Commands:
    """Runs `orbitmesh slices ...`, in this process."""

    def __init__(self, where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._where = where
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["slices", *arguments, *self._where])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def shown(self, *arguments: str) -> str:
        """What it shows to people, where it must succeed."""
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out

    def documents(self, *arguments: str) -> list[dict[str, Any]]:
        """What it writes with `--json`, where it must succeed."""
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, ""), out
        return [json.loads(line) for line in out.splitlines()]

    def error(self, *arguments: str, code: int = 1) -> dict[str, Any]:
        """The error that it must end with."""
        ended, out, err = self(*arguments, "--json")
        assert (ended, err) == (code, "")
        error: dict[str, Any] = json.loads(out.splitlines()[-1])["error"]
        return error


@pytest.fixture
def slices(
    place: tuple[SmallSlices, list[str]], service: SmallSlices, capsys: pytest.CaptureFixture[str]
) -> Commands:
    """Against the small service."""
    return Commands(place[1], capsys)


def measured(service: SmallSlices, name: str, **more: Any) -> None:
    """Says what was measured of a slice."""
    service.slices[name].traffic.CopyFrom(slices_pb2.SliceTraffic(**more))


def test_a_slice_lives_its_life(slices: Commands) -> None:
    """Defined, optimised and applied in one go, shown, resized, released: each says what it did."""
    assert "cam: defined, of me, urllc, S-NSSAI 2" in slices.shown("define", "cam", "--resource", "CPU=1,MemoryGB=2")
    assert "nothing is reserved for it" in slices.shown("show", "cam")
    assert "applied to cam" in slices.shown("optimize", "--apply")
    shown = slices.shown("show", "cam")
    assert "cam: active" in shown
    assert "1 CPU, 2 GB" in shown
    assert "sat-1" in shown
    listed = slices.shown("list")
    assert re.search(r"cam +me +active +urllc +20\.0 ms +1 CPU, 2 GB +100% +sat-1 +0 of 100", listed)
    assert re.search(r"sat-1 +1 of 16 +0 of 2 +2 of 64 +0 of 40", listed)
    assert "cam is resized: 3 CPU, 2 GB" in slices.shown("resize", "cam", "--resource", "CPU=3")
    assert "cam is released" in slices.shown("release", "cam")
    assert "no slices" in slices.shown("list")


def test_shares_are_said_once_where_they_are_alike(slices: Commands) -> None:
    """The same of every resource is one sentence, others are named."""
    for name in ("alike", "other"):
        given = [f"{resource}:min=0.1,max=0.5" for resource in RESOURCES]
        given[0] = f"CPU:min=0.{1 if name == 'alike' else 2},max=0.5"
        slices.shown("define", name, *(word for each in given for word in ("--share", each)))
    assert "shares of each resource of a node: dedicated 0%, min 10%, max 50%\n" in slices.shown("show", "alike")
    assert "node: CPU dedicated 0%, min 20%, max 50%; GPU dedicated 0%, min 10%" in slices.shown("show", "other")


def test_machines_get_every_step_as_a_document(slices: Commands) -> None:
    """The same life as JSON, with what follows from the figures."""
    [defined] = slices.documents("define", "cam", "--share", "CPU:dedicated=0.1,max=0.5", "--latency-ms", "15")
    assert (defined["event"], defined["slice"]["state"]) == ("defined", "defined")
    assert defined["slice"]["profile"]["shares"] == {"CPU": {"dedicated": 0.1, "min": 0.1, "max": 0.5}}
    optimized, applied = slices.documents("optimize", "--goal", "throughput_max", "--apply")
    assert (optimized["event"], optimized["outcome"]["goal"]) == ("optimized", "throughput_max")
    assert (optimized["served"], applied["event"]) == ({"cam": 1.0}, "applied")
    [listed] = slices.documents("list")
    assert listed["etag"] == applied["etag"]
    assert (listed["slices"], listed["nodes"][0]["reserved"]["CPU"]) == (applied["slices"], 4.0)
    [shown] = slices.documents("show", "cam")
    assert shown["slice"]["error_budget_left"] is None
    assert shown["slice"]["wait_s"] == {"p50": None, "p99": None, "p99.9": None}
    [resized] = slices.documents("resize", "cam", "--resource", "CPU=3", "--etag", shown["slice"]["etag"])
    assert resized["slice"]["profile"]["resources"]["CPU"] == 3.0
    assert slices.documents("release", "cam") == [{"event": "released", "slice": "cam"}]
    [templates] = slices.documents("templates")
    assert [each["name"] for each in templates["templates"]] == ["urllc", "embb", "mmtc"]
    assert "what embb is for" in slices.shown("templates")


def test_every_option_of_a_definition_is_sent(slices: Commands, service: SmallSlices) -> None:
    """Each stands in its field; what may be given again adds up."""
    slices.shown(
        "define", "cam", "--template", "embb", "--resource", "CPU=4,GPU=0.5", "--resource", "BandwidthGbps=2",
        "--share", "CPU:dedicated=0.05,min=0.1,max=0.5", "--share", "GPU:min=0.25", "--latency-ms", "15.5",
        "--within-permille", "999.5", "--least-served", "0.75", "--weight", "3", "--place", "berlin",
        "--nodes", "sat-1, sat-2", "--nodes-max", "2", "--max-ues", "40", "--sst", "1", "--sd", "00abcd",
        "--tenant", "acme",
    )  # fmt: skip
    (asked,) = service.requests(slices_pb2.DefineSliceRequest)
    assert (asked.name, asked.tenant, asked.etag) == ("cam", "acme", "")
    assert asked.profile == slices_pb2.SliceProfile(
        template="embb", snssai=slices_pb2.Snssai(sst=1, sd="00abcd"),
        resources={"CPU": 4, "GPU": 0.5, "BandwidthGbps": 2},
        shares={"CPU": slices_pb2.SliceShare(dedicated=0.05, min=0.1, max=0.5), "GPU": slices_pb2.SliceShare(min=0.25)},
        latency_ms=15.5, within_latency_permille=999.5, least_served=0.75, weight=3, place="berlin",
        nodes=["sat-1", "sat-2"], nodes_max=2, max_number_of_ues=40,
    )  # fmt: skip


def test_an_answer_is_asked_for_in_a_slice(
    place: tuple[SmallSlices, list[str]], gateway: SmallGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """`generate --slice` names it; a name that is none is refused before it is sent."""
    assert main(["generate", "demo", "x", "--max-new-tokens", "2", "--slice", "cam", *place[1]]) == 0
    assert [each.slice for each in gateway.requests] == ["cam"]
    assert capsys.readouterr().out.startswith(" 0 1")
    assert main(["generate", "demo", "x", "--slice", "No", *place[1]]) == 1
    assert "the slice's name is 'No'" in capsys.readouterr().err
    assert len(gateway.requests) == 1


def test_an_outcome_is_kept_and_applied_later(slices: Commands, service: SmallSlices, tmp_path: Path) -> None:
    """From `--out` and from what `--json` wrote: the allocations that were computed; once a state, then it is stale."""
    slices.shown("define", "cam", "--resource", "CPU=0.1")
    kept, piped = tmp_path / "plan.json", tmp_path / "piped.json"
    assert f"orbitmesh slices apply {kept}" in slices.shown("optimize", "--out", str(kept))
    piped.write_text("\n".join(json.dumps(each) for each in slices.documents("optimize")))
    assert "applied to cam" in slices.shown("apply", str(kept))
    (asked,) = service.requests(slices_pb2.ApplyRequest)
    assert asked.allocations[0].resources == {"CPU": 0.1, "MemoryGB": 8.0}
    for late in (kept, piped):
        error = slices.error("apply", str(late))
        assert (error["reason"], "orbitmesh slices list" in error["advice"]) == ("STALE_ETAG", True)
    assert "nowhere" in slices.error("optimize", "--out", str(tmp_path / "nowhere" / "plan.json"))["message"]


def outcome(**wrong: Any) -> str:
    """An outcome as a file holds it, but for what is wrong."""
    right: dict[str, Any] = {
        "goal": "balanced", "allocations": [], "objective": 1, "bound": 1, "gap": 0, "took_s": 0, "etag": "e",
        "what_if": False,
    }  # fmt: skip
    return json.dumps({"outcome": right | wrong})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no outcome"),
        ('{"outcome": 7}', "no outcome"),
        ('{"outcome": {}}', "damaged"),
        (outcome(allocations=[7]), "damaged"),
        (outcome(allocations=[{"slice": "cam", "node": "n", "served": "all", "resources": {}, "traffic": 1}]),
         "served of cam"),
        (outcome(allocations=[{"slice": "cam", "node": "n", "served": 1, "resources": {"TPU": 1}, "traffic": 1}]),
         "TPU"),
        (outcome(bound=None), "damaged"),
        (outcome(etag=""), "etag"),
        (outcome(etag=7), "etag"),
        (outcome(what_if=True), "not the mesh's"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_outcome_is_refused(
    text: str, words: str, slices: Commands, service: SmallSlices, tmp_path: Path
) -> None:
    """Whatever lies in it: an error that says what is wrong, and nothing is applied."""
    (tmp_path / "plan.json").write_text(text)
    assert words in slices.error("apply", str(tmp_path / "plan.json"))["message"]
    assert service.requests(slices_pb2.ApplyRequest) == []


def test_what_would_be_is_asked_from_a_file(slices: Commands, service: SmallSlices) -> None:
    """The example's node and slices are sent in place of the mesh's; options win over the file."""
    shown = slices.shown("optimize", "--what-if", str(NODE_42))
    assert "node-42" in shown
    assert "balanced: the least served slice gets 100%" in shown
    assert "--apply" not in shown
    (asked,) = service.requests(slices_pb2.OptimizeRequest)
    assert asked.nodes[0] == slices_pb2.SliceNode(
        name="node-42", capacity={"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40}
    )
    assert [(each.name, each.profile.template) for each in asked.what_if] == [
        ("urllc", "urllc"), ("embb", "embb"), ("mmtc", "mmtc"),
    ]  # fmt: skip
    assert asked.goal == slices_pb2.SLICE_GOAL_BALANCED
    slices.shown(
        "optimize", "--what-if", str(NODE_42), "--goal", "latency_sensitive", "--traffic", "embb=0.5",
        "--slices", "urllc,embb", "--time-limit", "2.5",
    )  # fmt: skip
    last = service.requests(slices_pb2.OptimizeRequest)[-1]
    assert (last.goal, list(last.slices)) == (slices_pb2.SLICE_GOAL_LATENCY_SENSITIVE, ["urllc", "embb"])
    assert dict(last.traffic) == {"urllc": 1.0, "embb": 0.5, "mmtc": 1.0}
    assert last.time_limit.ToMilliseconds() == 2500
    assert "do not go together" in slices.error("optimize", "--what-if", str(NODE_42), "--apply")["message"]


def test_a_whole_profile_stands_in_a_file(tmp_path: Path) -> None:
    """Every field of a profile, a node's reservation, traffic and goal."""
    (tmp_path / "ask.toml").write_text("""
goal = "throughput_max"
traffic = { cam = 0.5 }
[[nodes]]
name = "n"
capacity = { CPU = 4 }
reserved = { CPU = 1 }
[[slices]]
name = "cam"
template = "urllc"
resources = { CPU = 1, GPU = 0.5 }
shares = { CPU = { dedicated = 0.1, min = 0.2, max = 0.5 } }
latency_ms = 15
within_latency_permille = 999.5
least_served = 0.75
weight = 3
place = "berlin"
nodes = ["n"]
nodes_max = 2
max_number_of_ues = 40
sst = 2
sd = "00abcd"
""")
    asked = slices_files.read_what_if(str(tmp_path / "ask.toml"))
    assert asked == slices_files.WhatIf(
        "throughput_max",
        (SliceNode("n", {"CPU": 4.0}, {"CPU": 1.0}),),
        {"cam": SliceProfile("urllc", {"CPU": 1.0, "GPU": 0.5}, {"CPU": SliceShare(0.1, 0.2, 0.5)}, 15.0, 999.5, 0.75,
                             3.0, "berlin", ("n",), 2, 40, 2, "00abcd")},
        {"cam": 0.5},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither"),
        ("goal = ", "no TOML"),
        ("x = " + "[" * 100_000, "no TOML"),
        ("x = " + "9" * 10_000, "no TOML"),
        ("plan = 1\n[[nodes]]\nname = 'n'", "'plan' is not known"),
        ("goal = 'best'\n[[nodes]]\nname = 'n'", "balanced"),
        ("nodes = 7", "[[nodes]]"),
        ("[[nodes]]\ncapacity = { CPU = 1 }", "node 1: name"),
        ("[[nodes]]\nname = 'n'\ncapacity = 7", "capacity"),
        ("[[nodes]]\nname = 'n'\ncapacity = { CPU = 'all' }", "capacity.CPU"),
        ("[[nodes]]\nname = 'n'\ncapacity = { CPU = nan }", "capacity.CPU"),
        ("[[nodes]]\nname = 'n'\ncapacity = { CPU = true }", "capacity.CPU"),
        ("[[nodes]]\nname = 'n'\ncapacity = { CPU = " + "9" * 400 + " }", "capacity.CPU"),
        ("[[nodes]]\nname = 'n'\ncapacity = { TPU = 1 }", "TPU"),
        ("[[nodes]]\nname = 'n'\ncapacity = { CPU = -1 }", "CPU"),
        ("[[slices]]\ntemplate = 'urllc'", "slice 1: name"),
        ("[[slices]]\nname = 'a'\n[[slices]]\nname = 'a'", "twice"),
        ("[[slices]]\nname = 'a'\nlatency = 7", "'latency' is not known"),
        ("[[slices]]\nname = 'a'\ntemplate = 7", "template"),
        ("[[slices]]\nname = 'a'\nnodes = 'n'", "nodes"),
        ("[[slices]]\nname = 'a'\nnodes_max = 1.5", "nodes_max"),
        ("[[slices]]\nname = 'a'\nshares = { CPU = 0.5 }", "shares.CPU"),
        ("[[slices]]\nname = 'a'\nshares = { CPU = { least = 0.5 } }", "'least' is not known"),
        ("[[slices]]\nname = 'a'\nshares = { CPU = { min = 2 } }", "min"),
        ("[[slices]]\nname = 'a'\n[traffic]\na = 'much'", "traffic.a"),
    ],
)
def test_a_file_that_nobody_understands_is_refused(
    text: str, words: str, slices: Commands, service: SmallSlices, tmp_path: Path
) -> None:
    """An error that names where and what, exit code 1, and nothing leaves."""
    (tmp_path / "ask.toml").write_text(text)
    error = slices.error("optimize", "--what-if", str(tmp_path / "ask.toml"))
    assert (error["reason"], words in error["message"]) == ("INVALID_INPUT", True), error["message"]
    assert service.asked == []


def test_a_file_that_is_not_there_or_no_text_is_refused(slices: Commands, tmp_path: Path) -> None:
    """Named, and not read past its bound."""
    assert "No such file" in slices.error("optimize", "--what-if", str(tmp_path / "no.toml"))["message"]
    assert "cannot be read" in slices.error("apply", str(tmp_path))["message"]
    (tmp_path / "ask.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in slices.error("optimize", "--what-if", str(tmp_path / "ask.toml"))["message"]
    assert "larger than" in slices.error("optimize", "--what-if", "/dev/zero")["message"]


@given(st.text(max_size=200))
def test_no_text_in_a_file_is_a_crash(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever stands in it, it is understood or refused."""
    path = tmp_path_factory.mktemp("ask") / "ask"
    path.write_text(text, encoding="utf-8", errors="replace")
    for read in (slices_files.read_what_if, slices_files.read_outcome):
        with pytest.raises(InvalidInputError):
            read(str(path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["define", "cam", "--resource", "CPU"],
        ["define", "cam", "--resource", "CPU=much"],
        ["define", "cam", "--resource", "CPU=1,CPU=2"],
        ["define", "cam", "--share", "CPU=0.5"],
        ["define", "cam", "--share", "CPU:least=0.5"],
        ["optimize", "--goal", "best"],
        ["optimize", "--traffic", "cam"],
        ["optimize", "--apply", "--out", "plan.json"],
        ["resize"],
        ["apply"],
        ["sell", "cam"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], slices: Commands, service: SmallSlices) -> None:
    """And nothing leaves."""
    assert "--help" in slices.error(*arguments, code=2)["message"]
    assert service.asked == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["define", "Cam"], "1 to 63"),
        (["define", "cam", "--resource", "CPU=-1"], "CPU"),
        (["define", "cam", "--resource", "CPU=nan"], "CPU"),
        (["define", "cam", "--resource", "TPU=1"], "BandwidthGbps"),
        (["define", "cam", "--resource", "CPU=1", "--resource", "CPU=2"], "twice"),
        (["define", "cam", "--share", "CPU:min=0.5,max=0.2"], "at least the one before it"),
        (["define", "cam", "--nodes", ","], "--nodes names nothing"),
        (["resize", "cam"], "nothing of cam"),
        (["optimize", "--time-limit", "0"], "time_limit_s"),
        (["list", "--timeout", "0"], "--timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_sent(
    arguments: list[str], words: str, slices: Commands, service: SmallSlices
) -> None:
    """Named, with exit code 1."""
    error = slices.error(*arguments)
    assert (error["reason"], words in error["message"]) == ("INVALID_INPUT", True), error["message"]
    assert service.asked == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("SLICES_INFEASIBLE", "--what-if"),
        ("LATENCY_BELOW_FLOOR", "floor"),
        ("SLICE_FULL", "resize"),
        ("SLICE_IN_USE", "--drain"),
        ("SLICE_NOT_YOURS", "tenant"),
        ("STALE_ETAG", "slices list"),
        ("NOT_FOUND", "slices list"),
        ("ALREADY_EXISTS", "slices release"),
    ],
)
def test_every_refusal_says_what_to_do(reason: str, words: str, slices: Commands, service: SmallSlices) -> None:
    """Cause from the mesh, cure from here."""
    service.refusing["ListSlicesRequest"] = (reason, "as the test wants it")
    code, out, err = slices("list")
    assert (code, out) == (1, "")
    assert err.startswith("error: as the test wants it\n")
    assert f"reason: {reason}" in err
    assert words in err.partition("what to do: ")[2]


def test_traffic_is_shown_once_as_sums(slices: Commands, service: SmallSlices) -> None:
    """Offered, sent, dropped, three percentiles, late frames, and what is left of the budget."""
    for name in ("cam", "bulk", "idle"):
        slices.shown("define", name)
    slices.shown("optimize", "--slices", "bulk,cam", "--apply")
    waits = {"wait_buckets": [0] * 11 + [9_900, 95, 5]}
    measured(service, "cam", offered_bytes=5_000_000, sent_bytes=4_000_000, frames=10_000, violations=2, **waits)
    measured(
        service, "bulk", offered_bytes=9_000, sent_bytes=9_000, dropped_bytes=7, frames=100, violations=9,
        wait_buckets=[0] * 31 + [1],
    )  # fmt: skip
    shown = slices.shown("top", "--once")
    assert re.search(r"cam +5\.0 MB +4\.0 MB +0 +2\.05 ms +2\.05 ms +4\.10 ms +2 +80%", shown)
    assert re.search(r"bulk +9\.0 kB +9\.0 kB +7 B +> 1000 s +> 1000 s +> 1000 s +9 +-8900%", shown)
    assert re.search(r"idle +0 B +0 B +0 +- +- +- +0 +-", shown)
    [told] = slices.documents("top", "--once", "--node", "sat-1")
    assert (told["event"], [each["name"] for each in told["slices"]]) == ("update", ["bulk", "cam"])
    assert told["slices"][1]["wait_s"] == {"p50": 0.002048, "p99": 0.002048, "p99.9": 0.004096}
    assert told["slices"][1]["error_budget_left"] == pytest.approx(0.8)
    assert told["slices"][0]["wait_s"]["p50"] is None
    assert "the nodes are sat-1" in slices.error("top", "--once", "--node", "sat-9")["message"]
    assert "80%" in slices.shown("show", "cam")


def an_overview(number: int, sent: int = 0, **more: Any) -> SlicesOverview:
    """So many active slices that have sent so much."""
    traffic = slices_pb2.SliceTraffic(offered_bytes=2 * sent, sent_bytes=sent, **more)
    return SlicesOverview(
        slices=tuple(
            a_slice(
                slices_pb2.Slice(name=f"slice-{index:03}", state=slices_pb2.SLICE_STATE_ACTIVE, traffic=traffic)
            )
            for index in range(number)
        ),
        nodes=(),
        etag="e",
    )


def test_rates_are_those_of_the_last_seconds() -> None:
    """Bytes over time, over at most the window; they fall to nothing when nothing more is told; a slice that began anew
    has none of the old one's."""
    rates = slices_top.Rates(window_s=10.0)
    assert rates.of("slice-000", 0.0) is None
    rates.note(100.0, an_overview(1, 1000))
    assert rates.of("slice-000", 100.0) is None
    rates.note(102.0, an_overview(1, 5000))
    assert rates.of("slice-000", 102.0) == slices_top.Rate(4000.0, 2000.0)
    for second in range(103, 131):
        rates.note(float(second), an_overview(1, 5000 + 1000 * (second - 102)))
    assert rates.of("slice-000", 130.0) == slices_top.Rate(2000.0, 1000.0)
    assert rates.of("slice-000", 135.0) == slices_top.Rate(1000.0, 500.0)
    assert rates.of("slice-000", 141.0) == slices_top.Rate(0.0, 0.0)
    rates.note(142.0, an_overview(1, 7))
    assert rates.of("slice-000", 142.0) is None
    rates.note(143.0, an_overview(0))
    assert rates.of("slice-000", 144.0) is None


@pytest.mark.parametrize("number", [0, 1, 5, 300])
def test_a_small_terminal_shows_those_in_need(number: int) -> None:
    """On 80 columns and 24 lines nothing is cut off, a slice has one line, and the one that overspent is among them."""
    written = io.StringIO()
    output = Output(as_json=False)
    output.console = Console(file=written, force_terminal=True, width=80, height=24, color_system=None)
    now_s = 100.0
    view = slices_top._Redrawn(output, clock=lambda: now_s)
    view.show(an_overview(number, 10**9, frames=10_000, violations=1, wait_buckets=[0] * 20 + [10_000]))
    now_s = 104.0
    overview = an_overview(number, 2 * 10**9, frames=10_000, violations=1, wait_buckets=[0] * 20 + [10_000])
    if number:
        last = overview.slices[-1]
        late = dataclasses.replace(last, traffic=dataclasses.replace(last.traffic, violations=20))
        overview = dataclasses.replace(overview, slices=(*overview.slices[:-1], late))
    view.show(overview)
    now_s = 110.0
    output.console.print(view.drawn())
    lines = written.getvalue().splitlines()
    assert len(lines) <= 23
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    rows = [line.strip() for line in lines if "slice-" in line]
    assert len(rows) == min(number, 24 - slices_top.FRAME_LINES)
    if number:
        assert "no news for 6.00 s" in lines[0]
        assert rows[-1].startswith(f"slice-{number - 1:03}")
        assert rows[-1].endswith("-100%")
        assert all(re.search(r"1\.6 G +800 M +0 +1\.05 s", row) for row in rows)
    else:
        assert "no slices here" in lines[0]


@pytest.mark.parametrize("where_to", ["a terminal", "a pipe", "machines"])
def test_ctrl_c_ends_the_watching_cleanly(
    where_to: str, place: tuple[SmallSlices, list[str]], slices: Commands
) -> None:
    """Exit code 130, the table was there, and no traceback."""
    slices.shown("define", "cam")
    command = interruptible("-m", "orbitmesh.cli.main", "slices", "top", *place[1])
    said, code = interrupted(
        [*command, "--json"] if where_to == "machines" else command,
        lambda said: "cam" in said,
        terminal=where_to == "a terminal",
    )
    assert code == 130, said
    assert "cam" in said
    assert "Traceback" not in said
    if where_to == "machines":
        assert json.loads(said.splitlines()[-1]) == {"event": "interrupted"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CPU:min=0.2", {"CPU": SliceShare(min=0.2)}),
        ("GPU:dedicated=0.1,min=0.2,max=0.5", {"GPU": SliceShare(0.1, 0.2, 0.5)}),
    ],
)
def test_a_share_is_written_with_its_parts(text: str, expected: dict[str, SliceShare]) -> None:
    """Resource, colon, numbers by name."""
    assert share(text) == expected


@pytest.mark.parametrize("text", ["", "CPU", "CPU:", ":min=1", "CPU:min", "CPU:min=much", "CPU:least=1", "CPU:a=1;b"])
def test_a_share_of_another_form_is_wrong_usage(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected such as"):
        share(text)
