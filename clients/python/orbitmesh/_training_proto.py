"""Federated training between the values of `training_results` and the messages of the wire, both ways. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from orbitmesh._requests import between, checked_nodes, slice_name, whole
from orbitmesh.errors import InvalidInputError
from orbitmesh.training_results import (
    Ledger,
    LedgerEntry,
    LocalTraining,
    Privacy,
    SecureSums,
    TrainingContribution,
    TrainingNode,
    TrainingRound,
    TrainingSpec,
    TrainingStatus,
)
from orbitmesh.v1 import aggregator_pb2, training_pb2

T = TypeVar("T")

UINT32_MAX = (1 << 32) - 1
ROUNDS_MAX = 1_000_000
"""The most rounds of a run."""
SEED_MAX = (1 << 63) - 1
"""The largest seed of a run."""
TEXT_MAX = 256
"""The longest name of a task, a strategy, a scheme or a type, in characters."""
LOCAL = LocalTraining()
"""What a field of local training that is 0 or empty stands for."""
PRIVACY = Privacy("", 0.0)
"""The same for privacy."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UNITS = {"record": training_pb2.PRIVACY_UNIT_RECORD, "node": training_pb2.PRIVACY_UNIT_NODE}
UNITS = tuple(_UNITS)
"""The names that `Privacy.unit` knows."""
_RUN_STATES = {
    aggregator_pb2.RUN_STATE_RUNNING: "running",
    aggregator_pb2.RUN_STATE_PAUSED: "paused",
    aggregator_pb2.RUN_STATE_DONE: "done",
    aggregator_pb2.RUN_STATE_CANCELLED: "cancelled",
    aggregator_pb2.RUN_STATE_FAILED: "failed",
}
_NODE_STATES = {
    aggregator_pb2.RUN_NODE_STATE_AWAY: "away",
    aggregator_pb2.RUN_NODE_STATE_IDLE: "idle",
    aggregator_pb2.RUN_NODE_STATE_RECEIVING: "receiving",
    aggregator_pb2.RUN_NODE_STATE_TRAINING: "training",
    aggregator_pb2.RUN_NODE_STATE_SENDING: "sending",
    aggregator_pb2.RUN_NODE_STATE_STORED: "stored",
    aggregator_pb2.RUN_NODE_STATE_GIVEN_UP: "given_up",
}


def start_request(
    name: str,
    *,
    task: str,
    rounds: int,
    nodes: Sequence[str] | None,
    strategy: str,
    strategy_options: Mapping[str, float] | None,
    local: LocalTraining | None,
    compression: str,
    secure_sums: SecureSums | None,
    privacy: Privacy | None,
    alpha: float | None,
    seed: int,
    quorum: int,
    cohort: int,
    patience_s: float,
    evaluate: bool,
    in_slice: str | None,
    request_id: str,
) -> aggregator_pb2.StartRunRequest:
    """The request for a run. What the values mean together is judged by the aggregator, which knows more.

    Raises:
        InvalidInputError: an argument is of another type, or no number that can be sent; the message names it.
    """
    spec = training_pb2.TrainingSpec(
        task=_text(task, "task"),
        rounds=whole(rounds, "rounds", 1, ROUNDS_MAX),
        seed=whole(seed, "seed", 0, SEED_MAX),
        strategy=_text(strategy, "strategy"),
        strategy_options=_options(strategy_options or {}),
        local=_local_message(_instance(local, LocalTraining, "local") or LOCAL),
        compression=_text(compression, "compression"),
        nodes=checked_nodes(nodes),
        quorum=whole(quorum, "quorum", 0, UINT32_MAX),
        patience_s=between(patience_s, "patience_s", 0.0, math.inf),
        cohort=whole(cohort, "cohort", 0, UINT32_MAX),
        evaluate=bool(evaluate),
        slice="" if in_slice is None else slice_name(in_slice),
    )
    if alpha is not None:
        spec.alpha = _above_zero(alpha, "alpha")
    if (sums := _instance(secure_sums, SecureSums, "secure_sums")) is not None:
        spec.secure_sums.CopyFrom(_sums_message(sums))
    if (promise := _instance(privacy, Privacy, "privacy")) is not None:
        spec.privacy.CopyFrom(_privacy_message(promise))
    return aggregator_pb2.StartRunRequest(request_id=request_id, name=run_name(name), spec=spec)


def run_name(name: str) -> str:
    """The name, where a run may be called that.

    Raises:
        InvalidInputError: it may not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"the run's name is {name!r:.80}; expected 1 to 63 of a-z, 0-9 and -, a letter or digit first"
        )
    return name


def status(message: aggregator_pb2.Run) -> TrainingStatus:
    """How a run is."""
    return TrainingStatus(
        name=message.name,
        state=_RUN_STATES.get(message.state, "unknown"),
        why=message.why,
        spec=_spec(message.spec),
        rounds_done=message.rounds_done,
        values=message.values,
        nodes=tuple(map(_node, message.nodes)),
        rounds=tuple(map(training_round, message.rounds)),
        began_at=_time(message.began_at) if message.HasField("began_at") else None,
        epsilon=message.epsilon,
    )


def training_round(message: aggregator_pb2.RunRound) -> TrainingRound:
    """What became of a round."""
    return TrainingRound(
        index=message.index,
        cohort=tuple(message.cohort),
        contributed=tuple(message.contributed),
        given_up=dict(message.given_up),
        up_bytes=message.up_bytes,
        down_bytes=message.down_bytes,
        figures=dict(message.figures),
        train_loss=message.train_loss if message.HasField("train_loss") else None,
        seconds=message.seconds,
        epsilon=message.epsilon,
        done_at=_time(message.done_at) if message.HasField("done_at") else None,
        trace_id=message.trace_id,
        contributions=tuple(map(_contribution, message.contributions)),
        sum_s=message.sum_s,
    )


def ledger(message: aggregator_pb2.GetLedgerResponse) -> Ledger:
    """What a promise of privacy has cost."""
    return Ledger(
        promised=_privacy(message.promised) if message.HasField("promised") else None,
        epsilon=message.epsilon,
        rounds_left=message.rounds_left,
        entries=tuple(
            LedgerEntry(
                round=entry.round,
                node=entry.node,
                steps=entry.steps,
                sample_rate=entry.sample_rate,
                noise_multiplier=entry.noise_multiplier,
                survivors=entry.survivors,
                survivors_promised=entry.survivors_promised,
                epsilon=entry.epsilon,
            )
            for entry in message.entries
        ),
    )


def _spec(message: training_pb2.TrainingSpec) -> TrainingSpec:
    return TrainingSpec(
        task=message.task,
        rounds=message.rounds,
        nodes=tuple(message.nodes),
        strategy=message.strategy,
        strategy_options=dict(message.strategy_options),
        local=_local(message.local),
        compression=message.compression,
        secure_sums=_sums(message.secure_sums) if message.HasField("secure_sums") else None,
        privacy=_privacy(message.privacy) if message.HasField("privacy") else None,
        alpha=message.alpha if message.HasField("alpha") else None,
        seed=message.seed,
        quorum=message.quorum,
        cohort=message.cohort,
        patience_s=message.patience_s,
        evaluate=message.evaluate,
        slice=message.slice or None,
    )


def _node(message: aggregator_pb2.RunNode) -> TrainingNode:
    return TrainingNode(
        name=message.name,
        state=_NODE_STATES.get(message.state, "unknown"),
        examples=message.examples,
        step=message.step,
        steps=message.steps,
        why=message.why,
        up_bytes=message.up_bytes,
        down_bytes=message.down_bytes,
    )


def _contribution(message: aggregator_pb2.RunContribution) -> TrainingContribution:
    return TrainingContribution(
        node=message.node,
        examples=message.examples,
        size_bytes=message.size_bytes,
        staleness=message.staleness,
        down_s=message.down_s,
        train_s=message.train_s,
        wait_s=message.wait_s,
        up_s=message.up_s,
        via=message.via,
    )


def _local(message: training_pb2.LocalTraining) -> LocalTraining:
    return LocalTraining(
        epochs=message.epochs,
        steps=message.steps,
        batch_size=message.batch_size or LOCAL.batch_size,
        optimiser=message.optimiser or LOCAL.optimiser,
        lr=message.lr or LOCAL.lr,
        momentum=message.momentum,
        weight_decay=message.weight_decay,
        gradient_norm=message.gradient_norm,
        dtype=message.dtype or LOCAL.dtype,
        keep_optimiser=message.keep_optimiser,
    )


def _local_message(local: LocalTraining) -> training_pb2.LocalTraining:
    epochs = whole(local.epochs, "local.epochs", 0, UINT32_MAX)
    steps = whole(local.steps, "local.steps", 0, UINT32_MAX)
    return training_pb2.LocalTraining(
        epochs=epochs or int(steps == 0),
        steps=steps,
        # On the wire 0 stands for the default, and nobody who writes 0 means that.
        batch_size=whole(local.batch_size, "local.batch_size", 1, UINT32_MAX),
        optimiser=_text(local.optimiser, "local.optimiser"),
        lr=_above_zero(local.lr, "local.lr"),
        momentum=between(local.momentum, "local.momentum", 0.0, 1.0),
        weight_decay=between(local.weight_decay, "local.weight_decay", 0.0, math.inf),
        gradient_norm=between(local.gradient_norm, "local.gradient_norm", 0.0, math.inf),
        dtype=_text(local.dtype, "local.dtype"),
        keep_optimiser=bool(local.keep_optimiser),
    )


def _sums(message: training_pb2.SecureSums) -> SecureSums:
    groups = tuple(tuple(group.nodes) for group in message.groups)
    return SecureSums(threshold=message.threshold or None, bits=message.bits or None, groups=groups)


def _sums_message(sums: SecureSums) -> training_pb2.SecureSums:
    message = training_pb2.SecureSums()
    if sums.threshold is not None:
        message.threshold = whole(sums.threshold, "secure_sums.threshold", 1, UINT32_MAX)
    if sums.bits is not None:
        message.bits = whole(sums.bits, "secure_sums.bits", 1, UINT32_MAX)
    if not isinstance(sums.groups, Sequence) or isinstance(sums.groups, str):
        raise InvalidInputError(f"secure_sums.groups is {sums.groups!r:.80}; expected lists of names of nodes")
    for group in sums.groups:
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise InvalidInputError(f"a group of secure_sums.groups is {group!r:.80}; expected names of nodes")
        message.groups.add(nodes=checked_nodes(group))
    return message


def _privacy(message: training_pb2.Privacy) -> Privacy:
    return Privacy(
        unit=next((name for name, number in _UNITS.items() if number == message.unit), "unknown"),
        epsilon=message.epsilon,
        delta=message.delta or PRIVACY.delta,
        clip=message.clip or PRIVACY.clip,
        noise_multiplier=message.noise_multiplier or None,
    )


def _privacy_message(privacy: Privacy) -> training_pb2.Privacy:
    if privacy.unit not in _UNITS:
        raise InvalidInputError(f"privacy.unit is {privacy.unit!r:.80}; expected one of {', '.join(_UNITS)}")
    noise = privacy.noise_multiplier
    return training_pb2.Privacy(
        unit=_UNITS[privacy.unit],
        epsilon=_above_zero(privacy.epsilon, "privacy.epsilon"),
        delta=_above_zero(privacy.delta, "privacy.delta"),
        clip=_above_zero(privacy.clip, "privacy.clip"),
        noise_multiplier=0.0 if noise is None else _above_zero(noise, "privacy.noise_multiplier"),
    )


def _options(options: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(options, Mapping):
        raise InvalidInputError(f"strategy_options is {options!r:.80}; expected numbers by name")
    return {
        _text(name, "the name of a strategy's option"): between(value, f"strategy option {name}", -math.inf, math.inf)
        for name, value in options.items()
    }


def _instance(value: T | None, kind: type[T], what: str) -> T | None:
    if value is not None and not isinstance(value, kind):
        raise InvalidInputError(f"{what} is {value!r:.80}; expected {kind.__name__}(...) or None")
    return value


def _above_zero(value: float, what: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InvalidInputError(f"{what} is {value!r:.80}; expected a number above 0")
    return float(value)


def _text(value: str, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        raise InvalidInputError(f"{what} is {value!r:.80}; expected a text of 1 to {TEXT_MAX} characters")
    return value


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
