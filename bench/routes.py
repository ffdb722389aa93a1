"""How long a route over a contact plan takes: `python bench/routes.py [--json]`; about half a minute.

Random plans of 400, 10,000 and 200,000 contacts between 60 nodes; queries between random nodes at random times, each
plan indexed once. Goal: at most 1 ms a query at 10,000 contacts and 50 ms at 200,000 (medians).
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

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from generate import machine  # noqa: E402 - the paths come first

from services.scheduler.routes import Router  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "routes.json"
SIZES = (400, 10_000, 200_000)
NODES = 60
QUERIES = 300
DAY_S = 86_400.0


def plan_of(contacts: int, rng: random.Random) -> ContactPlan:
    """Windows of 4 to 10 minutes, spread over a day, in both directions, none overlapping."""
    names = [f"n{index:02}" for index in range(NODES)]
    pairs = [(a, b) for a in names for b in names if a < b]
    links = rng.sample(pairs, min(len(pairs), max(1, contacts // 8)))
    each = -(-contacts // (2 * len(links)))
    found = []
    for a, b in links:
        slot_s = DAY_S / each
        for index in range(each):
            start_s = index * slot_s + rng.random() * slot_s * 0.3
            end_s = start_s + min(slot_s * 0.6, rng.uniform(240, 600))
            latency = (LatencyPoint(start_s, rng.uniform(0.002, 0.02)),)
            found += [Contact(s, t, start_s, end_s, 1e8, latency, acquisition_s=5) for s, t in ((a, b), (b, a))]
    return ContactPlan(0.0, DAY_S, tuple(found[:contacts]))


def measure(contacts: int) -> dict[str, float]:
    """Seconds of making the index, and milliseconds of queries."""
    rng = random.Random(contacts)
    plan = plan_of(contacts, rng)
    began = time.perf_counter()
    router = Router(plan)
    index_s = time.perf_counter() - began
    names = sorted(plan.nodes)
    asked = [(*rng.sample(names, 2), rng.random() * DAY_S * 0.9) for _ in range(QUERIES)]
    result: dict[str, float] = {"contacts": len(plan.contacts), "index_s": index_s}
    for name, ask in (("earliest", router.earliest), ("four_keys", router.best)):
        spent, found = [], 0
        for source, target, at_s in asked[: QUERIES if name == "earliest" else QUERIES // 10]:
            began = time.perf_counter()
            found += ask(source, target, at_s, 1e6) is not None
            spent.append((time.perf_counter() - began) * 1e3)
        spent.sort()
        result[f"{name}_median_ms"] = statistics.median(spent)
        result[f"{name}_p99_ms"] = spent[int(len(spent) * 0.99)]
        result[f"{name}_found"] = found / len(spent)
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    arguments = parser.parse_args()
    on = machine()
    rows = [measure(size) for size in SIZES]
    if arguments.json:
        found = {"command": "python bench/routes.py --json", "machine": on, "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
        return
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
