"""Which stage must move before its node's window closes, and where to. Pure: time and windows come in.

A stage moves when a way of its pipeline closes within the lead time and no other way between the same nodes takes its
place. The successor is the node whose ways last longest after that moment, then the one with the least token time; it
can be ready in time, it is in touch with the stage before it while it is fed, and it stays for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.scheduler.sky_message import window_text
from services.scheduler.sky_walk import Scene
from services.scheduler.windows import Way

STAY_S = 5.0
"""The least time that a successor must stay in touch after it took over, in real seconds: less is no gain."""
FEED_S = 5.0
"""How long the feeding of a successor is thought to take, in real seconds."""
MARGIN_S = 5.0
"""What is added to the lead time for what was not foreseen, in real seconds."""


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


def lead_s(load_s: float) -> float:
    """How long before a closing a move must begin, in real seconds: loading, feeding, and a margin."""
    return load_s + FEED_S + MARGIN_S


def next_closing(scene: Scene, nodes: tuple[str, ...]) -> tuple[float, list[tuple[str, str]], Way] | None:
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
    if closing is None:
        return None
    closes_s, gone, way = closing
    now_s, stretch = scene.sky.now_s, scene.sky.stretch
    if closes_s - now_s > lead_s * stretch:
        return None
    stay_s = closes_s + STAY_S * stretch
    successors = [each for each in scene.successors(nodes, bounds, gone, now_s, closes_s) if -each[0] >= stay_s]
    successors = [each for each in successors if each[2] not in taken]
    if taken & {k for pair in gone for k, node in enumerate(nodes) if node in pair} or not successors:
        return None
    _, _, index, target = min(successors)
    ends = f"{way.hops[0].source} -> {way.hops[-1].target}"
    first = min((hop for hop in way.hops if hop.contact is not None), key=lambda hop: hop.closes_s)
    window = window_text(first.contact) if first.contact is not None else ""
    reason = f"the way {ends} closes in {(closes_s - now_s) / stretch:.1f} s ({window}); {target} stays in touch"
    return Move(index, nodes[index], target, closes_s, reason)
