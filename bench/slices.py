"""Every figure of slices in one run: what a thin link, a busy executor, comings and goings and the optimiser reach.

    python bench/slices.py [--json] [--parts link,compute,churn,optimiser] [--rounds 3]

Runs, one after the other, `slices_link.py` (delays, goodput, ceilings, lending, a change of rules), `slices_compute.py`
(token times in a urllc slice while others saturate every executor), the simulation of `tests/simulation` (10,000
arrivals, departures and changes, three seeds) and `slices_optimiser.py`. Each writes its own `bench/results/*.json`
with `--json`; this one puts the figures beside their goals, and writes them to `bench/results/slices.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from generate import machine  # noqa: E402 - the paths come first

RESULTS = ROOT / "bench" / "results"
GAP_PERCENT = {(100, 50): 0.5, (300, 100): 3.0}
"""How far from the bound the optimiser may be, by slices and nodes."""


@dataclass(frozen=True)
class Figure:
    """A figure beside its goal."""

    name: str
    """What was measured."""
    goal: str
    """What it is to reach."""
    value: float
    """What it reached."""
    met: bool
    """Whether that is enough."""


def link(rounds: int) -> Iterator[Figure]:
    """A thin link."""
    found = run("slices_link.py", ["--json", "--rounds", str(rounds)], "slices_link.json")
    for name, row in found["goals"].items():
        yield Figure(f"link: {name}", row["goal"], row["value"], row["met"])
    fifo = found["figures"]["fifo_p99_over_floor_ms"]["median"]
    yield Figure("link: fifo_p99_over_floor_ms (shown beside)", "seconds", fifo, fifo > 1000)


def compute(rounds: int) -> Iterator[Figure]:
    """A busy executor."""
    found = run("slices_compute.py", ["--json", "--rounds", str(rounds)], "slices_compute.json")
    with_, without = (found[case]["p99_over_alone"] for case in ("with slices", "without slices"))
    yield Figure("compute: token p99 in urllc over alone", "at most 1.5", with_, with_ <= 1.5)
    yield Figure("compute: the same without slices (shown beside)", "more", without, without > with_)


def churn(rounds: int) -> Iterator[Figure]:
    """Comings and goings: the simulation fails on the first over-commitment."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/simulation/test_slices.py"]
    ended = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    yield Figure("churn: simulations that over-committed", "0", float(ended.returncode != 0), ended.returncode == 0)


def optimiser(rounds: int) -> Iterator[Figure]:
    """The allocation."""
    found = run("slices_optimiser.py", ["--json"], "slices_optimiser.json")
    for row in found["rows"]:
        size, goal = (row["slices"], row["nodes"]), GAP_PERCENT[row["slices"], row["nodes"]]
        if row["kind"] == "spread":
            name = f"optimiser: gap in percent, {size[0]} x {size[1]}, {row['goal']}, median of {row['seeds']}"
            median = row["gap_percent"]["median"]
            yield Figure(name, f"at most {goal:g} in {row['limit_s']:g} s", median, median <= goal)


PARTS: dict[str, Callable[[int], Iterator[Figure]]] = {
    "link": link, "compute": compute, "churn": churn, "optimiser": optimiser
}  # fmt: skip


def run(script: str, flags: list[str], result: str) -> dict[str, Any]:
    """Runs a bench of its own and reads what it wrote."""
    subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *flags], cwd=ROOT, stdout=subprocess.DEVNULL, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])},
    )  # fmt: skip
    found: dict[str, Any] = json.loads((RESULTS / result).read_text())
    return found


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of link and compute")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    before = machine()
    figures = [figure for part in parts for figure in PARTS[part](arguments.rounds)]
    if arguments.json:
        command = shlex.join(["python", "bench/slices.py", *sys.argv[1:]])
        found = {"command": command, "machine": before, "figures": [asdict(each) for each in figures]}
        (RESULTS / "slices.json").write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
        return 0
    for each in figures:
        print(f"{each.name:64} {each.value:10.3f}  {'met' if each.met else 'MISSED'}: {each.goal}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
