"""Every process of a mesh sends its metrics to a collector; Prometheus fetches them from one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1 import metrics_pb2
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from orbitmesh import Mesh
from orbitmesh.errors import CapacityError
from orbitmesh.trust import init_mesh, issue
from tests.mesh.support import Models, deployed, until

TOKENS = 40
SMALL = {"CPU": 0.01, "GPU": 0, "MemoryGB": 0.001, "BandwidthGbps": 0.001}
ROLES = {"gateway", "scheduler", "aggregator", "slices", "executor"}


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer, trace_service_pb2_grpc.TraceServiceServicer):
    """Takes metrics in by the collector's own protocol; keeps the newest of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: dict[tuple[str, str, str], metrics_pb2.Metric] = {}

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            return trace_service_pb2.ExportTraceServiceResponse()
        with self._lock:
            for resource in request.resource_metrics:
                named = {each.key: each.value.string_value for each in resource.resource.attributes}
                who = named["service.name"], named["service.instance.id"]
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self._metrics[(*who, metric.name)] = metric
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def points(self, service: str, name: str, **labels: str) -> list[Any]:
        """The newest points of a metric that have these labels."""
        with self._lock:
            found = [metric for key, metric in self._metrics.items() if key[0] == service and key[2] == name]
        return [
            point
            for metric in found
            for point in getattr(metric, str(metric.WhichOneof("data"))).data_points
            if labels.items() <= {each.key: each.value.string_value for each in point.attributes}.items()
        ]

    def value(self, service: str, name: str, **labels: str) -> float:
        """The sum of these points, 0 where there are none."""
        return sum(point.as_int or point.as_double for point in self.points(service, name, **labels))

    @property
    def services(self) -> set[str]:
        """Who has sent."""
        with self._lock:
            return {key[0].removeprefix("orbitmesh-") for key in self._metrics}


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    """A real OTLP receiver over gRPC, and its address."""
    found, server = Collector(), grpc.server(ThreadPoolExecutor(4))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(found, server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def test_a_collector_is_told_what_every_process_did(
    collector: tuple[Collector, str], models: Models, tmp_path: Path
) -> None:
    """One answer and one refusal: their tokens, bytes, steps, cache, errors and slices are counted where they happened,
    and what took time points at its trace."""
    told, endpoint = collector
    model = models.get("llama")
    prompt = model.prompt(5)
    with (
        Mesh.local(nodes=2, directory=tmp_path / "mesh", otlp_endpoint=endpoint) as mesh,
        deployed(mesh, model, "counted", stages=2) as held,
    ):
        mesh.slices.define("cam", resources=SMALL, nodes=[held.stages[0].node], max_number_of_ues=1)
        [cam] = mesh.slices.apply(mesh.slices.optimize(slices=["cam"])).slices
        has = cam.allocations[0].resources
        said = mesh.generate("counted", prompt=prompt, max_new_tokens=TOKENS, slice="cam", ignore_end=True).wait()
        with mesh.slices.admit("cam"), pytest.raises(CapacityError):
            mesh.generate("counted", prompt=prompt, max_new_tokens=4, slice="cam").wait()
        # Each process is asked to send what is left when it ends.
    assert told.services >= ROLES
    gateway = {"deployment": "counted", "slice": "cam"}
    assert told.value("orbitmesh-gateway", "orbitmesh.tokens", **gateway) == TOKENS
    assert told.value("orbitmesh-gateway", "orbitmesh.generations", outcome="SLICE_FULL") == 1
    [times] = told.points("orbitmesh-gateway", "orbitmesh.generation.token", **gateway)
    assert times.count == TOKENS - 1
    assert {each.trace_id.hex() for each in times.exemplars} == {said.trace_id}
    # Every stage computed the prompt and all tokens but the last; loading measures some more.
    assert told.value("orbitmesh-executor", "orbitmesh.steps") >= 2 * TOKENS
    assert told.value("orbitmesh-executor", "orbitmesh.steps.busy") > 0
    peer = f"executor/{held.stages[1].node}"
    assert told.value("orbitmesh-executor", "orbitmesh.session.sent", peer=peer) > 0
    assert told.value("orbitmesh-executor", "orbitmesh.transfer.raw", peer=peer) > 0
    # The last word is of a mesh that ends: some node may drain already.
    assert told.value("orbitmesh-scheduler", "orbitmesh.nodes") == 2
    assert told.value("orbitmesh-slices", "orbitmesh.slice.reserved", slice="cam", resource="CPU") == has["CPU"]
    method = "/orbitmesh.v1.SlicesService/Admit"
    assert told.value("orbitmesh-slices", "orbitmesh.calls", method=method, outcome="SLICE_FULL") == 1
    assert told.value("orbitmesh-slices", "orbitmesh.calls", method=method, outcome="ok") == 2
    for role in ROLES:
        assert told.value(f"orbitmesh-{role}", "orbitmesh.process.memory") > 1 << 20


def test_prometheus_fetches_what_its_own_parser_reads(tmp_path: Path) -> None:
    """A scheduler that offers metrics: Prometheus's own parser finds them, with their units in their names."""
    ca = init_mesh(tmp_path / "ca")
    issue(ca, "scheduler", "scheduler", tmp_path / "identity")
    flags = ["--identity", tmp_path / "identity", "--listen", "127.0.0.1:0", "--state", tmp_path / "state"]
    (tmp_path / "state").mkdir()
    with offered(flags) as address:
        families = fetched(address)
        [memory] = families["orbitmesh_process_memory_bytes"].samples
        assert memory.value > 1 << 20
        assert {sample.labels["state"] for sample in families["orbitmesh_nodes"].samples} == {"up", "draining", "lost"}
        ended = scheduler_that_ends(flags, address)
        assert ended.returncode == 1 and "cannot offer metrics" in ended.stderr


def test_an_address_that_is_none_ends_a_service_with_a_line(tmp_path: Path) -> None:
    """Exit code 2, and what was expected."""
    issue(init_mesh(tmp_path / "ca"), "scheduler", "scheduler", tmp_path / "identity")
    flags = ["--identity", tmp_path / "identity", "--listen", "127.0.0.1:0", "--state", tmp_path]
    ended = scheduler_that_ends(flags, "nonsense")
    assert ended.returncode == 2 and "expected host:port" in ended.stderr


def command(flags: list[Any], address: str) -> list[str]:
    return [sys.executable, "-m", "services.scheduler", *map(str, flags), "--prometheus", address]


def scheduler_that_ends(flags: list[Any], address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(flags, address), capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def offered(flags: list[Any]) -> Iterator[str]:
    """A scheduler's metrics, at an address that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = subprocess.Popen(command(flags, address), stderr=subprocess.DEVNULL)
    try:
        until(lambda: "orbitmesh_nodes" in fetched(address), "metrics are offered")
        yield address
    finally:
        running.kill()
        running.wait(60)


def fetched(address: str) -> dict[str, Metric]:
    """What is offered there, as Prometheus reads it; nothing where nobody is there yet."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
            return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    except OSError:
        return {}
