"""Generations that name a slice: who is let in, who is refused with what, and that nobody stays in it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import CapacityError, InvalidInputError, PermissionError_
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.mesh.support import Models, channel_to, deployed, tokens_of, until
from tests.mesh.test_bad_input import scheduler_address

TOKENS = 8
SMALL = {"CPU": 0.01, "GPU": 0, "MemoryGB": 0.001, "BandwidthGbps": 0.001}


@contextmanager
def held(mesh: Mesh, name: str, deployment: Any, **profile: Any) -> Iterator[None]:
    """An active slice on the first node of a deployment, for as long as the block runs; releasing it fails where work
    is left in it."""
    mesh.slices.define(name, resources=SMALL, **{"nodes": [deployment.stages[0].node], **profile})
    mesh.slices.apply(mesh.slices.optimize(slices=[name]))
    yield
    mesh.slices.release(name)


def test_as_many_generations_are_in_a_slice_as_it_takes(mesh: Mesh, models: Models) -> None:
    """One more is refused while they run, with what is free and when, and let in as soon as one has ended; who has the
    last token may release the slice."""
    model = models.get("llama")
    prompt = model.prompt(5)
    with deployed(mesh, model, "few", stages=2) as few, held(mesh, "few", few, max_number_of_ues=1):
        first = mesh.generate("few", prompt=prompt, max_new_tokens=40, slice="few", ignore_end=True)
        tokens = iter(first)
        next(tokens)
        assert mesh.slices.get("few").admitted == 1
        with pytest.raises(CapacityError) as refused:
            list(mesh.generate("few", prompt=prompt, max_new_tokens=TOKENS, slice="few"))
        assert refused.value.reason == "SLICE_FULL"
        assert {"slice", "free_at_ns"} <= set(refused.value.metadata)
        told = mesh.explain(refused.value.trace_id or "none was given")
        assert (told.slice, told.error_reason, told.new_tokens) == ("few", "SLICE_FULL", 0)
        assert told.error == refused.value.message
        assert [(row.place, row.what) for row in told.rows] == [("gateway", "admit")]
        assert f"ended by SLICE_FULL: {told.error}" in " ".join(str(told).split())
        assert len(list(tokens)) == 39
        assert mesh.slices.get("few").admitted == 0
        second = mesh.generate("few", prompt=prompt, max_new_tokens=TOKENS, slice="few", ignore_end=True)
        assert [token.id for token in second] == model.answer(prompt, TOKENS)


def test_a_generation_that_is_given_up_leaves_its_slice(mesh: Mesh, models: Models) -> None:
    """Cancelled by its caller in the middle: its place is free for another one."""
    model = models.get("llama")
    with deployed(mesh, model, "left", stages=2) as left, held(mesh, "left", left, max_number_of_ues=1):
        generation = mesh.generate("left", prompt=model.prompt(5), max_new_tokens=200, slice="left", ignore_end=True)
        next(iter(generation))
        generation.cancel()
        until(lambda: mesh.slices.get("left").admitted == 0, "the slice is empty")


def test_a_slice_on_other_nodes_lets_no_generation_in(mesh: Mesh, models: Models) -> None:
    """It has nothing where the generation would run, so its promise could not be kept: the error names both; with one
    node of the pipeline it can."""
    model = models.get("llama")
    prompt = model.prompt(5)
    up = [node.name for node in mesh.nodes() if node.state == "up"]
    with deployed(mesh, model, "here", stages=2, nodes=up[:2]) as here:
        with held(mesh, "there", here, nodes=[up[2]]), pytest.raises(InvalidInputError) as refused:
            list(mesh.generate("here", prompt=prompt, max_new_tokens=TOKENS, slice="there"))
        assert refused.value.reason == "FAILED_PRECONDITION"
        assert all(name in refused.value.message for name in (up[2], *(stage.node for stage in here.stages)))
        with held(mesh, "both", here, nodes=[here.stages[1].node]):
            said = mesh.generate("here", prompt=prompt, max_new_tokens=TOKENS, slice="both", ignore_end=True)
            assert [token.id for token in said] == model.answer(prompt, TOKENS)


def test_a_slice_that_is_not_there_or_not_active_lets_nobody_in(mesh: Mesh, models: Models) -> None:
    """By reasons that say so, before anything is opened on a node."""
    model = models.get("llama")
    mesh.slices.define("plans", resources=SMALL)
    with deployed(mesh, model, "nobody", stages=2):
        for name, error, reason in (
            ("nowhere", PermissionError_, "SLICE_NOT_YOURS"),
            ("plans", InvalidInputError, "FAILED_PRECONDITION"),
        ):
            with pytest.raises(error) as refused:
                list(mesh.generate("nobody", prompt=model.prompt(5), max_new_tokens=TOKENS, slice=name))
            assert getattr(refused.value, "reason", "") == reason
    mesh.slices.release("plans")


def test_a_tenant_uses_only_its_own_slices(mesh: Mesh, models: Models) -> None:
    """An operator gives somebody else a slice; this client is told the same as of one that does not exist."""
    model = models.get("llama")
    with Mesh.connect(mesh.local.gateway, identity=mesh.local.operator_identity) as operator:
        operator.slices.define("theirs", resources=SMALL, tenant="somebody")
        operator.slices.apply(operator.slices.optimize(slices=["theirs"]))
        with deployed(mesh, model, "others", stages=2), pytest.raises(PermissionError_) as refused:
            list(mesh.generate("others", prompt=model.prompt(5), max_new_tokens=TOKENS, slice="theirs"))
        assert refused.value.reason == "SLICE_NOT_YOURS"
        operator.slices.release("theirs")


def test_a_pack_goes_to_its_nodes_in_a_slice_of_whoever_deploys(mesh: Mesh, models: Models) -> None:
    """Somebody else's slice is refused before anything is planned; its own holds the deployment as long as it loads,
    and no longer; a scheduler that is asked directly sees to nobody's slices, and refuses."""
    model, prompt = models.get("llama", seed=7), models.get("llama", seed=7).prompt(5)
    nodes = sorted(mesh.local.processes())[:1]
    with pytest.raises(PermissionError_) as refused:
        mesh.deploy(model.pack, name="sent", stages=2, slice="nowhere")
    assert refused.value.reason == "SLICE_NOT_YOURS"
    assert "sent" not in [each.name for each in mesh.deployments()]
    mesh.slices.define("sent", resources=SMALL, max_number_of_ues=1, nodes=nodes)
    mesh.slices.apply(mesh.slices.optimize(slices=["sent"]))
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(mesh.deploy, model.pack, name="sent", stages=1, nodes=nodes, slice="sent")
        until(lambda: mesh.slices.get("sent").admitted == 1 or deploying.done(), "it is work in the slice")
        assert not deploying.done()
        deploying.result()
    assert mesh.slices.get("sent").admitted == 0
    assert tokens_of(mesh, "sent", prompt, TOKENS) == model.answer(prompt, TOKENS)
    mesh.delete("sent")
    # The node has asked for its files in the slice.
    until(lambda: mesh.slices.get("sent").traffic.frames > 0, "its port told of that")
    mesh.slices.release("sent")
    request = scheduler_pb2.CreateDeploymentRequest(name="direct", request_id="direct", slice="sent")
    identity = load_identity(mesh.local.identity)
    with channel_to(scheduler_address(mesh), identity, Role.SCHEDULER, "scheduler") as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            list(stub.CreateDeployment(request, timeout=60.0))
    assert map_rpc_error(error.value).reason == "FAILED_PRECONDITION"
