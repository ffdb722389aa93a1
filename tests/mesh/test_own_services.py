"""Services started one by one beside a mesh, with settings of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import InfeasiblePlanError
from orbitmesh.rpc import channel_options, map_rpc_error
from orbitmesh.trust import Role, issue, load_identity
from orbitmesh.trust.names import dns_name
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.mesh.support import Models, deployed, expect_idle, nodes_of, tokens_of, until


def scheduler_address(mesh: Mesh) -> str:
    """From its log: users are never told."""
    for line in (mesh.local.directory / "logs" / "scheduler.log").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "listening":
            return str(event["address"])
    raise AssertionError("the scheduler never listened")


@contextmanager
def service(mesh: Mesh, module: str, role: Role, name: str, home: Path, *settings: str) -> Iterator[str]:
    """A service of the mesh as a process of its own; gives its address."""
    issue(mesh.local.directory / "ca", role, name, home / "identity")
    arguments = ["--identity", str(home / "identity"), "--state", str(home / "state"), "--listen", "127.0.0.1:0"]
    arguments += ["--scheduler", scheduler_address(mesh), *settings]
    with subprocess.Popen([sys.executable, "-m", module, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                event = json.loads(line) if line.startswith("{") else {}
                if event.get("event") == "listening":
                    break
            yield str(event["address"])
        finally:
            process.kill()


def test_a_node_without_memory_is_not_planned_for(mesh: Mesh, models: Models, tmp_path: Path) -> None:
    """A plan that needs it is refused, and the message says that memory is what lacks."""
    model = models.get("llama")
    with service(
        mesh, "services.executor", Role.EXECUTOR, "tiny", tmp_path, "--memory-bytes", "1000", "--threads", "1"
    ):
        until(lambda: "tiny" in [node.name for node in mesh.nodes()], "the node has joined", 60)
        with pytest.raises(InfeasiblePlanError, match=r"(?is)tiny.*(memory|bytes)|(memory|bytes).*tiny"):
            mesh.deploy(model.pack, name="small", nodes=["tiny"])
        assert "small" not in [deployment.name for deployment in mesh.deployments()]


def test_a_client_that_does_not_read_is_ended_and_frees_the_nodes(mesh: Mesh, models: Models, tmp_path: Path) -> None:
    """It takes the first message and no more: after the gateway's patience the caches are free again."""
    model = models.get("llama", num_hidden_layers=1, max_position_embeddings=16384)
    with (
        service(mesh, "gateway", Role.GATEWAY, "impatient", tmp_path, "--slow-reader-s", "1") as address,
        Mesh.connect(address, identity=mesh.local.identity) as other,
        deployed(other, model, "slow", stages=1) as deployment,
    ):
        me = load_identity(mesh.local.identity)
        credentials = grpc.ssl_channel_credentials(me.ca_pem, me.tls_key_pem, me.tls_cert_pem)
        options = [
            *channel_options(),
            ("grpc.ssl_target_name_override", dns_name(Role.GATEWAY, "impatient")),
            ("grpc.http2.lookahead_bytes", 1024),
            ("grpc.http2.bdp_probe", 0),
        ]
        request = gateway_pb2.GenerateRequest(
            deployment="slow", token_ids=gateway_pb2.TokenIds(ids=[1]), max_new_tokens=16000, ignore_end=True
        )
        with grpc.secure_channel(address, credentials, options=options) as channel:
            call = gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request, timeout=100)
            assert next(call).HasField("started")
            until(lambda: other.status().generations == 0, "the gateway has given it up", 60)
            expect_idle(mesh, "slow", nodes_of(deployment))
            with pytest.raises(grpc.RpcError) as refused:
                list(call)
            assert map_rpc_error(refused.value).reason == "SLOW_READER"
        assert tokens_of(other, "slow", [1, 2], 5) == model.answer([1, 2], 5)
