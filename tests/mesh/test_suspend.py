"""No path for a while: a generation waits, on disk where it has to, and goes on when the window opens."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from tests.mesh.support import Model, Models, deployed, until
from tests.mesh.surviving import beside, expect_answer, gateway_with_spans, listen, pipeline_of, steps_by_stage, strike

EPOCH_S = 1_700_000_000.0
FACTOR = 60.0
FIRST_S, UP_S, DOWN_S = 20 * FACTOR, 4 * FACTOR, 4 * FACTOR
"""The first window, in which the model is deployed, and the later ones, in mesh seconds."""
LONG_S = 13 * FACTOR
"""The first outage, in mesh seconds: an executor is killed and starts again in it, also on a busy machine."""
WINDOWS = 12
LATENCY_S = 0.006
SATELLITES = ["leo-1", "leo-2", "leo-3"]
NEW_TOKENS = 240


def windows() -> list[tuple[float, float]]:
    """When anybody sees anybody."""
    first = [(0.0, FIRST_S)]
    opens = [FIRST_S + LONG_S + n * (UP_S + DOWN_S) for n in range(WINDOWS)]
    later = [(start, start + UP_S) for start in opens]
    return [(EPOCH_S + start, EPOCH_S + end) for start, end in first + later]


def plan() -> ContactPlan:
    """All links of the satellites, to each other and to the ground, close at the same moments."""
    names = [*SATELLITES, "oslo"]
    contacts = [
        Contact(source, target, start, end, 1e8, (LatencyPoint(start, LATENCY_S),))
        for start, end in windows()
        for source, target in itertools.permutations(names, 2)
    ]
    return ContactPlan(EPOCH_S, windows()[-1][1], tuple(contacts))


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=8, num_hidden_layers=3, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Mesh]:
    where = tmp_path_factory.mktemp("suspend")
    names = [*SATELLITES, "oslo"]
    with (
        Mesh.local(node_names=names, contacts=plan(), time_factor=FACTOR, gateway_at="oslo", directory=where) as mesh,
        deployed(mesh, model, "sleepy", stages=3, nodes=SATELLITES, kv_tokens=4096),
    ):
        yield mesh


def until_before_a_close(mesh: Mesh, real_s: float) -> None:
    """Waits until a window is about to close in so many real seconds."""
    clock = mesh.local.clock()
    now = clock.now_s()
    start, end = next((start, end) for start, end in windows() if end - real_s * FACTOR > now)
    time.sleep(max(0.0, (max(start, end - real_s * FACTOR) - now) / FACTOR))


def test_a_generation_waits_through_outages_and_computes_nothing_again(sky: Mesh, model: Model, tmp_path: Path) -> None:
    """It is longer than a window: the stream only pauses, and its breakdown names the wait. In the first outage one
    executor dies, and takes up from its disk what it had computed."""
    prompt = model.prompt(7)
    spans = tmp_path / "spans.json"
    victims: list[tuple[str, int]] = []

    def die_in_the_dark() -> None:
        until_before_a_close(sky, 0.0)
        # Longer than it takes an executor to write down what does not get on.
        time.sleep(3.2)
        victim = pipeline_of(sky, "sleepy")[1]
        strike(sky, victim)
        sky.local.restart(victim)
        victims.append((victim, 1))

    with gateway_with_spans(sky, spans):
        until_before_a_close(sky, 2.5)
        with beside(die_in_the_dark):
            heard = listen(sky, "sleepy", prompt, {}, max_new_tokens=NEW_TOKENS)
        expect_answer(heard, model, prompt, NEW_TOKENS)
        breakdown = sky.explain(heard.trace_id)
        waits = {row.what: row.total_s for row in breakdown.rows if row.place == "gateway"}
        assert waits["waiting for contact"] > 1
        ((victim, stage),) = victims
        (restored,) = restored_positions(sky, victim)
        until(lambda: spans.exists() and heard.trace_id in spans.read_text(), "the spans are written")
    again = {
        stage: {position: count for position, count in counts.items() if count > 1}
        for stage, counts in steps_by_stage(spans, heard.trace_id).items()
    }
    assert not any(again.values())
    # What it did before it died went with it, so what it did afterwards must begin right behind it.
    assert sorted(steps_by_stage(spans, heard.trace_id)[stage])[0] == restored


def restored_positions(mesh: Mesh, node: str) -> list[int]:
    """How many positions each generation had that a node took up from its disk."""
    lines = (mesh.local.directory / "logs" / f"{node}.log").read_text().splitlines()
    return [int(json.loads(line)["positions"]) for line in lines if '"generation_restored"' in line]
