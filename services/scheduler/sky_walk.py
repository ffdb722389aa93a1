"""What becomes of a pipeline as the sky moves: where its ways change, who takes over, when it must wait. Pure.

A walk follows a pipeline from its start until its work is done. At each closing of a way, in this order: another way
between the same nodes is taken where there is one; a stage at the broken way is handed over to a node that has ways
to its neighbours before and after; the work waits until the nodes see each other again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.scheduler.costs import Objective, PlanModel, PlanNode
from services.scheduler.places import Links, Ring, stage_s, token_s, way_s
from services.scheduler.windows import Sky, Way, Ways

STEPS_MAX = 256
"""The most changes that one walk follows."""
LEAD_S = 10.0
"""How long before a closing the successor must be in touch with its neighbours, in real seconds: it is fed then."""
OPENINGS_MAX = 512
"""How many changes of the sky are looked at for the one that ends a wait."""


@dataclass(frozen=True)
class Work:
    """How much there is to do."""

    tokens: int = 256
    """Tokens of one generation."""
    least_s: float = 60.0
    """For how long the links must last in any case, in real seconds from the start."""


@dataclass(frozen=True)
class HandOverStep:
    """A stage that moves to another node before its way closes."""

    stage_index: int
    """The stage's place."""
    source: str
    """The node that it leaves."""
    target: str
    """The node that takes it."""
    at_s: float
    """When the way closes, mesh time in seconds."""
    broken: Way
    """The way that closes."""


@dataclass(frozen=True)
class Walk:
    """What becomes of a pipeline."""

    finish_s: float
    """When the last token is there, mesh time in seconds; `inf` where it never is."""
    hand_overs: tuple[HandOverStep, ...]
    """The stages that move, in order of time."""
    reroutes: int
    """How often a way closes and another one between the same nodes is taken."""
    waits: int
    """How often the work waits for contact."""
    waiting_s: float
    """For how long in all, mesh time in seconds."""
    broken: Way | None
    """The first way that closes with nothing to take its place."""


@dataclass(eq=False)
class Scene:
    """Everything that a walk looks at."""

    model: PlanModel
    """The model."""
    nodes: Mapping[str, PlanNode]
    """The nodes that may hold a stage."""
    relays: tuple[str, ...]
    """Every node that may relay, those above among them."""
    sky: Sky
    """The windows."""
    objective: Objective
    """What a token costs: latency round the ring, or the bottleneck."""
    work: Work
    """How much there is to do."""
    ready_s: Mapping[str, float]
    """From when on a node can serve, mesh time in seconds; absent means at once."""
    home: str | None = None
    """Where the gateway stands, in the plan's names; every stage must be in touch with it. None where it is unknown."""
    hand_overs: bool = True
    """Whether stages may move."""
    _ways: dict[float, Ways] = field(default_factory=dict)

    def ways(self, at_s: float) -> Ways:
        """The ways at a moment; the newest few are kept."""
        found = self._ways.get(at_s)
        if found is None:
            if len(self._ways) >= 64:
                self._ways.pop(next(iter(self._ways)))
            names = self.relays if self.home is None else tuple({*self.relays, self.home})
            found = self._ways[at_s] = Ways(self.sky, names, at_s, self.model.activation_bytes, self.relays)
        return found

    def way(self, pair: tuple[str, str], at_s: float, until_s: float) -> Way | None:
        """The cheapest way at a moment that stays open until then; to and from the gateway's place without relays: a
        gateway reaches its nodes by itself."""
        ways = self.ways(at_s)
        return ways.direct(*pair, until_s) if self.home in pair else ways.way(*pair, until_s)

    def at_home(self, node: str, at_s: float, until_s: float) -> bool:
        """Whether a node and the gateway can talk to each other, both ways and without relays, until then."""
        if self.home is None or node == self.home:
            return True
        return all(self.way(pair, at_s, until_s) is not None for pair in ((self.home, node), (node, self.home)))

    def pairs(self, nodes: Sequence[str]) -> list[tuple[str, str]]:
        """The ways that a pipeline needs: round the ring, and between the gateway and every stage."""
        ring = [] if len(nodes) == 1 else [(a, nodes[(k + 1) % len(nodes)]) for k, a in enumerate(nodes)]
        if self.home is None:
            return ring
        others = [node for node in dict.fromkeys(nodes) if node != self.home]
        return [*ring, *((self.home, node) for node in others), *((node, self.home) for node in others)]

    def used(self, nodes: Sequence[str], at_s: float, until_s: float) -> dict[tuple[str, str], Way] | None:
        """The ways of a pipeline at a moment that stay open until then; None where one is missing."""
        found = {}
        for pair in self.pairs(nodes):
            if pair[0] == pair[1]:
                continue
            way = self.way(pair, at_s, until_s)
            if way is None:
                return None
            found[pair] = way
        return found

    def token_s(self, nodes: Sequence[str], bounds: Sequence[int], used: Mapping[tuple[str, str], Way]) -> float:
        """Real seconds between two tokens of a pipeline over these ways."""
        links = {pair: way.link for pair, way in used.items()}
        ring = Ring(self.model, tuple(nodes), tuple(bounds), (0,) * len(nodes))
        if self.objective is Objective.LATENCY:
            return token_s(ring, self.nodes, links)
        return _bottleneck_s(ring, self.nodes, links)

    def held_bytes(self, start: int, stop: int) -> int:
        """What layers [start, stop) take on a node, in bytes."""
        model = self.model
        size = sum(model.layer_bytes[start:stop]) + model.kv_tokens * sum(model.kv_bytes_per_token[start:stop])
        last = len(model.layer_bytes)
        return size + (model.embed_bytes if start == 0 else 0) + (model.head_bytes if stop == last else 0)

    def successors(
        self,
        nodes: tuple[str, ...],
        bounds: tuple[int, ...],
        broken: Sequence[tuple[str, str]],
        since_s: float,
        at_s: float,
    ) -> Iterator[tuple[float, float, int, str]]:
        """(minus closing, token time, place, node) of every node that could take a place at a broken way."""
        lead_s = max(since_s, at_s - LEAD_S * self.sky.stretch)
        for index in sorted({k for pair in broken for k, node in enumerate(nodes) if node in pair}):
            for name, node in self.nodes.items():
                if name in nodes or self.ready_s.get(name, -math.inf) > at_s:
                    continue
                if self.held_bytes(bounds[index], bounds[index + 1]) > node.memory_bytes:
                    continue
                before = nodes[index - 1] if index else (self.home or nodes[-1])
                if before != name and not self.ways(lead_s).reach(before, name, at_s):
                    continue
                after = (*nodes[:index], name, *nodes[index + 1 :])
                used = self.used(after, at_s, at_s)
                if used is not None:
                    closes_s = min((way.closes_s for way in used.values()), default=math.inf)
                    yield -closes_s, self.token_s(after, bounds, used), index, name


def _bottleneck_s(ring: Ring, nodes: Mapping[str, PlanNode], links: Links) -> float:
    slowest = 0.0
    for index, name in enumerate(ring.nodes):
        slowest = max(slowest, stage_s(ring.model, nodes[name], ring.bounds[index], ring.bounds[index + 1]))
        if index + 1 < len(ring.nodes) and ring.nodes[index + 1] != name:
            link = links[name, ring.nodes[index + 1]]
            slowest = max(slowest, way_s(ring.model, links, name, ring.nodes[index + 1], token=False) - link.latency_s)
    return slowest


def walk(scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], start_s: float) -> Walk:
    """Follows a pipeline from its start; see the module for what happens at a closing.

    Args:
        scene: Everything around it.
        nodes: The node of each stage.
        bounds: Stage k holds layers [bounds[k], bounds[k+1]).
        start_s: When it starts, mesh time in seconds.
    """
    stretch, at_s = scene.sky.stretch, start_s
    left, least_s = float(scene.work.tokens), start_s + scene.work.least_s * stretch
    steps: list[HandOverStep] = []
    reroutes, waits, waiting_s = 0, 0, 0.0
    finish_s, first_broken = math.inf, None

    def ended() -> Walk:
        return Walk(finish_s, tuple(steps), reroutes, waits, waiting_s, first_broken)

    used = scene.used(nodes, at_s, at_s)
    if used is None:
        return ended()
    for _ in range(STEPS_MAX):
        closes_s = min((way.closes_s for way in used.values()), default=math.inf)
        each_s = scene.token_s(nodes, bounds, used) * stretch
        if left > 0 and at_s + left * each_s <= closes_s:
            finish_s, left = at_s + left * each_s, 0.0
        if left <= 0 and least_s <= closes_s:
            return ended()
        left -= (closes_s - at_s) / each_s if each_s > 0 else 0.0
        gone = [pair for pair, way in used.items() if way.closes_s <= closes_s]
        since_s, at_s = at_s, closes_s
        again = scene.used(nodes, at_s, at_s)
        if again is not None:
            used, reroutes = again, reroutes + 1
            continue
        found = min(scene.successors(nodes, bounds, gone, since_s, at_s), default=None) if scene.hand_overs else None
        if found is not None:
            _, _, index, name = found
            steps.append(HandOverStep(index, nodes[index], name, at_s, used[gone[0]]))
            nodes = (*nodes[:index], name, *nodes[index + 1 :])
            used = scene.used(nodes, at_s, at_s) or {}
            continue
        first_broken = first_broken or used[gone[0]]
        opens_s = _opens_again(scene, nodes, at_s)
        waits += 1
        if opens_s is None or left <= 0:
            return ended()  # nothing follows, or the tokens are done and only the links were to last longer
        waiting_s += opens_s - at_s
        used, at_s = scene.used(nodes, opens_s, opens_s) or {}, opens_s
    return ended()


def _opens_again(scene: Scene, nodes: tuple[str, ...], at_s: float) -> float | None:
    """The first later moment at which a pipeline has all of its ways again; None where there is none."""
    change_s = scene.sky.plan.next_change(at_s)
    for _ in range(OPENINGS_MAX):
        if change_s is None:
            return None
        if scene.used(nodes, change_s, change_s) is not None:
            return change_s
        change_s = scene.sky.plan.next_change(change_s)
    return None
