"""How fast rounds follow each other, what eight large contributions take at the aggregator, and what a cut costs: the
parts `rounds`, `memory` and `cuts` of `bench/train.py`.

The local work is next to nothing, one step of SGD on one picture, and the models are perceptrons of so many values.
Contributions are float32, as they are.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _train_mesh import ENDED_S, NODES, MemoryPeak, Tell, memory_kib, mesh_of, plan_of, run, summary
from _train_tasks import Million, Millions, Thousands, Wide

from orbitmesh import Link, LocalTraining, Mesh, Training
from services.executor.training.work import local_seed
from services.training import flat
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.spans import SPAN_VALUES

LOCAL = LocalTraining(steps=1, batch_size=1, lr=0.01)
WARM_UP_ROUNDS = 5
SPEEDS: dict[str, tuple[type[Wide], float]] = {"bench-100k": (Thousands, 5.0), "bench-1m": (Million, 1.0)}
"""Rounds per second that are aimed at, by task."""

LARGE = "bench-50m"
LARGE_ROUNDS = 2
LARGE_PATIENCE_S = 600.0
FRAME_BYTES = 4 * SPAN_VALUES
"""Body of a frame of a contribution in float32."""
FRAMES_HELD = 2
"""Frames of each stream that the aggregator may hold beside the model."""

CUT_TASK = "bench-1m"
CUT_LINK = Link(latency_ms=2, rate_mbps=50)
CUT_NODE = "sat-1"
WAY = f"aggregator>{CUT_NODE}"
CUT_S = 0.05
"""How long a link stays cut."""
UNDISTURBED_ROUNDS = 10
MARGIN = 0.03
"""Cuts fall at bytes between this part of a contribution and its end less as much."""
LOOK_S = 0.002
"""How often the emulator is asked what it has delivered."""
ASK_S = 0.01
"""How often the aggregator is asked how many rounds are done."""


def measure_rounds(rounds: int, repeats: int, tell: Tell) -> dict[str, Any]:
    """Rounds per second with eight nodes, each a process."""
    found: dict[str, Any] = {"nodes": NODES, "local": plan_of(LOCAL), "compression": "fp32", "rounds": rounds}
    times: dict[str, list[list[float]]] = {task: [] for task in SPEEDS}
    with mesh_of() as mesh:
        for repeat in range(repeats):
            for task in SPEEDS:
                asked = {"task": task, "rounds": rounds + WARM_UP_ROUNDS, "local": LOCAL, "evaluate": False}
                outcome = run(mesh, f"{task}-{repeat}", **asked)
                times[task].append(outcome.rounds_s[WARM_UP_ROUNDS - 1 :])
                tell(f"rounds, {task}: {rounds / sum(times[task][-1]):.2f} per second")
    for task, each in times.items():
        found[task] = {
            "values": _values(SPEEDS[task][0]),
            "rounds_per_s": summary([len(some) / sum(some) for some in each]),
            "round_ms": summary([1e3 * second for some in each for second in some]),
        }
    return found


def rounds_goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `rounds`."""
    rows = {}
    for task, (_, least) in SPEEDS.items():
        rate = found[task]["rounds_per_s"]["median"]
        rows[f"rounds per second, {task}"] = {"goal": least, "median": rate, "met": rate >= least}
    return rows


def measure_memory(repeats: int, tell: Tell) -> dict[str, Any]:
    """The most memory that the aggregator holds while eight nodes contribute 200 MB each, twice, and get the weights in
    between. Every repeat is in a mesh of its own, because a process does not give back all that it had."""
    found: dict[str, Any] = {"nodes": NODES, "local": plan_of(LOCAL), "compression": "fp32", "rounds": LARGE_ROUNDS}
    found["values"] = _values(Millions)
    asked = {"task": LARGE, "rounds": LARGE_ROUNDS, "local": LOCAL, "evaluate": False, "patience_s": LARGE_PATIENCE_S}
    peaks, hwms, befores, seconds = [], [], [], []
    for _ in range(repeats):
        with mesh_of() as mesh:
            pid = mesh.local.services()["aggregator"]
            with MemoryPeak(pid) as memory:
                outcome = run(mesh, "large", **asked)
            seconds += [each.seconds for each in outcome.status.rounds]
            hwms.append(memory_kib(pid)["VmHWM"] / 1024)
            befores.append(memory.before["RssAnon"] / 1024)
            peaks.append(memory.peak_kib / 1024)
            tell(f"memory: {peaks[-1]:,.0f} MiB anonymous at most, {befores[-1]:,.0f} before; {seconds[-1]:.1f} s")
    model_mib = 4 * found["values"] / 2**20
    more = [peak - before for peak, before in zip(peaks, befores, strict=True)]
    return found | {
        "model_mib": model_mib,
        "contributions_mib": NODES * model_mib,
        "anonymous_mib_before": summary(befores),
        "anonymous_mib_at_most": summary(peaks),
        "resident_mib_at_most": summary(hwms),
        "more_than_before_mib": summary(more),
        "more_than_before_models": summary([each / model_mib for each in more]),
        "round_s": summary(seconds),
    }


def memory_goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `memory`: the model and two frames of each stream beside what it had when idle."""
    most = found["model_mib"] + NODES * FRAMES_HELD * FRAME_BYTES / 2**20
    held = found["more_than_before_mib"]["max"]
    return {"aggregator's memory over idle, MiB": {"goal": most, "worst": held, "met": held <= most}}


class Counters:
    """What the link emulator has delivered from the node to the aggregator, round by round.

    Args:
        mesh: The mesh.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._begun = self._total()

    def now(self) -> int:
        """Bytes of this round."""
        return self._total() - self._begun

    def next_round(self) -> int:
        """Ends the round; its bytes."""
        passed = self.now()
        self._begun += passed
        return passed

    def _total(self) -> int:
        return int(self._mesh.local.stats()["relays"][WAY]["reverse"]["delivered_bytes"])


def measure_cuts(count: int, seed: int, tell: Tell) -> dict[str, Any]:
    """One node's contributions, each cut once on its way at a byte drawn from a seed; how many bytes that cost."""
    draw, places = random.Random(seed), list[int]()
    with mesh_of(2, CUT_LINK) as mesh:
        plain = _rounds(mesh, "plain", UNDISTURBED_ROUNDS, lambda counters: None)
        size = summary(plain)["median"]
        tell(f"cuts: {size:,.0f} bytes a round without any")
        again = _rounds(mesh, "again", UNDISTURBED_ROUNDS, lambda counters: _cut(mesh))
        reached = summary([passed - size for passed in again])
        tell(f"cuts: {reached['median']:,.0f} bytes more where nothing of a contribution was under way")

        def cut(counters: Counters) -> None:
            place = draw.uniform(MARGIN, 1 - MARGIN) * size
            until_s = time.monotonic() + ENDED_S
            while counters.now() < place and time.monotonic() < until_s:
                time.sleep(LOOK_S)
            places.append(_cut(mesh, counters))

        passed = _rounds(mesh, "cut", count, cut)
        weights = mesh.training("cut").weights()
    # The emulator is asked every few ms, so a cut may come behind the end of what it was for.
    struck = [index for index, place in enumerate(places) if place < (1 - MARGIN / 2) * size]
    more = [passed[index] - size for index in struck]
    sent_again = [max(0.0, each - reached["median"]) for each in more]
    tell(f"cuts: {len(struck)} of {count} struck a contribution; at most {max(sent_again):,.0f} bytes were sent again")
    return {
        "values": _values(Million),
        "seed": seed,
        "link": {"latency_ms": CUT_LINK.latency_ms, "rate_mbps": CUT_LINK.rate_mbps},
        "frame_bytes": FRAME_BYTES,
        "cuts": len(struck),
        "round_bytes_without_cuts": summary(plain),
        "bytes_of_being_reached_again": reached,
        "bytes_more_for_each_cut": summary(more),
        "bytes_sent_again_for_each_cut": summary(sent_again),
        "weights_equal": hashlib.sha256(weights.tobytes()).hexdigest() == _plainly(count + 1),
        "cut_at_byte": [places[index] for index in struck],
        "bytes_more": more,
    }


def cuts_goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `cuts`."""
    worst, equal = found["bytes_sent_again_for_each_cut"]["max"], float(found["weights_equal"])
    return {
        "bytes sent again for a cut": {"goal": FRAME_BYTES, "worst": worst, "met": worst <= FRAME_BYTES},
        "weights equal to those of a plain computation": {"goal": 1.0, "median": equal, "met": equal == 1.0},
    }


def _rounds(mesh: Mesh, name: str, rounds: int, during: Callable[[Counters], None]) -> list[int]:
    """The bytes that each of so many rounds brought from one node, where something happens at the beginning of each.

    The round before them is not counted: the first weights come from the node, too.
    """
    asked = {"task": CUT_TASK, "local": LOCAL, "evaluate": False, "patience_s": LARGE_PATIENCE_S}
    training = mesh.train(name, rounds=rounds + 1, nodes=[CUT_NODE], **asked)
    until_s = time.monotonic() + ENDED_S
    _until_done(training, 1, until_s)
    counters, passed = Counters(mesh), []
    for done in range(2, rounds + 2):
        during(counters)
        _until_done(training, done, until_s)
        passed.append(counters.next_round())
    training.wait(timeout=ENDED_S)
    return passed


def _until_done(training: Training, rounds: int, until_s: float) -> None:
    while (status := training.status()).rounds_done < rounds:
        if status.ended or time.monotonic() > until_s:
            raise SystemExit(f"{status.name} is {status.state} after {status.rounds_done} rounds: {status.why}")
        time.sleep(ASK_S)


def _cut(mesh: Mesh, counters: Counters | None = None) -> int:
    """Cuts the link and restores it; how many bytes of the round had come."""
    mesh.local.cut("aggregator", CUT_NODE)
    place = 0 if counters is None else counters.now()
    time.sleep(CUT_S)
    mesh.local.restore("aggregator", CUT_NODE)
    return place


def _values(task: type[Wide]) -> int:
    return 75 * task.hidden + 10


def _plainly(rounds: int) -> str:
    """SHA-256 of the weights of the same run as one loop in this process."""
    task = Million()
    weights, shard = flat.flatten(task.model(0)), task.shard(0, 1, seed=0)
    for index in range(rounds):
        plan = LocalPlan(steps=1, batch_size=1, lr=LOCAL.lr, seed=local_seed(0, index, 0))
        weights = (weights + train_locally(task, shard, weights, plan).delta).astype(np.float32)
    return hashlib.sha256(weights.tobytes()).hexdigest()
