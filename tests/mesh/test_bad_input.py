"""What is wrong is refused with a typed error that names it, and the mesh answers the next one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import (
    AuthError,
    CapacityError,
    IdentityError,
    InfeasiblePlanError,
    InvalidInputError,
    MeshError,
    PackError,
    TransportError,
    UnknownModelError,
)
from orbitmesh.pack.manifest import MANIFEST_NAME, SIGNATURE_NAME, layer_file
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Role, init_mesh, issue, load_identity, sign_bytes
from orbitmesh.v1 import (
    executor_pb2,
    executor_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
)
from tests.mesh.support import Model, Models, address_of, channel_to, deployed, expect_idle, nodes_of, tokens_of

CONTEXT = 64
PROMPT = gateway_pb2.TokenIds(ids=[1, 2, 3])


@pytest.fixture(scope="module")
def model(models: Models) -> Model:
    return models.get("qwen3", seed=3, max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def nodes(mesh: Mesh, model: Model) -> Iterator[list[str]]:
    with deployed(mesh, model, "bad", stages=3, kv_tokens=512) as deployment:
        yield nodes_of(deployment)


@pytest.fixture(autouse=True)
def still_answers(mesh: Mesh, model: Model, nodes: list[str]) -> Iterator[None]:
    """After every refusal the same deployment says the same tokens and holds nothing."""
    yield
    assert tokens_of(mesh, "bad", [4, 5, 6], 5) == model.answer([4, 5, 6], 5)
    expect_idle(mesh, "bad", nodes)


def generate_raw(mesh: Mesh, request: gateway_pb2.GenerateRequest) -> MeshError:
    """How the gateway refuses a request that our own client would not even send."""
    identity = load_identity(mesh.local.identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Generate(request, timeout=60))
    return map_rpc_error(refused.value)


WRONG_REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown model": ({"deployment": "nobody"}, "UNKNOWN_MODEL", "nobody"),
    "no name": ({"deployment": ""}, "UNKNOWN_MODEL", "deployment"),
    "no prompt": ({"token_ids": None}, "EMPTY_PROMPT", "empty"),
    "empty ids": ({"token_ids": gateway_pb2.TokenIds()}, "EMPTY_PROMPT", "empty"),
    "empty text": ({"token_ids": None, "text": ""}, "EMPTY_PROMPT", "empty"),
    "too long": ({"token_ids": gateway_pb2.TokenIds(ids=[1] * (CONTEXT + 1))}, "PROMPT_TOO_LONG", str(CONTEXT)),
    "no room left": ({"token_ids": gateway_pb2.TokenIds(ids=[1] * CONTEXT)}, "PROMPT_TOO_LONG", str(CONTEXT)),
    "too many new": ({"max_new_tokens": CONTEXT}, "PROMPT_TOO_LONG", str(CONTEXT)),
    "more than any": ({"max_new_tokens": 0xFFFFFFFF}, "PROMPT_TOO_LONG", str(CONTEXT)),
    "unknown token": ({"token_ids": gateway_pb2.TokenIds(ids=[1, 259])}, "INVALID_INPUT", "258"),
    "huge token": ({"token_ids": gateway_pb2.TokenIds(ids=[0xFFFFFFFF])}, "INVALID_INPUT", "258"),
    "NaN": ({"sampling": executor_pb2.Sampling(temperature=float("nan"))}, "INVALID_INPUT", "temperature"),
    "infinite": ({"sampling": executor_pb2.Sampling(temperature=float("inf"))}, "INVALID_INPUT", "temperature"),
    "negative": ({"sampling": executor_pb2.Sampling(temperature=-0.5)}, "INVALID_INPUT", "temperature"),
    "top_p above 1": ({"sampling": executor_pb2.Sampling(temperature=1, top_p=1.5)}, "INVALID_INPUT", "top_p"),
    "top_p below 0": ({"sampling": executor_pb2.Sampling(temperature=1, top_p=-1)}, "INVALID_INPUT", "top_p"),
    "top_p NaN": ({"sampling": executor_pb2.Sampling(temperature=1, top_p=float("nan"))}, "INVALID_INPUT", "top_p"),
}


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_a_wrong_request_is_refused_by_the_gateway_itself(mesh: Mesh, case: str) -> None:
    """Sent past our own client's checks: the reason is in `ErrorInfo`, the message names what was wrong."""
    change, reason, named = WRONG_REQUESTS[case]
    fields: dict[str, Any] = {"deployment": "bad", "token_ids": PROMPT, "max_new_tokens": 4, **change}
    error = generate_raw(mesh, gateway_pb2.GenerateRequest(**fields))
    assert (error.reason, isinstance(error, InvalidInputError)) == (reason, True)
    assert named in error.message


@pytest.mark.parametrize(
    ("prompt", "how", "error", "named"),
    [
        ("", {}, InvalidInputError, "empty"),
        ([], {}, InvalidInputError, "empty"),
        ([1] * 100, {}, InvalidInputError, "context"),
        ("x" * 100, {}, InvalidInputError, "context"),
        ([-1], {}, InvalidInputError, "token id"),
        ([1], {"temperature": float("nan")}, InvalidInputError, "temperature"),
        ([1], {"top_p": 2.0}, InvalidInputError, "top_p"),
        ([1], {"max_new_tokens": 0}, InvalidInputError, "max_new_tokens"),
    ],
)
def test_the_client_raises_the_same_kinds_of_error(
    mesh: Mesh, prompt: Any, how: dict[str, Any], error: type[MeshError], named: str
) -> None:
    """Whether it or the gateway found out."""
    with pytest.raises(error, match=named):
        list(mesh.generate("bad", prompt, **how))


def test_an_unknown_model_is_named_together_with_the_known_ones(mesh: Mesh) -> None:
    """The message says which deployments there are."""
    with pytest.raises(UnknownModelError, match=r"nobody.*bad"):
        mesh.generate("nobody", [1])
    with pytest.raises(UnknownModelError):
        mesh.deploy("/nowhere/at/all", name="nobody")


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ({"stages": 4}, InvalidInputError, "TOO_MANY_STAGES"),  # of 3 layers
        ({"stages": 3, "nodes": ["sat-1", "sat-2"]}, InvalidInputError, "TOO_MANY_STAGES"),
        ({"nodes": ["sat-1", "sat-99"]}, InvalidInputError, "NOT_FOUND"),
        ({"kv_tokens": 1 << 36}, InfeasiblePlanError, "PLAN_INFEASIBLE"),
    ],
)
def test_what_cannot_be_placed_is_refused_and_nothing_is_left_of_it(
    mesh: Mesh, model: Model, how: dict[str, Any], error: type[MeshError], reason: str
) -> None:
    """More stages than layers or nodes, a node that is not there, more cache than any node has."""
    with pytest.raises(error) as refused:
        mesh.deploy(model.pack, name="never", **how)
    assert refused.value.reason == reason
    assert "never" not in [deployment.name for deployment in mesh.deployments()]


def test_a_cache_that_no_node_can_hold_names_memory_and_node(mesh: Mesh, model: Model) -> None:
    """The message of an infeasible plan says what binds."""
    with pytest.raises(InfeasiblePlanError, match=r"(?i)memory|bytes"):
        mesh.plan(model.pack, kv_tokens=1 << 36)


# Packs.


@pytest.fixture
def pack(model: Model, tmp_path: Path) -> Path:
    """A copy of the pack that may be damaged, with a name of its own so that no file of it is known anywhere."""
    copy = tmp_path / "pack"
    shutil.copytree(model.pack, copy)
    return copy


def sign(pack: Path, identity: Path) -> None:
    (pack / SIGNATURE_NAME).write_bytes(sign_bytes(load_identity(identity), (pack / MANIFEST_NAME).read_bytes()))


def test_one_flipped_byte_in_a_weight_file_is_found_before_anything_is_loaded(
    mesh: Mesh, models: Models, tmp_path: Path
) -> None:
    """Flipped on the client's disk after signing; with the right byte the same pack deploys."""
    fresh = models.get("llama", seed=77)
    pack = tmp_path / "pack"
    shutil.copytree(fresh.pack, pack)
    sign(pack, mesh.local.identity)
    file = pack / layer_file(2)
    data = bytearray(file.read_bytes())
    data[-9] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(PackError) as refused:
        mesh.deploy(pack, name="flipped", stages=2)
    assert refused.value.reason == "PACK_DAMAGED"
    assert "flipped" not in [deployment.name for deployment in mesh.deployments()]
    data[-9] ^= 0x10
    file.write_bytes(data)
    with deployed(mesh, pack, "flipped", stages=2, kv_tokens=64):
        assert tokens_of(mesh, "flipped", [1, 2], 4) == fresh.answer([1, 2], 4)


def test_a_manifest_that_was_edited_after_signing_is_refused(mesh: Mesh, pack: Path) -> None:
    """Even where the edit is harmless."""
    sign(pack, mesh.local.identity)
    text = (pack / MANIFEST_NAME).read_text()
    fields = json.loads(text)
    (pack / MANIFEST_NAME).write_text(text.replace(fields["name"], "another-name", 1))
    with pytest.raises(PackError) as refused:
        mesh.deploy(pack, name="edited")
    assert refused.value.reason == "PACK_DAMAGED"


def test_a_manifest_signed_by_a_stranger_is_refused(mesh: Mesh, pack: Path, tmp_path: Path) -> None:
    """A client of another mesh is nobody here."""
    stranger = tmp_path / "stranger"
    issue(init_mesh(tmp_path / "ca", mesh="other"), Role.CLIENT, "local", stranger)
    sign(pack, stranger)
    with pytest.raises(PackError) as refused:
        mesh.deploy(pack, name="strange")
    assert refused.value.reason == "PACK_SIGNER_UNTRUSTED"


def test_a_manifest_signed_by_a_role_that_may_not_is_refused(mesh: Mesh, pack: Path, tmp_path: Path) -> None:
    """An executor that was taken over cannot bring models into the mesh."""
    issue(mesh.local.directory / "ca", Role.EXECUTOR, "sat-1", tmp_path / "sat-1")
    sign(pack, tmp_path / "sat-1")
    with pytest.raises(PackError, match="executor") as refused:
        mesh.deploy(pack, name="strange")
    assert refused.value.reason == "PACK_SIGNER_UNTRUSTED"


def test_an_unsigned_manifest_is_refused_at_every_door(mesh: Mesh, pack: Path) -> None:
    """The gateway, the scheduler and the executor each look for themselves."""
    manifest = (pack / MANIFEST_NAME).read_bytes()
    client = load_identity(mesh.local.identity)
    with channel_to(mesh.local.gateway, client, Role.GATEWAY, "gateway") as channel:
        packs = gateway_pb2_grpc.PackServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            packs.CreatePack(gateway_pb2.CreatePackRequest(request_id="1", manifest=manifest), timeout=60)
        assert map_rpc_error(refused.value).reason == "PACK_UNSIGNED"
        scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        create = scheduler_pb2.CreateDeploymentRequest(request_id="2", name="unsigned", manifest=manifest)
        with pytest.raises(grpc.RpcError) as refused:
            list(scheduler.CreateDeployment(create, timeout=60))
        assert map_rpc_error(refused.value).reason == "PACK_UNSIGNED"
    trusted = load_identity(mesh.local.directory / "identities" / "scheduler-scheduler")
    with channel_to(address_of(mesh, "sat-1"), trusted, Role.EXECUTOR, "sat-1") as channel:
        executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        load = executor_pb2.LoadStageRequest(
            deployment="unsigned", manifest=manifest, layer_start=0, layer_stop=3, kv_tokens=8
        )
        load.pipeline.add(role="executor", name="sat-1")
        with pytest.raises(grpc.RpcError) as refused:
            list(executor.LoadStage(load, timeout=60))
        assert map_rpc_error(refused.value).reason == "PACK_UNSIGNED"


# Identities.


def test_an_identity_of_another_mesh_is_turned_away(mesh: Mesh, tmp_path: Path) -> None:
    """Its certificate was made by another CA, under the same names."""
    issue(init_mesh(tmp_path / "ca", mesh="local"), Role.CLIENT, "local", tmp_path / "me")
    me = Mesh.connect(mesh.local.gateway, identity=tmp_path / "me", timeout=60)
    with pytest.raises((AuthError, TransportError)), me as other:
        other.status()


def test_a_forger_that_knows_our_ca_is_turned_away(mesh: Mesh, tmp_path: Path) -> None:
    """Its own CA vouches for it, but it trusts ours: the server must refuse, not the client."""
    mine = issue(init_mesh(tmp_path / "ca", mesh="local"), Role.OPERATOR, "local", tmp_path / "me")
    forged = dataclasses.replace(mine, ca_pem=load_identity(mesh.local.identity).ca_pem)
    with channel_to(mesh.local.gateway, forged, Role.GATEWAY, "gateway") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=60)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


def test_an_expired_identity_is_turned_away(mesh: Mesh, tmp_path: Path) -> None:
    """Our client says so before it dials; the server says so to who dials regardless."""
    ca = mesh.local.directory / "ca"
    now = datetime.now(UTC)
    expired = issue(ca, Role.CLIENT, "old", tmp_path / "old", timedelta(seconds=1), now=now - timedelta(minutes=30))
    with pytest.raises(IdentityError, match="expired"), Mesh.connect(mesh.local.gateway, identity=tmp_path / "old"):
        pass
    with channel_to(mesh.local.gateway, expired, Role.GATEWAY, "gateway") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=60)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


def refused_call(address: str, identity: Path, role: Role, name: str, call: Any) -> MeshError:
    """How a call over a plain channel is refused."""
    with (
        channel_to(address, load_identity(identity), role, name) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        call(channel)
    return map_rpc_error(refused.value)


def test_a_client_cannot_speak_to_executors_nor_as_one(mesh: Mesh, nodes: list[str]) -> None:
    """Neither open, close or list on a node, nor send a heartbeat to the scheduler."""
    address, me = address_of(mesh, nodes[0]), mesh.local.identity
    calls = {
        "OpenGeneration": executor_pb2.OpenGenerationRequest(deployment="bad", generation=1, max_tokens=1),
        "CloseGeneration": executor_pb2.CloseGenerationRequest(deployment="bad", generation=1),
        "ListStages": executor_pb2.ListStagesRequest(),
        "UnloadStage": executor_pb2.UnloadStageRequest(deployment="bad"),
        "Probe": executor_pb2.ProbeRequest(),
    }
    for method, request in calls.items():
        error = refused_call(
            address, me, Role.EXECUTOR, nodes[0],
            lambda channel, m=method, r=request: getattr(
                executor_pb2_grpc.ExecutorServiceStub(channel), m
            )(r, timeout=60),
        )  # fmt: skip
        assert error.reason == "ROLE_NOT_ALLOWED", method
    for address, role, name in (
        (mesh.local.gateway, Role.GATEWAY, "gateway"),
        (scheduler_address(mesh), Role.SCHEDULER, "scheduler"),
    ):
        error = refused_call(
            address, me, role, name,
            lambda channel: list(
                scheduler_pb2_grpc.SchedulerServiceStub(channel).Heartbeat(
                    iter([scheduler_pb2.HeartbeatRequest(address="127.0.0.1:1", sequence=1)]), timeout=60
                )
            ),
        )  # fmt: skip
        assert error.reason == "ROLE_NOT_ALLOWED"
    assert "local" not in [node.name for node in mesh.nodes()]


def test_an_executor_cannot_ask_for_answers_or_load_stages(mesh: Mesh, nodes: list[str]) -> None:
    """A satellite that was taken over is no user of the mesh and no scheduler."""
    sat = mesh.local.directory / "identities" / f"executor-{nodes[1]}"
    request = gateway_pb2.GenerateRequest(deployment="bad", token_ids=PROMPT, max_new_tokens=2)
    error = refused_call(
        mesh.local.gateway, sat, Role.GATEWAY, "gateway",
        lambda channel: list(gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request, timeout=60)),
    )  # fmt: skip
    assert error.reason == "ROLE_NOT_ALLOWED"
    for method, message in (
        ("LoadStage", executor_pb2.LoadStageRequest(deployment="bad")),
        ("UnloadStage", executor_pb2.UnloadStageRequest(deployment="bad")),
    ):
        error = refused_call(
            address_of(mesh, nodes[0]), sat, Role.EXECUTOR, nodes[0],
            lambda channel, m=method, r=message: list(
                getattr(executor_pb2_grpc.ExecutorServiceStub(channel), m)(r, timeout=60) or ()
            ),
        )  # fmt: skip
        assert error.reason == "ROLE_NOT_ALLOWED", method


def scheduler_address(mesh: Mesh) -> str:
    """From its log: users are never told."""
    for line in (mesh.local.directory / "logs" / "scheduler.log").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "listening":
            return str(event["address"])
    raise AssertionError("the scheduler never listened")


def test_capacity_errors_may_be_retried_and_input_errors_may_not(mesh: Mesh, nodes: list[str]) -> None:
    """`retryable` tells a program what to do."""
    expect_idle(mesh, "bad", nodes)
    with ExitStack() as running, pytest.raises(CapacityError) as full:
        for _ in range(200):
            running.enter_context(mesh.generate("bad", [1], max_new_tokens=CONTEXT - 1, ignore_end=True))
    assert full.value.retryable
    with pytest.raises(InvalidInputError) as wrong:
        mesh.generate("bad", [300])
    assert not wrong.value.retryable
    expect_idle(mesh, "bad", nodes)
