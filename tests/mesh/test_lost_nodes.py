"""A node that dies ends what went through it, soon and by name; it comes back and serves again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from orbitmesh import Link, Mesh
from orbitmesh.errors import MeshError, NodeLostError
from tests.mesh.support import Model, Models, deployed, expect_idle, nodes_of, tokens_of, until

NODES = ["sat-1", "ground-1"]


@pytest.fixture(scope="module", params=["joined directly", "over links"])
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
    def joined() -> bool:
        nodes = fragile.nodes()
        return all(node.state == "up" and any(link.up for link in node.links) for node in nodes)

    until(joined, "both nodes are up and so is the link between them", 60)


class Answer(threading.Thread):
    """A long answer, read in a thread."""

    def __init__(self, mesh: Mesh, name: str, prompt: list[int], new_tokens: int) -> None:
        super().__init__(name=f"answer of {name}")
        self.said: list[int] = []
        self.error: Exception | None = None
        self._ask = lambda: mesh.generate(name, prompt, max_new_tokens=new_tokens, ignore_end=True, timeout=90)
        self.start()
        until(lambda: len(self.said) > 3 or self.error is not None, "it has begun")

    def run(self) -> None:
        try:
            for token in self._ask():
                self.said.append(token.id)
        except Exception as error:  # the test looks at it
            self.error = error


def test_a_killed_node_ends_its_generations_and_no_others(fragile: Mesh, model: Model) -> None:
    """The error says which node; another deployment goes on; after a restart the first one serves again."""
    with (
        deployed(fragile, model, "both", stages=2, kv_tokens=8192) as both,
        deployed(fragile, model, "ground", stages=1, nodes=["ground-1"], kv_tokens=8192),
    ):
        assert sorted(nodes_of(both)) == sorted(NODES)
        prompt = model.prompt(4)
        doomed = Answer(fragile, "both", prompt, 4000)
        other = Answer(fragile, "ground", prompt, 900)
        fragile.local.kill("sat-1")
        doomed.join(30)
        assert not doomed.is_alive()
        assert isinstance(doomed.error, NodeLostError), doomed.error
        assert "sat-1" in doomed.error.message
        assert doomed.error.retryable
        assert doomed.said == model.answer(prompt, len(doomed.said))
        other.join(60)
        assert (other.error, len(other.said)) == (None, 900)
        assert other.said[:30] == model.answer(prompt, 30)
        expect_idle(fragile, "ground", ["ground-1"])
        fragile.local.restart("sat-1")
        said = once_it_serves(fragile, "both", prompt, 20)
        assert said == model.answer(prompt, 20)
        assert fragile.deployment("both").state == "ready"
        expect_idle(fragile, "both", nodes_of(both))


def once_it_serves(mesh: Mesh, name: str, prompt: list[int], new_tokens: int) -> list[int]:
    """Tries as a program would: again for as long as the error says that this may help."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return tokens_of(mesh, name, prompt, new_tokens, timeout=20)
        except MeshError as error:
            assert time.monotonic() < give_up, error
            time.sleep(0.2)


@pytest.mark.parametrize("fragile", ["over links"], indirect=True)
def test_a_link_that_stays_cut_ends_the_generation(fragile: Mesh, model: Model) -> None:
    """Both nodes live and hear the gateway; only the way between them is gone: the generation must not hang."""
    with deployed(fragile, model, "cut", stages=2, kv_tokens=8192) as deployment:
        doomed = Answer(fragile, "cut", model.prompt(4), 4000)
        fragile.local.cut("sat-1", "ground-1")
        try:
            doomed.join(45)
            assert not doomed.is_alive(), "it hangs"
            assert isinstance(doomed.error, MeshError)
            assert doomed.error.retryable
            expect_idle(fragile, "cut", nodes_of(deployment))
        finally:
            fragile.local.restore("sat-1", "ground-1")
        assert once_it_serves(fragile, "cut", model.prompt(4), 8) == model.answer(model.prompt(4), 8)
