"""Groups whose nodes add up their masked contributions before the downlink, over real processes: the weights are those
of the same run without groups to the bit, whoever dies, and one upload leaves each group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orbitmesh import LocalTraining, Mesh, SecureSums
from orbitmesh.training_results import TrainingStatus
from tests.mesh.training.support import digest, each_once, spooled

COUNT, ROUNDS, SEED = 6, 4, 11
LOCAL = LocalTraining(steps=4, lr=0.1)
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
    return mesh.train(
        name, task="mnist5k", nodes=nodes, seed=SEED, local=LOCAL, compression="int8", evaluate=False,
        secure_sums=SecureSums(bits=24, groups=groups), **{"rounds": ROUNDS, **how},
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
