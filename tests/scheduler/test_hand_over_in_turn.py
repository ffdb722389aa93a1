"""Stages whose nodes set together: the sequence of moves against an enumeration of all, and one by real processes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.trace.breakdown import DETECT, STALLS
from services.scheduler.costs import Objective, PlanModel, PlanNode
from services.scheduler.hand_over import MOVES_MAX, STAY_S, decide, decide_moves, lead_s, sequence
from services.scheduler.sky_walk import Scene, Work
from services.scheduler.windows import RELAYS_MAX, Sky
from tests.mesh.support import Model
from tests.scheduler.test_hand_over import scene_of, window

BOUNDS = (0, 1, 2)
CLOSES_S = 100.0
NOW_S = 90.0
SEEDS = 60

Moves = tuple[tuple[int, str], ...]


def both_set(*more: list[Contact]) -> tuple[list[Contact], ...]:
    """The pipeline a, b loses the gateway g at 100 s; c and d see everybody and stay."""
    old = (window("a", "b", 0, 100), window("g", "a", 0, 100), window("g", "b", 0, 100))
    new = (window("c", "d", 0, 900), window("g", "c", 0, 900), window("g", "d", 0, 900))
    between = (window("a", "c", 0, 100), window("a", "d", 0, 100), window("b", "c", 0, 100), window("b", "d", 0, 100))
    return (*old, *new, *between, *more)


def test_two_stages_that_set_together_move_one_after_the_other() -> None:
    """No single move is enough; two are named, in order, each with the window and its number."""
    scene = scene_of(90, "abcd", *both_set(), home="g")
    assert decide(scene, ("a", "b"), BOUNDS, lead_s=100.0) is None
    first, second = decide_moves(scene, ("a", "b"), BOUNDS, load_s=1.0)
    assert {first.stage_index, second.stage_index} == {0, 1}
    assert {(first.source, second.source), (first.target, second.target)} <= {
        ("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")
    }  # fmt: skip
    assert first.closes_s == second.closes_s == CLOSES_S
    assert "closes in 10.0 s" in first.reason
    assert "move 1 of 2" in first.reason
    assert "move 2 of 2" in second.reason


def test_a_sequence_begins_earlier_than_one_move_because_all_loads_and_feedings_count() -> None:
    """Two moves begin within the lead time of two; while a hand-over is under way, none does."""
    lead = lead_s(1.0, 2)
    assert lead > lead_s(1.0)
    early = scene_of(CLOSES_S - lead - 0.1, "abcd", *both_set(), home="g")
    late = scene_of(CLOSES_S - lead + 0.1, "abcd", *both_set(), home="g")
    assert decide_moves(early, ("a", "b"), BOUNDS, load_s=1.0) == ()
    assert len(decide_moves(late, ("a", "b"), BOUNDS, load_s=1.0)) == 2
    assert decide_moves(late, ("a", "b"), BOUNDS, load_s=1.0, taken=frozenset({0})) == ()


def test_one_move_stays_one_move() -> None:
    """Where one is enough it is the same as ever, and waits for its own lead time."""
    passes = (window("a", "b", 0, 100), window("a", "c", 0, 300), window("a", "d", 0, 200))
    for now_s in (70, 80, 83, 84.5, 95):
        scene = scene_of(now_s, "abcd", *passes)
        single = decide(scene, ("a", "b"), BOUNDS, lead_s=lead_s(5.0))
        assert decide_moves(scene, ("a", "b"), BOUNDS, load_s=5.0) == (() if single is None else (single,))


def test_where_everybody_sets_nothing_moves() -> None:
    """No sequence outlasts the closing: nothing is named, the generation will wait."""
    names = "abcdg"
    contacts = [window(a, b, 0, 100 + STAY_S - 1) for a, b in itertools.combinations(names, 2)]
    contacts[0] = window("a", "b", 0, 100)
    scene = scene_of(95, "abcd", *contacts, home="g", relays="")
    assert decide_moves(scene, ("a", "b"), BOUNDS, load_s=1.0) == ()


# Against an enumeration of all sequences, which knows nothing of how they are searched for.


class Enumeration:
    """Ways by listing all paths, moves by listing all sequences."""

    def __init__(self, scene: Scene, bounds: tuple[int, ...], closes_s: float) -> None:
        self.scene, self.bounds, self.closes_s = scene, bounds, closes_s
        self.stay_s = closes_s + STAY_S
        self.names = sorted({*scene.relays, *([scene.home] if scene.home else [])})
        self.now = {pair: self.cheapest(*pair, scene.sky.now_s, closes_s) for pair in self.pairs_of_names()}
        self.then = {pair: self.cheapest(*pair, closes_s, self.stay_s) for pair in self.pairs_of_names()}

    def pairs_of_names(self) -> Iterator[tuple[str, str]]:
        return itertools.permutations(self.names, 2)

    def cheapest(self, source: str, target: str, at_s: float, until_s: float) -> tuple[float, float] | None:
        """(latency, closing) of the cheapest path that is open all the time."""
        up = {(c.source, c.target): c for c in self.scene.sky.plan.contacts if c.start_s <= at_s < c.end_s >= until_s}
        best: tuple[float, float] | None = None
        others = [name for name in self.scene.relays if name not in (source, target)]
        # The gateway reaches its nodes by itself, and relays nothing.
        for count in range(1 if self.scene.home in (source, target) else RELAYS_MAX + 1):
            for relays in itertools.permutations(others, count):
                hops = list(itertools.pairwise((source, *relays, target)))
                if all(hop in up for hop in hops):
                    found = sum(up[hop].latency[0].latency_s for hop in hops), min(up[hop].end_s for hop in hops)
                    best = found if best is None or found[0] < best[0] else best
        return best

    def needed(self, nodes: tuple[str, ...]) -> set[tuple[str, str]]:
        ring = {(node, nodes[(k + 1) % len(nodes)]) for k, node in enumerate(nodes)}
        home = self.scene.home
        return ring | ({(home, node) for node in nodes} | {(node, home) for node in nodes} if home else set())

    def judged(self, start: tuple[str, ...], moves: Moves) -> tuple[float, int, float] | None:
        """(minus how long the last pipeline lasts, moves, latency round its ring); None where a step will not do."""
        nodes, had = start, set(start)
        for index, name in moves:
            size = self.bounds[index + 1] - self.bounds[index]
            if name in had or self.scene.nodes[name].memory_bytes < 10 * size:
                return None
            had.add(name)
            nodes = (*nodes[:index], name, *nodes[index + 1 :])
            if any(self.now[pair] is None for pair in self.needed(nodes)):
                return None
        then = [self.then[pair] for pair in self.needed(nodes)]
        if any(way is None for way in then):
            return None
        ring = [self.then[node, nodes[(k + 1) % len(nodes)]] for k, node in enumerate(nodes)]
        return -min(way[1] for way in then if way), len(moves), round(sum(way[0] for way in ring if way), 9)

    def best(self, start: tuple[str, ...]) -> tuple[float, int, float] | None:
        options = list(itertools.product(range(len(start)), sorted(set(self.scene.nodes) - set(start))))
        found = []
        for count in range(1, MOVES_MAX + 1):
            for targets in itertools.permutations(options, count):
                if len({name for _, name in targets}) == count:
                    found.append(self.judged(start, targets))
        return min((each for each in found if each is not None), default=None)


def random_scene(seed: int) -> tuple[Scene, tuple[str, ...]]:
    """Two or three stages, four spare nodes, with or without relays; many windows close at the same moment."""
    rng = random.Random(seed)
    stages = rng.choice((2, 3, 3))
    pipeline, home = tuple("abc"[:stages]), rng.choice((None, "g"))
    names = [*pipeline, *"pqrs"]
    contacts: list[Contact] = []
    everyone = [*names, *([home] if home else [])]
    density, keeps = rng.choice((0.3, 0.5, 0.8)), rng.choice((0.0, 0.3))
    for a, b in itertools.combinations(everyone, 2):
        within = a in pipeline and (b in pipeline or b == home)
        if within or rng.random() < density:
            lasts = a not in pipeline or (b not in pipeline and rng.random() < keeps)
            end_s = rng.choice((103.0, 150.0, 200.0, 300.0)) if lasts else CLOSES_S
            contacts += window(a, b, rng.choice((0.0, 0.0, 0.0, 95.0)) if not within else 0.0, end_s, rng.random())
    model = PlanModel((10,) * stages, 0, 0, 1000, 8, (0,) * stages, 0)
    memory = {name: rng.choice((9, 10, 10, 10)) for name in names}
    nodes = {name: PlanNode(name, memory[name], (0.01,) * stages) for name in names}
    sky = Sky(ContactPlan(0.0, 1000.0, tuple(contacts)), NOW_S)
    return Scene(model, nodes, tuple(names), sky, Objective.LATENCY, Work(), {}, home), pipeline


def test_the_sequence_found_is_the_best_of_all() -> None:
    """On small skies: how long it lasts, how many moves, and token time are those of the enumeration's best."""
    lengths = []
    for seed in range(SEEDS):
        scene, pipeline = random_scene(seed)
        bounds = tuple(range(len(pipeline) + 1))
        everything = Enumeration(scene, bounds, CLOSES_S)
        expected, moves = everything.best(pipeline), sequence(scene, pipeline, bounds, CLOSES_S)
        if expected is None:
            assert moves == (), f"seed {seed}"
        else:
            assert everything.judged(pipeline, moves) == pytest.approx(expected), f"seed {seed}"
        lengths.append(len(moves))
    assert set(lengths) >= {0, 1, 2, 3}, "the skies are too much alike"


# By real processes.

OLD, NEW = ("sat-1", "sat-2"), ("sat-3", "sat-4")
SETS_IN_S = 15.0
TOKENS = 240
TOLD_AT, LOOK_EVERY = 10, 10


def two_planes(sets_s: float) -> ContactPlan:
    """sat-1 and sat-2 are near and set together for everybody; sat-3 and sat-4 are farther away and stay."""
    contacts = []
    for a, b in itertools.combinations((*OLD, *NEW, "ground-1"), 2):
        near = not {a, b} & set(NEW)
        contacts += window(a, b, 0, sets_s if {a, b} & set(OLD) else 900, 0.025 if near else 0.035)
    return ContactPlan(0.0, 1000.0, tuple(contacts))


@pytest.mark.soak
def test_two_satellites_that_set_at_once_hand_over_without_a_stop(tmp_path: Path, tiny: Model) -> None:
    """Both stages of a running generation move, then their nodes are killed: nothing is recovered, no token differs."""
    prompt, ids, gone_at = tiny.prompt(8), [], TOKENS
    with Mesh.local(
        node_names=(*OLD, *NEW, "ground-1"), contacts=two_planes(800), time_factor=1.0, gateway_at="ground-1",
        directory=tmp_path / "mesh",
    ) as mesh:  # fmt: skip

        def serving() -> set[str]:
            return {stage.node for stage in mesh.deployment("planes").stages}

        mesh.deploy(tiny.pack, name="planes", stages=3, work_s=1, kv_tokens=512)
        assert serving() == {*OLD, "ground-1"}
        result = mesh.generate("planes", prompt=prompt, max_new_tokens=TOKENS, ignore_end=True, timeout=90)
        for token in result:
            ids.append(token.id)
            if len(ids) == TOLD_AT:
                newer = two_planes(mesh.local.clock().now_s() + SETS_IN_S)
                (mesh.local.directory / "contacts.json").write_text(newer.dump())
            if gone_at == TOKENS and len(ids) % LOOK_EVERY == 0 and serving() == {*NEW, "ground-1"}:
                gone_at = len(ids)
                for name in OLD:
                    mesh.local.kill(name)
        assert gone_at < TOKENS - LOOK_EVERY, "the generation ended before both stages had moved"
        assert ids == tiny.answer(prompt, TOKENS)
        assert {row.what for row in mesh.explain(result.trace_id).rows}.isdisjoint({DETECT, *STALLS})
