"""A node that says what no honest one would: refused by name, and the run goes on without it.

The rogue is a member with an identity of the mesh's CA. Whatever it does, the weights are those of the loop over the
honest nodes' updates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import NodeLostError
from orbitmesh.training_results import TrainingStatus
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.training.plan import LocalPlan
from tests.mesh.training.puppet import Puppet, as_spans, in_the_mesh
from tests.mesh.training.support import ENDED_WITHIN_S, Plain, Weights, names, spooled, task_of

ROUNDS, SEED = 3, 29
PATIENCE_S = 3.0
"""Of the runs in which it is to be over; others have the default, far above what any node takes here."""
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


def some(cases: dict[str, Any]) -> list[Any]:
    """Every second case; the others are for long runs. Which bytes are refused is tried without a mesh as well."""
    return [pytest.param(case, marks=[pytest.mark.soak] * (index % 2)) for index, case in enumerate(cases)]


def run_beside(mesh: Mesh, home: Path, name: str, puppet: Puppet, **how: Any) -> tuple[Any, TrainingStatus, list[str]]:
    """A run of two honest nodes and the rogue."""
    nodes = [*names(mesh, 2), "rogue"]
    with in_the_mesh(mesh, "rogue", home, puppet):
        training = mesh.train(
            name, task="digits", nodes=nodes, seed=SEED, quorum=2, evaluate=False, **{"rounds": ROUNDS, **how}
        )
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


@pytest.mark.parametrize("case", some(CONTRIBUTIONS))
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


class Joiner(Puppet):
    """Lies about itself."""

    def __init__(self, **lies: Any) -> None:
        super().__init__()
        self._lies = lies

    def joined(self, work: training_pb2.TrainingWork) -> training_pb2.Joined:
        said = super().joined(work)
        for name, value in self._lies.items():
            setattr(said, name, value)
        return said


@pytest.mark.parametrize(
    ("lies", "word"),
    [
        ({"layout_sha256": bytes(32)}, "tensors"),
        ({"layout_sha256": b""}, "tensors"),
        ({"values": 5}, "tensors|values"),
        ({"values": 1 << 63}, "tensors|values"),
        ({"examples": 0}, "examples"),
    ],
    ids=["layout", "no layout", "few values", "many values", "no examples"],
)
def test_who_has_another_model_takes_no_part(mesh: Mesh, tmp_path: Path, lies: dict[str, Any], word: str) -> None:
    """It is left out with the reason, whoever joined first, and the others train."""
    name = "joins-" + "-".join(f"{key}-{value!r}"[:20] for key, value in lies.items())
    name = "".join(each if each.isalnum() else "-" for each in name.lower())
    training, status, nodes = run_beside(mesh, tmp_path, name, Joiner(**lies))
    assert {node.name: node.state for node in status.nodes}["rogue"] == "given_up"
    why = next(node.why for node in status.nodes if node.name == "rogue")
    assert re.search(word, why), why
    assert all(sorted(each.contributed) == sorted(nodes[:2]) for each in status.rounds)
    assert np.abs(training.weights() - honest([(0, 1)] * ROUNDS)).max() <= 1e-6


class First(Puppet):
    """Gives first weights that are none, or none at all."""

    def __init__(self, weights: Weights | None) -> None:
        super().__init__()
        self._first = weights

    async def first(self, session: Session, run: str, work: training_pb2.TrainingWork) -> None:
        if self._first is not None:
            await self.send_vector(session, run, 0, as_spans(self._first), examples=len(self.shard(work)))


@pytest.mark.parametrize(
    "weights",
    [np.full(VALUES, np.nan, np.float32), np.zeros(VALUES - 1, np.float32), np.zeros(70_000, np.float32), None],
    ids=["not finite", "too few", "too many", "none"],
)
def test_first_weights_that_are_none_come_from_another(mesh: Mesh, tmp_path: Path, weights: Weights | None) -> None:
    """The rogue is asked first, and the run begins all the same, with the weights of the model."""
    honest_ones = names(mesh, 2)
    nodes, name = ["rogue", *honest_ones], f"first-{0 if weights is None else weights.size}"
    with in_the_mesh(mesh, "rogue", tmp_path, First(weights)):
        training = mesh.train(
            name, task="digits", rounds=1, nodes=nodes, seed=SEED, quorum=2, patience_s=PATIENCE_S, evaluate=False
        )
        status = training.wait(timeout=ENDED_WITHIN_S)
    contributed = [nodes.index(node) for node in status.rounds[0].contributed]
    assert {1, 2} <= set(contributed)
    assert np.abs(training.weights() - honest([contributed])).max() <= 1e-6


class Talker(Puppet):
    """Honest, and says more than it was asked once its contribution is stored, or before it contributes."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        delta, examples = self.train(work, round_index, weights), len(self.shard(work))
        mine, other = spans_of(delta), spans_of(-delta)
        if self.case == "stale" and round_index:
            await self.send_vector(session, run, round_index - 1, other, examples=examples)
        elif self.case == "of the next round":
            await self.send_vector(session, run, round_index + 1, other, examples=examples)
        elif self.case == "of another run":
            await self.send_vector(session, "other.12345678", round_index, other, examples=examples)
        elif self.case == "spans without a header":
            await self.send(session, run, round_index, other[0], update=training_pb2.SpanInfo(index=0))
        elif self.case == "nothing in it":
            await self.send(session, run, round_index, b"x" * 1000)
        elif self.case == "figures that nobody asked for":
            figures = training_pb2.Evaluation(sha256=work.weights.sha256, figures={"accuracy": 1.0})
            await self.send(session, run, round_index, evaluated=figures)
        elif self.case == "progress beyond counting":
            most = (1 << 32) - 1
            told = training_pb2.TrainingProgress(step=most, steps=1, loss=np.nan)
            await self.send(session, run, round_index, progress=told)
        elif self.case == "sums":
            sums = training_pb2.SumsInfo(kind="SUMS_KIND_UNMASK")
            await self.send(session, run, round_index, b"?" * 100, sums=sums)
        loss = np.nan if self.case == "loss that is no number" else 1.0
        await self.send_vector(session, run, round_index, mine, examples=examples, loss=loss)
        if self.case == "the same again":
            await self.send_vector(session, run, round_index, mine, examples=examples)
        elif self.case == "something else afterwards":
            await self.send_vector(session, run, round_index, other, examples=examples)


TALK = {
    "stale": "STALE_ROUND", "of the next round": "STALE_ROUND", "of another run": "", "spans without a header": "",
    "nothing in it": "", "figures that nobody asked for": "", "progress beyond counting": "", "sums": "",
    "loss that is no number": "", "the same again": "STALE_ROUND", "something else afterwards": "STALE_ROUND",
}  # fmt: skip


@pytest.mark.parametrize("case", some(TALK))
def test_what_is_said_beside_an_honest_contribution_changes_nothing(mesh: Mesh, tmp_path: Path, case: str) -> None:
    """The contribution counts, once, and nothing else that came does; what is refused is refused by name."""
    talker, nodes = Talker(case), [*names(mesh, 2), "rogue"]
    with in_the_mesh(mesh, "rogue", tmp_path, talker):
        training = mesh.train(f"talk-{case.replace(' ', '-')}", task="digits", rounds=ROUNDS, nodes=nodes, seed=SEED)
        status = training.wait(timeout=ENDED_WITHIN_S)
    assert [sorted(each.contributed) for each in status.rounds] == [sorted(nodes)] * ROUNDS
    assert not any(each.given_up for each in status.rounds)
    assert np.abs(training.weights() - honest([range(3)] * ROUNDS)).max() <= 1e-6
    assert {refusal.reason for refusal in talker.refusals} <= {TALK[case]} - {""}
    if case == "stale":
        assert len(talker.refusals) == ROUNDS - 1
    for each in status.rounds:
        assert 0.1 < each.figures["accuracy"] < 1.0
        assert each.train_loss is None or np.isfinite(each.train_loss)


class Silent(Puppet):
    """Joins, and is not heard of again."""

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        pass


def test_a_node_that_says_nothing_is_given_up_when_patience_is_over(mesh: Mesh, tmp_path: Path) -> None:
    """Though it is connected all the while."""
    training, status, nodes = run_beside(mesh, tmp_path, "silence", Silent(), patience_s=PATIENCE_S, rounds=1)
    expect_given_up(training, status, nodes)


def expect_given_up(training: Any, status: TrainingStatus, nodes: list[str]) -> None:
    (only,) = status.rounds
    assert only.seconds >= PATIENCE_S
    assert sorted(only.contributed) == sorted(nodes[:2])
    assert dict(only.given_up) == {"rogue": "DEADLINE"}
    assert np.abs(training.weights() - honest([(0, 1)])).max() <= 1e-6


class Refuser(Puppet):
    """Refuses its work, with a reason that no table has, at length."""

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        refusal = training_pb2.TrainingRefusal(reason="I\n" * 50, message="because " * 200)
        await self.send(session, run, round_index, refused=refusal)


def test_a_refusal_is_told_in_terms_of_the_table_and_in_few_words(mesh: Mesh, tmp_path: Path) -> None:
    """Whatever a node says, a round's record holds a reason that programs know, and a message that people can read."""
    _, status, nodes = run_beside(mesh, tmp_path, "refusing", Refuser())
    for each in status.rounds:
        assert sorted(each.contributed) == sorted(nodes[:2])
        assert dict(each.given_up) == {"rogue": "INTERNAL"}
    assert all(len(node.why) < 1_000 for node in status.nodes)


class Crasher(Puppet):
    """Its session ends whenever it is to train, as that of a process would that dies of it and is started again."""

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        raise NodeLostError("it dies of it")


def test_a_node_that_dies_whenever_it_is_to_train_is_given_up(mesh: Mesh, tmp_path: Path) -> None:
    """It comes back each time and gets its weights each time, and that is no progress; nor is it dialled in a loop."""
    crasher = Crasher()
    training, status, nodes = run_beside(mesh, tmp_path, "crashing", crasher, patience_s=PATIENCE_S, rounds=1)
    expect_given_up(training, status, nodes)
    took_s = status.rounds[0].seconds
    assert 3 <= crasher.sessions <= 10 + took_s, f"{crasher.sessions} sessions in {took_s:.0f} s"
