"""What sums in a plane save on the downlink: the part `groups` of `bench/train.py`.

The same secure run with and without groups, in turn. Each group's head adds the masked words of its members, and only
its sum goes to the aggregator, so that as many contributions arrive as there are groups in place of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _train_mesh import Tell, mesh_of, plan_of, run, summary

from orbitmesh import LocalTraining, SecureSums

NODES = 6
GROUPS = (("sat-1", "sat-2", "sat-3"), ("sat-4", "sat-5", "ground-1"))
TASK, COMPRESSION, ROUNDS = "mnist5k", "int8", 8
LOCAL = LocalTraining(steps=1, batch_size=32, lr=0.05)


def measure(repeats: int, tell: Tell) -> dict[str, Any]:
    """Bytes that arrive at the aggregator, and how long a round takes, with and without groups."""
    ways: dict[str, Sequence[Sequence[str]]] = {"without": (), "with": GROUPS}
    found: dict[str, Any] = {
        "nodes": NODES, "groups": len(GROUPS), "task": TASK, "compression": COMPRESSION, "rounds": ROUNDS,
        "local": plan_of(LOCAL),
    }  # fmt: skip
    contributions: dict[str, list[float]] = {way: [] for way in ways}
    everything: dict[str, list[float]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    equal = True
    with mesh_of(NODES) as mesh:
        for seed in range(repeats):
            weights = []
            for way, groups in ways.items():
                outcome = run(
                    mesh, f"{way}-{seed}", task=TASK, rounds=ROUNDS, nodes=[name for group in GROUPS for name in group],
                    local=LOCAL, compression=COMPRESSION, secure_sums=SecureSums(groups=groups), seed=seed,
                    evaluate=False,
                )  # fmt: skip
                status = outcome.status
                contributions[way].append(sum(each.up_bytes for each in status.rounds) / ROUNDS)
                everything[way].append(sum(node.up_bytes for node in status.nodes) / ROUNDS)
                seconds[way] += outcome.rounds_s
                weights.append(mesh.training(status.name).weights().tobytes())
                tell(f"groups, {way} them, seed {seed}: {contributions[way][-1]:,.0f} bytes of contributions a round")
            equal = equal and weights[0] == weights[1]
    for way in ways:
        found[f"{way} groups"] = {
            "contribution_bytes_a_round": summary(contributions[way]),
            "all_bytes_a_round": summary(everything[way]),
            "round_s": summary(seconds[way]),
        }
    return found | {"weights_equal": equal}


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at: one contribution for each group, and the same weights."""
    plain, summed = (found[f"{way} groups"]["contribution_bytes_a_round"]["median"] for way in ("without", "with"))
    most = 1.02 * plain * found["groups"] / found["nodes"]
    equal = float(found["weights_equal"])
    return {
        "bytes of contributions a round, with groups": {"goal": most, "median": summed, "met": summed <= most},
        "weights equal with and without groups": {"goal": 1.0, "median": equal, "met": equal == 1.0},
    }
