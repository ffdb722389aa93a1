"""What outages cost: nodes killed and gone silent, services killed, stages moved, windows that close; and the journal.

    python bench/recovery.py [--json] [--rounds 3] [--parts loss,journal,moves,windows] [--windows 2] [--long]

Meshes of real processes on this machine; the model is the shipped one where nothing else is said. Parts:

- loss: a node of each stage is killed with SIGKILL at a token drawn from a seed, and one is stopped with SIGSTOP, while
  a warm standby waits, over loopback and over links of 20 ms one way. The client's longest gap, less the usual one,
  against detection + 2 round trips + one prefill chunk. Then the gateway is killed in mid-answer, and the scheduler.
- journal: one append in microseconds, its share of a token, and answers with and without the journal in turns.
- moves: a stage handed over to its standby because its window is about to close, fed from the journal or by its cache.
- windows: an answer over windows of 8 minutes up and 10 down (`--long`: 85 down) at 60x.

Figures are medians with minimum and maximum, in seconds where nothing else is said; every round is in the JSON. It ends
with the goals and whether they were met. `--json` also writes bench/results/recovery.json, where parts that are not
measured stay as they were. `--long` also takes the journal's bigger model.
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

import _recovery_journal as journal  # noqa: E402 - the paths come first
import _recovery_loss as loss  # noqa: E402
import _recovery_sky as sky  # noqa: E402
from generate import machine  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "recovery.json"
MODEL = str(ROOT / "models" / "pydoc")
PARTS = ("loss", "journal", "moves", "windows")
SEED = 1


def measure(arguments: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """The parts that were asked for, one after the other, each with the load it began and ended under."""
    down_s = sky.LONG_DOWN_S if arguments.long else sky.DOWN_S
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "loss": lambda: loss.measure(MODEL, arguments.rounds, arguments.seed, tell),
        "journal": lambda: journal.measure(MODEL, 2 * arguments.rounds, tell, bigger=arguments.long),
        "moves": lambda: sky.measure_hand_overs(arguments.rounds, tell),
        "windows": lambda: sky.measure_windows(MODEL, arguments.windows, down_s, tell),
    }
    found: dict[str, Any] = {}
    for part in arguments.parts:
        began_s, before = time.monotonic(), os.getloadavg()[0]
        found[part] = cases[part]()
        found[part]["took_s"] = time.monotonic() - began_s
        found[part]["load"] = [before, os.getloadavg()[0]]
        found[part]["command"] = shlex.join(["python", "bench/recovery.py", *sys.argv[1:]])
        found[part]["machine"] = machine()
    return found


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at, and whether it was met."""
    return {
        **(loss.goals(found["loss"]) if "loss" in found else {}),
        **(journal.goals(found["journal"]) if "journal" in found else {}),
        **sky.goals(found.get("moves"), found.get("windows")),
    }


def rows(found: object, path: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every figure that has a median, with where it stands."""
    if isinstance(found, dict):
        if "median" in found and "min" in found:
            yield path, found
            return
        for key, value in found.items():
            yield from rows(value, f"{path} / {key}" if path else str(key))


def parts(text: str) -> list[str]:
    """The parts named in an option."""
    named = [word for word in text.split(",") if word]
    if not named or not set(named) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of {', '.join(PARTS)}, with commas between")
    return named


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--windows", type=int, default=2, help="how many windows the answer spans")
    parser.add_argument("--long", action="store_true", help="85 minutes between windows; the journal's bigger model")
    parser.add_argument("--seed", type=int, default=SEED, help="of the tokens at which nodes are struck")
    arguments = parser.parse_args()
    found = measure(arguments, lambda text: print(text, file=sys.stderr, flush=True))
    result: dict[str, Any] = {"goals": goals(found), **found}
    if arguments.json:
        if RESULTS.exists():
            before = json.loads(RESULTS.read_text())
            found = {part: {**before, **found}[part] for part in PARTS if part in before or part in found}
            result = {"goals": goals(found), **found}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        return 0
    for name, row in rows(found):
        print(f"{name:72} {row['median']:9.4f}  ({row['min']:.4f} - {row['max']:.4f})")
    for name, goal in result["goals"].items():
        figure = goal["worst"] if "worst" in goal else goal["median"]
        print(f"{'met' if goal['met'] else 'MISSED':7} {name}: {figure:.4g}, goal {goal['goal']:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
