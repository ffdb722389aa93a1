"""A mesh is upgraded under load: every process is ended with SIGTERM and started again, every certificate is replaced,
and no call of any client fails."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from orbitmesh import Mesh
from orbitmesh.trust import issue
from services.localmesh.topology import role
from tests.mesh.support import Model, Models, deployed, until
from tests.mesh.surviving import pipeline_of

TOKENS = 60
AT_ONCE = 2
"""How many answers are asked for at the same time."""
PAUSE_S = 0.05
"""Between two control calls of one kind."""
JOIN_S = 120.0


class Load:
    """Answers and control calls without end, until it is told; what fails is kept with when it did."""

    def __init__(self, mesh: Mesh, model: Model, deployment: str) -> None:
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self.at = "the beginning"
        self._ended = threading.Event()
        prompt = model.prompt(5)
        expected = model.answer(prompt, TOKENS)

        def generate() -> None:
            said = mesh.generate(deployment, prompt=prompt, max_new_tokens=TOKENS, ignore_end=True).wait()
            assert list(said.token_ids) == expected, "other tokens than the model's"

        calls: dict[str, Callable[[], object]] = {
            "nodes": mesh.nodes,
            "deployment": lambda: mesh.deployment(deployment),
            "slices": mesh.slices.templates,
            "trainings": mesh.trainings,
        }
        kinds = [("generate", generate, 0.0)] * AT_ONCE + [(name, call, PAUSE_S) for name, call in calls.items()]
        self._threads = [threading.Thread(target=self._repeat, args=kind) for kind in kinds]

    def _repeat(self, kind: str, call: Callable[[], object], pause_s: float) -> None:
        while not self._ended.wait(pause_s):
            try:
                call()
                self.done[kind] += 1
            except Exception as error:
                self.failed.append(f"{kind} at {self.at}: {type(error).__name__}: {error}")

    def until_more(self) -> None:
        """Waits until every kind of call has succeeded some times more."""
        before = Counter(self.done)
        until(
            lambda: all(self.done[kind] > before[kind] + 1 for kind in ("generate", "nodes", "slices", "trainings")),
            f"calls succeed after {self.at}; failed: {self.failed[:3]}",
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """The load is on; it has ended afterwards."""
        for thread in self._threads:
            thread.start()
        try:
            self.until_more()
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join(JOIN_S)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of its own: three nodes, of which two serve."""
    with Mesh.local(nodes=3, directory=tmp_path_factory.mktemp("upgraded")) as mesh:
        yield mesh


def test_every_process_is_restarted_in_turn(upgraded: Mesh, models: Models) -> None:
    """Nothing fails and all answers are the model's; the stages of a node are on others before it has gone."""
    model = models.get("llama")
    with deployed(upgraded, model, "upgraded", stages=2):
        load = Load(upgraded, model, "upgraded")
        with load.running():
            serving = pipeline_of(upgraded, "upgraded")
            moved = []
            for name in (*upgraded.local.services(), *serving):
                load.at = name
                upgraded.local.restart(name, gracefully=True)
                if name in serving:
                    moved.append(name not in pipeline_of(upgraded, "upgraded"))
                load.until_more()
        assert load.failed == []
        assert moved == [True] * len(serving)
        log = (upgraded.local.directory / "logs" / "scheduler.log").read_text(encoding="utf-8")
        assert "does not answer" not in log, "a stage was replaced as one that was lost"


def test_a_node_without_a_spare_is_waited_for(upgraded: Mesh, models: Models) -> None:
    """Its deployment may be on that node alone, which is ended and started anew: answers take longer, none fails."""
    model = models.get("llama")
    [node, *_] = upgraded.local.processes()
    with deployed(upgraded, model, "alone", stages=1, nodes=[node]):
        load = Load(upgraded, model, "alone")
        with load.running():
            load.at = node
            upgraded.local.restart(node, gracefully=True)
            load.until_more()
        assert load.failed == []


def renewed(mesh: Mesh, load: Load, times: int, every_s: float) -> None:
    """Replaces the certificate and the keys of every process, again and again."""
    where = mesh.local.directory
    names = [*mesh.local.services(), *mesh.local.processes()]
    for turn in range(times):
        load.at = f"renewal {turn}"
        until_s = time.monotonic() + every_s
        for name in names:
            issue(where / "ca", role(name), name, where / "identities" / f"{role(name)}-{name}")
        load.until_more()
        time.sleep(max(0.0, until_s - time.monotonic()))


@pytest.mark.parametrize(("times", "every_s"), [(3, 0.0), pytest.param(12, 10.0, marks=pytest.mark.soak)])
def test_certificates_are_replaced_under_load(upgraded: Mesh, models: Models, times: int, every_s: float) -> None:
    """Nothing fails; a node that is started anew afterwards, with the newest of them, is let in by all."""
    model = models.get("llama")
    with deployed(upgraded, model, "renewed", stages=2):
        load = Load(upgraded, model, "renewed")
        with load.running():
            renewed(upgraded, load, times, every_s)
            load.at = "a restart with a new certificate"
            upgraded.local.restart(pipeline_of(upgraded, "renewed")[0], gracefully=True)
            load.until_more()
        assert load.failed == []
