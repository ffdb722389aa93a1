"""A node's work of one order, on the training thread: evaluate, train, encode, write down. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orbitmesh.errors import CancelledError_, InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.contribution import ContributionWriter, Facts
from services.executor.training.encoding import decode_contribution, encode_delta
from services.executor.training.files import INITIALISE, TRAIN, RunFiles
from services.executor.training.shop import Shop, digest
from services.executor.training.work import local_plan, rounding_seed
from services.executor.training.worker import Reports
from services.runtime.logs import EventLog
from services.training.checkpoint import EVERY_STEPS, Checkpoint
from services.training.local import LocalProgress, train_locally
from services.updates.feedback import Residual
from services.updates.scheme import Scheme
from services.updates.spans import Floats, spans


@dataclass(frozen=True)
class Bench:
    """What a job works with."""

    shop: Shop
    """The run's task and examples."""
    files: RunFiles
    """Its directory."""
    run: str
    """Its name."""
    node: str
    """This node's name."""
    stopped: Callable[[], bool]
    """Whether the work is no longer wanted."""
    between: Callable[[], None]
    """Called between two steps: others' short work."""
    log: EventLog
    """Where to say what happened."""


def initialise(bench: Bench, round_index: int) -> None:
    """Writes down the weights that the run begins with, as a contribution."""
    weights = bench.shop.initial()
    writer = ContributionWriter(bench.files.contribution_path(INITIALISE, round_index))
    try:
        for _, where in spans(weights.size):
            writer.add(weights[where].astype("<f4", copy=False).tobytes())
        writer.finish(Facts(round_index, "", "", len(bench.shop.shard)))
        writer.publish()
    finally:
        writer.abandon()


def evaluate(bench: Bench, work: training_pb2.TrainingWork, reports: Reports) -> None:
    """Measures the weights of an order."""
    reports.evaluated(bench.shop.evaluate(read_weights(bench, work)))


def train(bench: Bench, work: training_pb2.TrainingWork, round_index: int, reports: Reports) -> None:
    """A node's part of a round, up to a contribution that is durable under its name. One that is there stays.

    Raises:
        MeshError: Of any kind that training and encoding know; nothing of the round is under its name then.
        CancelledError_: It was stopped.
    """
    settle(bench, round_index)
    bench.files.begin_round(round_index)
    weights = read_weights(bench, work)
    figures: dict[str, float] = {}
    if work.evaluate:
        figures = bench.shop.evaluate(weights)
        reports.evaluated(figures)
    there = bench.files.contribution(TRAIN, round_index)
    if there is not None and there.facts.weights == work.weights.sha256.hex():
        return
    began = time.monotonic()
    plan = local_plan(work, round_index)
    steps = plan.total_steps(len(bench.shop.shard))
    checkpoint = None
    if plan.keep_optimiser or steps > EVERY_STEPS:
        checkpoint = Checkpoint(bench.files.checkpoint(round_index))

    def stepped(at: LocalProgress) -> None:
        reports.progress(at.step, at.steps, at.loss)
        bench.between()

    reports.progress(0, steps, None)
    result = train_locally(
        bench.shop.task,
        bench.shop.shard,
        weights,
        plan,
        device=bench.shop.device,
        on_progress=stepped,
        stop=bench.stopped,
        checkpoint=checkpoint,
        optimiser_from=bench.files.optimiser_before(round_index),
    )
    bench.log.info("round_trained", run=bench.run, round=round_index, steps=result.steps, resumed_at=result.resumed_at)
    facts = Facts(
        round_index,
        work.weights.sha256.hex(),
        work.spec.compression,
        result.examples,
        loss=None if work.spec.HasField("privacy") else result.loss,
        steps=result.steps,
        train_s=time.monotonic() - began,
        figures=figures,
    )
    _contribute(bench, work, round_index, result.delta, facts)
    if checkpoint is not None:
        _keep(checkpoint.path, bench.files.optimiser(round_index), kept=plan.keep_optimiser)


def settle(bench: Bench, round_index: int) -> None:
    """Lets go of contributions of other rounds: what never left this node in full did not count, and is given back."""
    bench.files.adopt_unpublished(round_index)
    for other in bench.files.rounds_contributed():
        if other != round_index:
            withdraw(bench, other, counted=bench.files.is_told(other))


def withdraw(bench: Bench, round_index: int, *, counted: bool = False) -> None:
    """Removes the contribution of a round; where it did not count, what was sent of it follows later."""
    file = bench.files.contribution(TRAIN, round_index)
    if file is not None and file.facts.with_residual and not counted:
        residual = Residual(bench.files.residual, bench.shop.layout)
        if residual.round_index == round_index:
            residual.give_back(round_index, decode_contribution(file, bench.shop.values))
    bench.files.drop_contribution(TRAIN, round_index)


def read_weights(bench: Bench, work: training_pb2.TrainingWork) -> Floats:
    """The weights of an order: from the disk, or those that the model begins with.

    Raises:
        InvalidInputError: They are not here (`FAILED_PRECONDITION`).
    """
    wanted = bytes(work.weights.sha256)
    file = bench.files.weights(bench.shop.values, wanted)
    if file.held == file.spans:
        return file.read()
    initial = bench.shop.initial()
    if digest(initial) != wanted:
        raise InvalidInputError(
            f"the weights {wanted.hex()[:12]} are no longer on this node: order the round again",
            reason="FAILED_PRECONDITION",
        )
    return initial


def _contribute(bench: Bench, work: training_pb2.TrainingWork, round_index: int, delta: Floats, facts: Facts) -> None:
    if bench.stopped():
        raise CancelledError_(f"round {round_index} of {bench.run} was given up before its update was encoded")
    path = bench.files.contribution_path(TRAIN, round_index)
    writer = ContributionWriter(path)
    try:
        keep = encode_delta(
            Scheme.parse(work.spec.compression),
            delta,
            writer,
            round_index=round_index,
            seed=rounding_seed(bench.run, round_index, bench.node),
            residual=bench.files.residual,
            layout=bench.shop.layout,
            payload_bytes=work.payload_bytes,
        )
        writer.finish(replace(facts, with_residual=keep is not None))
        if keep is not None:
            keep()
        writer.publish()
    finally:
        writer.abandon()


def _keep(checkpoint: Path, optimiser: Path, *, kept: bool) -> None:
    if kept:
        checkpoint.replace(optimiser)
    else:
        checkpoint.unlink(missing_ok=True)
