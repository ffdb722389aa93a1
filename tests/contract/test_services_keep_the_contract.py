"""Stubs are fresh, every RPC has its row of roles, and every service shows itself to ordinary gRPC tools."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from orbitmesh.rpc import keep_status, open_channel
from orbitmesh.trust import Role, init_mesh, issue
from services.runtime.authz import ADMIN_SERVICES, ALLOWED, OPS
from services.runtime.server import ServiceHost
from tests.contract.descriptors import PROTOS, ROOT, compile_protos, own_files, without_comments

GENERATE_TIMEOUT_S = 100.0
"""How long generating the stubs may take, in seconds."""
CALL_TIMEOUT_S = 60.0
"""How long one call on loopback may take, in seconds."""


@pytest.fixture(scope="module")
def contract() -> FileDescriptorSet:
    """The contract as it stands in `protos/`."""
    return without_comments(compile_protos())


def services_of(files: FileDescriptorSet) -> dict[str, tuple[FileDescriptorProto, list[str]]]:
    """Each service's full name, with its file and its methods."""
    return {
        f"{file.package}.{service.name}": (file, [method.name for method in service.method])
        for file in own_files(files)
        for service in file.service
    }


def check_stubs(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "protos" / "generate.py", "--check"],
        capture_output=True, text=True, timeout=GENERATE_TIMEOUT_S, check=False,
    )  # fmt: skip


def test_the_stubs_are_what_the_protos_give() -> None:
    """Generating the stubs anew changes no byte; where this fails, run `make protos`."""
    done = check_stubs(ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("change", ["edited proto", "edited stub", "stub without a proto", "missing stub"])
def test_a_stale_stub_is_named(change: str, tmp_path: Path) -> None:
    """A proto or stub changed alone, an orphan and a missing stub each fail the check, by the file's name."""
    stubs = tmp_path / "clients" / "python" / "orbitmesh" / "v1"
    shutil.copytree(PROTOS, tmp_path / "protos")
    shutil.copytree(ROOT / "clients" / "python" / "orbitmesh" / "v1", stubs)
    match change:
        case "edited proto":
            proto = tmp_path / "protos" / "orbitmesh" / "v1" / "gateway.proto"
            proto.write_text(proto.read_text() + "// One more.\nmessage OneMore {}\n")
            named = "gateway_pb2.py"
        case "edited stub":
            stub = stubs / "wire_pb2.pyi"
            stub.write_text(stub.read_text() + "\n")
            named = "wire_pb2.pyi"
        case "stub without a proto":
            (stubs / "gone_pb2.py").write_text("")
            named = "gone_pb2.py"
        case _:
            (stubs / "executor_pb2_grpc.py").unlink()
            named = "executor_pb2_grpc.py"
    done = check_stubs(tmp_path)
    assert done.returncode == 1
    assert f"stale: clients/python/orbitmesh/v1/{named}" in done.stderr


def test_every_rpc_has_a_row_of_roles_and_every_row_an_rpc(contract: FileDescriptorSet) -> None:
    """The authorization table and the protos name the same methods, and no row lets nobody in."""
    methods = {
        f"/{service}/{method}" for service, (_, names) in services_of(contract).items() for method in names
    }
    rows = {row for row in ALLOWED if row[1:].partition("/")[0] not in ADMIN_SERVICES - {OPS}}
    stars = {row.removesuffix("*") for row in rows if row.endswith("/*")}
    exact = rows - {f"{star}*" for star in stars}
    assert {each for each in methods - exact if f"{each.rpartition('/')[0]}/" not in stars} == set()
    assert exact - methods == set()
    assert {star for star in stars if not any(each.startswith(star) for each in methods)} == set()
    assert all(ALLOWED.values())


def test_no_service_starts_a_server_of_its_own() -> None:
    """Every server of the mesh is a ServiceHost's: its own, the one for operators, the one for a kubelet's probes."""
    constructors = ("grpc.server", "grpc.aio.server")
    found = []
    for folder in ("services", "gateway"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in constructors:
                    found.append(path.relative_to(ROOT).as_posix())
    assert sorted(found) == ["services/runtime/probe.py", *["services/runtime/server.py"] * 2]


async def test_every_service_offers_health_reflection_and_channelz(
    contract: FileDescriptorSet, tmp_path: Path
) -> None:
    """For each service of the contract a host answers health, lists and describes it, and counts its calls.

    What reflection hands out is the contract itself, as protoc compiles it: grpcurl needs no protos.
    """
    services = services_of(contract)
    assert services
    init_mesh(tmp_path / "ca")
    server = issue(tmp_path / "ca", "scheduler", "s1", tmp_path / "s1")
    operator = issue(tmp_path / "ca", "operator", "o1", tmp_path / "o1")
    host = ServiceHost(server.directory)
    for name, (file, _) in services.items():
        stem = Path(file.name).stem
        stubs: Any = importlib.import_module(f"orbitmesh.v1.{stem}_pb2_grpc")
        short = name.rpartition(".")[2]
        host.add(name, getattr(stubs, f"add_{short}Servicer_to_server"), getattr(stubs, f"{short}Servicer")())
    async with host, open_channel(f"127.0.0.1:{host.port}", operator, Role.SCHEDULER, "s1") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in services:
            request = health_pb2.HealthCheckRequest(service=name)
            answer = await health.Check(request, timeout=CALL_TIMEOUT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
        for version in ("v1", "v1alpha"):
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            (listed,) = await _reflect(channel, version, asked)
            names = {each.name for each in listed.list_services_response.service}
            assert names == set(services) | ADMIN_SERVICES
            asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in services]
            answers = await _reflect(channel, version, asked)
            for answer, (file, _) in zip(answers, services.values(), strict=True):
                blobs = answer.file_descriptor_response.file_descriptor_proto
                handed = {each.name: each for each in map(FileDescriptorProto.FromString, blobs)}
                assert _meaning(handed[file.name]) == _meaning(file)
        channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)
        servers = await channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=CALL_TIMEOUT_S)
        assert sum(each.data.calls_started for each in servers.server) >= len(services)


async def _reflect(channel: grpc.aio.Channel, version: str, asked: list[Any]) -> list[Any]:
    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [answer async for answer in keep_status(call(iter(asked), timeout=CALL_TIMEOUT_S))]


def _meaning(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file without the JSON names that only `--descriptor_set_out` writes down."""
    bare = FileDescriptorProto()
    bare.CopyFrom(file)
    waiting = list(bare.message_type)
    while waiting:
        message = waiting.pop()
        waiting += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    return bare
