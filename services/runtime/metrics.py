"""What a service counts and measures of itself, for a collector that is sent it (OTLP) or a Prometheus that fetches it.

Names begin with `orbitmesh.`; units are seconds, bytes and plain numbers. What only exists now (load, open generations)
is read when somebody asks, on the event loop, so that it is never half changed. Without anybody to tell
nothing is measured for it beyond what is counted anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from orbitmesh.errors import InvalidInputError, TransportError
from services.runtime.tracing import span_context

EXPORT_S = 10.0
"""How often a collector is told, in seconds."""
READ_S = 2.0
"""How long the event loop may take to say what there is now, in seconds; it is left out then."""
CLOSE_MS = 3000
"""How long a service that stops waits for its last figures to leave, in milliseconds."""

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper edges of the buckets of times, in seconds."""

Labels = Mapping[str, str]
Read = Callable[[], Iterable[tuple[float, Labels]]]
"""What there is now: values and what each is of. Called on the event loop."""


@dataclass(frozen=True)
class Telemetry:
    """Where a service's figures go."""

    otlp_endpoint: str = ""
    """A collector, http://host:port or https://host:port; empty sends none."""
    prometheus: str = ""
    """host:port where Prometheus fetches them, in plain HTTP; empty offers none."""


class Metrics:
    """The figures of one process. Make it on its event loop.

    Args:
        process: role/name.
        telemetry: Where they go; nowhere where left out.

    Raises:
        InvalidInputError: An address is none, or a package that is needed is not installed.
        TransportError: The address for Prometheus cannot be listened on.
    """

    def __init__(self, process: str, telemetry: Telemetry | None = None) -> None:
        told = telemetry or Telemetry()
        self._stop_serving: Callable[[], None] = lambda: None
        self.port = 0
        """Where Prometheus fetches them; 0 where it does not."""
        readers: list[MetricReader] = []
        if told.otlp_endpoint:
            readers.append(_to_collector(told.otlp_endpoint))
        if told.prometheus:
            reader, self._stop_serving, self.port = _for_prometheus(told.prometheus)
            readers.append(reader)
        self.enabled = bool(readers)
        """Whether anybody is told."""
        self._provider = MeterProvider(readers, resource=_resource(process)) if readers else None
        self._meter: Meter = (self._provider or NoOpMeterProvider()).get_meter("orbitmesh", version("orbitmesh"))
        self._loop = asyncio.get_running_loop() if readers else None

    def counter(self, name: str, unit: str, what: str) -> Counter:
        """Something that only grows."""
        return self._meter.create_counter(f"orbitmesh.{name}", unit, what)

    def times(self, name: str, what: str, edges: Sequence[float] = SECONDS) -> Histogram:
        """How long something takes, in seconds."""
        return self._meter.create_histogram(
            f"orbitmesh.{name}", "s", what, explicit_bucket_boundaries_advisory=list(edges)
        )

    def gauge(self, name: str, unit: str, what: str, read: Read) -> None:
        """What there is now."""
        self._meter.create_observable_gauge(f"orbitmesh.{name}", [self._reading(read)], unit, what)

    def total(self, name: str, unit: str, what: str, read: Read) -> None:
        """What was counted elsewhere and only grows."""
        self._meter.create_observable_counter(f"orbitmesh.{name}", [self._reading(read)], unit, what)

    def close(self) -> None:
        """Sends what is left and stops; repeating it changes nothing."""
        self._stop_serving()
        if self._provider is not None:
            self._provider.shutdown(CLOSE_MS)
            self._provider = None

    def _reading(self, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        async def on_loop() -> list[Observation]:
            return [Observation(value, dict(labels)) for value, labels in read()]

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            if self._loop is None or not self._loop.is_running():
                return []
            asked = asyncio.run_coroutine_threadsafe(on_loop(), self._loop)
            try:
                return asked.result(READ_S)
            except (FutureTimeoutError, CancelledError):
                asked.cancel()
                return []

        return observe


def exemplar_of(trace_id: str) -> Context:
    """The context in which a figure points at a trace; `context` of `add` and `record`.

    Args:
        trace_id: 32 hexadecimal digits.
    """
    return set_span_in_context(NonRecordingSpan(span_context(trace_id, "request")))


def host_and_port(address: str, what: str) -> tuple[str, int]:
    """The two parts of an address.

    Raises:
        InvalidInputError: It is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise InvalidInputError(f"{what} is {address!r}; expected host:port, such as 127.0.0.1:9464")
    return host.strip("[]"), int(port)


def _resource(process: str) -> Resource:
    role, _, name = process.partition("/")
    return Resource.create(
        {"service.name": f"orbitmesh-{role}", "service.instance.id": name, "service.version": version("orbitmesh")}
    )


def _to_collector(endpoint: str) -> MetricReader:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    except ImportError:
        raise InvalidInputError(
            "--otlp-endpoint needs the OTLP exporter: pip install 'orbitmesh[otlp]'", reason="FAILED_PRECONDITION"
        ) from None
    exporter = OTLPMetricExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    return PeriodicExportingMetricReader(exporter, export_interval_millis=EXPORT_S * 1e3)


def _for_prometheus(address: str) -> tuple[MetricReader, Callable[[], None], int]:
    host, port = host_and_port(address, "--prometheus")
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise InvalidInputError(
            "--prometheus needs its exporter: pip install 'orbitmesh[prometheus]'", reason="FAILED_PRECONDITION"
        ) from None
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise TransportError(
            f"cannot offer metrics on {address} ({error}); choose another address or end what holds it",
            metadata={"listen": address},
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(CLOSE_MS / 1e3)

    return reader, stop, int(server.server_port)
