"""Why a plan, and why none: prices of every neighbouring split, and what binds where no split exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from orbitmesh.errors import InfeasiblePlanError
from services.scheduler.costs import Costs, Ints, Objective, PlanModel, price, windows
from services.scheduler.planner_bottleneck import Question
from services.scheduler.planner_search import Problem, solve

Split = tuple[tuple[int, ...], tuple[int, ...]]
"""The node of each stage, and the bounds: stage k holds layers [bounds[k], bounds[k+1])."""
Rank = tuple[float, float]
"""What is compared, in seconds: (token, bottleneck) for latency, (bottleneck, token) for throughput."""
NAMED_NODES = 8
"""Most nodes or links that one message lists."""


def rank(objective: Objective, bottleneck_s: float, token_s: float) -> Rank:
    """The pair that orders two splits under the objective."""
    return (token_s, bottleneck_s) if objective is Objective.LATENCY else (bottleneck_s, token_s)


def cut_tables(costs: Costs, split: Split, objective: Objective) -> tuple[dict[int, float | None], ...]:
    """For each cut, the objective in seconds at each of its positions, all else fixed; None where
    infeasible."""
    nodes, bounds = split
    tables = []
    for k in range(1, len(nodes)):
        positions = range(bounds[k - 1] + 1, bounds[k + 1])
        moved = np.tile(np.array(bounds, dtype=np.int64), (len(positions), 1))
        moved[:, k] = positions
        bottleneck, token = price(costs, np.tile(np.array(nodes, dtype=np.int64), (len(positions), 1)), moved)
        value = token if objective is Objective.LATENCY else bottleneck
        tables.append(
            {
                at: (float(v) if np.isfinite(v) else None)
                for at, v in zip(positions, value.tolist(), strict=True)
            }
        )
    return tuple(tables)


def best_neighbour(
    costs: Costs, split: Split, objective: Objective, *, fixed: bool
) -> tuple[Split, Rank] | None:
    """The best split one move away.

    Moves: one cut elsewhere; two nodes swapped; one node replaced by an unused one; and, unless the number
    of stages is fixed, one stage removed, one unused node inserted anywhere, or the whole model on any one
    node.
    """
    groups: dict[int, list[Split]] = {}
    for neighbour in _neighbours(split, costs.memory_bytes.size, costs.layers, fixed=fixed):
        groups.setdefault(len(neighbour[0]), []).append(neighbour)
    best: tuple[Split, Rank] | None = None
    for group in groups.values():
        bottleneck, token = price(costs, np.array([s[0] for s in group]), np.array([s[1] for s in group]))
        main, tie = (token, bottleneck) if objective is Objective.LATENCY else (bottleneck, token)
        at = int(np.lexsort((tie, main))[0])
        found = (float(main[at]), float(tie[at]))
        if np.isfinite(found[0]) and (best is None or found < best[1]):
            best = group[at], found
    return best


def _neighbours(split: Split, count: int, layers: int, *, fixed: bool) -> Iterator[Split]:
    nodes, bounds = split
    stages = len(nodes)
    others = [n for n in range(count) if n not in nodes]
    for k in range(1, stages):
        for at in range(bounds[k - 1] + 1, bounds[k + 1]):
            if at != bounds[k]:
                yield nodes, (*bounds[:k], at, *bounds[k + 1 :])
    for k in range(stages):
        for n in others:
            yield (*nodes[:k], n, *nodes[k + 1 :]), bounds
        for other in range(k + 1, stages):
            swapped = list(nodes)
            swapped[k], swapped[other] = swapped[other], swapped[k]
            yield tuple(swapped), bounds
    if not fixed:
        yield from _other_counts(split, others, count, layers)


def _other_counts(split: Split, others: list[int], count: int, layers: int) -> Iterator[Split]:
    nodes, bounds = split
    stages = len(nodes)
    for n in range(count):
        if stages > 1:
            yield (n,), (0, layers)
    for k in range(stages):
        rest = (*nodes[:k], *nodes[k + 1 :])
        # An end stage can only go to its one neighbour; an inner one may be shared out at any layer.
        if k == 0 and stages > 2:
            yield rest, (0, *bounds[2:])
        elif k == stages - 1 and stages > 2:
            yield rest, (*bounds[:k], layers)
        elif stages > 2:
            for at in range(bounds[k], bounds[k + 1] + 1):
                yield rest, (*bounds[:k], at, *bounds[k + 2 :])
        for at in range(bounds[k] + 1, bounds[k + 1]):
            cut = (*bounds[: k + 1], at, *bounds[k + 1 :])
            for n in others:
                yield (*nodes[:k], n, *nodes[k:]), cut
                yield (*nodes[: k + 1], n, *nodes[k + 1 :]), cut


def infeasible(model: PlanModel, costs: Costs, stages: int | None) -> InfeasiblePlanError:
    """The error that names the binding resource and the smallest relaxation that is cheap to find."""
    return (
        _layer_too_big(model, costs) or _too_little_memory(model, costs, stages) or _links_bind(costs, stages)
    ) or _fragmented(costs, stages)


def _layer_too_big(model: PlanModel, costs: Costs) -> InfeasiblePlanError | None:
    needs = [costs.stage_bytes(i, i + 1) for i in range(costs.layers)]
    worst = max(range(costs.layers), key=needs.__getitem__)
    roomiest = int(costs.memory_bytes.argmax())
    have = int(costs.memory_bytes[roomiest])
    if needs[worst] <= have:
        return None
    kv = model.kv_bytes_per_token[worst]
    tokens = model.kv_tokens - -(-(needs[worst] - have) // kv) if kv else -1
    relax = f", or reserve KV for at most {tokens} tokens" if tokens >= 0 else ""
    return InfeasiblePlanError(
        f"memory: layer {worst} with its KV cache (and embedding or head at an end) needs "
        f"{needs[worst]} bytes; the roomiest node, {costs.names[roomiest]}, has {have}. "
        f"Give one node {needs[worst] - have} bytes more{relax}.",
        metadata={"binding": "memory", "layer": worst, "needed_bytes": needs[worst], "free_bytes": have},
    )


def _too_little_memory(model: PlanModel, costs: Costs, stages: int | None) -> InfeasiblePlanError | None:
    need = costs.stage_bytes(0, costs.layers)
    most = stages or min(costs.memory_bytes.size, costs.layers)
    have = int(np.sort(costs.memory_bytes)[-most:].sum())
    if need <= have:
        return None
    kv = sum(model.kv_bytes_per_token)
    tokens = model.kv_tokens - -(-(need - have) // kv) if kv else -1
    relax = f", or reserve KV for at most {tokens} tokens" if tokens >= 0 else ""
    return InfeasiblePlanError(
        f"memory: the model needs {need} bytes in all (layers, KV, embedding, head); the {most} roomiest "
        f"nodes have {have}. Free {need - have} bytes more{relax}, or allow more stages if nodes are idle.",
        metadata={"binding": "memory", "needed_bytes": need, "free_bytes": have},
    )


def _links_bind(costs: Costs, stages: int | None) -> InfeasiblePlanError | None:
    """With every link up a plan exists: name the fewest links that would have to come up."""
    up = np.isfinite(costs.return_s)
    np.fill_diagonal(up, True)
    missing = np.where(up, 0.0, 1.0)
    np.fill_diagonal(missing, np.inf)
    zero = np.zeros_like(costs.embed_s)
    bare = dataclasses.replace(
        costs,
        compute_s=np.zeros_like(costs.compute_s),
        embed_s=zero,
        head_s=zero,
        latency_s=missing,
        occupy_s=np.where(np.isinf(missing), np.inf, 0.0),
        return_s=missing,
    )
    found = solve(Problem(bare, windows(bare), bare.cross_s, stages))
    if not found.nodes:
        return None
    ring = list(zip(found.nodes, (*found.nodes[1:], found.nodes[0]), strict=True))
    down = [f"{costs.names[a]} -> {costs.names[b]}" for a, b in ring if not up[a, b]]
    np.fill_diagonal(up, False)
    lonely = [costs.names[n] for n in range(len(costs.names)) if not (up[n].any() and up[:, n].any())]
    alone = f" Without a way in or out: {', '.join(lonely[:NAMED_NODES])}." if lonely else ""
    return InfeasiblePlanError(
        f"links: the memory suffices, but no ring of links joins nodes that can hold the model.{alone} "
        f"Bring up {len(down)} link(s), for instance {', '.join(down[:NAMED_NODES])}.",
        metadata={"binding": "links", "links_down": "; ".join(down), "unreachable": ", ".join(lonely)},
    )


def _fragmented(costs: Costs, stages: int | None) -> InfeasiblePlanError:
    """Enough memory in sum, but whole layers do not fit into the pieces: find the least extra per node."""
    count = costs.memory_bytes.size
    matrix = np.where(np.eye(count, dtype=np.bool_), np.inf, 0.0)
    linked = dataclasses.replace(costs, latency_s=matrix, occupy_s=matrix, return_s=matrix)
    if stages is not None and Question(linked, np.inf, None).answer(None):
        return InfeasiblePlanError(
            f"memory: with exactly {stages} stages no run of whole layers fits node by node, "
            "though another number of stages would. Leave the number of stages open.",
            metadata={"binding": "memory", "stages": stages},
        )
    low, high = 0, costs.stage_bytes(0, costs.layers)
    while low < high:
        middle = (low + high) // 2
        more: Ints = costs.memory_bytes + middle
        if Question(dataclasses.replace(linked, memory_bytes=more), np.inf, stages).answer(None):
            high = middle
        else:
            low = middle + 1
    need, have = costs.stage_bytes(0, costs.layers), int(costs.memory_bytes.sum())
    return InfeasiblePlanError(
        f"memory: the model needs {need} bytes and {have} are free in all, but whole layers do not fit "
        f"into the pieces. With {low} bytes more on every node a plan exists.",
        metadata={"binding": "memory", "needed_bytes": need, "free_bytes": have, "extra_bytes_per_node": low},
    )
