"""Training at a node that is divided among slices: when it computes, whose time that is, and in which one it sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2
from orbitmesh.wire.records import Received
from services.executor.fairqueue import Share
from services.training import flat
from services.training.images import Digits
from services.training.plan import LocalPlan
from tests.executor.relay_mesh import Ca
from tests.executor.training.support import (
    EVALUATE,
    WAIT_S,
    Aggregator,
    Running,
    aggregating,
    on,
    running,
    work_of,
)
from tests.executor.training.test_rounds import expected

RULES = {"bulk": Share(0.3), "cam": Share(0.5, first=True)}
WHILE_S = 0.5
PRIVATE = training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_RECORD, epsilon=50.0, noise_multiplier=1.0)
WORK = {
    "plain": work_of(slice="bulk"),
    "in no slice": work_of(),
    "hides records": work_of(slice="bulk", privacy=PRIVATE),
}


@dataclass
class Listening(Aggregator):
    """Notes the slice of all that it hears."""

    slices: set[str] = field(default_factory=set)

    async def receive(self) -> Received:
        received = await super().receive()
        self.slices.add(received.info.slice)
        return received


@asynccontextmanager
async def at_work(node: Running) -> AsyncIterator[None]:
    """The node computes a step of others as long as the block runs."""
    go, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go.wait(WAIT_S)

    node.node.engine.submit(hold, lambda ran: None, slice_name="cam")
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    try:
        yield
    finally:
        go.set()


@pytest.mark.parametrize("kind", list(WORK))
async def test_no_step_of_training_is_computed_beside_a_step_of_others(ca: Ca, tmp_path: Path, kind: str) -> None:
    """Whatever is trained, and whether its run is in a slice or not; what comes of it is what it would be alone."""
    work, task = WORK[kind], Digits()
    weights = flat.flatten(task.model(99))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        node.node.engine.set_rules(RULES)
        async with at_work(node):
            training = asyncio.ensure_future(agg.train(work, weights))
            await asyncio.sleep(WHILE_S)
            assert not training.done()
            assert "have" in agg.heard
        found = (await training).full("fp32", weights.size)
        if kind != "hides records":
            assert np.array_equal(found, expected(task, weights, LocalPlan(steps=2)))
        # Neither is anything measured.
        async with at_work(node):
            await agg.order(EVALUATE, on(work, weights), 1)
            await agg.next("have")
            if kind == "plain":
                await agg.give_weights(weights, 0, round_index=1)
            measured = asyncio.ensure_future(agg.next("evaluated"))
            await asyncio.sleep(WHILE_S)
            assert not measured.done()
        assert (await measured).evaluated.figures["accuracy"] == pytest.approx(_accuracy(task, weights))


async def test_training_has_the_time_of_its_slice(ca: Ca, tmp_path: Path) -> None:
    """A run in a slice that may have a thousandth of the time stands nearly still on a node that is idle else; one that
    names no slice, or one that the node has no rule for, does not."""
    local = training_pb2.LocalTraining(steps=200)
    weights = flat.flatten(Digits().model(99))
    async with running(ca, tmp_path) as node:
        node.node.engine.set_rules({"bulk": Share(0.001, ceiling=0.001)})
        for run, slice_name in (("none", ""), ("other", "unknown")):
            async with aggregating(ca, node, run=run) as agg:
                await agg.join(work_of(slice=slice_name, local=local))
                await agg.train(work_of(slice=slice_name, local=local), weights)
        async with aggregating(ca, node, run="held") as agg:
            work = work_of(slice="bulk", local=local)
            await agg.join(work)
            training = asyncio.ensure_future(agg.train(work, weights))
            await asyncio.sleep(2 * WHILE_S)
            assert not training.done()
            node.node.engine.set_rules({})
            assert np.array_equal(
                (await training).full("fp32", weights.size), expected(Digits(), weights, LocalPlan(steps=200))
            )


@pytest.mark.parametrize("slice_name", ["bulk", ""])
async def test_all_that_a_node_says_of_a_run_goes_in_its_slice(ca: Ca, tmp_path: Path, slice_name: str) -> None:
    """Also after a restart, when all that it knows of the run is on its disk."""
    work, weights = work_of(slice=slice_name), flat.flatten(Digits().model(99))
    for round_index in range(2):
        async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
            listening = Listening(agg.session)
            if not round_index:
                await listening.join(work)
            await listening.train(work, weights, round_index)
            assert listening.slices == {slice_name}


def _accuracy(task: Digits, weights: np.ndarray) -> float:
    model = task.model(7)
    flat.load_flat(model, weights)
    return task.evaluate(model)["accuracy"]
