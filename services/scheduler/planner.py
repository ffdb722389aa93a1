"""The planner: which node holds which layers, by exact search over compute, memory and links.

A pipeline is an ordered list of stages, each a run of layers on a node of its own. `plan` returns the
optimum for `latency` (seconds per token: all compute, all crossings and the token's way back) or
`throughput` (the longest of any stage's compute and any crossing's occupancy; equal bottlenecks are decided
by latency), and says why.

How: `planner_search` solves latency by relaxed dynamic programming, node prices and bounded forward labels;
`planner_bottleneck` finds the smallest reachable bottleneck, under which the latency search then decides.

The worst case is exponential in the number of nodes. Measured with 80 layers on 16 nodes (CPU ms, one shared
core, medians; all in `bench/results/planner.json`): latency 5-35 where memory is slack, 95-112 where 10 or
more stages are needed, always proven; throughput 24-114 with 3 to 8 stages or equal nodes, 270-580 where all
16 unequal nodes take part, and there only about half are proven. Beyond the named label budgets the best
plan found is returned with `proven_optimal=False` and its lower bound (up to 5 % below it there) instead of
running on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from services.scheduler.costs import (
    TIE_REL,
    Costs,
    Objective,
    PlanLink,
    PlanModel,
    PlanNode,
    build,
    price,
    windows,
)
from services.scheduler.planner_bottleneck import BEAM_LABELS, Question, smallest
from services.scheduler.planner_explain import Split, best_neighbour, cut_tables, infeasible, rank
from services.scheduler.planner_search import Problem, solve

__all__ = [
    "Objective",
    "Plan",
    "PlanAlternative",
    "PlanCrossing",
    "PlanLink",
    "PlanModel",
    "PlanNode",
    "PlanStage",
    "assess",
    "describe",
    "find",
    "plan",
]

IMPROVE_STEPS = 64
"""Most moves to a better neighbour that an unproven plan is given."""


@dataclass(frozen=True)
class PlanStage:
    """One stage of a plan."""

    node: str
    """The node's name."""
    start: int
    """First layer."""
    stop: int
    """Layer after the last."""
    compute_s: float
    """Seconds of compute per step, embedding and head included where they belong."""
    memory_bytes: int
    """Bytes of weights and KV cache, embedding and head included where they belong."""
    free_bytes: int
    """Bytes of the node's memory that stay free."""

    @property
    def layers(self) -> range:
        """The stage's layers."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class PlanCrossing:
    """One way between two stages."""

    source: str
    """Sending node."""
    target: str
    """Receiving node."""
    latency_s: float
    """One-way delay in seconds."""
    transfer_s: float
    """Seconds that the bytes occupy the link."""


@dataclass(frozen=True)
class PlanAlternative:
    """A different plan, priced."""

    nodes: tuple[str, ...]
    """The node of each stage."""
    bounds: tuple[int, ...]
    """Stage k holds layers [bounds[k], bounds[k+1])."""
    token_s: float
    """Seconds per token of one generation."""
    bottleneck_s: float
    """Seconds between tokens of many generations."""


@dataclass(frozen=True)
class Plan:
    """Where every layer goes, what that costs, and what the other choices would cost."""

    objective: Objective
    """What was minimised."""
    objective_s: float
    """The value of the objective, in seconds."""
    token_s: float
    """Predicted seconds per token of one generation."""
    bottleneck_s: float
    """Predicted seconds between tokens of many generations."""
    stages: tuple[PlanStage, ...]
    """The stages, in order."""
    crossings: tuple[PlanCrossing, ...]
    """The ways between consecutive stages: one less than stages."""
    ring: PlanCrossing | None
    """The token's way from the last stage to the first; None with a single stage."""
    runner_up: PlanAlternative | None
    """The best plan one move away (one cut, one swap, one replaced node; with a free number of stages also
    one stage more, one less, or any single node); None where no such plan fits. It is not always the second
    best of all plans."""
    cuts: tuple[Mapping[int, float | None], ...]
    """For each cut, the objective in seconds at every position with the other cuts fixed; None where
    infeasible."""
    proven_optimal: bool
    """Whether the search proved that no plan is better."""
    lower_bound_s: float
    """No plan has a smaller objective, in seconds."""

    @property
    def gap(self) -> float:
        """How far above the lower bound the plan may be, as a share of its value."""
        return (self.objective_s - self.lower_bound_s) / self.objective_s if self.objective_s > 0 else 0.0


def plan(
    model: PlanModel,
    nodes: Sequence[PlanNode],
    links: Mapping[tuple[str, str], PlanLink | None],
    *,
    objective: Objective,
    stages: int | None = None,
) -> Plan:
    """The best split of `model` over `nodes`.

    Args:
        model: Sizes of layers, embedding, head, activations and KV cache.
        nodes: Candidates; each holds at most one stage.
        links: The directed links that are up, by (from, to) names; None or absent means down.
        objective: What to minimise.
        stages: The exact number of stages; any number where None.

    Raises:
        InvalidInputError: Malformed input; reason `TOO_MANY_STAGES` for more stages than layers or nodes.
        InfeasiblePlanError: No split satisfies memory and links; the message names what binds and what would
        help.
    """
    objective = Objective(objective)
    costs = build(model, nodes, links)
    if stages is not None:
        _check_stages(stages, costs)
    split, lower_s, proven = (
        _latency(costs, stages) if objective is Objective.LATENCY else _throughput(costs, stages)
    )
    if split is None:
        if not proven:
            raise InfeasiblePlanError(
                "the search budget was spent before any plan was found, and none was proven impossible. "
                "Offer fewer nodes, more memory or another number of stages.",
                metadata={"binding": "search budget"},
            )
        raise infeasible(model, costs, stages)
    runner = best_neighbour(costs, split, objective, fixed=stages is not None)
    if not proven:
        for _ in range(IMPROVE_STEPS):
            if runner is None or not runner[1] < rank(objective, *_value(costs, split)):
                break
            split = runner[0]
            runner = best_neighbour(costs, split, objective, fixed=stages is not None)
    return _assemble(costs, split, objective, runner[0] if runner else None, lower_s, proven)


def find(
    model: PlanModel,
    nodes: Sequence[PlanNode],
    links: Mapping[tuple[str, str], PlanLink | None],
    *,
    objective: Objective,
    stages: int | None = None,
) -> PlanAlternative | None:
    """What `plan` would choose, without the reasons; None where nothing fits or the search ended without a plan.

    Raises:
        InvalidInputError: Malformed input.
    """
    costs = build(model, nodes, links)
    if stages is not None and stages > min(costs.layers, len(costs.names)):
        return None
    split, _, _ = _latency(costs, stages) if objective is Objective.LATENCY else _throughput(costs, stages)
    if split is None:
        return None
    bottleneck_s, token_s = _value(costs, split)
    return PlanAlternative(tuple(costs.names[n] for n in split[0]), split[1], token_s, bottleneck_s)


def assess(
    model: PlanModel,
    nodes: Sequence[PlanNode],
    links: Mapping[tuple[str, str], PlanLink | None],
    split: Sequence[tuple[str, int, int]],
) -> tuple[float, float]:
    """(token, bottleneck) seconds of a given split, stages as (node, start, stop); `inf` where it does not
    fit."""
    costs = build(model, nodes, links)
    at = {name: index for index, name in enumerate(costs.names)}
    return _value(costs, (tuple(at[node] for node, _, _ in split), (0, *(stop for _, _, stop in split))))[
        ::-1
    ]


def _check_stages(stages: int, costs: Costs) -> None:
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise InvalidInputError(
            f"stages is {stages!r}; expected a whole number from 1, or None for any number."
        )
    most = min(costs.layers, len(costs.names))
    if stages > most:
        raise InvalidInputError(
            f"{stages} stages were asked for; {costs.layers} layers on {len(costs.names)} nodes "
            f"allow at most {most}. Ask for fewer stages or leave the number open.",
            reason="TOO_MANY_STAGES",
            metadata={"stages": stages, "layers": costs.layers, "nodes": len(costs.names)},
        )


def _value(costs: Costs, split: Split) -> tuple[float, float]:
    """(bottleneck, token) seconds."""
    bottleneck, token = price(costs, np.array([split[0]]), np.array([split[1]]))
    return float(bottleneck[0]), float(token[0])


def _latency(costs: Costs, stages: int | None) -> tuple[Split | None, float, bool]:
    found = solve(Problem(costs, windows(costs), costs.cross_s, stages))
    if found.nodes or found.proven:
        return (found.nodes, found.bounds) if found.nodes else None, found.lower_s, found.proven
    # Nothing found and nothing proven: look for any plan at all, which needs no costs.
    question = Question(costs, np.inf, stages)
    known = question.answer(BEAM_LABELS)
    if known is None:
        known = question.answer(None)
    return question.split, found.lower_s, known is False


def _throughput(costs: Costs, stages: int | None) -> tuple[Split | None, float, bool]:
    """The smallest bottleneck first, then the fastest ring under it."""
    threshold = smallest(costs, stages)
    if threshold.split is None:
        return None, threshold.lower_s, threshold.proven
    cross_s = np.where(costs.occupy_s <= threshold.value_s * (1 + TIE_REL), costs.cross_s, np.inf)
    found = solve(Problem(costs, windows(costs, threshold.value_s), cross_s, stages), threshold.split)
    return (found.nodes, found.bounds), threshold.lower_s, threshold.proven and found.proven


def _assemble(
    costs: Costs, split: Split, objective: Objective, runner: Split | None, lower_s: float, proven: bool
) -> Plan:
    nodes, bounds = split
    runs = list(zip(nodes, bounds[:-1], bounds[1:], strict=True))
    bottleneck_s, token_s = _value(costs, split)
    value_s = token_s if objective is Objective.LATENCY else bottleneck_s
    names = costs.names
    runner_up = None
    if runner is not None:
        slower, later = _value(costs, runner)
        runner_up = PlanAlternative(tuple(names[n] for n in runner[0]), runner[1], later, slower)
    ring = None
    if len(nodes) > 1:
        a, b = nodes[-1], nodes[0]
        delay_s = float(costs.latency_s[a, b])
        ring = PlanCrossing(names[a], names[b], delay_s, float(costs.return_s[a, b]) - delay_s)
    return Plan(
        objective=objective,
        objective_s=value_s,
        token_s=token_s,
        bottleneck_s=bottleneck_s,
        stages=tuple(
            PlanStage(
                names[n],
                start,
                stop,
                costs.stage_s(n, start, stop),
                costs.stage_bytes(start, stop),
                int(costs.memory_bytes[n]) - costs.stage_bytes(start, stop),
            )
            for n, start, stop in runs
        ),
        crossings=tuple(
            PlanCrossing(names[a], names[b], float(costs.latency_s[a, b]), float(costs.occupy_s[a, b]))
            for a, b in pairwise(nodes)
        ),
        ring=ring,
        runner_up=runner_up,
        cuts=cut_tables(costs, split, objective),
        proven_optimal=proven,
        lower_bound_s=value_s if proven else min(lower_s, value_s),
    )


def describe(plan: Plan) -> list[str]:
    """Why this plan, in sentences: its value and proof, what takes the time, what binds, what the next best
    costs."""
    ways = [*plan.crossings, *([plan.ring] if plan.ring else [])]
    compute_s = sum(stage.compute_s for stage in plan.stages)
    said = "proven optimal" if plan.proven_optimal else f"not proven, at most {plan.gap:.2%} above the bound"
    lines = [
        (
            f"{plan.objective.value}: {_ms(plan.objective_s)} ({said}); token time {_ms(plan.token_s)}, "
            f"bottleneck {_ms(plan.bottleneck_s)}, {len(plan.stages)} stage(s)"
        ),
        *(
            (
                f"{stage.node}: layers {stage.start}-{stage.stop - 1}, {_ms(stage.compute_s)}, "
                f"{stage.memory_bytes} bytes ({stage.free_bytes} free)"
            )
            for stage in plan.stages
        ),
        f"compute is {_ms(compute_s)} of the token time, links {_ms(plan.token_s - compute_s)}",
    ]
    slowest = max(plan.stages, key=lambda stage: stage.compute_s)
    widest = max(plan.crossings, key=lambda way: way.transfer_s, default=None)
    if widest is not None and widest.transfer_s > slowest.compute_s:
        lines.append(
            f"the link {widest.source} -> {widest.target} binds: {_ms(widest.transfer_s)} per activation"
        )
    else:
        lines.append(f"node {slowest.node} binds: {_ms(slowest.compute_s)} per step")
    tight = min(plan.stages, key=lambda stage: stage.free_bytes)
    lines.append(f"memory is tightest on {tight.node}: {tight.free_bytes} bytes free")
    if ways:
        late = max(ways, key=lambda way: way.latency_s + way.transfer_s)
        lines.append(
            f"the dearest way is {late.source} -> {late.target}: {_ms(late.latency_s + late.transfer_s)}"
        )
    lines.append(_describe_runner_up(plan))
    return lines


def _describe_runner_up(plan: Plan) -> str:
    other = plan.runner_up
    if other is None:
        return "no other plan is one move away: every one breaks a memory or link limit"
    value_s = other.token_s if plan.objective is Objective.LATENCY else other.bottleneck_s
    runs = ", ".join(
        f"{node} {start}-{stop - 1}"
        for node, start, stop in zip(other.nodes, other.bounds[:-1], other.bounds[1:], strict=True)
    )
    more = value_s / plan.objective_s - 1 if plan.objective_s > 0 else 0.0
    return f"the runner-up ({runs}) would take {_ms(value_s)}, {more:+.2%}; token time {_ms(other.token_s)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
