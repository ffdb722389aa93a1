"""Who may order, what is refused, and that a refusal harms nobody else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2, wire_pb2
from services.executor.training.desk import RUNS_MAX
from services.training import flat
from services.training.images import Digits
from tests.executor.relay_mesh import Ca
from tests.executor.training.support import (
    END,
    EVALUATE,
    INITIALISE,
    JOIN,
    TRAIN,
    Aggregator,
    aggregating,
    on,
    running,
    session_with,
    work_of,
)
from tests.runtime.conftest import until

WEIGHTS = flat.flatten(Digits().model(7))


@pytest.mark.parametrize("title", ["gateway/gw", "executor/sat-2"])
async def test_only_an_aggregator_orders(title: str, ca: Ca, tmp_path: Path) -> None:
    """Of the roles that may open a session, all but the aggregator are refused training, and nothing is kept."""
    async with running(ca, tmp_path) as node, session_with(ca, node, title) as session:
        await Aggregator(session).order(JOIN, work_of())
        refusal = await Aggregator(session).refused("ROLE_NOT_ALLOWED")
        assert title.partition("/")[0] in refusal.message
    assert not (tmp_path / "training").exists()


async def test_a_run_belongs_to_the_aggregator_that_it_was_joined_for(ca: Ca, tmp_path: Path) -> None:
    """Another identity of the same role can neither train in a run, read its contribution, nor end it."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        await agg.train(work_of(), WEIGHTS)
        async with aggregating(ca, node, "aggregator/other") as other:
            for kind, body in ((TRAIN, on(work_of(), WEIGHTS)), (JOIN, work_of()), (END, b"")):
                await other.order(kind, body)
            for _ in range(3):
                assert (await agg.refused("NOT_YOURSELF")).message.count("aggregator/other") == 1
            await agg.order(TRAIN, on(work_of(), WEIGHTS))
            assert (await agg.contribution()).info.spans == 1
            assert other.heard == []


async def test_a_task_that_is_not_installed_is_refused(ca: Ca, tmp_path: Path) -> None:
    """The refusal names what is installed; nothing of the run is kept, and another run may follow."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.order(JOIN, work_of("no-such-task"))
        refusal = await agg.refused("NOT_FOUND")
        assert "digits" in refusal.metadata["installed"].split(",")
        assert not (tmp_path / "training").exists()
        await agg.join(work_of())


@pytest.mark.parametrize("run", ["", "..", ".hidden", "a/b", "../../etc", "UPPER", "x" * 82, "a\x00b", "-dash"])
async def test_no_name_of_a_run_leaves_its_directory(run: str, ca: Ca, tmp_path: Path) -> None:
    """A name that is no plain name of a directory is refused and touches nothing."""
    async with running(ca, tmp_path / "state") as node, aggregating(ca, node, run=run) as agg:
        await agg.order(JOIN, work_of())
        await agg.refused("INVALID_INPUT")
    assert not (tmp_path / "state" / "training").exists()


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (b"\xff no message", "INVALID_INPUT"),
        (bytes((16 << 20) + 1), "LIMIT_EXCEEDED"),
        (work_of(compression="zip"), "SCHEME_INVALID"),
        (work_of(compression=""), "SCHEME_INVALID"),
        (work_of(local=training_pb2.LocalTraining()), "INVALID_INPUT"),
        (work_of(local=training_pb2.LocalTraining(steps=1, epochs=1)), "INVALID_INPUT"),
        (work_of(local=training_pb2.LocalTraining(steps=1, lr=float("nan"))), "INVALID_INPUT"),
        (work_of(local=training_pb2.LocalTraining(steps=1, optimiser="lion")), "INVALID_INPUT"),
        (work_of(index=4), "INVALID_INPUT"),
        (work_of(nodes=0), "INVALID_INPUT"),
        (work_of(nodes=1_000), "INVALID_INPUT"),
        (work_of(alpha=-1.0), "INVALID_INPUT"),
    ],
)
async def test_a_run_that_makes_no_sense_is_not_joined(
    work: training_pb2.TrainingWork | bytes, reason: str, ca: Ca, tmp_path: Path
) -> None:
    """What no round could be worked on is refused before the node takes part, and nothing is kept."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.order(JOIN, work)
        await agg.refused(reason)
    assert not list((tmp_path / "training").glob("*"))


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (TRAIN, {"weights": training_pb2.WeightsInfo(values=5, sha256=bytes(32))}, "LAYOUT_MISMATCH"),
        (EVALUATE, {"weights": training_pb2.WeightsInfo(values=WEIGHTS.size, sha256=b"short")}, "INVALID_INPUT"),
        (TRAIN, {"overrides": "no JSON"}, "INVALID_INPUT"),
        (TRAIN, {"overrides": "[1]"}, "INVALID_INPUT"),
        (TRAIN, {"overrides": '{"momentum": 2}'}, "INVALID_INPUT"),
        (TRAIN, {"overrides": '{"task": "other"}'}, "INVALID_INPUT"),
        (TRAIN, {"overrides": " " * 5_000}, "LIMIT_EXCEEDED"),
        (9, {}, "INVALID_INPUT"),
        (training_pb2.TRAINING_KIND_UNSPECIFIED, {}, "INVALID_INPUT"),
    ],
)
async def test_a_wrong_order_is_refused_and_the_next_one_followed(
    kind: int, fields: dict[str, Any], reason: str, ca: Ca, tmp_path: Path
) -> None:
    """A round that cannot be worked on is refused with its reason; a right order after it is followed."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        work = on(work_of(), WEIGHTS)
        work.MergeFrom(training_pb2.TrainingWork(**fields))
        await agg.order(kind, work)
        while (info := (await agg.receive()).info.training).WhichOneof("what") != "refused":
            assert info.HasField("have")
        assert info.refused.reason == reason
        assert (await agg.train(work_of(), WEIGHTS)).info.spans == 1


async def test_orders_in_a_run_that_was_not_joined_are_refused(ca: Ca, tmp_path: Path) -> None:
    """A node that lost its state says so instead of training on other terms; an END for it is no error."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        for kind in (TRAIN, INITIALISE, EVALUATE):
            await agg.order(kind, on(work_of(), WEIGHTS))
            await agg.refused("FAILED_PRECONDITION")
        await agg.order(END, b"")
        await agg.send(stored=training_pb2.ContributionStored())
        await agg.send(bytes(8), weights=training_pb2.SpanInfo(index=0))
        await agg.join(work_of())


@pytest.mark.parametrize(
    "other",
    [
        work_of(seed=8),
        work_of(index=1),
        work_of("test-wide"),
        work_of(compression="int8"),
        work_of(local=training_pb2.LocalTraining(steps=3)),
    ],
)
async def test_a_run_keeps_its_terms(other: training_pb2.TrainingWork, ca: Ca, tmp_path: Path) -> None:
    """What was agreed when the node joined cannot be changed by a later order, also not after a restart of the node;
    what only the aggregator goes by can."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        for kind, work in ((TRAIN, on(other, WEIGHTS)), (JOIN, other)):
            await agg.order(kind, work)
            await agg.refused("FAILED_PRECONDITION")
        longer = work_of()
        longer.spec.rounds, longer.spec.quorum = 50, 2
        assert (await agg.train(longer, WEIGHTS)).info.spans == 1


async def test_so_many_runs_and_no_more(ca: Ca, tmp_path: Path) -> None:
    """One run more than a node takes part in is refused until another one ends; those that are held go on."""
    async with running(ca, tmp_path) as node, session_with(ca, node) as session:
        runs = [Aggregator(session, f"run-{index}") for index in range(RUNS_MAX + 1)]
        for agg in runs[:-1]:
            await agg.join(work_of())
        await runs[-1].order(JOIN, work_of())
        await runs[-1].refused("CAPACITY_EXHAUSTED")
        await runs[0].join(work_of())
        await runs[0].order(END, b"")
        await runs[-1].join(work_of())
        await until(lambda: not (tmp_path / "training" / "run-0").exists())


async def test_a_run_that_has_ended_makes_room(ca: Ca, tmp_path: Path) -> None:
    """At the bound the node forgets the run of the same aggregator that was worked on longest ago and does not go on; a
    node that is told of none that goes on forgets none, and neither does one all of whose runs do."""
    async with running(ca, tmp_path) as node, session_with(ca, node) as session:
        runs = [Aggregator(session, f"run-{index}") for index in range(RUNS_MAX + 2)]
        for index, agg in enumerate(runs[:RUNS_MAX]):
            await agg.join(work_of())
            os.utime(tmp_path / "training" / f"run-{index}", (index, index))
        work = work_of()
        work.going_on.extend(agg.run for agg in runs[: RUNS_MAX + 1])
        await runs[-2].order(JOIN, work)
        await runs[-2].refused("CAPACITY_EXHAUSTED")
        del work.going_on[3:5]
        await runs[-2].join(work)
        await until(lambda: not (tmp_path / "training" / "run-3").exists())
        assert (tmp_path / "training" / "run-4").exists()
        await runs[3].order(TRAIN, on(work_of(), WEIGHTS))
        await runs[3].refused("FAILED_PRECONDITION")
        work.going_on.append(runs[-1].run)
        await runs[-1].join(work)
        await until(lambda: not (tmp_path / "training" / "run-4").exists())
        assert (await runs[5].train(work_of(), WEIGHTS)).info.spans == 1


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_run_with_secrets_is_joined_once(ca: Ca, tmp_path: Path, damaged: bool) -> None:
    """Once a node has let go of the keys of a run, or of its account, it does not join that run again, also after a
    restart: fresh ones would reveal what the first ones hid. A damaged note of such runs lets nobody in."""
    secret = work_of(compression="int8", secure_sums=training_pb2.SecureSums())
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(secret)
        await agg.order(END, b"")
        await until(lambda: not agg_directory(tmp_path, agg).exists())
        await agg.order(JOIN, secret)
        assert "begin a new run" in (await agg.refused("FAILED_PRECONDITION")).message
    if damaged:
        (tmp_path / "training" / ".forgotten").write_text("[1")
    async with running(ca, tmp_path) as node, session_with(ca, node) as session:
        again, other = Aggregator(session), Aggregator(session, "another")
        await again.order(JOIN, secret)
        await again.refused("INTEGRITY" if damaged else "FAILED_PRECONDITION")
        if not damaged:
            await other.join(secret)


def agg_directory(root: Path, agg: Aggregator) -> Path:
    return root / "training" / agg.run


async def test_what_a_task_raises_is_told_and_the_node_lives_on(ca: Ca, tmp_path: Path) -> None:
    """An error of torch that no code of ours expects becomes a typed refusal, its text stays in the node's log, and
    other runs train on."""
    async with running(ca, tmp_path) as node, session_with(ca, node) as session:
        broken, sound = Aggregator(session, "broken"), Aggregator(session, "sound")
        work = work_of("test-broken")
        await broken.join(work)
        await broken.order(TRAIN, on(work, WEIGHTS))
        await broken.next("have")
        refusal = await broken.refused("INTERNAL")
        assert "RuntimeError" in refusal.message and "mat" not in refusal.message
        assert any("mat1 and mat2" in each["traceback"] for each in node.named("training_failed"))
        await sound.join(work_of())
        assert (await sound.train(work_of(), WEIGHTS)).info.spans == 1


async def test_training_that_diverges_is_refused(ca: Ca, tmp_path: Path) -> None:
    """A loss that is no longer finite ends the round with NOT_FINITE, and leaves no contribution."""
    work = work_of(local=training_pb2.LocalTraining(steps=50, lr=1e5))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        await agg.order(TRAIN, on(work, WEIGHTS))
        await agg.next("have")
        await agg.refused("NOT_FINITE")
    assert not list((tmp_path / "training").glob("*/*.contribution*"))


@pytest.mark.parametrize("size", [0, 4, 4_810 * 4 - 4, 4_810 * 4 + 4])
async def test_spans_of_a_wrong_size_are_refused(size: int, ca: Ca, tmp_path: Path) -> None:
    """A span of weights that is too short or too long is refused, and the right one after it is taken."""
    weights = flat.flatten(Digits().model(8))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        await agg.order(TRAIN, on(work_of(), weights))
        await agg.next("have")
        await agg.send(bytes(size), weights=training_pb2.SpanInfo(index=0))
        await agg.refused("INVALID_INPUT")
        await agg.send(bytes(4), weights=training_pb2.SpanInfo(index=7))
        await agg.refused("INVALID_INPUT")
        await agg.give_weights(weights, 0)
        assert (await agg.contribution()).info.spans == 1


async def test_weights_that_are_not_finite_are_refused(ca: Ca, tmp_path: Path) -> None:
    """Weights with a NaN have the digest that was named; the node says so and trains on none."""
    weights = WEIGHTS.copy()
    weights[5] = np.nan
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        await agg.order(TRAIN, on(work_of(), weights))
        await agg.next("have")
        await agg.give_weights(weights, 0)
        await agg.refused("NOT_FINITE")


async def test_what_a_node_says_is_refused_from_an_aggregator(ca: Ca, tmp_path: Path) -> None:
    """Messages of nodes, and none at all, are no orders."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        await agg.send(joined=training_pb2.Joined())
        await agg.refused("INVALID_INPUT")
        await agg.session.send(wire_pb2.TransferInfo(training=training_pb2.TrainingInfo(run=agg.run)))
        await agg.refused("INVALID_INPUT")


async def test_two_runs_train_in_turn_and_others_may_join_meanwhile(ca: Ca, tmp_path: Path) -> None:
    """While one run trains for long, another is joined between its steps, and trains when the first one has ended."""
    slow = work_of("test-slow", local=training_pb2.LocalTraining(steps=60))
    async with running(ca, tmp_path) as node, aggregating(ca, node, run="slow") as first:
        await first.join(slow)
        await first.order(TRAIN, on(slow, WEIGHTS))
        await first.next("have")
        await first.next("progress", passing=())
        async with aggregating(ca, node, run="quick") as second:
            await second.join(work_of())
            assert not node.named("round_trained")
            await second.order(TRAIN, on(work_of(), WEIGHTS))
            await asyncio.gather(first.contribution(), second.next("contribution", passing=("have", "progress")))
        assert [each["run"] for each in node.named("round_trained")] == ["slow", "quick"]


async def test_a_node_that_drains_stops_training_and_takes_no_order(ca: Ca, tmp_path: Path) -> None:
    """Draining ends a round of hours at its next step, refuses orders with DRAINING, and loses nothing that is kept."""
    slow = work_of("test-slow", local=training_pb2.LocalTraining(steps=1_000_000))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(slow)
        await agg.order(TRAIN, on(slow, WEIGHTS))
        await agg.next("have")
        await agg.next("progress", passing=())
        async with asyncio.timeout(60):
            await node.node.training.close()
        await agg.order(TRAIN, on(slow, WEIGHTS))
        await agg.refused("DRAINING")
    assert (tmp_path / "training" / agg.run / "joined").exists()
