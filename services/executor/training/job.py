"""A node's work of one order, on the training thread: evaluate, train, make a contribution. Imports torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.errors import CancelledError_, InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.bench import Bench
from services.executor.training.contribution import Facts
from services.executor.training.files import TRAIN
from services.executor.training.making import check_round, contribute, secrets_of, settle, write_initial
from services.executor.training.records import binding_of, event_of, gradient_sum, record_plan, train_records
from services.executor.training.shop import digest
from services.executor.training.terms import clip_of, has_secrets, hides_records, shares_records
from services.executor.training.work import local_plan
from services.executor.training.worker import Reports
from services.training.checkpoint import EVERY_STEPS, Checkpoint
from services.training.local import LocalProgress, train_locally
from services.training.plan import LocalPlan
from services.updates.spans import Floats


@dataclass(frozen=True)
class _Trained:
    """What a round's training gave."""

    delta: Floats
    steps: int
    resumed_at: int = 0
    loss: float | None = None
    release: str = ""
    released: Callable[[], None] | None = None
    """Counts it as released."""
    checkpoint: Path | None = None
    """How it ended."""


def initialise(bench: Bench, round_index: int) -> None:
    """Writes down the weights that the run begins with, as a contribution."""
    write_initial(bench, round_index, bench.shop.initial())


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
    of, plan, began = check_round(bench, work, round_index), local_plan(work, round_index), time.monotonic()
    reports.progress(0, plan.total_steps(len(bench.shop.shard)), None)
    kind = _plainly
    if hides_records(work.spec):
        kind = _one_step if shares_records(work.spec) else _records
    trained = kind(bench, work, round_index, weights, plan, reports)
    bench.log.info(
        "round_trained", run=bench.run, round=round_index, steps=trained.steps, resumed_at=trained.resumed_at
    )
    if bench.stopped():
        raise CancelledError_(f"round {round_index} of {bench.run} was given up before its update was encoded")
    facts = Facts(
        round_index,
        work.weights.sha256.hex(),
        work.spec.compression,
        len(bench.shop.shard),
        loss=None if has_secrets(work.spec) else trained.loss,
        steps=trained.steps,
        train_s=time.monotonic() - began,
        figures=figures,
        release=trained.release,
    )
    if trained.checkpoint is not None and plan.keep_optimiser:
        # Before the contribution has its name: after a crash one that is there is not made again, and the next round
        # begins with these momenta.
        trained.checkpoint.replace(bench.files.optimiser(round_index))
    contribute(bench, of, trained.delta, facts, trained.released)
    if trained.checkpoint is not None:
        trained.checkpoint.unlink(missing_ok=True)


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


def _plainly(
    bench: Bench,
    work: training_pb2.TrainingWork,
    round_index: int,
    weights: Floats,
    plan: LocalPlan,
    reports: Reports,
) -> _Trained:
    path = None
    if plan.keep_optimiser or plan.total_steps(len(bench.shop.shard)) > EVERY_STEPS:
        path = bench.files.checkpoint(round_index)
        bench.files.go_on_from_optimiser(round_index)

    def stepped(at: LocalProgress) -> None:
        reports.progress(at.step, at.steps, at.loss)
        bench.between()

    result = train_locally(
        bench.shop.task,
        bench.shop.shard,
        weights,
        plan,
        device=bench.shop.device,
        on_progress=stepped,
        stop=bench.stopped,
        checkpoint=None if path is None else Checkpoint(path),
        optimiser_from=bench.files.optimiser_before(round_index),
    )
    return _Trained(result.delta, result.steps, result.resumed_at, result.loss, checkpoint=path)


def _records(
    bench: Bench,
    work: training_pb2.TrainingWork,
    round_index: int,
    weights: Floats,
    plan: LocalPlan,
    reports: Reports,
) -> _Trained:
    secrets, records = secrets_of(bench), record_plan(work.spec, plan, len(bench.shop.shard))
    binding = binding_of(bytes(work.weights.sha256), plan, records)
    make = event_of(records, round_index, bench.node)
    event = secrets.check_release(make, round_index, binding.hex())

    def stepped(done: int) -> None:
        reports.progress(done, records.steps, None)
        bench.between()

    delta = train_records(
        bench.shop,
        weights,
        plan,
        records,
        secrets.round_seed("record", round_index, binding),
        on_step=stepped,
        stopped=bench.stopped,
    )

    def released() -> None:
        secrets.release(make, round_index, binding.hex())

    return _Trained(delta, records.steps, release=json.dumps(event.to_json()), released=released)


def _one_step(
    bench: Bench,
    work: training_pb2.TrainingWork,
    round_index: int,
    weights: Floats,
    plan: LocalPlan,
    reports: Reports,
) -> _Trained:
    """The step is taken by the aggregator: noise that hides examples in their sum is no use to any node alone."""
    delta = gradient_sum(bench.shop, weights, plan, clip_of(work.spec))
    reports.progress(1, 1, None)
    return _Trained(delta, 1)
