"""kill -9 of an executor at any token of a generation: the same tokens, each once, and no error for the client."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from orbitmesh import Link, Mesh
from orbitmesh.errors import MeshError
from tests.mesh.support import Model, Models, deployed
from tests.mesh.surviving import NEW_TOKENS, endless, expect_answer, listen, pipeline_of, strike, until_whole

STAGES = 3
SPREAD = [(0, 2), (9, 0), (31, 1)]
"""Token indices and stages: the first tokens, the last ones, and some between; each stage several times."""


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("llama", seed=3, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Mesh]:
    """Three nodes that serve and one that stands by for each of them; links late enough that a token is still under way
    when the client has the one before it."""
    link = Link(latency_ms=3, rate_mbps=1000)
    how = {"stages": STAGES, "standbys": 1, "kv_tokens": 8192}
    with (
        Mesh.local(nodes=STAGES + 1, link=link, directory=tmp_path_factory.mktemp("fragile")) as mesh,
        deployed(mesh, model, "kill", **how),
    ):
        yield mesh


@pytest.mark.parametrize("blows", [[(10, 0), (11, 2)]], ids=str)
def test_two_nodes_are_killed_in_one_generation(fragile: Mesh, model: Model, blows: list[tuple[int, int]]) -> None:
    """The second dies while the loss of the first is fresh, or just repaired."""
    survive(fragile, model, 8, blows)


def test_generations_begin_where_a_node_is_gone_already(fragile: Mesh, model: Model) -> None:
    """Nobody has noticed the loss yet when the prompt comes: the answer waits for the node that stands by."""
    until_whole(fragile, "kill")
    victim = pipeline_of(fragile, "kill")[1]
    prompt = model.prompt(9, 1)
    strike(fragile, victim)
    heard = listen(fragile, "kill", prompt, {})
    fragile.local.restart(victim)
    expect_answer(heard, model, prompt)


@pytest.mark.soak
def test_a_node_is_killed_while_a_long_prompt_is_under_way(fragile: Mesh, model: Model) -> None:
    """No token is there yet: the prompt is fed again as far as it is lost."""
    for stage in range(STAGES):
        survive(fragile, model, 1500, [(-1, stage)])


def test_a_sampled_answer_is_the_same_under_kills(fragile: Mesh, model: Model) -> None:
    """With temperature and seed the random number of a position belongs to the position, not to the node."""
    until_whole(fragile, "kill")
    prompt = model.prompt(6, 2)
    how = {"temperature": 0.9, "top_p": 0.9, "seed": 12}
    expected = listen(fragile, "kill", prompt, {}, **how)
    killed: list[str] = []

    def blow(stage: int) -> None:
        # Whoever holds the stage by then; where one node holds all of them, the first blow may be all there is.
        victim = pipeline_of(fragile, "kill")[stage]
        if victim not in killed:
            killed.append(victim)
            strike(fragile, victim)

    try:
        heard = listen(fragile, "kill", prompt, {20: lambda: blow(2), 40: lambda: blow(0)}, **how)
    finally:
        for victim in killed:
            fragile.local.restart(victim)
    assert killed
    assert (heard.ids, heard.positions) == (expected.ids, expected.positions)
    assert heard.ids != endless(model, prompt, NEW_TOKENS)


def survive(
    mesh: Mesh, model: Model, length: int, blows: list[tuple[int, int]], *, seed: int = 0, name: str = "kill"
) -> float:
    """One generation under kills, at (token index, stage); returns how long it stalled for them, in seconds."""
    until_whole(mesh, name)
    prompt = model.prompt(length, seed)
    nodes = pipeline_of(mesh, name)  # of before: looking it up in between would cost many tokens
    killed: list[str] = []

    def blow(stage: int) -> None:
        strike(mesh, nodes[stage])
        killed.append(nodes[stage])

    try:
        heard = listen(mesh, name, prompt, {index: lambda stage=stage: blow(stage) for index, stage in blows})
    finally:
        for victim in killed:
            mesh.local.restart(victim)
    assert len(killed) == len(blows)
    expect_answer(heard, model, prompt)
    stall_s = sum(row.total_s for row in mesh.explain(heard.trace_id).rows if row.what in ("recover", "detect"))
    # Where one node has taken over several stages there are no links between them: its tokens come at once.
    spread = len(set(nodes)) == STAGES
    assert stall_s > 0 or not spread or min(blows)[0] > NEW_TOKENS - 8, "the blow came too late to be felt"
    return stall_s


@pytest.mark.parametrize(("index", "stage"), SPREAD)
def test_a_node_is_killed_at_a_token_and_the_answer_is_the_same(
    fragile: Mesh, model: Model, index: int, stage: int
) -> None:
    """The client sees no error, no token twice and none missing; the node that comes back stands by for the next."""
    survive(fragile, model, 5 + index, [(index, stage)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_node_is_killed_at_every_token(fragile: Mesh, model: Model) -> None:
    """All 64 indices of all three stages, one generation each."""
    failed = []
    stalls = []
    for index in range(NEW_TOKENS):
        for stage in range(STAGES):
            began_s = time.monotonic()
            try:
                stalls.append(survive(fragile, model, 7, [(index, stage)], seed=index))
            except (AssertionError, MeshError) as error:
                failed.append((index, stage, str(error)[:400]))
                sys.stdout.write(f"FAILED {failed[-1]}\n")
            sys.stdout.write(f"{index} {stage}: {time.monotonic() - began_s:.1f} s, stall {stalls[-1:]}\n")
    stalls.sort()
    sys.stdout.write(f"stalls: median {stalls[len(stalls) // 2]:.3f} s, worst {stalls[-1]:.3f} s\n")
    assert not failed
