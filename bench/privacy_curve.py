"""What a promise of epsilon costs: noise and accuracy against the number of nodes, for both units of privacy.

    python bench/privacy_curve.py            measures, prints, writes bench/results/privacy_curve.json and .png
    python bench/privacy_curve.py --part noise   one part alone, the others stay
    python bench/privacy_curve.py --plot     draws the picture again from the figures

Three parts. *Noise*: the noise multiplier that rounds without sampling need for epsilon 2, and the epsilon that is left
where the noise on the mean update may be as long as the update itself. *Nodes*: federated averaging of a linear model
(7,850 parameters) on MNIST-5k where whole nodes are hidden, over the number of nodes and over epsilon; 3 local epochs,
batch 32, 20 rounds, for each point the better of two clips. *Records*: the same data where single examples are
hidden, with noise shared between all nodes, and with all noise added by each of 8 nodes alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.privacy.accountant import epsilon, noise_for
from services.privacy.events import Release
from services.privacy.keystream import Keystream
from services.privacy.record_level import RecordPlan, private_gradient, sample_batch, train_privately
from services.training.examples import Examples
from services.training.images import Mnist5k

RESULTS = Path(__file__).resolve().parent / "results" / "privacy_curve.json"
PARTS = ("noise", "nodes", "records")
EPSILON, DELTA = 2.0, 1e-5
ROUNDS = 20
EPOCHS, BATCH, LOCAL_RATE = 3, 32, 0.05
NODES = (8, 40, 200, 1000)
CLIPS = (0.1, 1.0)
EPSILONS = (2.0, 30.0, 100.0, 300.0, 1000.0)
SEEDS = 2
CNN_VALUES, LINEAR_VALUES = 56_970, 7_850


def noise_needed() -> list[dict[str, float]]:
    """The multiplier for epsilon 2 over so many rounds, every node in each."""
    counts = (1, 10, 20, 50, 100)
    return [{"rounds": rounds, "noise_multiplier": noise_for(EPSILON, DELTA, rounds)} for rounds in counts]


def epsilon_against_nodes() -> list[dict[str, float]]:
    """Epsilon where the noise on the mean of n updates is `ratio` times as long as the longest update.

    Noise of z clips on a sum of n is z sqrt(d) / n clips long on their mean, so z = ratio n / sqrt(d).
    """
    rows = []
    for ratio in (1.0, 10.0):
        for nodes in np.geomspace(8, 100_000, 24).round().astype(int).tolist():
            noise = ratio * nodes / math.sqrt(CNN_VALUES)
            rows.append({"ratio": ratio, "nodes": nodes, "epsilon": epsilon([Release(noise, 1, ROUNDS)], DELTA)})
    return rows


def averaged(data: Examples, held_out: Examples, nodes: int, clip: float, noise: float, seed: int) -> float:
    """Accuracy of a linear model after federated averaging with whole nodes hidden."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.inputs), generator=generator).reshape(nodes, -1)
    inputs, targets = flat(data.inputs)[order], nn.functional.one_hot(data.targets[order], 10).float()
    weights = torch.zeros(inputs.shape[2], 10)
    stream = Keystream(seed.to_bytes(32, "big"), 1)
    for _ in range(ROUNDS):
        local = weights.repeat(nodes, 1, 1)
        for _ in range(EPOCHS):
            for start in range(0, order.shape[1], BATCH):
                x, y = inputs[:, start : start + BATCH], targets[:, start : start + BATCH]
                error = torch.softmax(x @ local, dim=2) - y
                local -= LOCAL_RATE / x.shape[1] * x.transpose(1, 2) @ error
        local -= weights
        norms = local.flatten(1).norm(dim=1).clamp(min=1e-12)
        total = torch.tensordot((clip / norms).clamp(max=1.0), local, dims=1)
        weights += (total + gaussian(stream, total) * noise * clip) / nodes
    return accuracy(weights, held_out)


def flat(images: Tensor) -> Tensor:
    """Pictures as rows, with a 1 for the bias."""
    return torch.cat([images.flatten(1), torch.ones(len(images), 1)], dim=1)


def gaussian(stream: Keystream, like: Tensor) -> Tensor:
    """Noise of deviation 1 in a tensor's shape."""
    return torch.from_numpy(stream.gaussian(like.numel())).float().reshape(like.shape)


def accuracy(weights: Tensor, held_out: Examples) -> float:
    """In percent."""
    return float(((flat(held_out.inputs) @ weights).argmax(1) == held_out.targets).float().mean()) * 100


def best(data: Examples, held_out: Examples, nodes: int, noise: float) -> dict[str, float]:
    """The best clip's mean accuracy over the seeds: chosen on the test set, which flatters the figure."""
    rows = []
    for clip in CLIPS if noise else CLIPS[-1:]:
        right = [averaged(data, held_out, nodes, clip, noise, seed) for seed in range(SEEDS)]
        rows.append({"clip": clip, "accuracy": mean(right)})
    return max(rows, key=lambda row: row["accuracy"])


def hidden_nodes(data: Examples, held_out: Examples) -> dict[str, list[dict[str, float]]]:
    """Accuracy over the number of nodes at epsilon 2, and over epsilon with 8 nodes."""
    noise = noise_for(EPSILON, DELTA, ROUNDS)
    by_nodes = [{"nodes": nodes, "plain": best(data, held_out, nodes, 0.0)["accuracy"],
                 **best(data, held_out, nodes, noise)} for nodes in NODES]  # fmt: skip
    by_epsilon = [
        {"epsilon": target, **best(data, held_out, 8, noise_for(target, DELTA, ROUNDS))} for target in EPSILONS
    ]
    return {"by_nodes": by_nodes, "by_epsilon": by_epsilon}


def hidden_records(task: Mnist5k, data: Examples) -> list[dict[str, float | str]]:
    """Accuracy at epsilon 2 for each record: noise shared over 8 nodes, and each node with its own."""

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return task.loss(model, Examples(*batch))

    rows: list[dict[str, float | str]] = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        nn.init.zeros_(model[1].weight)
        shared_run(model, loss, data, steps=50, rate=1.0, learning=0.5, seed=seed)
        right = task.evaluate(model)["accuracy"] * 100
        rows.append({"model": "linear", "noise": "shared", "seed": seed, "accuracy": right})
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        shard = task.shard(0, 8, seed=seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        steps = ROUNDS * EPOCHS * math.ceil(len(shard.inputs) / BATCH)
        noise = noise_for(EPSILON, DELTA, steps, BATCH / len(shard.inputs))
        plan = RecordPlan(0.3, noise, len(shard.inputs), BATCH, steps)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_privately(model, loss, (shard.inputs, shard.targets), plan, optimizer, seed.to_bytes(32, "big"))
        rows.append({"model": "linear", "noise": "one of 8 nodes alone", "seed": seed,
                     "accuracy": task.evaluate(model)["accuracy"] * 100})  # fmt: skip
    return rows


def shared_run(
    model: nn.Module, loss: object, data: Examples, steps: int, rate: float, learning: float, seed: int
) -> None:
    """One noisy sum over all nodes in each round: what a secure sum of the nodes' clipped gradients and shares is."""
    count = len(data.inputs)
    noise = noise_for(EPSILON, DELTA, steps, rate)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning, momentum=0.9)
    for step in range(steps):
        rows = sample_batch(seed.to_bytes(32, "big"), step, count, rate)
        gradients = private_gradient(
            model,
            loss,  # type: ignore[arg-type]
            (data.inputs[rows], data.targets[rows]),
            clip=0.3,
            noise_multiplier=noise,
            # In units of the clip, so that the learning rate does not depend on it.
            batch_expected=rate * count * 0.3,
            stream=Keystream(seed.to_bytes(32, "big"), 2, step),
        )
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            value.grad = gradient
        optimizer.step()


def measure(part: str) -> dict[str, object]:
    """The figures of one part."""
    setting = {"epsilon": EPSILON, "delta": DELTA, "rounds": ROUNDS, "seeds": SEEDS, "torch": torch.__version__}
    if part == "noise":
        return {"setting": setting, "noise_needed": noise_needed(), "epsilon_against_nodes": epsilon_against_nodes()}
    task = Mnist5k()
    data, held_out = task.shard(0, 1, seed=0), task.held_out()
    if part == "nodes":
        return {"nodes_hidden": hidden_nodes(data, held_out)}
    return {"records_hidden": hidden_records(task, data)}


def draw(results: dict[str, Any], path: Path) -> None:
    """The curves as a picture; of parts that were measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12 if "nodes_hidden" in results else 6, 4), layout="constrained")
    every = figure.subplots(1, 3 if "nodes_hidden" in results else 1, squeeze=False)[0]
    rows = results["epsilon_against_nodes"]
    for ratio in (1.0, 10.0):
        some = [row for row in rows if row["ratio"] == ratio]
        label = f"noise on the mean = {ratio:g} × the longest update"
        every[0].loglog([row["nodes"] for row in some], [row["epsilon"] for row in some], label=label)
    every[0].axhline(EPSILON, color="grey", linestyle=":")
    every[0].axvline(8, color="grey", linestyle=":")
    every[0].set(xlabel="nodes", ylabel=f"epsilon of a node, {ROUNDS} rounds", title=f"{CNN_VALUES:,} parameters")
    if "nodes_hidden" in results:
        draw_accuracy(results, every[1], every[2])
    for axes in every:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_accuracy(results: dict[str, Any], by_nodes: Any, by_epsilon: Any) -> None:
    """Accuracy over nodes and over epsilon."""
    hidden = results["nodes_hidden"]
    for key, style, label in (("accuracy", "o-", f"epsilon = {EPSILON:g}"), ("plain", "s--", "no noise")):
        points = hidden["by_nodes"]
        by_nodes.semilogx([row["nodes"] for row in points], [row[key] for row in points], style, label=label)
    by_nodes.set(xlabel="nodes", ylabel="accuracy, %", ylim=(0, 100), title="whole nodes hidden, linear model")
    points = hidden["by_epsilon"]
    by_epsilon.semilogx(
        [row["epsilon"] for row in points], [row["accuracy"] for row in points], "o-", label="whole nodes hidden"
    )
    for noise in ("shared", "one of 8 nodes alone"):
        right = [row["accuracy"] for row in results.get("records_hidden", []) if row["noise"] == noise]
        if right:
            by_epsilon.plot(EPSILON, mean(right), "*", markersize=11, label=f"records hidden, noise {noise}")
    by_epsilon.set(xlabel="epsilon", ylim=(0, 100), title="8 nodes, linear model")


def main() -> int:
    """Measures or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="draw the picture from the figures that are there")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part alone and keep the others")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    torch.set_num_threads(1)
    for part in [] if arguments.plot else arguments.part or PARTS:
        results |= measure(part)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, RESULTS.with_suffix(".png"))
    print(json.dumps({key: results[key] for key in results if key != "epsilon_against_nodes"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
