"""Which stages must move before a window closes, in which order, and where to. Pure: time and windows come in.

A stage moves when a way of its pipeline closes within the lead time and no other way between the same nodes takes its
place. The successor is the node whose ways last longest after that moment, then the one with the least token time; it
can be ready in time, it is in touch with the stage before it while it is fed, and it stays for a while.

Where the nodes of several stages set together no single move helps: then a sequence of moves is searched for. Every
pipeline on its way is whole from now until the closing, so that it does not matter when each move is made; the last
one stays for a while after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from services.scheduler.sky_message import window_text
from services.scheduler.sky_walk import Scene
from services.scheduler.windows import Way

STAY_S = 5.0
"""The least time that a successor must stay in touch after it took over, in real seconds: less is no gain."""
FEED_S = 5.0
"""How long the feeding of a successor is thought to take, in real seconds."""
MARGIN_S = 5.0
"""What is added to the lead time for what was not foreseen, in real seconds."""
MOVES_MAX = 4
"""The most moves of one sequence."""
KEPT_MAX = 256
"""How many pipelines of each number of moves are gone on from: those with the fewest ways that are about to close."""
LOOKED_AT_MAX = 10_000
"""How many pipelines one search looks at."""

Closing = tuple[float, list[tuple[str, str]], Way]
"""When a pipeline first loses a way for good, mesh time in seconds; the pairs that lose it; the way."""


@dataclass(frozen=True)
class Move:
    """A stage that is to move."""

    stage_index: int
    """The stage's place."""
    source: str
    """The node that it leaves."""
    target: str
    """The node that takes it."""
    closes_s: float
    """When the way closes, mesh time in seconds."""
    reason: str
    """Why, as a sentence."""


def lead_s(load_s: float, moves: int = 1) -> float:
    """How long before a closing moves must begin, in real seconds: loading, feeding, and a margin.

    Successors of several moves are loaded at once, but maybe over one thin link: all loads count.
    """
    return moves * (load_s + FEED_S) + MARGIN_S


def next_closing(scene: Scene, nodes: tuple[str, ...]) -> Closing | None:
    """When a pipeline first loses a way for good: (mesh time, the pairs that lose it, the way); None where it does not.

    Ways that are replaced by others between the same nodes are followed until nothing replaces them.
    """
    at_s = scene.sky.now_s
    used = scene.used(nodes, at_s, at_s)
    while used:
        closes_s = min(way.closes_s for way in used.values())
        if not math.isfinite(closes_s):
            return None
        gone = [pair for pair, way in used.items() if way.closes_s <= closes_s]
        again = scene.used(nodes, closes_s, closes_s)
        if again is None:
            return closes_s, gone, used[gone[0]]
        used = again
    return None


def decide(
    scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], *, lead_s: float, taken: frozenset[int] = frozenset()
) -> Move | None:
    """The stage that must move now, if one must.

    Args:
        scene: Windows from now on; `scene.ready_s` says when each node could have the stage loaded.
        nodes: The node of each stage.
        bounds: Stage k holds layers [bounds[k], bounds[k+1]).
        lead_s: How long before a closing a move begins, in real seconds.
        taken: Places whose hand-over is under way: they are left alone.
    """
    closing = next_closing(scene, nodes)
    if closing is None or closing[0] - scene.sky.now_s > lead_s * scene.sky.stretch:
        return None
    return _single(scene, nodes, bounds, closing, taken)


def decide_moves(
    scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], *, load_s: float, taken: frozenset[int] = frozenset()
) -> tuple[Move, ...]:
    """The moves that must begin now, in order: none, one, or several where no single one will do.

    Args:
        scene: As in `decide`.
        nodes: The node of each stage.
        bounds: Stage k holds layers [bounds[k], bounds[k+1]).
        load_s: How long the loading of a stage takes, in real seconds.
        taken: Places whose hand-over is under way; no sequence begins while there is one.
    """
    closing = next_closing(scene, nodes)
    if closing is None:
        return ()
    left_s = (closing[0] - scene.sky.now_s) / scene.sky.stretch
    if left_s > lead_s(load_s, MOVES_MAX):
        return ()
    single = _single(scene, nodes, bounds, closing, taken)
    if single is not None:
        return (single,) if left_s <= lead_s(load_s) else ()
    steps = () if taken else sequence(scene, nodes, bounds, closing[0])
    if not steps or left_s > lead_s(load_s, len(steps)):
        return ()
    stay = ", ".join(target for _, target in steps)
    moves, now = [], nodes
    for number, (index, target) in enumerate(steps, 1):
        reason = f"{_why(scene, closing)}; {stay} stay in touch: move {number} of {len(steps)}"
        moves.append(Move(index, now[index], target, closing[0], reason))
        now = _put(now, index, target)
    return tuple(moves)


def sequence(
    scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], closes_s: float
) -> tuple[tuple[int, str], ...]:
    """Moves, each a place and its new node, after which a pipeline outlasts a closing; empty where none are found.

    Each pipeline on the way has all of its ways open from now until the closing, and the last one until `STAY_S` after
    it. No node is taken that any of them had before. Of all such sequences of at most `MOVES_MAX` moves that one is
    found whose last pipeline keeps its ways longest, then the one with the fewest moves, then with the least token
    time; of very many (`KEPT_MAX`, `LOOKED_AT_MAX`) the best that was seen.

    Args:
        scene: Windows from now on; `scene.ready_s` says when each node could have a stage loaded.
        nodes: The node of each stage.
        bounds: Stage k holds layers [bounds[k], bounds[k+1]).
        closes_s: When the pipeline loses a way, mesh time in seconds.
    """
    return _Search(scene, nodes, bounds, closes_s).best()


@dataclass(frozen=True, slots=True)
class _Reached:
    """A pipeline that moves lead to."""

    nodes: tuple[str, ...]
    moves: tuple[tuple[int, str], ...]
    missing: int
    """How many of its ways do not last."""
    lasts_s: float
    """When the first of its ways closes after the closing, mesh time; `-inf` where one is missing."""


class _Search:
    """One search, move by move; what is open between two nodes is asked once."""

    def __init__(self, scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], closes_s: float) -> None:
        self._scene, self._nodes, self._bounds, self._closes_s = scene, nodes, bounds, closes_s
        self._stay_s = closes_s + STAY_S * scene.sky.stretch
        self._open: dict[tuple[str, str], bool] = {}
        self._lasts: dict[tuple[str, str], float] = {}
        self._fitting = [
            [
                name
                for name, node in sorted(scene.nodes.items())
                if name not in nodes
                and scene.ready_s.get(name, -math.inf) <= closes_s
                and scene.held_bytes(bounds[index], bounds[index + 1]) <= node.memory_bytes
            ]
            for index in range(len(nodes))
        ]

    def best(self) -> tuple[tuple[int, str], ...]:
        """The moves; empty where none are found."""
        best_s, best, left = -math.inf, list[_Reached](), LOOKED_AT_MAX
        kept = [_Reached(self._nodes, (), 0, -math.inf)]
        for _ in range(MOVES_MAX):
            found: dict[tuple[tuple[str, ...], frozenset[str]], _Reached] = {}
            for before in kept:
                for after in islice(self._onward(before), left):
                    left -= 1
                    if after is not None:
                        spent = frozenset(target for _, target in after.moves)
                        key = (after.nodes, spent)
                        if key not in found or _order(after) < _order(found[key]):
                            found[key] = after
            kept = sorted(found.values(), key=lambda each: (each.missing, -each.lasts_s, _order(each)))[:KEPT_MAX]
            if kept and kept[0].lasts_s > best_s:  # as long with more moves is no better
                best_s = kept[0].lasts_s
                best = [each for each in kept if each.lasts_s == best_s]
        return min(best, key=lambda each: (self._token_s(each.nodes), _order(each))).moves if best else ()

    def _onward(self, before: _Reached) -> Iterator[_Reached | None]:
        """Each pipeline one move further; None in place of one that is not whole now."""
        spent = {target for _, target in before.moves}
        for index, names in enumerate(self._fitting):
            for name in names:
                if name not in spent:
                    yield self._reached(_put(before.nodes, index, name), (*before.moves, (index, name)))

    def _reached(self, nodes: tuple[str, ...], moves: tuple[tuple[int, str], ...]) -> _Reached | None:
        # Who feeds the new node, the stage before it or the gateway, is among the pairs.
        pairs = self._scene.pairs(nodes)
        if not all(self._is_open(pair) for pair in pairs):
            return None
        lasts = [self._lasts_s(pair) for pair in pairs]
        return _Reached(nodes, moves, sum(each == -math.inf for each in lasts), min(lasts, default=math.inf))

    def _is_open(self, pair: tuple[str, str]) -> bool:
        if pair not in self._open:
            way = self._scene.way(pair, self._scene.sky.now_s, self._closes_s)
            self._open[pair] = pair[0] == pair[1] or way is not None
        return self._open[pair]

    def _lasts_s(self, pair: tuple[str, str]) -> float:
        if pair not in self._lasts:
            way = self._scene.way(pair, self._closes_s, self._stay_s)
            gone_s = math.inf if pair[0] == pair[1] else -math.inf
            self._lasts[pair] = gone_s if way is None else way.closes_s
        return self._lasts[pair]

    def _token_s(self, nodes: tuple[str, ...]) -> float:
        used = self._scene.used(nodes, self._closes_s, self._stay_s)
        return math.inf if used is None else self._scene.token_s(nodes, self._bounds, used)


def _single(
    scene: Scene, nodes: tuple[str, ...], bounds: tuple[int, ...], closing: Closing, taken: frozenset[int]
) -> Move | None:
    """The one move that is enough; None where there is none, or where the place is taken."""
    closes_s, gone, _ = closing
    stay_s = closes_s + STAY_S * scene.sky.stretch
    successors = [
        each for each in scene.successors(nodes, bounds, gone, scene.sky.now_s, closes_s) if -each[0] >= stay_s
    ]
    successors = [each for each in successors if each[2] not in taken]
    if taken & {k for pair in gone for k, node in enumerate(nodes) if node in pair} or not successors:
        return None
    _, _, index, target = min(successors)
    return Move(index, nodes[index], target, closes_s, f"{_why(scene, closing)}; {target} stays in touch")


def _why(scene: Scene, closing: Closing) -> str:
    closes_s, _, way = closing
    ends = f"{way.hops[0].source} -> {way.hops[-1].target}"
    first = min((hop for hop in way.hops if hop.contact is not None), key=lambda hop: hop.closes_s)
    window = window_text(first.contact) if first.contact is not None else ""
    return f"the way {ends} closes in {(closes_s - scene.sky.now_s) / scene.sky.stretch:.1f} s ({window})"


def _order(reached: _Reached) -> tuple[tuple[int, str], ...]:
    """Last places first: a node that has just taken over may lack the beginning of the journal for the next stage."""
    return tuple((-index, name) for index, name in reached.moves)


def _put(nodes: tuple[str, ...], index: int, name: str) -> tuple[str, ...]:
    return (*nodes[:index], name, *nodes[index + 1 :])
