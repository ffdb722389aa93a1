"""Training over a sky that moves: rounds wait for passes, and nobody is given up for being out of sight."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from services.training.plan import LocalPlan
from services.training.task import find_task
from tests.mesh.training.support import Plain

EPOCH_S = 1_700_000_000.0
SPAN_S = 3_600.0
UP_S, DOWN_S = 2.0, 4.0
SATELLITES = ["leo-1", "leo-2", "leo-3"]
PATIENCE_S = 3.0
"""Below the time out of sight: a node that lost patience while it is away would be given up."""


def plan() -> ContactPlan:
    """The satellites pass over oslo in turns; two of them never at the same time."""
    contacts = []
    for turn, name in enumerate(SATELLITES):
        start = EPOCH_S + turn * UP_S
        while start < EPOCH_S + SPAN_S:
            for source, target in ((name, "oslo"), ("oslo", name)):
                # The first pass is as long as it takes to begin.
                begins = EPOCH_S if start < EPOCH_S + UP_S + DOWN_S else start
                point = LatencyPoint(begins, 0.004)
                contacts.append(Contact(source, target, begins, min(start + UP_S, EPOCH_S + SPAN_S), 2e7, (point,)))
            start += UP_S + DOWN_S
    return ContactPlan(EPOCH_S, EPOCH_S + SPAN_S, tuple(contacts))


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    where = tmp_path_factory.mktemp("passes")
    with Mesh.local(
        node_names=[*SATELLITES, "oslo"], contacts=plan(), gateway_at="oslo", directory=where
    ) as mesh:
        yield mesh


def test_rounds_wait_for_passes_and_give_nobody_up(sky: Mesh) -> None:
    """Each round has every satellite, though each is out of sight for longer than the patience; the weights are those
    of the same run without a mesh."""
    time.sleep(max(0.0, EPOCH_S + UP_S + DOWN_S - sky.local.clock().now_s()))
    run = sky.train(
        "passes", task="digits", rounds=2, local=LocalTraining(steps=4, lr=0.1), seed=5, nodes=SATELLITES,
        patience_s=PATIENCE_S,
    )  # fmt: skip
    run.wait(timeout=120)
    status = run.status()
    assert [(each.contributed, dict(each.given_up)) for each in status.rounds] == [(tuple(SATELLITES), {})] * 2
    # A round takes a pass of each: there is none without an outage in it.
    assert sum(each.seconds for each in status.rounds) > DOWN_S
    plain = Plain(find_task("digits"), len(SATELLITES), LocalPlan(steps=4, lr=0.1), seed=5)
    for _ in range(2):
        plain.round()
    assert np.allclose(run.weights(), plain.weights, rtol=0, atol=1e-6)
