"""Federated training through a real local mesh: what is lost where less is sent or seen, and what rounds cost.

    python bench/train.py [--json] [--parts accuracy,masked,privacy,...] [--seeds 5] [--rounds 20]

Meshes of real processes on this machine: executors, an aggregator, a gateway. Parts:

- accuracy: MNIST-5k over 8 nodes, dense float32 contributions against topk:0.01, evenly split and with labels skewed by
  Dirichlet distributions of 0.5 and 0.1; points under dense and times fewer bytes, for the same seeds.
- masked: the same evenly split with secure sums, dense and in blocks; bytes per value and points under dense.
- privacy: records hidden at epsilon 2 and delta 1e-5, with noise that all nodes share and with each node's own.
- rounds: rounds per second with 8 node processes where the local work is next to nothing, 100 thousand and a million
  values. (Flower 1.41 with 8 nodes and its default settings took 10.9 s for each on two cores.)
- memory: the aggregator's memory while 8 contributions of 200 MB come in.
- cuts: a link cut at a random byte of a contribution, 100 times; bytes sent again, and whether the weights are equal.
- diloco: a language model over 4 nodes, DiLoCo with 4-bit contributions against training in step.
- groups: secure sums over 6 nodes, with and without sums in two groups on the way; bytes at the aggregator.

Figures are medians with minimum and maximum over seeds or repeats; every curve is in the JSON. It ends with the goals
and whether they were met. `--json` also writes bench/results/train.json, where parts that are not measured stay as
they were; each part has its command, machine and time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python"), str(ROOT / "bench")]

import _train_accuracy as accuracy  # noqa: E402 - the paths come first
import _train_diloco as diloco  # noqa: E402
import _train_groups as groups  # noqa: E402
import _train_load as load  # noqa: E402
from generate import machine  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "train.json"
GOALS: dict[str, Callable[[dict[str, Any]], dict[str, dict[str, Any]]]] = {
    "accuracy": accuracy.goals,
    "masked": accuracy.masked_goals,
    "privacy": accuracy.private_goals,
    "rounds": load.rounds_goals,
    "memory": load.memory_goals,
    "cuts": load.cuts_goals,
    "diloco": diloco.goals,
    "groups": groups.goals,
}
"""What was aimed at with each part."""
PARTS = tuple(GOALS)
SEED = 1


def measure(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts that were asked for, one after the other, each with the load it began and ended under."""
    seeds = arguments.seeds
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "accuracy": lambda: accuracy.measure(arguments.rounds, seeds, tell),
        "masked": lambda: accuracy.measure_masked(arguments.rounds, seeds, tell),
        "privacy": lambda: accuracy.measure_private(seeds, tell),
        "rounds": lambda: load.measure_rounds(arguments.timed_rounds, arguments.repeats, tell),
        "memory": lambda: load.measure_memory(arguments.repeats, tell),
        "cuts": lambda: load.measure_cuts(arguments.cuts, arguments.seed, tell),
        "diloco": lambda: diloco.measure(arguments.steps, min(seeds, arguments.diloco_seeds), tell),
        "groups": lambda: groups.measure(arguments.repeats, tell),
    }
    for part in arguments.parts:
        began_s, before = time.monotonic(), os.getloadavg()[0]
        found = cases[part]()
        found["took_s"] = time.monotonic() - began_s
        found["load"] = [before, os.getloadavg()[0]]
        found["command"] = shlex.join(["python", "bench/train.py", *sys.argv[1:]])
        found["machine"] = machine()
        yield part, found


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at, and whether it was met."""
    rows: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        if part in found:
            rows |= GOALS[part](found[part])
    return rows


def rows(found: object, path: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every figure that has a median, with where it stands."""
    if isinstance(found, dict):
        if "median" in found and "min" in found:
            yield path, found
            return
        for key, value in found.items():
            yield from rows(value, f"{path} / {key}" if path else str(key))


def merged(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with the parts that the file has from before."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every = {part: {**before, **found}[part] for part in PARTS if part in before or part in found}
    return {"goals": goals(every), **every}


def parts(text: str) -> list[str]:
    """The parts named in an option."""
    named = [word for word in text.split(",") if word]
    if not named or not set(named) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of {', '.join(PARTS)}, with commas between")
    return named


def count(text: str) -> int:
    """A number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
    return number


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--seeds", type=count, default=5, help="runs of each case of accuracy, masked and privacy")
    parser.add_argument("--rounds", type=count, default=20, help="rounds of a run of accuracy and masked")
    parser.add_argument("--timed-rounds", type=count, default=100, help="rounds of a run of `rounds`")
    parser.add_argument("--repeats", type=count, default=3, help="runs of each case of `rounds`, `memory` and `groups`")
    parser.add_argument("--cuts", type=count, default=100, help="rounds of `cuts`, each with one")
    parser.add_argument("--steps", type=count, default=1000, help="optimiser steps of each node in `diloco`")
    parser.add_argument("--diloco-seeds", type=count, default=1, help="runs of each case of `diloco`")
    parser.add_argument("--seed", type=int, default=SEED, help="of the bytes at which links are cut")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for part, figures in measure(arguments, lambda text: print(text, file=sys.stderr, flush=True)):
        found[part] = figures
        if arguments.json:
            # After each part, since all of them take an hour: what is done is kept.
            RESULTS.write_text(json.dumps(merged(found), indent=1) + "\n")
    if arguments.json:
        print(json.dumps(merged(found), indent=1))
        return 0
    for name, row in rows(found):
        print(f"{name:84} {row['median']:12.4f}  ({row['min']:.4f} - {row['max']:.4f})")
    for name, goal in goals(found).items():
        figure = goal["worst"] if "worst" in goal else goal["median"]
        print(f"{'met' if goal['met'] else 'MISSED':7} {name}: {figure:.4g}, goal {goal['goal']:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
