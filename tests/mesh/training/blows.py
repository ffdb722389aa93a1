"""Processes that die under a run, and what the logs of those that are left say of it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orbitmesh import Mesh, Training
from orbitmesh.errors import MeshError
from orbitmesh.training_results import TrainingStatus
from tests.mesh.surviving import strike

AGGREGATOR = "aggregator"
BACK_WITHIN_S = 60.0
"""How long the aggregator may be silent."""


@dataclass(frozen=True)
class Blow:
    """SIGKILL, and a start anew after a while."""

    process: str
    """Whose."""
    after_rounds: int
    """It comes once so many rounds are done ..."""
    wait_s: float
    """... and so many seconds have passed since."""
    away_s: float
    """How long the process stays away."""


def random_blows(
    seed: int, nodes: Sequence[str], rounds: int, aggregator: int, each: int, round_s: float
) -> list[Blow]:
    """Blows at random moments of a run: so many for the aggregator, and so many for nodes, whichever."""
    rng = random.Random(seed)
    victims = [AGGREGATOR] * aggregator + [rng.choice(nodes) for _ in range(each)]
    moments = sorted(rng.randrange(rounds - 1) for _ in victims)
    rng.shuffle(victims)
    return [
        Blow(victim, moment, rng.uniform(0, round_s), rng.choice((0.0, rng.uniform(0, 1.0))))
        for victim, moment in zip(victims, moments, strict=True)
    ]


def told(training: Training) -> TrainingStatus:
    """How the run is, also from an aggregator that is about to be back."""
    give_up = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            return training.status()
        except MeshError:
            assert time.monotonic() < give_up, "the aggregator is not back"
            time.sleep(0.05)


def deal(mesh: Mesh, training: Training, blows: Sequence[Blow]) -> Counter[str]:
    """Deals the blows; which processes were hit while the run went on, how often."""
    dealt: Counter[str] = Counter()
    for blow in blows:
        while (status := told(training)).rounds_done < blow.after_rounds:
            assert not status.ended, f"{status.state} after {status.rounds_done} rounds: {status.why}"
            time.sleep(0.01)
        time.sleep(blow.wait_s)
        dealt[blow.process] += not told(training).ended
        strike(mesh, blow.process)
        time.sleep(blow.away_s)
        mesh.local.restart(blow.process)
    return dealt


def events(mesh: Mesh, process: str) -> list[Mapping[str, Any]]:
    """What a process has logged since the mesh began, over all its lives."""
    lines = (mesh.local.directory / "logs" / f"{process}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def times_trained(mesh: Mesh, node: str, run: str) -> Counter[int]:
    """How often a node has finished its training of each round of a run."""
    said = (event for event in events(mesh, node) if event["event"] == "round_trained")
    return Counter(event["round"] for event in said if event["run"].startswith(f"{run}."))
