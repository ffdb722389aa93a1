"""How long an exact plan takes, and what simpler rules of splitting cost on the same instances.

    python bench/planner.py            a table
    python bench/planner.py --json     the same for machines

80 layers on 16 nodes, seeded instances per regime; plans are timed one by one on one core, in CPU
milliseconds of the process (the machine may be shared), medians with the least and the greatest. The
baselines are priced by the planner's own cost model on the same instances; their gap is (baseline - ours) /
ours, over the instances where they fit at all
(and give the number of stages that was asked for). The result is also written to bench/results/planner.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from orbitmesh.errors import InfeasiblePlanError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.scheduler.planner import (  # noqa: E402
    Objective,
    Plan,
    PlanLink,
    PlanModel,
    PlanNode,
    assess,
    plan,
)

RESULTS = ROOT / "bench" / "results" / "planner.json"
LAYERS, NODES = 80, 16
GB = 10**9
LAYER_BYTES = 1_700_000_000
Links = dict[tuple[str, str], PlanLink]
Instance = tuple[PlanModel, list[PlanNode], Links]
Split = list[tuple[str, int, int]]


@dataclass(frozen=True)
class Regime:
    """One kind of mesh and question."""

    name: str
    """What it is called in the results."""
    room: tuple[float, float]
    """Range of a node's memory, as a share of the whole model."""
    stages: int | None
    """The fixed number of stages."""
    equal: bool = False
    """Equal nodes and links instead of random ones."""
    down: float = 0.0
    """Share of links that are down."""


REGIMES = (
    Regime("slack memory", (0.3, 1.2), None),
    Regime("slack memory, 3 stages", (0.4, 1.2), 3),
    Regime("slack memory, 4 stages", (0.3, 1.2), 4),
    Regime("slack memory, 8 stages", (0.3, 1.2), 8),
    Regime("tight memory (9+ stages)", (0.08, 0.14), None),
    Regime("tight memory, 30 % of links down", (0.08, 0.14), None, down=0.3),
    Regime("equal nodes and links", (0.28, 0.28), None, equal=True),
    Regime("equal nodes and links, 8 stages", (0.28, 0.28), 8, equal=True),
)


def instance(regime: Regime, seed: int) -> Instance:
    """A 70B-like model (3 light layers, then equal ones), nodes of 2-20 ms a layer, links of 1-300 ms, 1
    Mbit/s-10 Gbit/s."""
    rng = random.Random(f"{regime.name} {seed}")
    whole = LAYERS * LAYER_BYTES
    model = PlanModel((LAYER_BYTES,) * LAYERS, GB, GB, 16_384, 8, (4_096,) * LAYERS, 8_192)
    nodes = []
    for n in range(NODES):
        base_s = 5e-3 if regime.equal else rng.uniform(2e-3, 20e-3)
        noise = 0.0 if regime.equal else 0.03
        layer_s = tuple(
            base_s * (0.7 if layer < 3 else 1.0) * (1 + rng.uniform(-noise, noise)) for layer in range(LAYERS)
        )
        nodes.append(PlanNode(f"n{n}", int(whole * rng.uniform(*regime.room)), layer_s, 1e-4, base_s))
    links = {
        (a.name, b.name): PlanLink(0.02, 1e8)
        if regime.equal
        else PlanLink(10 ** rng.uniform(-3, -0.523), 10 ** rng.uniform(6, 10))
        for a, b in permutations(nodes, 2)
        if rng.random() >= regime.down
    }
    return model, nodes, links


def _sized(nodes: list[PlanNode], sizes: list[int]) -> Split:
    split, at = [], 0
    for node, size in zip(nodes, sizes, strict=True):
        if size:
            split.append((node.name, at, at + size))
            at += size
    return split


def equal_split(model: PlanModel, nodes: list[PlanNode], links: Links, stages: int) -> Split:
    """Equal slices over the first nodes in the given order (vLLM's pipeline parallelism)."""
    count = len(model.layer_bytes)
    return _sized(nodes[:stages], [count // stages + (k < count % stages) for k in range(stages)])


def ram_proportional(model: PlanModel, nodes: list[PlanNode], links: Links, stages: int) -> Split:
    """Layers in proportion to memory, largest remainder, over the roomiest nodes in the given order (exo)."""
    count = len(model.layer_bytes)
    chosen = sorted(sorted(nodes, key=lambda node: -node.memory_bytes)[:stages], key=nodes.index)
    total = sum(node.memory_bytes for node in chosen)
    exact = [node.memory_bytes * count / total for node in chosen]
    sizes = [int(share) for share in exact]
    by_rest = sorted(range(len(chosen)), key=lambda k: sizes[k] - exact[k])
    for k in by_rest[: count - sum(sizes)]:
        sizes[k] += 1
    return _sized(chosen, sizes)


def greedy_max_min(model: PlanModel, nodes: list[PlanNode], links: Links, stages: int) -> Split:
    """Each node in turn takes the window of layers that is served worst so far; a route of least time is
    then taken through what the nodes serve (Petals). The number of stages is whatever comes out."""
    count = len(model.layer_bytes)
    size = max(model.layer_bytes) + model.kv_tokens * max(model.kv_bytes_per_token)
    rate, window = [0.0] * count, {}
    for node in nodes:
        room = (node.memory_bytes - model.embed_bytes - model.head_bytes) // size
        width = min(count, int(room))
        if width < 1:
            continue
        at = min(range(count - width + 1), key=lambda a: (sorted(rate[a : a + width]), a))
        window[node.name] = (at, at + width)
        for layer in range(at, at + width):
            rate[layer] += 1 / (sum(node.layer_s) / count)
    return _route(model, {node.name: node for node in nodes}, window, links)


def _route(
    model: PlanModel, nodes: dict[str, PlanNode], window: dict[str, tuple[int, int]], links: Links
) -> Split:
    """Least time over (layer, node), each node keeping to its window."""
    count = len(model.layer_bytes)
    best: dict[tuple[int, str], tuple[float, Split]] = {}
    for name, (start, stop) in window.items():
        if start == 0:
            spent = nodes[name].embed_s
            for at in range(1, stop + 1):
                spent += nodes[name].layer_s[at - 1]
                best[at, name] = (spent, [(name, 0, at)])
    for at in range(1, count):
        for name in window:
            held = best.get((at, name))
            if held is None:
                continue
            used = {stage[0] for stage in held[1]}
            for other, (start, stop) in window.items():
                way = links.get((name, other))
                if other in used or way is None or not start <= at < stop:
                    continue
                spent = held[0] + way.latency_s + model.activation_bytes * 8 / way.rate_bps
                for reach in range(at + 1, stop + 1):
                    spent += nodes[other].layer_s[reach - 1]
                    known = best.get((reach, other))
                    if known is None or spent < known[0]:
                        best[reach, other] = (spent, [*held[1], (other, at, reach)])
    ends = [best[count, name] for name in window if (count, name) in best]
    return min(ends, key=lambda end: end[0])[1] if ends else []


BASELINES: dict[str, Callable[[PlanModel, list[PlanNode], Links, int], Split]] = {
    "equal split (vLLM)": equal_split,
    "RAM-proportional (exo)": ram_proportional,
    "greedy max-min (Petals)": greedy_max_min,
}


def _spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def measure(regime: Regime, objective: Objective, count: int) -> dict[str, object]:
    """Times and gaps of one regime under one objective."""
    times: list[float] = []
    plans: list[Plan] = []
    gaps: dict[str, list[float]] = {name: [] for name in BASELINES}
    at = 0 if objective is Objective.LATENCY else 1
    refused = 0
    for seed in range(count):
        made = instance(regime, seed)
        start = time.process_time()
        try:
            found = plan(*made, objective=objective, stages=regime.stages)
        except InfeasiblePlanError:
            refused += 1
            continue
        times.append((time.process_time() - start) * 1e3)
        plans.append(found)
        for name, rule in BASELINES.items():
            split = rule(*made, len(found.stages))
            if not split or regime.stages not in (None, len(split)):
                continue
            value = assess(*made, split)[at]
            if value < float("inf"):
                gaps[name].append(value / found.objective_s - 1)
    return {
        "regime": regime.name,
        "objective": objective.value,
        "instances": count,
        "infeasible": refused,
        "plan_ms": _spread(times, 1),
        "stages": _spread([len(found.stages) for found in plans], 0),
        "proven_optimal": sum(found.proven_optimal for found in plans),
        "worst_gap_unproven": round(max((found.gap for found in plans), default=0.0), 4),
        "baselines": {
            name: {"fits": len(values), **({"gap": _spread(values, 3)} if values else {})}
            for name, values in gaps.items()
        },
    }


def machine() -> dict[str, object]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def main() -> None:
    """Run all regimes, print, and write the result."""
    parser = argparse.ArgumentParser(description="time of exact plans and gaps of simpler rules")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--instances", type=int, default=15, help="instances per regime and objective")
    arguments = parser.parse_args()
    rows = [measure(regime, objective, arguments.instances) for objective in Objective for regime in REGIMES]
    result = {
        "command": "python bench/planner.py --json"
        + (f" --instances {arguments.instances}" if arguments.instances != 15 else ""),
        "machine": machine(),
        "layers": LAYERS,
        "nodes": NODES,
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    RESULTS.write_text(text + "\n")
    if arguments.json:
        print(text)
        return
    for row in rows:
        print(row["objective"], row["regime"], row["plan_ms"], row["stages"], row["baselines"], sep="  ")


if __name__ == "__main__":
    main()
