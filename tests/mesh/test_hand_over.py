"""A window is about to close: the stage moves to its successor while the answer goes on, and nobody waits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.feeding import feed_mode
from orbitmesh.pack import Manifest
from orbitmesh.v1 import executor_pb2
from tests.mesh.support import Model, Models, deployed, expect_idle, stages_on, until
from tests.mesh.surviving import described, expect_answer, listen, pipeline_of

EPOCH_S = 1_700_000_000.0
SPAN_S = 2000.0
CLOSES_IN_S = 14.0
"""Less than the lead time of a hand-over, so that it begins at once."""
NAMES = ["leo-1", "leo-2", "leo-3", "leo-4", "oslo"]
JOURNAL, CACHE = executor_pb2.FEED_MODE_JOURNAL, executor_pb2.FEED_MODE_CACHE


def plan(victim: str = "", closes_s: float = EPOCH_S + SPAN_S) -> ContactPlan:
    """Everybody sees everybody to the end, but for one."""
    contacts = [
        Contact(a, b, EPOCH_S, closes_s if victim in (a, b) else EPOCH_S + SPAN_S, 1e9, (LatencyPoint(EPOCH_S, 0.004),))
        for a, b in itertools.permutations(NAMES, 2)
    ]
    return ContactPlan(EPOCH_S, EPOCH_S + SPAN_S, tuple(contacts))


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    where = tmp_path_factory.mktemp("hand-over")
    with Mesh.local(node_names=NAMES, contacts=plan(), gateway_at="oslo", directory=where) as mesh:
        yield mesh


def foretell(mesh: Mesh, plan: ContactPlan) -> None:
    """Gives the scheduler another plan; the links stay as they are."""
    fresh = mesh.local.directory / "contacts.new"
    fresh.write_text(plan.dump())
    fresh.replace(mesh.local.directory / "contacts.json")


def moved(mesh: Mesh) -> int:
    """How many generations the gateway has moved a stage of."""
    return (mesh.local.directory / "logs" / "gateway.log").read_text().count('"stage_moved"')


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layers", "heads", "moves"),
    [
        pytest.param(5, 6, ((0, JOURNAL), (2, JOURNAL), (1, JOURNAL)), marks=pytest.mark.soak, id="journal"),
        pytest.param(3, 1, ((1, CACHE), (2, CACHE)), marks=pytest.mark.soak, id="cache"),
        pytest.param(3, 1, ((1, CACHE),), id="one cache"),
    ],
)
def test_an_answer_goes_on_while_its_stages_move(
    sky: Mesh, models: Models, layers: int, heads: int, moves: Sequence[tuple[int, int]]
) -> None:
    """Three satellites serve and a fourth is left: one stage after the other is fed by the journal before it or by its
    own cache, whichever is fewer bytes. No stall is noticed, the same tokens come, and the old nodes hold nothing."""
    model: Model = models.get(
        "llama", seed=11, num_hidden_layers=layers, num_key_value_heads=heads, max_position_embeddings=4096
    )
    prompt = model.prompt(40)
    name = f"sets-{layers}"
    new_tokens = 500 * len(moves)
    left: list[str] = []

    def set_one(index: int) -> None:
        before, count = pipeline_of(sky, name), moved(sky)
        foretell(sky, plan(before[index], sky.local.clock().now_s() + CLOSES_IN_S))
        until(lambda: moved(sky) == count + 1, f"stage {index} has moved", 40)
        until(lambda: pipeline_of(sky, name)[index] != before[index], "the deployment has moved with it", 20)
        foretell(sky, plan())
        until(lambda: stages_on(sky, before[index]).get(name) is None or not held(before[index]), "it is freed there")
        left.append(before[index])

    def held(node: str) -> int:
        return stages_on(sky, node)[name].generations

    with deployed(sky, model, name, stages=3, nodes=NAMES[:4], kv_tokens=8192):
        held_plan = described(sky, name)
        manifest = Manifest.parse(held_plan.manifest)
        for index, mode in moves:
            stage = held_plan.plan.stages[index]
            assert feed_mode(manifest, range(stage.layer_start, stage.layer_stop), first=index == 0) == mode
        blows = {30 + 450 * number: lambda index=index: set_one(index) for number, (index, _) in enumerate(moves)}
        heard = listen(sky, name, prompt, blows, max_new_tokens=new_tokens)
        expect_answer(heard, model, prompt, new_tokens)
        breakdown = sky.explain(heard.trace_id)
        assert not {"detect", "recover", "waiting for contact"} & {row.what for row in breakdown.rows}
        assert {*left, *pipeline_of(sky, name)} <= set(breakdown.places)
        expect_idle(sky, name, pipeline_of(sky, name))
