"""What federated averaging without compression, privacy or network reaches on 5,000 pictures of MNIST: the anchor that
the figures of federated training are compared with.

    python bench/train_local.py                         a table
    python bench/train_local.py --json                  the same for machines
    python bench/train_local.py --jobs 2 --seeds 5      two trainings at a time

Eight nodes, three local passes a round, batches of 32, SGD with momentum; evenly split, and with labels skewed by a
Dirichlet distribution. Beside it one model trained on all the data in one place, a pass for each
round.
A seed gives weights, split and order of examples. Accuracy is on the 1,000 held-out pictures after each round, so that
one picture is 0.1 points. The result is also written to bench/results/train_local.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from services.aggregator.strategies import Mean, parse
from services.training import flat
from services.training.images import Mnist5k
from services.training.local import train_locally
from services.training.plan import LocalPlan

RESULTS = Path(__file__).resolve().parent / "results" / "train_local.json"
NODES = 8
LOCAL_EPOCHS = 3
PLAN = LocalPlan(epochs=LOCAL_EPOCHS, batch_size=32, lr=0.02, momentum=0.9)
CENTRAL = "central"
SETTINGS: dict[str, float | None] = {"even": None, "alpha 0.5": 0.5, "alpha 0.1": 0.1}
"""Splits by the name that they have in the result."""


@dataclass(frozen=True)
class Curve:
    """One training."""

    setting: str
    """`central`, or how the data is split."""
    seed: int
    """Of weights, split and order."""
    accuracy: list[float]
    """On the held-out pictures after each round (of `central`: each pass), from 0 to 1."""
    seconds: float
    """Wall time, of one thread."""


def train(setting: str, seed: int, rounds: int) -> Curve:
    """One training of that many rounds, or passes where it is central."""
    torch.set_num_threads(1)
    task = Mnist5k()
    nodes, alpha = (1, None) if setting == CENTRAL else (NODES, SETTINGS[setting])
    # One node with all the data: averaging changes nothing then, and momentum begins anew with each pass.
    shards = [task.shard(node, nodes, seed=seed, alpha=alpha) for node in range(nodes)]
    plan = PLAN.with_overrides({"epochs": 1}) if setting == CENTRAL else PLAN
    model, strategy = task.model(seed), parse("fedavg")
    weights, accuracy, begin = flat.flatten(model), [], time.perf_counter()
    for round_index in range(rounds):
        total, weight = np.zeros(weights.shape), 0.0
        for node, shard in enumerate(shards):
            own = plan.with_overrides({"seed": (seed * 1_000 + round_index) * 1_000 + node})
            result = train_locally(task, shard, weights, own)
            counts = strategy.weight(result.examples)
            total, weight = total + counts * result.delta, weight + counts
        weights = strategy.aggregate(weights, Mean((total / weight).astype(np.float32), weight, nodes))
        flat.load_flat(model, weights)
        accuracy.append(task.evaluate(model)["accuracy"])
    return Curve(setting, seed, accuracy, round(time.perf_counter() - begin, 1))


def summary(curves: list[Curve]) -> list[dict[str, object]]:
    """Per setting: mean, least and greatest accuracy at the end, and the mean after each round."""
    rows: list[dict[str, object]] = []
    for setting in (CENTRAL, *SETTINGS):
        mine = [curve for curve in curves if curve.setting == setting]
        if mine:
            last = [curve.accuracy[-1] for curve in mine]
            mean = [round(statistics.fmean(values), 4) for values in zip(*(one.accuracy for one in mine), strict=True)]
            rows.append({
                "setting": setting, "seeds": len(mine), "mean": round(statistics.fmean(last), 4),
                "least": min(last), "greatest": max(last), "mean_after_round": mean,
            })  # fmt: skip
    return rows


def write(curves: list[Curve], rounds: int, path: Path) -> str:
    """The result of the trainings that are done, as JSON, also into the file."""
    result = {
        "command": " ".join(["python", "bench/train_local.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "nodes": NODES,
        "plan": asdict(PLAN),
        "rounds": rounds,
        "rows": summary(curves),
        "curves": [asdict(curve) for curve in curves],
    }
    text = json.dumps(result, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return text


def main() -> int:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description="Federated averaging on MNIST-5k in one process.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each setting (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=(CENTRAL, *SETTINGS), default=[CENTRAL, *SETTINGS])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result is written")
    options = parser.parse_args()
    if min(options.rounds, options.seeds, options.jobs) < 1:
        parser.error("--rounds, --seeds and --jobs are at least 1")
    work = [(setting, seed) for setting in options.settings for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, setting, seed, options.rounds) for setting, seed in work]
        curves: list[Curve] = []
        for future in futures:
            curves.append(future.result())
            # After each one, since all of it takes a quarter of an hour: what is done is kept.
            text = write(curves, options.rounds, options.out)
            sys.stderr.write(f"{curves[-1].setting} {curves[-1].seed}: {curves[-1].accuracy[-1]:.1%}\n")
    if options.json:
        print(text)
    else:
        print(f"{'setting':12}{'mean':>8}{'least':>8}{'most':>8}   of {options.seeds} seeds, {options.rounds} rounds")
        for row in summary(curves):
            print(f"{row['setting']:12}{row['mean']:8.1%}{row['least']:8.1%}{row['greatest']:8.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
