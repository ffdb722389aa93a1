"""A node that says what no honest one would: refused by name, and the run goes on without it.

The rogue is a member with an identity of the mesh's CA. Whatever it does, the weights are those of the loop over the
honest nodes' updates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh import Mesh
from orbitmesh.training_results import TrainingStatus
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.training.plan import LocalPlan
from tests.mesh.training.puppet import Puppet, as_spans, in_the_mesh
from tests.mesh.training.support import ENDED_WITHIN_S, Plain, Weights, names, spooled, task_of

ROUNDS, SEED, PATIENCE_S = 3, 29, 2.0
VALUES = 4810
"""Of the task's model: one span."""


class Rogue(Puppet):
    """Honest but for its contributions, which are those of a case."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        delta, examples = self.train(work, round_index, weights), len(self.shard(work))
        parts, facts = CONTRIBUTIONS[self.case](delta)
        await self.send_vector(session, run, round_index, parts, **{"examples": examples, **facts})


def spans_of(delta: Weights) -> list[bytes]:
    """An update as spans of the scheme fp32: a byte of flags, and the values as they are."""
    return [bytes(1) + values for values in as_spans(delta)]


def one_value(value: float) -> Any:
    def made(delta: Weights) -> tuple[list[bytes], dict[str, Any]]:
        wrong = delta.copy()
        wrong[-1] = value
        return spans_of(wrong), {}

    return made


Made = tuple[Sequence[bytes], dict[str, Any]]
CONTRIBUTIONS: dict[str, Any] = {
    "not a number": one_value(np.nan),
    "infinite": one_value(-np.inf),
    "beyond what is sent": one_value(3e38),
    "a value short": lambda delta: ([spans_of(delta)[0][:-4]], {}),
    "a value long": lambda delta: ([spans_of(delta)[0] + bytes(4)], {}),
    "a byte short": lambda delta: ([spans_of(delta)[0][:-1]], {}),
    "an empty span": lambda delta: ([b""], {}),
    "no span": lambda delta: ([], {}),
    "a span too many": lambda delta: ([spans_of(delta)[0], bytes(4)], {}),
    "a span that never comes": lambda delta: (spans_of(delta), {"spans": 2}),
    "spans beyond counting": lambda delta: (spans_of(delta), {"spans": (1 << 32) - 1}),
    "another digest": lambda delta: (spans_of(delta), {"sha256": hashlib.sha256(b"other").digest()}),
    "no digest": lambda delta: (spans_of(delta), {"sha256": b""}),
    "a thousand times the norm": lambda delta: (spans_of(delta * np.float32(1000)), {}),
    "no examples": lambda delta: (spans_of(delta), {"examples": 0}),
    "all the examples of the world": lambda delta: (spans_of(delta), {"examples": 10**15}),
}
REASONS = {
    "not a number": "UPDATE_MALFORMED",
    "infinite": "UPDATE_MALFORMED",
    "beyond what is sent": "UPDATE_MALFORMED",
    "a value short": "UPDATE_MALFORMED",
    "a value long": "UPDATE_MALFORMED",
    "a byte short": "UPDATE_MALFORMED",
    "an empty span": "UPDATE_MALFORMED",
    "no span": "UPDATE_MALFORMED",
    "a span too many": "UPDATE_MALFORMED",
    "a span that never comes": "UPDATE_MALFORMED",
    "spans beyond counting": "UPDATE_MALFORMED",
    "another digest": "DIGEST_MISMATCH",
    "no digest": "DIGEST_MISMATCH",
    "a thousand times the norm": "NORM_OUTLIER",
    "no examples": "INVALID_INPUT",
    "all the examples of the world": "INVALID_INPUT",
}


def run_beside(mesh: Mesh, home: Path, name: str, puppet: Puppet, **how: Any) -> tuple[Any, TrainingStatus, list[str]]:
    """A run of two honest nodes and the rogue."""
    nodes = [*names(mesh, 2), "rogue"]
    with in_the_mesh(mesh, "rogue", home, puppet):
        training = mesh.train(
            name, task="digits", rounds=ROUNDS, nodes=nodes, seed=SEED, quorum=2, patience_s=PATIENCE_S,
            evaluate=False, **how,
        )  # fmt: skip
        status = training.wait(timeout=ENDED_WITHIN_S)
    assert status.state == "done"
    assert not spooled(mesh, name)
    return training, status, nodes


def honest(rounds: Sequence[Sequence[int]], nodes: int = 3) -> Weights:
    """The weights of the loop over these nodes' updates, round by round."""
    plain = Plain(task_of("digits"), nodes, LocalPlan(epochs=1), SEED)
    for each in rounds:
        plain.round(each)
    return plain.weights


@pytest.mark.parametrize("case", CONTRIBUTIONS)
def test_a_contribution_that_is_none_is_refused_and_the_round_goes_on(mesh: Mesh, tmp_path: Path, case: str) -> None:
    """The rogue is told why, in every round; the status names it with the reason; nothing of it is in the weights."""
    rogue = Rogue(case)
    training, status, nodes = run_beside(mesh, tmp_path, f"rogue-{case.replace(' ', '-')}", rogue)
    for each in status.rounds:
        assert sorted(each.contributed) == sorted(nodes[:2])
        assert dict(each.given_up) == {"rogue": REASONS[case]}
    assert np.abs(training.weights() - honest([(0, 1)] * ROUNDS)).max() <= 1e-6
    assert [refusal.reason for refusal in rogue.refusals] == [REASONS[case]] * ROUNDS
    assert all(len(refusal.message) > 20 for refusal in rogue.refusals)
    assert not rogue.stored or case == "a thousand times the norm"  # which shows only beside the others
