"""Nodes die without a standby: what went through them goes on elsewhere, or when they return, or meets its deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh import Link, Mesh
from orbitmesh.errors import DeadlineError, NodeLostError
from tests.mesh.support import Model, Models, deployed, expect_idle, nodes_of, tokens_of, until
from tests.mesh.surviving import endless

NODES = ["sat-1", "ground-1"]


@pytest.fixture(scope="module", params=[pytest.param("joined directly", marks=pytest.mark.soak), "over links"])
def fragile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two nodes; directly, so that a node that comes back has another address, and over links, where it has not."""
    link = Link(latency_ms=2, rate_mbps=100) if request.param == "over links" else None
    with Mesh.local(nodes=2, link=link, directory=tmp_path_factory.mktemp("fragile")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=1, max_position_embeddings=4096, num_hidden_layers=9)


@pytest.fixture(autouse=True)
def all_up(fragile: Mesh) -> None:
    """Also where the test before has failed with a node away."""
    for name, process in fragile.local.processes().items():
        if not Path(f"/proc/{process.pid}").exists():
            fragile.local.restart(name)

    def joined() -> bool:
        nodes = fragile.nodes()
        return all(node.state == "up" and any(link.up for link in node.links) for node in nodes)

    until(joined, "both nodes are up and so is the link between them", 60)


class Answer(threading.Thread):
    """A long answer, read in a thread."""

    def __init__(self, mesh: Mesh, name: str, prompt: list[int], new_tokens: int, timeout_s: float = 90) -> None:
        super().__init__(name=f"answer of {name}")
        self.said: list[int] = []
        self.error: Exception | None = None
        self._ask = lambda: mesh.generate(name, prompt, max_new_tokens=new_tokens, ignore_end=True, timeout=timeout_s)
        self.start()
        until(lambda: len(self.said) > 3 or self.error is not None, "it has begun")

    def run(self) -> None:
        try:
            for token in self._ask():
                self.said.append(token.id)
        except Exception as error:  # the test looks at it
            self.error = error


def until_it_stands(answer: Answer) -> None:
    """Waits until no more tokens come."""
    seen: list[int] = [-1, -1, -1, -1]

    def stands() -> bool:
        seen.append(len(answer.said))
        return len(set(seen[-5:])) == 1

    until(stands, "nothing more comes")


def test_a_killed_nodes_generations_go_on_elsewhere(fragile: Mesh, model: Model) -> None:
    """The stage is loaded on the node that is left; what does not go through the lost one does not notice."""
    with (
        deployed(fragile, model, "both", stages=2, kv_tokens=8192) as both,
        deployed(fragile, model, "ground", stages=1, nodes=["ground-1"], kv_tokens=8192),
    ):
        assert sorted(nodes_of(both)) == sorted(NODES)
        prompt = model.prompt(4)
        struck = Answer(fragile, "both", prompt, 700)
        other = Answer(fragile, "ground", prompt, 700)
        fragile.local.kill("sat-1")
        for answer in (other, struck):
            answer.join(60)
            assert (answer.is_alive(), answer.error) == (False, None)
        assert struck.said == other.said == endless(model, prompt, 700)
        assert nodes_of(fragile.deployment("both")) == ["ground-1", "ground-1"]
        expect_idle(fragile, "both", ["ground-1"])
        expect_idle(fragile, "ground", ["ground-1"])
        fragile.local.restart("sat-1")


def test_nodes_that_come_back_go_on_with_what_they_held(fragile: Mesh, model: Model) -> None:
    """All are killed at once: they load their stages by themselves and the answer goes on."""
    with deployed(fragile, model, "all", stages=2, kv_tokens=8192) as all_of_them:
        assert sorted(nodes_of(all_of_them)) == sorted(NODES)
        prompt = model.prompt(5)
        waiting = Answer(fragile, "all", prompt, 700)
        for node in NODES:
            fragile.local.kill(node)
        until_it_stands(waiting)
        assert len(waiting.said) < 700
        for node in NODES:
            fragile.local.restart(node)
        waiting.join(60)
        assert (waiting.is_alive(), waiting.error) == (False, None)
        assert waiting.said == endless(model, prompt, 700)


def test_nodes_that_stay_away_end_their_generations_at_the_deadline(fragile: Mesh, model: Model) -> None:
    """What was said until then is right; those who ask meanwhile are told which node is missing."""
    with deployed(fragile, model, "gone", stages=2, kv_tokens=8192):
        doomed = Answer(fragile, "gone", model.prompt(4), 3000, timeout_s=5)
        for node in NODES:
            fragile.local.kill(node)
        doomed.join(30)
        assert isinstance(doomed.error, DeadlineError), doomed.error
        assert doomed.said == endless(model, model.prompt(4), len(doomed.said))
        until(lambda: fragile.deployment("gone").state == "degraded", "the scheduler has noticed", 60)
        with pytest.raises(NodeLostError, match="-1"):
            tokens_of(fragile, "gone", model.prompt(4), 4, timeout=6)
        for node in NODES:
            fragile.local.restart(node)
        until(lambda: fragile.deployment("gone").state == "ready", "it serves again", 60)
        assert tokens_of(fragile, "gone", model.prompt(4), 8, timeout=60) == model.answer(model.prompt(4), 8)
        expect_idle(fragile, "gone", nodes_of(fragile.deployment("gone")))


@pytest.mark.parametrize("fragile", ["over links"], indirect=True)
@pytest.mark.parametrize("back", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_cut_link_holds_a_generation_up(fragile: Mesh, model: Model, back: bool) -> None:
    """Both nodes live and hear the gateway; only the way between them is gone: it waits for it until its deadline."""
    with deployed(fragile, model, "cut", stages=2, kv_tokens=8192) as deployment:
        prompt = model.prompt(4)
        held = Answer(fragile, "cut", prompt, 700 if back else 1500, timeout_s=90 if back else 6)
        fragile.local.cut("sat-1", "ground-1")
        try:
            until_it_stands(held)
        finally:
            if not back:
                held.join(30)
            fragile.local.restore("sat-1", "ground-1")
        held.join(60)
        assert not held.is_alive(), "it hangs"
        assert (held.error is None) if back else isinstance(held.error, DeadlineError), held.error
        assert held.said == endless(model, prompt, 700 if back else len(held.said))
        expect_idle(fragile, "cut", nodes_of(deployment))
        until(lambda: fragile.deployment("cut").state == "ready", "it serves", 60)
        assert tokens_of(fragile, "cut", prompt, 8, timeout=60) == model.answer(prompt, 8)
