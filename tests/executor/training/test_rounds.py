"""Rounds of training at a real node, over real sessions: what it computes, and what it has after cuts and restarts."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2
from services.executor.training.shop import digest
from services.executor.training.work import local_seed
from services.training import flat
from services.training.images import Digits
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.layout import Layout
from tests.executor.relay_mesh import Ca
from tests.executor.training.support import (
    END,
    EVALUATE,
    INITIALISE,
    RUN,
    TRAIN,
    aggregating,
    on,
    running,
    work_of,
)
from tests.executor.training.tasks import Wide
from tests.runtime.conftest import until


def other_weights(task: Digits, seed: int = 99) -> np.ndarray:
    """Weights that no run begins with."""
    return flat.flatten(task.model(seed))


def expected(
    task: Digits, weights: np.ndarray, plan: LocalPlan, *, index: int = 0, round_index: int = 0, seed: int = 7
) -> np.ndarray:
    """The second opinion: the same training, called directly."""
    shard = task.shard(index, 4, seed=seed)
    plan = plan.with_overrides({"seed": local_seed(seed, round_index, index)})
    return train_locally(task, shard, weights, plan).delta


async def test_a_node_says_what_it_brings_when_it_joins(ca: Ca, tmp_path: Path) -> None:
    """Joining tells the shard's size, the model's and the digest of its tensors; what is kept is closed to others."""
    task = Digits()
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        joined = await agg.join(work_of(index=2))
        again = await agg.join(work_of(index=2))
    model = task.model(7)
    layout = Layout.of({name: one.numpy() for name, one in flat.floating(model).items()})
    assert joined == again
    assert (joined.examples, joined.values) == (len(task.shard(2, 4, seed=7)), flat.count(model))
    assert joined.layout_sha256 == layout.digest
    directory = tmp_path / "training" / RUN
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


async def test_the_first_weights_are_the_tasks(ca: Ca, tmp_path: Path) -> None:
    """Ordered to initialise, a node gives the weights of its task's model for the run's seed, and what is held already
    is left out."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        work = work_of("test-wide", seed=11)
        await agg.join(work)
        await agg.order(INITIALISE, work)
        whole = await agg.contribution()
        work.held_spans = 2
        await agg.order(INITIALISE, work)
        rest = await agg.contribution(held=2)
    weights = flat.flatten(Wide().model(11))
    np.testing.assert_array_equal(whole.raw(), weights)
    assert whole.info.sha256 == digest(weights) and whole.info.examples == len(Wide().shard(0, 4, seed=11))
    assert rest.info == whole.info and rest.spans == {2: whole.spans[2]}


@pytest.mark.parametrize(
    ("local", "overrides", "plan"),
    [
        (training_pb2.LocalTraining(epochs=1), "", LocalPlan(epochs=1)),
        (
            training_pb2.LocalTraining(steps=5, batch_size=16, optimiser="adamw", lr=0.01, weight_decay=0.1),
            "",
            LocalPlan(steps=5, batch_size=16, optimiser="adamw", lr=0.01, weight_decay=0.1),
        ),
        (
            training_pb2.LocalTraining(epochs=2, momentum=0.9, gradient_norm=1.0),
            json.dumps({"prox_mu": 0.1, "steps": 3}),
            LocalPlan(steps=3, momentum=0.9, gradient_norm=1.0, prox_mu=0.1),
        ),
    ],
)
async def test_a_contribution_is_local_training_to_the_bit(
    local: training_pb2.LocalTraining, overrides: str, plan: LocalPlan, ca: Ca, tmp_path: Path
) -> None:
    """With fp32, what a node contributes is what the same training gives when it is called directly; from the run's
    own first weights, which need not be sent, and from others."""
    task = Digits()
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        work = work_of(local=local)
        await agg.join(work)
        work.overrides = overrides
        for round_index, weights in enumerate([flat.flatten(task.model(7)), other_weights(task)]):
            found = await agg.train(work, weights, round_index)
            await agg.send(round_index=round_index, stored=training_pb2.ContributionStored())
            delta = expected(task, weights, plan, round_index=round_index)
            np.testing.assert_array_equal(found.decoded("fp32", weights.size, round_index), delta)
            assert found.info.examples == len(task.shard(0, 4, seed=7))
            assert found.info.steps == plan.total_steps(found.info.examples) and found.info.loss > 0
            assert found.info.sha256 == hashlib.sha256(b"".join(found.spans.values())).digest()
    assert "progress" in agg.heard


async def test_momenta_go_on_from_the_nodes_last_round(ca: Ca, tmp_path: Path) -> None:
    """With `keep_optimiser` the second round is another than one that begins with momenta of zero, and the same as
    direct training from the first one's."""
    task, weights = Digits(), other_weights(Digits())
    local = training_pb2.LocalTraining(steps=4, optimiser="adamw", lr=0.01, keep_optimiser=True)
    work = work_of(local=local)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        await agg.train(work, weights, 0)
        await agg.send(round_index=0, stored=training_pb2.ContributionStored())
        first = await agg.train(work, weights, 1)
    # The contribution of round 1 is lost: it is made again, and by a node that was started anew.
    (tmp_path / "training" / RUN / "train-1.contribution").unlink()
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        second = await agg.train(work, weights, 1)
    plan = LocalPlan(steps=4, optimiser="adamw", lr=0.01)
    without = expected(task, weights, plan, round_index=1)
    assert first.spans == second.spans
    assert (first.decoded("fp32", weights.size, 1) != without).any()


async def test_weights_are_measured_where_no_node_trains(ca: Ca, tmp_path: Path) -> None:
    """Evaluation, by itself and before a round, gives the figures of the task on its held-out examples."""
    task, weights = Digits(), other_weights(Digits())
    model = task.model(0)
    flat.load_flat(model, weights)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        await agg.order(EVALUATE, on(work_of(), weights))
        assert (await agg.next("have")).have.spans == 0
        await agg.give_weights(weights, 0)
        alone = (await agg.next("evaluated")).evaluated
        await agg.order(TRAIN, on(work_of(), weights, evaluate=True))
        assert (await agg.next("have")).have.spans == 1
        before = (await agg.next("evaluated")).evaluated
        contributed = await agg.contribution()
        # Ordered once more, it has both still.
        await agg.order(TRAIN, on(work_of(), weights, evaluate=True))
        again = await agg.contribution()
        assert (await agg.next("evaluated")).evaluated == before
    assert dict(alone.figures) == pytest.approx(task.evaluate(model))
    assert alone == before and alone.sha256 == digest(weights)
    assert again == contributed and contributed.info.spans == 1


async def test_a_node_that_has_its_contribution_measures_when_asked_later(ca: Ca, tmp_path: Path) -> None:
    """Where the node that was to measure the weights is lost, another one does that although it has trained already,
    and its contribution stays as it was."""
    task, weights = Digits(), flat.flatten(Digits().model(7))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work_of())
        first = await agg.train(work_of(), weights)
        await agg.order(TRAIN, on(work_of(), weights, evaluate=True))
        await agg.next("have")
        figures = (await agg.next("evaluated")).evaluated.figures
        second = await agg.contribution()
    assert dict(figures) == pytest.approx(task.evaluate(task.model(7)))
    assert first == second


async def test_the_end_leaves_nothing(ca: Ca, tmp_path: Path) -> None:
    """After END nothing of the run is on disk, also where it ends in the middle of a round; the name is free again."""
    weights = flat.flatten(Digits().model(7))
    slow = work_of("test-slow", local=training_pb2.LocalTraining(steps=10_000))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(slow)
        await agg.order(TRAIN, on(slow, weights))
        await agg.next("have")
        await agg.next("progress", passing=())
        await agg.order(END, b"")
        await agg.join(work_of())
        assert [path.name for path in (tmp_path / "training").iterdir()] == [RUN]
        found = await agg.train(work_of(), weights)
        await agg.order(END, b"")
        await until(lambda: not (tmp_path / "training" / RUN).exists())
    np.testing.assert_array_equal(found.full("fp32", weights.size), expected(Digits(), weights, LocalPlan(steps=2)))
