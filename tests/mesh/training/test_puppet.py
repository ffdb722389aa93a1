"""A node that was written against the contract alone takes part, and what it is left with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orbitmesh import Mesh
from services.training.plan import LocalPlan
from tests.mesh.support import until
from tests.mesh.training.puppet import Puppet, in_the_mesh
from tests.mesh.training.support import ENDED_WITHIN_S, Plain, each_once, names, task_of


def test_a_node_needs_no_more_than_the_contract(mesh: Mesh, tmp_path: Path) -> None:
    """Its contributions count as those of other nodes do; when the run is over it is told so, and its session ends."""
    puppet, nodes = Puppet(), [*names(mesh, 2), "puppet"]
    with in_the_mesh(mesh, "puppet", tmp_path, puppet):
        training = mesh.train("contract", task="digits", rounds=3, nodes=nodes, seed=3, evaluate=False)
        each_once(training.wait(timeout=ENDED_WITHIN_S), nodes)
        until(lambda: puppet.ended == puppet.sessions == 1, "no session is left of the run")
    plain = Plain(task_of("digits"), 3, LocalPlan(epochs=1), 3)
    assert np.abs(training.weights() - [plain.round() for _ in range(3)][-1]).max() <= 1e-6
    assert puppet.stored == [0, 1, 2]
    assert not puppet.refusals
    assert puppet.orders[-1][0] == 5, "it was not told that the run is over"
