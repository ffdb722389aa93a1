"""What is lost where less is sent, where only sums are seen, and where records are hidden: the parts `accuracy`,
`masked` and `privacy` of `bench/train.py`.

MNIST-5k and a network of 56,970 values over 8 nodes, as in `bench/train_local.py`: three local passes a round, batches
of 32, SGD with momentum. A seed gives weights, split and order of examples; what is compared is run in turns with the
same seeds, and a loss is the difference of two runs of one seed. Accuracy is on the 1,000 held-out pictures after the
last round, so that one picture is 0.1 points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from _train_mesh import NODES, Outcome, Tell, mesh_of, plan_of, run, summary

from orbitmesh import LocalTraining, Mesh, Privacy, SecureSums

TASK = "mnist5k"
LOCAL = LocalTraining(epochs=3, batch_size=32, lr=0.02, momentum=0.9)
DENSE = "fp32"
SPARSE = "topk:0.01"
SPLITS: dict[str, float | None] = {"even": None, "alpha 0.5": 0.5, "alpha 0.1": 0.1}
"""Splits by name: the concentration of the labels' Dirichlet distribution; None where all get alike."""
FEWER_BYTES = 150.0
LOSS_POINTS = {"even": 1.0, "alpha 0.5": 1.0, "alpha 0.1": 2.0}
"""How far topk may be under dense, in points."""

MASKED_PER_VALUE = {"blocks:0.25 masked": 0.35, "blocks:0.25+int4 masked": 0.35, "int8 masked": 1.4}
"""Bytes of a masked contribution for each value at most, by case."""
MASKED_POINTS = 1.0

EPSILON, DELTA = 2.0, 1e-5
PRIVATE_PERCENT = 85.0
ALL_EXAMPLES = 65_536
"""A batch larger than any shard: the step is one over all examples."""


@dataclass(frozen=True)
class Case:
    """One way to run, beside the others of its part."""

    name: str
    """What the result calls it."""
    compression: str = DENSE
    """The scheme of contributions."""
    sums: SecureSums | None = None
    """Whether the aggregator sees sums only."""
    privacy: Privacy | None = None
    """What is hidden."""
    task: str = TASK
    """The task."""
    local: LocalTraining = LOCAL
    """What a node does in a round."""
    rounds: int = 0
    """How many rounds; 0 takes the bench's."""
    strategy: str = "fedavg"
    """What turns contributions into weights."""
    options: dict[str, float] = field(default_factory=dict)
    """Its options."""

    def run(self, mesh: Mesh, name: str, rounds: int, seed: int, alpha: float | None) -> Outcome:
        """One run."""
        return run(
            mesh,
            name,
            task=self.task,
            rounds=self.rounds or rounds,
            local=self.local,
            compression=self.compression,
            strategy=self.strategy,
            strategy_options=self.options,
            secure_sums=self.sums,
            privacy=self.privacy,
            alpha=alpha,
            seed=seed,
        )


MASKED = (
    Case(DENSE),
    Case("int8 masked", "int8", SecureSums()),
    Case("blocks:0.25 masked", "blocks:0.25", SecureSums()),
    Case("blocks:0.3333+int4 masked", "blocks:0.3333+int4", SecureSums()),
    Case("blocks:0.25+int4 masked", "blocks:0.25+int4", SecureSums()),
)
PRIVATE = (
    Case(
        "linear, noise shared",
        sums=SecureSums(),
        privacy=Privacy("record", EPSILON, DELTA, clip=3.0),
        task="bench-linear",
        local=LocalTraining(steps=1, batch_size=ALL_EXAMPLES, lr=1.0),
        rounds=50,
    ),
    Case(
        "network, noise shared",
        sums=SecureSums(),
        privacy=Privacy("record", EPSILON, DELTA, clip=0.3),
        local=LocalTraining(steps=1, batch_size=ALL_EXAMPLES, lr=1 / 0.3),
        rounds=20,
        strategy="fedadam",
        options={"server_lr": 0.02, "tau": 1e-4},
    ),
    Case(
        "network, as written: 3 local passes, batch 32, each node adds all noise",
        privacy=Privacy("record", EPSILON, DELTA, clip=0.3),
        local=LocalTraining(epochs=3, batch_size=32, lr=0.1),
        rounds=20,
    ),
)


def measure(rounds: int, seeds: int, tell: Tell) -> dict[str, Any]:
    """Accuracy against bytes: dense and top-k in turns, for each split and seed."""
    found: dict[str, Any] = _setting(rounds, seeds)
    with mesh_of() as mesh:
        for split, alpha in SPLITS.items():
            outcomes = _in_turns(mesh, (Case(DENSE), Case(SPARSE, SPARSE)), rounds, seeds, alpha, tell, split)
            found[split] = {name: _row(each) for name, each in outcomes.items()} | {
                "below_dense_points": _below(outcomes[DENSE], outcomes[SPARSE]),
                "times_fewer_bytes": _fewer(outcomes, lambda one: one.up_bytes),
                "times_fewer_bytes_with_all_that_goes_with_it": _fewer(outcomes, lambda one: one.wire_bytes),
            }
    return found


def measure_masked(rounds: int, seeds: int, tell: Tell) -> dict[str, Any]:
    """Secure sums against dense contributions that the aggregator sees."""
    found: dict[str, Any] = _setting(rounds, seeds)
    with mesh_of() as mesh:
        outcomes = _in_turns(mesh, MASKED, rounds, seeds, None, tell, "masked")
    for case in MASKED:
        found[case.name] = _row(outcomes[case.name])
        if case.sums is not None:
            found[case.name]["below_dense_points"] = _below(outcomes[DENSE], outcomes[case.name])
    return found


def measure_private(seeds: int, tell: Tell) -> dict[str, Any]:
    """Records hidden at epsilon 2."""
    found: dict[str, Any] = {"seeds": list(range(seeds)), "epsilon": EPSILON, "delta": DELTA}
    with mesh_of() as mesh:
        outcomes = _in_turns(mesh, PRIVATE, 0, seeds, None, tell, "privacy")
    for case in PRIVATE:
        found[case.name] = _row(outcomes[case.name]) | {
            "task": case.task,
            "rounds": case.rounds,
            "local": plan_of(case.local),
            "strategy": {"name": case.strategy, **case.options},
            "clip": case.privacy.clip if case.privacy is not None else None,
            "noise_multiplier": _noise(outcomes[case.name][0]),
            "epsilon_by_the_ledger": summary([each.epsilon for each in outcomes[case.name]]),
        }
    return found


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `accuracy`, against medians."""
    rows = {}
    for split, most in LOSS_POINTS.items():
        lost, fewer = found[split]["below_dense_points"]["median"], found[split]["times_fewer_bytes"]["median"]
        rows[f"{SPARSE} under dense, {split}, points"] = {"goal": most, "median": lost, "met": lost <= most}
        rows[f"{SPARSE} against dense, {split}, times fewer bytes"] = {
            "goal": FEWER_BYTES, "median": fewer, "met": fewer >= FEWER_BYTES,
        }  # fmt: skip
    return rows


def masked_goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `masked`, against medians."""
    rows = {}
    for name, most in MASKED_PER_VALUE.items():
        per, lost = found[name]["bytes_per_value"]["median"], found[name]["below_dense_points"]["median"]
        rows[f"{name}, bytes per value"] = {"goal": most, "median": per, "met": per <= most}
        rows[f"{name} under dense, points"] = {"goal": MASKED_POINTS, "median": lost, "met": lost <= MASKED_POINTS}
    return rows


def private_goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at with `privacy`."""
    rows = {}
    for case in PRIVATE:
        if case.sums is not None:
            reached = found[case.name]["accuracy_percent"]["median"]
            rows[f"{case.name}, accuracy at epsilon {EPSILON:g}, %"] = {
                "goal": PRIVATE_PERCENT, "median": reached, "met": reached >= PRIVATE_PERCENT,
            }  # fmt: skip
    return rows


def _setting(rounds: int, seeds: int) -> dict[str, Any]:
    return {"task": TASK, "nodes": NODES, "rounds": rounds, "local": plan_of(LOCAL), "seeds": list(range(seeds))}


def _in_turns(
    mesh: Mesh, cases: tuple[Case, ...], rounds: int, seeds: int, alpha: float | None, tell: Tell, part: str
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {case.name: [] for case in cases}
    for seed in range(seeds):
        for number, case in enumerate(cases):
            name = f"{part.replace(' ', '-').replace('.', '-')}-{number}-{seed}"
            outcome = case.run(mesh, name, rounds, seed, alpha)
            outcomes[case.name].append(outcome)
            figures = f"{outcome.percent[-1]:.1f} %, {outcome.up_bytes:,.0f} bytes a round"
            tell(f"{part}, {case.name}, seed {seed}: {figures}")
    return outcomes


def _row(outcomes: list[Outcome]) -> dict[str, Any]:
    curves = [each.percent for each in outcomes]
    return {
        "accuracy_percent": summary([curve[-1] for curve in curves]),
        "bytes_per_node_and_round": summary([each.up_bytes for each in outcomes]),
        "bytes_with_all_that_goes_with_it": summary([each.wire_bytes for each in outcomes]),
        "bytes_per_value": summary([each.per_value for each in outcomes]),
        "round_s": summary([second for each in outcomes for second in each.rounds_s]),
        "curves_percent": curves,
    }


def _below(dense: list[Outcome], others: list[Outcome]) -> dict[str, float]:
    return summary([one.percent[-1] - other.percent[-1] for one, other in zip(dense, others, strict=True)])


def _fewer(outcomes: dict[str, list[Outcome]], size: Any) -> dict[str, float]:
    pairs = zip(outcomes[DENSE], outcomes[SPARSE], strict=True)
    return summary([size(dense) / size(sparse) for dense, sparse in pairs])


def _noise(outcome: Outcome) -> float | None:
    return outcome.status.spec.privacy.noise_multiplier if outcome.status.spec.privacy is not None else None
