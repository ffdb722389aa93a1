"""A node is drained by a call: its stages and what runs in them move, nothing fails, and it can be taken back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orbitmesh import Mesh
from orbitmesh.errors import InvalidInputError
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc
from tests.mesh.support import Models, channel_to, deployed, until

CALL_S = 30.0
TOKENS = 120


@pytest.fixture
def ops(mesh: Mesh) -> Iterator[ops_pb2_grpc.OpsServiceStub]:
    """The gateway, asked by an operator; whatever was drained is wanted again afterwards."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        stub = ops_pb2_grpc.OpsServiceStub(channel)
        yield stub
        for node in mesh.nodes():
            if node.state == "draining":
                stub.DrainNode(ops_pb2.DrainNodeRequest(node=node.name, undo=True), timeout=CALL_S)
        until(lambda: all(node.state != "draining" for node in mesh.nodes()), "every node is wanted again")


def state_of(mesh: Mesh, name: str) -> str:
    return next(node.state for node in mesh.nodes() if node.name == name)


def pipeline(mesh: Mesh, deployment: str) -> list[str]:
    return [stage.node for stage in mesh.deployment(deployment).stages]


def test_a_drained_node_gives_its_stage_away_under_load(
    mesh: Mesh, models: Models, ops: ops_pb2_grpc.OpsServiceStub
) -> None:
    """Answers that run meanwhile are those of the model, every one; the node holds nothing of the deployment in the
    end, and takes stages again once it is taken back."""
    model = models.get("llama")
    prompt = model.prompt(5)
    expected = model.answer(prompt, TOKENS)
    with deployed(mesh, model, "leaving", stages=2) as held:
        victim = held.stages[0].node
        ended = threading.Event()
        answers: list[list[int]] = []
        failed: list[Exception] = []

        def answer() -> None:
            while not ended.is_set():
                try:
                    said = mesh.generate("leaving", prompt=prompt, max_new_tokens=TOKENS, ignore_end=True).wait()
                    answers.append(list(said.token_ids))
                except Exception as error:
                    failed.append(error)

        threads = [threading.Thread(target=answer) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(answers) > 1, "answers come")
            assert not ops.DrainNode(ops_pb2.DrainNodeRequest(node=victim), timeout=CALL_S).before
            assert ops.DrainNode(ops_pb2.DrainNodeRequest(node=victim), timeout=CALL_S).before
            until(lambda: victim not in pipeline(mesh, "leaving"), "its stage is on another node")
            had = len(answers)
            until(lambda: len(answers) > had + 2, "answers come from there")
        finally:
            ended.set()
            for thread in threads:
                thread.join(60)
        assert failed == []
        assert all(said == expected for said in answers)
        assert state_of(mesh, victim) == "draining"
        until(lambda: not stages_on(ops, victim, "leaving"), "it holds nothing of it")
        ops.DrainNode(ops_pb2.DrainNodeRequest(node=victim, undo=True), timeout=CALL_S)
        until(lambda: state_of(mesh, victim) == "up", "it is wanted again")
    with deployed(mesh, model, "back", stages=1, nodes=[victim]):
        assert pipeline(mesh, "back") == [victim]


def stages_on(ops: ops_pb2_grpc.OpsServiceStub, name: str, deployment: str) -> list[Any]:
    told = ops.GetTopology(ops_pb2.GetTopologyRequest(), timeout=CALL_S)
    [node] = [each for each in told.nodes if each.name == name]
    return [each for each in node.stages if each.deployment == deployment]


def test_a_node_without_a_spare_keeps_serving(
    mesh: Mesh, models: Models, ops: ops_pb2_grpc.OpsServiceStub
) -> None:
    """A deployment that may be on one node alone: that drains, nobody can take its stage, and it goes on; new
    deployments do not come to it."""
    model = models.get("llama")
    prompt = model.prompt(5)
    up = [node.name for node in mesh.nodes() if node.state == "up"]
    with deployed(mesh, model, "stuck", stages=1, nodes=up[:1]):
        ops.DrainNode(ops_pb2.DrainNodeRequest(node=f"executor/{up[0]}"), timeout=CALL_S)
        until(lambda: state_of(mesh, up[0]) == "draining", "it drains")
        said = mesh.generate("stuck", prompt=prompt, max_new_tokens=8, ignore_end=True).wait()
        assert list(said.token_ids) == model.answer(prompt, 8)
        assert pipeline(mesh, "stuck") == up[:1]
        with deployed(mesh, model, "elsewhere", stages=2):
            assert up[0] not in pipeline(mesh, "elsewhere")


@pytest.mark.parametrize(
    ("node", "words"), [("nobody", "knows no process"), ("scheduler/scheduler", "holds no stages")]
)
def test_what_holds_no_stages_cannot_be_drained(ops: ops_pb2_grpc.OpsServiceStub, node: str, words: str) -> None:
    """It is named, and nothing is changed."""
    with pytest.raises(InvalidInputError, match=words), mapped_errors():
        ops.DrainNode(ops_pb2.DrainNodeRequest(node=node), timeout=CALL_S)
