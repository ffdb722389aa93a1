"""A local mesh under a contact plan: who sees whom when, and processes that are killed and started again."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint, MeshClock
from orbitmesh.errors import InvalidInputError, MeshError
from tests.mesh.support import Model, Models, deployed, nodes_of, tokens_of, until

EPOCH_S = 1_700_000_000.0
SPAN_S = 400_000.0
FACTOR = 120.0
LATE_S = 0.1 * FACTOR


def both_ways(
    a: str, b: str, start_s: float, end_s: float, elevation_deg: float | None = None, rate_bps: float = 2e8
) -> Iterator[Contact]:
    """A contact in each direction, 3 ms long."""
    for source, target in ((a, b), (b, a)):
        yield Contact(
            source, target, EPOCH_S + start_s, EPOCH_S + end_s, rate_bps, (LatencyPoint(EPOCH_S + start_s, 0.003),),
            max_elevation_deg=elevation_deg,
        )  # fmt: skip


def plan_of(*contacts: Iterator[Contact]) -> ContactPlan:
    return ContactPlan(EPOCH_S, EPOCH_S + SPAN_S, tuple(each for pair in contacts for each in pair))


PLAN = plan_of(
    both_ways("leo-1", "oslo", 0, SPAN_S, 60.0),
    both_ways("leo-2", "oslo", 0, 120, 30.0),
    both_ways("leo-2", "oslo", 480, SPAN_S, 45.0),
    both_ways("leo-3", "oslo", 0, SPAN_S, 10.0),
    both_ways("leo-3", "kiruna", 0, SPAN_S, 10.0),
    both_ways("leo-1", "leo-2", 0, SPAN_S),
)
"""leo-2 is out of oslo's sight from 120 s to 480 s: 3 real seconds at factor 120. leo-3 sees no other satellite."""


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    names = ["leo-1", "leo-2", "leo-3", "kiruna", "oslo"]
    where = tmp_path_factory.mktemp("sky")
    with Mesh.local(node_names=names, contacts=PLAN, time_factor=FACTOR, gateway_at="oslo", directory=where) as mesh:
        yield mesh


def relay(mesh: Mesh, name: str) -> dict[str, Any]:
    found: dict[str, Any] = mesh.local.stats()["relays"][name]
    return found


def test_every_link_follows_the_plan_from_the_moment_the_mesh_is_up(sky: Mesh) -> None:
    """leo-2 loses sight of the ground and is seen again; leo-1, which always sees it, never stops."""
    clock = sky.local.clock()
    assert clock.factor == FACTOR
    states: list[tuple[float, str, float]] = []
    while clock.now_s() < EPOCH_S + 500:
        before_s = clock.now_s()
        states.append((before_s, relay(sky, "leo-2>scheduler")["state"], clock.now_s()))
        time.sleep(0.02)
    for before_s, state, after_s in states:
        # A tenth of a second to either side is left to a process that waits for the processor at that moment.
        seen = {PLAN.at("leo-2", "oslo", at_s) is not None for at_s in (before_s - LATE_S, after_s + LATE_S)}
        if len(seen) == 1:
            assert (state == "up") == seen.pop(), (before_s - EPOCH_S, state)
    assert {state for _, state, _ in states} >= {"cut", "up"}
    assert relay(sky, "leo-1>scheduler")["schedule"]["windows_opened"] == 1
    until(lambda: {node.name: node.state for node in sky.nodes()}["leo-2"] == "up", "leo-2 has joined again", 60)


def test_the_mesh_says_where_each_pair_stands(sky: Mesh) -> None:
    """By nodes, by services and by places; what is open, until when, and what never is."""
    there = sky.local.contact("leo-1", "gateway")
    assert (there["source"], there["target"], there["open"], there["planned"]) == ("leo-1", "oslo", True, True)
    assert there["window"]["end_s"] == there["next_change_s"] == EPOCH_S + SPAN_S
    assert there["window"]["latency_ms"] == pytest.approx(3)
    assert there["window"]["max_elevation_deg"] == 60
    never = sky.local.contact("leo-2", "leo-3")
    assert (never["open"], never["window"], never["next"], never["next_change_s"]) == (False, None, None, None)
    assert sky.local.contact("gateway", "scheduler")["open"]
    with pytest.raises(InvalidInputError, match="leo-9"):
        sky.local.contact("leo-1", "leo-9")


def test_nodes_that_never_meet_have_no_way_and_sites_are_known_from_satellites(sky: Mesh) -> None:
    """No relay stands between them, a cut names nothing; elevation says who is on the ground."""
    names = set(sky.local.stats()["relays"])
    assert "leo-1>leo-2" in names
    assert not {"leo-2>leo-3", "leo-3>leo-1", "no contact"} & names
    with pytest.raises(InvalidInputError, match="never"):
        sky.local.cut("leo-2", "leo-3")
    nodes = {node.name: node for node in sky.nodes()}
    # kiruna sees leo-3 and nobody at oslo: it never could join.
    assert {name: node.kind for name, node in nodes.items()} == {
        "leo-1": "satellite", "leo-2": "satellite", "leo-3": "satellite", "oslo": "ground"
    }  # fmt: skip
    assert not any(link.peer == "leo-3" for link in nodes["leo-2"].links if link.up)


def test_the_folder_holds_plan_and_clock_as_they_are_followed(sky: Mesh) -> None:
    """Another process that reads the two files tells the same mesh time."""
    assert ContactPlan.load(sky.local.directory / "contacts.json") == PLAN
    record = json.loads((sky.local.directory / "clock.json").read_text())
    other, ours = MeshClock(**record), sky.local.clock()
    assert other.now_s() == pytest.approx(ours.now_s(), abs=FACTOR)
    assert other.now_s() >= EPOCH_S


def test_a_cut_by_hand_comes_on_top_of_the_plan(sky: Mesh) -> None:
    """In an open window a link can be cut and restored."""
    sky.local.cut("leo-1", "leo-2")
    assert relay(sky, "leo-1>leo-2")["state"] == relay(sky, "leo-2>leo-1")["state"] == "cut"
    sky.local.restore("leo-1", "leo-2")
    assert relay(sky, "leo-1>leo-2")["state"] == relay(sky, "leo-2>leo-1")["state"] == "up"


def inverted(path: Path) -> Path:
    record = json.loads(PLAN.dump())
    record["contacts"][0]["end_s"] = EPOCH_S - 1
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"contacts": "broken"}, r"contacts\[0\].*inverted"),
        ({"contacts": "nowhere.json"}, "cannot be read"),
        ({"node_names": ["a", "b"], "contacts": PLAN}, "knows none of this mesh's nodes"),
        ({"node_names": ["leo-1", "berlin"], "contacts": PLAN, "gateway_at": "berlin"}, "ever meets berlin"),
        ({"node_names": ["leo-1", "leo-1"], "contacts": PLAN}, "two nodes"),
        ({"node_names": ["gateway"]}, "gateway"),
        ({"node_names": ["Leo 1"]}, "cannot be a name"),
        ({"contacts": PLAN, "time_factor": 0}, "time_factor"),
        ({"contacts": PLAN, "outage": "drop"}, "outage"),
        ({"contacts": PLAN, "node_names": ["leo-1", "oslo"], "start": EPOCH_S - 5}, "start within it"),
        ({"time_factor": 60}, "contacts="),
        (
            {"contacts": plan_of(both_ways("leo-1", "oslo", 0, 9, rate_bps=5)), "node_names": ["leo-1", "oslo"]},
            "rate_bps is 5",
        ),
    ],
)  # fmt: skip
def test_a_sky_that_cannot_be_is_refused_before_anything_starts(
    how: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Each mistake by its name: no process stays behind, nothing hangs."""
    if how.get("contacts") == "broken":
        how = {**how, "contacts": inverted(tmp_path / "plan.json")}
    with pytest.raises(InvalidInputError, match=words), Mesh.local(**how):
        pass


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=1, max_position_embeddings=4096, num_hidden_layers=2)


def again(ask: Any) -> Any:
    """Asks as a program would: again for as long as the error says that it may help."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return ask()
        except MeshError as error:
            assert error.retryable, error
            assert time.monotonic() < give_up, error
            time.sleep(0.1)


@pytest.mark.parametrize("service", ["gateway", "scheduler"])
def test_gateway_and_scheduler_come_back_where_they_were(sky: Mesh, model: Model, service: str) -> None:
    """Killed with SIGKILL while an answer runs, and started again: same address, same deployments, same nodes."""
    with deployed(sky, model, "kept", stages=1, nodes=["leo-1"], kv_tokens=8192):
        address, pid = sky.local.gateway, sky.local.services()[service]
        running = threading.Thread(target=lambda: _swallow(sky, model.prompt(3)), name="an answer that may break")
        running.start()
        sky.local.kill(service)
        sky.local.restart(service)
        assert sky.local.services()[service] != pid
        assert sky.local.gateway == address
        assert [each.name for each in again(sky.deployments)] == ["kept"]
        until(lambda: sum(node.state == "up" for node in again(sky.nodes)) == 4, "all that can join have joined", 60)
        running.join(60)
        assert not running.is_alive()
        prompt = model.prompt(4)
        assert again(lambda: tokens_of(sky, "kept", prompt, 5, timeout=20)) == model.answer(prompt, 5)


def _swallow(mesh: Mesh, prompt: list[int]) -> None:
    with contextlib.suppress(MeshError):  # whether it outlives the kill is not what is asked here
        tokens_of(mesh, "kept", prompt, 1000, timeout=15)


def test_a_node_that_is_started_again_finds_its_files(sky: Mesh, model: Model) -> None:
    """Its state directory stays: the pack's files are there before it asks for them, and it serves again."""
    with deployed(sky, model, "files", stages=1, nodes=["leo-1"], kv_tokens=8192) as deployment:
        assert nodes_of(deployment) == ["leo-1"]
        state = sky.local.directory / "state" / "leo-1"
        before = {path: path.stat().st_ino for path in state.rglob("*.safetensors")}
        pid = sky.local.processes()["leo-1"].pid
        sky.local.restart("leo-1")
        assert sky.local.processes()["leo-1"].pid != pid
        prompt = model.prompt(4)
        assert again(lambda: tokens_of(sky, "files", prompt, 5, timeout=20)) == model.answer(prompt, 5)
        assert before
        assert {path: path.stat().st_ino for path in state.rglob("*.safetensors")} == before
