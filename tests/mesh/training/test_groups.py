"""Groups whose nodes add up their masked contributions before the downlink, over real processes: the weights are those
of the same run without groups to the bit, whoever dies, and one upload leaves each group."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh, Privacy, SecureSums
from orbitmesh.training_results import TrainingStatus
from orbitmesh.trust import load_identity
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.securesum import RosterMessage, Signed, SumNode
from services.securesum.fields import join_fields, split_fields
from services.training.plan import LocalPlan
from tests.mesh.support import until
from tests.mesh.surviving import strike
from tests.mesh.training.blows import deal, random_blows
from tests.mesh.training.puppet import Puppet, in_the_mesh
from tests.mesh.training.support import Plain, Weights, digest, each_once, spooled, task_of

COUNT, ROUNDS, SOAK_ROUNDS, SEED = 6, 4, 15, 11
LOCAL, PLAN = LocalTraining(steps=4, lr=0.1), LocalPlan(steps=4, lr=0.1)
SUMS: dict[str, Any] = {"bits": 24}
CLOSE = 2e-4
"""Integers have steps of about a millionth; a unit that is just on or off makes more of it."""
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(nodes=COUNT, directory=tmp_path_factory.mktemp("groups")) as local:
        yield local


@pytest.fixture(scope="module")
def nodes(mesh: Mesh) -> list[str]:
    return sorted(mesh.local.processes())


@pytest.fixture(scope="module")
def planes(nodes: list[str]) -> list[list[str]]:
    return [nodes[:3], nodes[3:]]


def begin(mesh: Mesh, nodes: list[str], name: str, groups: list[list[str]], **how: Any) -> Any:
    sums = SecureSums(groups=groups, **how.pop("secure", SUMS))
    return mesh.train(
        name, nodes=nodes, seed=SEED, local=LOCAL, compression="int8", evaluate=False, secure_sums=sums,
        **{"task": "mnist5k", "rounds": ROUNDS, **how},
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(mesh: Mesh, nodes: list[str]) -> tuple[str, TrainingStatus]:
    """The weights of the run without groups, and how it went."""
    training = begin(mesh, nodes, "alone", [])
    status = training.wait(timeout=WITHIN_S)
    return digest(training.weights()), status


def received(status: TrainingStatus) -> int:
    """The bytes that the aggregator got of all nodes, keys and shares and all."""
    return sum(node.up_bytes for node in status.nodes)


def test_one_upload_leaves_each_group_and_the_weights_are_the_same(
    mesh: Mesh, nodes: list[str], planes: list[list[str]], alone: tuple[str, TrainingStatus]
) -> None:
    """Two groups of three: a third of the contributions' bytes, the same bits, and every node counted once."""
    training = begin(mesh, nodes, "planes", planes)
    status = training.wait(timeout=WITHIN_S)
    assert digest(training.weights()) == alone[0]
    each_once(status, nodes)
    for mine, other in zip(status.rounds, alone[1].rounds, strict=True):
        assert mine.up_bytes * 3 == other.up_bytes > 6 * 56_970 * 3
        via = {each.node: each.via for each in mine.contributions}
        heads = {node for node, head in via.items() if not head}
        assert len(heads) == 2 and all(via[node] in heads for node in nodes if node not in heads)
        for plane in planes:
            assert len(heads & set(plane)) == 1 and {via[node] for node in plane} - {""} <= set(plane)
    assert received(status) < received(alone[1]) / 2
    assert not spooled(mesh, "planes")


@pytest.fixture(scope="module")
def plain(nodes: list[str]) -> Any:
    """Gives the weights of the loop over these nodes' updates, round by round, without a mesh."""

    def weights(contributed: list[set[str]]) -> Weights:
        run = Plain(task_of("mnist5k"), len(nodes), PLAN, SEED)
        for names in contributed:
            run.round([nodes.index(name) for name in sorted(names)])
        return run.weights

    return weights


def test_what_is_released_in_a_group_is_accounted_for_as_without(
    mesh: Mesh, nodes: list[str], planes: list[list[str]]
) -> None:
    """Each node's noise and rate, round by round, though the aggregator hears of them from the heads."""
    told = []
    for name, groups in (("open", []), ("closed", planes)):
        training = begin(
            mesh, nodes, name, groups, rounds=2, task="digits", privacy=Privacy(unit="record", epsilon=8.0)
        )
        status = training.wait(timeout=WITHIN_S)
        each_once(status, nodes)
        told.append((training.ledger().entries, [each.epsilon for each in status.rounds]))
    assert told[0] == told[1]
    assert {(each.round, each.node) for each in told[1][0]} == {(index, node) for index in range(2) for node in nodes}


def collected(mesh: Mesh, head: str, run: str) -> set[str]:
    """Whose contributions a head has on its disk."""
    kept = (mesh.local.directory / "state" / head / "training").glob(f"{run}.*/train-*.from-*")
    return {path.name.partition(".from-")[2] for path in kept if not path.name.endswith(".part")}


@contextmanager
def held_up(mesh: Mesh, node: str) -> Iterator[None]:
    """A node stands still, as a whole process, while the block runs."""
    pid = mesh.local.processes()[node].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_head_is_killed_while_it_collects_and_the_weights_are_the_same(
    mesh: Mesh, nodes: list[str], planes: list[list[str]], alone: tuple[str, TrainingStatus]
) -> None:
    """SIGKILL with one contribution of two on its disk, and a start anew: what it had is in the sum, and nothing is in
    it twice."""
    head, member, late = planes[0]
    training = begin(mesh, nodes, "headless", planes)
    until(lambda: training.status().rounds_done >= 1, "a round is done")
    with held_up(mesh, late):
        until(lambda: collected(mesh, head, "headless") == {member}, "one of two has brought its contribution")
        strike(mesh, head)
        mesh.local.restart(head)
        assert collected(mesh, head, "headless") == {member}
    status = training.wait(timeout=WITHIN_S)
    assert digest(training.weights()) == alone[0]
    each_once(status, nodes)
    assert not spooled(mesh, "headless")


class Usurper(Puppet):
    """A member of a group that says it holds the contributions of others; honest in setting up sums."""

    def __init__(self, identity: Path, claimed: list[str]) -> None:
        super().__init__()
        self._identity, self._claimed = identity, claimed
        self._sums: SumNode | None = None

    async def heard(self, session: Session, info: training_pb2.TrainingInfo) -> None:
        if not info.HasField("sums"):
            return
        identity, now, body = load_identity(self._identity), datetime.now(UTC), self.body
        self._sums = self._sums or SumNode.create("rogue", info.run, secrets.token_bytes)
        answer = b""
        if info.sums.kind == training_pb2.SUMS_KIND_KEY:
            answer = self._sums.key(identity, now).to_bytes()
        elif info.sums.kind == training_pb2.SUMS_KIND_ROSTER:
            self._sums.join(RosterMessage.from_bytes(body), identity.ca, now)
        elif info.sums.kind == training_pb2.SUMS_KIND_OFFER:
            answer = self._sums.offer(identity, info.round, secrets.token_bytes, now).to_bytes()
        elif info.sums.kind == training_pb2.SUMS_KIND_OFFERS:
            fields = split_fields(body, "offers")
            for offer, box in zip(fields[::2], fields[1::2], strict=True):
                self._sums.take_offer(Signed.from_bytes(offer), box, identity.ca, now)
            answer = join_fields(*sorted(self._sums.held_offers()))
        else:
            return  # others unmask
        await self.send(session, info.run, info.round, answer, sums=training_pb2.SumsInfo(kind=info.sums.kind))

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        summed = [training_pb2.SummedContribution(node=name, examples=100) for name in self._claimed]
        examples = len(self.shard(work))
        await self.send_vector(session, run, round_index, [bytes(8)], examples=examples, loss=None, summed=summed)


def test_a_head_that_speaks_for_nodes_of_another_group_is_refused(
    mesh: Mesh, nodes: list[str], planes: list[list[str]], tmp_path: Path
) -> None:
    """By name, before anything of it is taken; its group goes on without it, and the others as if it had said
    nothing."""
    mine, others = planes
    groups = [["rogue", *mine[:2]], others]
    usurper = Usurper(tmp_path / "rogue", others[:1])
    with in_the_mesh(mesh, "rogue", tmp_path, usurper):
        training = begin(mesh, ["rogue", *nodes], "usurped", groups, rounds=1)
        status = training.wait(timeout=WITHIN_S)
    assert status.state == "done" and dict(status.rounds[0].given_up) == {"rogue": "NOT_IN_COHORT"}
    assert [refusal.reason for refusal in usurper.refusals] == ["NOT_IN_COHORT"]
    assert sorted(status.rounds[0].contributed) == nodes
    heads = {each.node for each in status.rounds[0].contributions if not each.via}
    assert len(heads & set(mine[:2])) == len(heads & set(others)) == 1


def test_without_its_head_a_group_has_another_and_a_member_that_is_away_is_left_out_of_its_sum(
    mesh: Mesh, nodes: list[str], planes: list[list[str]], plain: Any
) -> None:
    """In one plane the head dies with a contribution on its disk, in a later round a member of the other plane: the
    others of each go on with one upload, and every contribution is in the weights once. Both stay dead: the last
    test of this mesh."""
    head, member, late = planes[0]
    training = begin(mesh, nodes, "orphans", planes, rounds=5, patience_s=4.0, secure=SUMS | {"threshold": 4})
    until(lambda: training.status().rounds_done >= 1, "a round is done")
    with held_up(mesh, late):
        until(lambda: collected(mesh, head, "orphans") == {member}, "one of two has brought its contribution")
        strike(mesh, head)
    done = training.status().rounds_done
    until(lambda: training.status().rounds_done > done, "the round is done without it", WITHIN_S)
    away = planes[1][2]
    strike(mesh, away)
    status = training.wait(timeout=WITHIN_S)
    contributed = [set(each.contributed) for each in status.rounds]
    assert contributed[done] == {*nodes} - {head} and contributed[-1] == {*nodes} - {head, away}
    for each in status.rounds[done:]:
        assert head not in each.contributed
        heads = {one.node for one in each.contributions if not one.via}
        assert [len(heads & set(plane)) for plane in planes] == [1, 1], each
    assert np.allclose(training.weights(), plain(contributed), rtol=0, atol=CLOSE)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_change_nothing(mesh: Mesh, nodes: list[str], planes: list[list[str]], seed: int) -> None:
    """Twenty in one run, half of them of the aggregator, the others of heads and members."""
    for node in nodes:
        mesh.local.restart(node)  # some have died before
    calm, name = begin(mesh, nodes, f"calm-{seed}", [], rounds=SOAK_ROUNDS), f"kills-{seed}"
    calm.wait(timeout=WITHIN_S)
    # Else a round that begins while a node is away asks the others.
    training = begin(mesh, nodes, name, planes, rounds=SOAK_ROUNDS, quorum=len(nodes))
    deal(mesh, training, random_blows(seed, nodes, SOAK_ROUNDS, 10, 10, 0.4))
    status = training.wait(timeout=300.0)
    each_once(status, nodes)
    assert digest(training.weights()) == digest(calm.weights())
    assert not spooled(mesh, name)
