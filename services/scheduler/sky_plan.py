"""The plan that finishes first, under a sky that moves. Pure.

A pipeline starts at a moment (now, or when a window opens, or when a node can be ready) and finishes `tokens x token
time` later. It lasts where every way that it needs stays open from its start until the work is done, and at least for
as long as was asked. Of all that last, `plan_with_sky` finds the one that finishes first:

- at one start the exact planner is asked for the fastest split over the ways that stay open until some time L. If it
  finishes by its ways' closing, nothing better lasts: every lasting split is among those that were searched. If not,
  L rises to its finish, because no split of that start finishes sooner, and the question is asked again;
- starts are taken in order of time until even the fastest split over the best links that will ever be could not
  finish sooner than what was found.

On the way each split that does not last is followed by `sky_walk`: with hand-overs, or with ways that take each
other's place, it may last after all and finish sooner. Where nothing lasts at all, the split that finishes first with
its waits for contact is taken, and a warning says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from orbitmesh.errors import InfeasiblePlanError
from services.scheduler.costs import Objective, PlanLink
from services.scheduler.planner import Plan, PlanAlternative, find, plan
from services.scheduler.sky_walk import HandOverStep, Scene, Walk, walk
from services.scheduler.windows import Way

STARTS_MAX = 64
"""The most starts that are tried."""
RUNNER_UP_STARTS = 4
"""How many starts are looked at for a runner-up once the plan is decided."""
ROUNDS_MAX = 64
"""The most times that the exact planner is asked for one start."""

Split = tuple[tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Candidate:
    """A split at a start, followed to its end."""

    start_s: float
    """When it starts, mesh time in seconds."""
    split: Split
    """The node of each stage, and the bounds."""
    until_s: float
    """Its ways were searched among those that stay open until then, mesh time in seconds."""
    lasts: bool
    """Whether its ways stay open until the work is done."""
    fate: Walk
    """What becomes of it."""

    @property
    def order(self) -> tuple[bool, float, bool, int, float]:
        """The smallest is the best: no waits, first to finish, no changes of ways or nodes, early start."""
        changes = len(self.fate.hand_overs) + self.fate.reroutes
        return self.fate.waits > 0, self.fate.finish_s, not self.lasts, changes, self.start_s


@dataclass(frozen=True)
class SkyChoice:
    """The plan, and what the sky has to do with it."""

    plan: Plan
    """The split, priced with the ways of its start."""
    start_s: float
    """When it starts, mesh time in seconds."""
    finish_s: float
    """When it finishes, mesh time in seconds."""
    ways: tuple[tuple[str, str, Way], ...]
    """The ways at the start: round the ring, then to and from the gateway."""
    hand_overs: tuple[HandOverStep, ...]
    """The stages that move on the way."""
    waits: int
    """How often it waits for contact."""
    waiting_s: float
    """For how long, mesh time in seconds."""
    reroutes: int
    """How often another way between the same nodes is taken."""
    runner_up: Candidate | None
    """The best other split that was looked at."""
    runner_up_finish_s: float
    """When that would finish if its links lasted, mesh time in seconds."""
    reason: str
    """Why the runner-up was not taken."""
    proven: bool
    """Whether no lasting plan finishes sooner."""


def plan_with_sky(scene: Scene, stages: int | None) -> SkyChoice:
    """The plan that finishes first.

    Args:
        scene: Model, nodes, windows and work.
        stages: The exact number of stages; any number where None.

    Raises:
        InvalidInputError: Malformed input.
        InfeasiblePlanError: No pipeline fits at any moment of the contact plan; says what binds.
    """
    found: list[Candidate] = []
    best: Candidate | None = None
    least = _least(scene, stages)
    proven, decided = True, 0
    starts = _starts(scene)
    for number, start_s in enumerate(starts):
        soonest_s = start_s + scene.work.tokens * _value_s(scene, least) * scene.sky.stretch
        if best is not None and best.fate.waits == 0 and soonest_s >= best.fate.finish_s:
            decided += 1  # nothing finishes sooner; a few more starts may still give a runner-up to tell of
            if decided > RUNNER_UP_STARTS or any(each.split != best.split for each in found):
                break
        elif number >= STARTS_MAX:
            proven = False
            break
        for candidate in _at_start(scene, stages, start_s):
            found.append(candidate)
            if math.isfinite(candidate.fate.finish_s) and (best is None or candidate.order < best.order):
                best = candidate
    if best is None:
        raise _never(scene, found)
    return _choice(scene, stages, best, found, proven and least is not None)


def _starts(scene: Scene) -> list[float]:
    ready = {at_s for name, at_s in scene.ready_s.items() if name in scene.nodes and at_s > scene.sky.now_s}
    return sorted({*scene.sky.moments(), *(at_s for at_s in ready if at_s < scene.sky.plan.end_s)})


def _least(scene: Scene, stages: int | None) -> PlanAlternative:
    """A split no slower than which any can be, or the planner's own error where none will ever fit."""
    names = [*scene.relays, *([scene.home] if scene.home is not None else [])]
    links: dict[tuple[str, str], PlanLink] = {}
    for source in scene.nodes:
        for target in scene.nodes:
            if source == target:
                continue
            direct = scene.sky.best_ever(source, target)
            # A relayed way costs no less than its cheapest first and last hops; without either there is none.
            leaving = [scene.sky.best_ever(source, name) for name in names if name not in (source, target)]
            coming = [scene.sky.best_ever(name, target) for name in names if name not in (source, target)]
            bounds = [link for link in (direct, _bound(leaving, coming)) if link is not None]
            if bounds:
                links[source, target] = PlanLink(
                    min(link.latency_s for link in bounds), max(link.rate_bps for link in bounds)
                )
    nodes = list(scene.nodes.values())
    found = find(scene.model, nodes, links, objective=scene.objective, stages=stages)
    if found is None:
        plan(scene.model, nodes, links, objective=scene.objective, stages=stages)
        raise InfeasiblePlanError("no split of the model fits the nodes and the links of the contact plan")
    return found


def _bound(leaving: list[PlanLink | None], coming: list[PlanLink | None]) -> PlanLink | None:
    first = [link for link in leaving if link is not None]
    last = [link for link in coming if link is not None]
    if not first or not last:
        return None
    latency_s = min(link.latency_s for link in first) + min(link.latency_s for link in last)
    return PlanLink(latency_s, max(link.rate_bps for link in first))


def _value_s(scene: Scene, found: PlanAlternative) -> float:
    return found.token_s if scene.objective is Objective.LATENCY else found.bottleneck_s


def _at_start(scene: Scene, stages: int | None, start_s: float) -> Iterator[Candidate]:
    """The fastest splits at one start, over ways that stay open for longer and longer."""
    least_s = start_s + scene.work.least_s * scene.sky.stretch
    until_s = start_s  # first the fastest of all, whether or not it lasts
    for _ in range(ROUNDS_MAX):
        found = _fastest(scene, stages, start_s, until_s)
        if found is None:
            return
        split = (found.nodes, found.bounds)
        used = scene.used(found.nodes, start_s, until_s) or {}
        finish_s = start_s + scene.work.tokens * _value_s(scene, found) * scene.sky.stretch
        need_s = max(finish_s, least_s)
        closes_s = min((way.closes_s for way in used.values()), default=math.inf)
        if closes_s >= need_s:
            yield Candidate(start_s, split, until_s, True, Walk(finish_s, (), 0, 0, 0.0, None))
            return
        yield Candidate(start_s, split, until_s, False, walk(scene, *split, start_s))
        until_s = max(need_s, math.nextafter(closes_s, math.inf))


def _fastest(scene: Scene, stages: int | None, start_s: float, until_s: float) -> PlanAlternative | None:
    names = _allowed(scene, start_s, until_s)
    if not names:
        return None
    links = scene.ways(start_s).links(names, until_s)
    nodes = [scene.nodes[name] for name in names]
    return find(scene.model, nodes, links, objective=scene.objective, stages=stages)


def _allowed(scene: Scene, start_s: float, until_s: float) -> list[str]:
    return [
        name
        for name in scene.nodes
        if scene.ready_s.get(name, -math.inf) <= start_s and scene.at_home(name, start_s, until_s)
    ]


def _choice(scene: Scene, stages: int | None, best: Candidate, found: list[Candidate], proven: bool) -> SkyChoice:
    names = _allowed(scene, best.start_s, best.until_s)
    links = scene.ways(best.start_s).links(names, best.until_s)
    nodes = [scene.nodes[name] for name in names]
    planned = plan(scene.model, nodes, links, objective=scene.objective, stages=stages)
    used = scene.used(best.split[0], best.start_s, best.until_s) or {}
    other, other_finish_s, reason = _runner_up(scene, best, found)
    return SkyChoice(
        plan=planned,
        start_s=best.start_s,
        finish_s=best.fate.finish_s,
        ways=tuple((source, target, way) for (source, target), way in used.items()),
        hand_overs=best.fate.hand_overs,
        waits=best.fate.waits,
        waiting_s=best.fate.waiting_s,
        reroutes=best.fate.reroutes,
        runner_up=other,
        runner_up_finish_s=other_finish_s,
        reason=reason,
        proven=proven and planned.proven_optimal,
    )


def _runner_up(scene: Scene, best: Candidate, found: list[Candidate]) -> tuple[Candidate | None, float, str]:
    """The other split that would finish first if its links lasted, and why it was not taken."""
    stretch, tokens = scene.sky.stretch, scene.work.tokens

    def would_finish_s(candidate: Candidate) -> float:
        used = scene.used(candidate.split[0], candidate.start_s, candidate.until_s) or {}
        return candidate.start_s + tokens * scene.token_s(*candidate.split, used) * stretch

    others = [candidate for candidate in found if candidate.split != best.split]
    if not others:
        return None, math.inf, ""
    other = min(others, key=lambda candidate: (would_finish_s(candidate), candidate.start_s))
    finish_s = would_finish_s(other)
    if other.fate.broken is not None and not best.fate.waits:
        way = other.fate.broken
        ends = f"{way.hops[0].source} -> {way.hops[-1].target}"
        in_s = (way.closes_s - scene.sky.now_s) / stretch
        return other, finish_s, f"its way {ends} closes in {in_s:.1f} s, before the work is done, and nothing follows"
    if other.order > best.order and math.isfinite(other.fate.finish_s):
        later_s = (other.fate.finish_s - best.fate.finish_s) / stretch
        return other, other.fate.finish_s, f"it finishes {later_s:.1f} s later"
    return other, finish_s, "it never has all of its ways for long enough"


def _never(scene: Scene, found: list[Candidate]) -> InfeasiblePlanError:
    if found:
        return InfeasiblePlanError(
            "links: pipelines fit, but by the contact plan none has all of its ways for long enough to finish the "
            "work, not even with waits. Ask for less work, or add nodes, links or a longer contact plan.",
            metadata={"binding": "links"},
        )
    return InfeasiblePlanError(
        "links: the memory suffices, but by the contact plan there is no moment at which nodes that can hold the model "
        "see each other (and the gateway). Add nodes or links, or give a longer contact plan.",
        metadata={"binding": "links"},
    )
