"""How long planning with the sky takes: `python bench/sky_plan.py [--json]`; about a minute.

Seeded skies: a ground site and satellites in rings whose links open and close over six hours; an 80-layer model, nodes
that each hold a third of it. Milliseconds of one plan, median and worst of the seeds, and how many were proven.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.errors import InfeasiblePlanError

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from generate import machine  # noqa: E402 - the paths come first

from services.scheduler.costs import Objective, PlanModel, PlanNode  # noqa: E402
from services.scheduler.sky_plan import plan_with_sky  # noqa: E402
from services.scheduler.sky_walk import Scene, Work  # noqa: E402
from services.scheduler.windows import Sky  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "sky_plan.json"
LAYERS = 80
SPAN_S = 6 * 3600.0
SEEDS = 5
SIZES = (4, 8, 16, 32)


def scene_of(count: int, seed: int) -> Scene:
    """A site `g` that sees every satellite for 4 to 10 minutes of about 95; neighbours mostly see each other."""
    rng = random.Random(seed)
    names = [f"s{index:02}" for index in range(count - 1)]
    contacts: list[Contact] = []

    def both(a: str, b: str, start_s: float, end_s: float, latency_s: float, rate_bps: float) -> None:
        end_s = min(end_s, SPAN_S)
        if end_s - start_s < 1.0:
            return
        for source, target in ((a, b), (b, a)):
            points = (LatencyPoint(start_s, latency_s),)
            contacts.append(Contact(source, target, start_s, end_s, rate_bps, points, acquisition_s=5.0))

    for name in names:
        at_s = rng.uniform(-600, 5000)
        while at_s < SPAN_S:
            both("g", name, max(at_s, 0.0), at_s + rng.uniform(240, 600), rng.uniform(0.002, 0.008), 1e8)
            at_s += 5700
    for index, name in enumerate(names):
        at_s = 0.0
        while at_s < SPAN_S and len(names) > 1:
            end_s = at_s + rng.uniform(1500, 4000)
            both(name, names[(index + 1) % len(names)], at_s, end_s, rng.uniform(0.003, 0.015), 1e9)
            at_s = end_s + rng.uniform(60, 900)
        if len(names) == 2:
            break
    model = PlanModel((200_000_000,) * LAYERS, 10**9, 10**9, 16_384, 64, (4096,) * LAYERS, 8192)
    whole = 200_000_000 * LAYERS
    nodes = {
        name: PlanNode(name, int(whole * 0.45), (rng.uniform(0.001, 0.004),) * LAYERS, 0.0, 0.002)
        for name in ["g", *names]
    }
    sky = Sky(ContactPlan(0.0, SPAN_S, tuple(contacts)), 0.0)
    return Scene(model, nodes, tuple(nodes), sky, Objective.LATENCY, Work(), {}, "g")


def measure(count: int) -> dict[str, float]:
    """Plans over a few skies."""
    spent, proven, refused, contacts = [], 0, 0, 0
    for seed in range(SEEDS):
        scene = scene_of(count, seed)
        contacts = len(scene.sky.plan.contacts)
        began = time.perf_counter()
        try:
            proven += plan_with_sky(scene, None).proven
        except InfeasiblePlanError:
            refused += 1
        spent.append((time.perf_counter() - began) * 1e3)
    return {
        "nodes": count, "contacts": contacts, "median_ms": statistics.median(spent), "worst_ms": max(spent),
        "proven": proven, "refused": refused, "of": SEEDS,
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    arguments = parser.parse_args()
    on = machine()
    rows = [measure(count) for count in SIZES]
    if arguments.json:
        found = {"command": "python bench/sky_plan.py --json", "machine": on, "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
        return
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
