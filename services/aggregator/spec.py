"""What a run was asked to do, checked once, before it begins: everything that can be refused early is refused here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.names import check_name
from orbitmesh.v1 import training_pb2
from services.aggregator.groups import check_groups
from services.aggregator.rounds import COHORT_MAX
from services.aggregator.strategies.base import Need, Strategy
from services.aggregator.strategies.registry import parse
from services.securesum import default_threshold
from services.updates.integers import MAX_BITS, MIN_BITS
from services.updates.scheme import Kind, Number, Scheme

ROUNDS_MAX = 1_000_000
"""The most rounds of a run."""
PATIENCE_S = 60.0
"""Seconds of contact without progress after which a node is given up, where nothing else is said."""
PATIENCE_MAX_S = 7 * 86_400.0
"""The longest patience."""
DELTA = 1e-5
"""The chance with which epsilon may not hold, where nothing else is said."""
SEED_MAX = (1 << 63) - 1
SUM_BITS = {Number.INT4: 4}
"""Bits of one node's integers in secure sums by the number format, where nothing else is said; 8 for the others."""


@dataclass(frozen=True)
class RunSpec:
    """A run's specification with everything that follows from it."""

    message: training_pb2.TrainingSpec
    """As asked for, with defaults filled in and `nodes` named in order."""
    scheme: Scheme
    """How contributions are encoded."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the run; a node's index is its place here."""
        return tuple(self.message.nodes)

    @property
    def secure(self) -> bool:
        """Whether only sums are seen."""
        return self.message.HasField("secure_sums")

    @property
    def private(self) -> bool:
        """Whether something is promised about what the result gives away."""
        return self.message.HasField("privacy")

    @property
    def node_private(self) -> bool:
        """Whether whole nodes are hidden, so that nodes add shares of the noise."""
        return self.private and self.message.privacy.unit == training_pb2.PRIVACY_UNIT_NODE

    @property
    def shared_noise(self) -> bool:
        """Whether nodes add shares of the noise to one sum a round: where whole nodes are hidden, and where records are
        in one step over all of them. Else each node adds all of its noise by itself."""
        return self.node_private or self.record_sums

    @property
    def record_sums(self) -> bool:
        """Whether nodes send sums of their examples' clipped gradients, with shares of the noise, and the aggregator
        takes the step."""
        return self.private and not self.node_private and self.secure and self.message.local.steps == 1

    @property
    def slice(self) -> str:
        """The slice that it trains and sends in; empty for none."""
        return self.message.slice

    @property
    def quorum(self) -> int:
        """Contributions that a round needs."""
        return self.message.quorum

    @property
    def threshold(self) -> int:
        """Nodes that are needed to unmask."""
        return self.message.secure_sums.threshold

    @property
    def sum_bits(self) -> int:
        """Bits of one node's integers."""
        return self.message.secure_sums.bits

    def strategy(self) -> Strategy:
        """The strategy, without a state."""
        return parse(self.message.strategy, dict(self.message.strategy_options))

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return json_format.MessageToDict(self.message, preserving_proto_field_name=True)


def from_json(written: dict[str, Any]) -> RunSpec:
    """What `RunSpec.to_json` wrote: it was checked before."""
    message = json_format.ParseDict(written, training_pb2.TrainingSpec())
    return RunSpec(message, Scheme.parse(message.compression))


def check_spec(asked: training_pb2.TrainingSpec, up: list[str]) -> RunSpec:
    """The specification with defaults, or why it cannot be run.

    Args:
        asked: What the user asked.
        up: The nodes that are up, for where none is named.

    Raises:
        InvalidInputError: A field is out of its range or does not go with another; the message names both.
    """
    spec = training_pb2.TrainingSpec()
    spec.CopyFrom(asked)
    if not spec.task:
        raise InvalidInputError("a run needs a task: the name of an entry point in orbitmesh.tasks on the nodes")
    _within("rounds", spec.rounds, 1, ROUNDS_MAX)
    _within("seed", spec.seed, 0, SEED_MAX)
    if spec.HasField("alpha") and not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise InvalidInputError(f"alpha is {spec.alpha}; it is a number above 0, or left out where all nodes get alike")
    spec.strategy = spec.strategy or "fedavg"
    strategy = parse(spec.strategy, dict(spec.strategy_options))
    spec.compression = spec.compression or "fp32"
    scheme = Scheme.parse(spec.compression)
    spec.compression = str(scheme)
    if spec.slice:
        check_name(spec.slice)
    _check_local(spec.local)
    _check_nodes(spec, up)
    if spec.HasField("secure_sums"):
        _check_secure(spec, scheme, strategy)
    size = strategy.buffer_size or 0
    if size > spec.cohort:
        raise InvalidInputError(f"a buffer of {size} contributions cannot be filled by {spec.cohort} nodes")
    if 0 < size < spec.secure_sums.threshold:
        raise InvalidInputError(
            f"a buffer of {size} contributions is below the {spec.secure_sums.threshold} that it takes to unmask a sum"
        )
    spec.quorum = spec.quorum or (spec.secure_sums.threshold if spec.HasField("secure_sums") else _all(spec, strategy))
    _within("quorum", spec.quorum, 1, size or spec.cohort)
    if spec.HasField("secure_sums") and spec.quorum < spec.secure_sums.threshold:
        raise InvalidInputError(
            f"a quorum of {spec.quorum} is below the {spec.secure_sums.threshold} nodes that it takes to unmask a sum"
        )
    if spec.HasField("privacy"):
        _check_privacy(spec)
        local, made = spec.local, RunSpec(spec, scheme)
        if made.record_sums and (local.momentum or local.weight_decay or local.optimiser not in ("", "sgd")):
            raise InvalidInputError(
                "with secure sums, privacy of records and one step a round the aggregator takes the step: momentum, "
                "weight_decay and adamw of the nodes have no place in it; choose a strategy that has them (fedadam, "
                "diloco)"
            )
    spec.patience_s = spec.patience_s or PATIENCE_S
    _within("patience_s", spec.patience_s, 0.1, PATIENCE_MAX_S)
    return RunSpec(spec, scheme)


def _all(spec: training_pb2.TrainingSpec, strategy: Strategy) -> int:
    return strategy.buffer_size or spec.cohort


def _check_nodes(spec: training_pb2.TrainingSpec, up: list[str]) -> None:
    if not spec.nodes:
        spec.nodes.extend(up)
    if not spec.nodes:
        raise InvalidInputError(
            "no node is up: start executors, or name the nodes that will come", reason="FAILED_PRECONDITION"
        )
    for name in spec.nodes:
        check_name(name)
    twice = sorted({name for name in spec.nodes if list(spec.nodes).count(name) > 1})
    if twice:
        raise InvalidInputError(f"each node is named once; more than once: {', '.join(twice[:10])}")
    if len(spec.nodes) > COHORT_MAX:
        raise InvalidInputError(f"a run takes at most {COHORT_MAX} nodes; {len(spec.nodes)} were named")
    spec.cohort = spec.cohort or len(spec.nodes)
    _within("cohort", spec.cohort, 1, len(spec.nodes))


def _check_local(local: training_pb2.LocalTraining) -> None:
    if local.epochs and local.steps:
        raise InvalidInputError(f"a node trains for epochs or for steps, not both: {local.epochs} and {local.steps}")
    if not local.epochs and not local.steps:
        local.epochs = 1
    for name, value, least, most in (
        ("epochs", local.epochs, 0, 10_000),
        ("steps", local.steps, 0, 10_000_000),
        ("batch_size", local.batch_size, 0, 65_536),
        ("lr", local.lr, 0.0, 1e6),
        ("momentum", local.momentum, 0.0, math.nextafter(1.0, 0.0)),
        ("weight_decay", local.weight_decay, 0.0, 1e6),
        ("gradient_norm", local.gradient_norm, 0.0, 1e12),
    ):
        _within(name, value, least, most)
    for name, text, known in (
        ("optimiser", local.optimiser, ("", "sgd", "adamw")),
        ("dtype", local.dtype, ("", "fp32", "bf16", "fp16")),
    ):
        if text not in known:
            raise InvalidInputError(f"{name} is {text[:40]!r}; expected one of {', '.join(known[1:])}")


def _check_secure(spec: training_pb2.TrainingSpec, scheme: Scheme, strategy: Strategy) -> None:
    sums = spec.secure_sums
    if strategy.needs is Need.EACH:
        raise InvalidInputError(
            f"the strategy {spec.strategy!r} looks at each contribution, and secure sums show none: choose one of them"
        )
    if scheme.kind is Kind.TOPK:
        raise InvalidInputError(
            f"with secure sums all nodes send the same values; {scheme} lets each choose its own: use blocks:SHARE",
            reason="SCHEME_INVALID",
        )
    if spec.cohort < 3:
        raise InvalidInputError(f"secure sums take 3 nodes or more: a sum over {spec.cohort} hides nobody")
    check_groups(sums, spec.nodes)
    sums.threshold = sums.threshold or default_threshold(len(spec.nodes))
    _within("threshold", sums.threshold, 2, spec.cohort)
    sums.bits = sums.bits or SUM_BITS.get(scheme.number, 8)
    _within("bits", sums.bits, MIN_BITS, MAX_BITS)


def _check_privacy(spec: training_pb2.TrainingSpec) -> None:
    privacy = spec.privacy
    privacy.delta = privacy.delta or DELTA
    privacy.clip = privacy.clip or 1.0
    if privacy.unit not in (training_pb2.PRIVACY_UNIT_RECORD, training_pb2.PRIVACY_UNIT_NODE):
        raise InvalidInputError("privacy says whose presence is hidden: unit is record or node")
    for name, value, most in (("epsilon", privacy.epsilon, 1e6), ("delta", privacy.delta, 0.1)):
        if not 0 < value <= most:
            raise InvalidInputError(f"{name} is {value}; it is above 0 and at most {most:g}")
    if not (math.isfinite(privacy.clip) and privacy.clip > 0):
        raise InvalidInputError(f"clip is {privacy.clip}; it is a finite norm above 0")
    if not (math.isfinite(privacy.noise_multiplier) and privacy.noise_multiplier >= 0):
        raise InvalidInputError(f"noise_multiplier is {privacy.noise_multiplier}; it is finite and at least 0")
    if privacy.unit == training_pb2.PRIVACY_UNIT_NODE and not spec.HasField("secure_sums"):
        raise InvalidInputError(
            "privacy of nodes needs secure sums: each node adds a share of the noise, and only their sum protects"
        )


def _within(name: str, value: float, least: float, most: float) -> None:
    # Written so that NaN fails too.
    if not least <= value <= most:
        raise InvalidInputError(f"{name} is {value}; it must be from {least} to {most}")
