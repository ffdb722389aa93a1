"""Where a service's OpenTelemetry spans go: a file, a collector, or both; never in the way of what they tell of."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from orbitmesh.errors import InvalidInputError

FLUSH_MS = 5000
"""How long a service that stops waits for spans to leave, in milliseconds."""


class SpanSink:
    """Hands spans to an exporter on a thread of its own, behind a bounded queue.

    Args:
        exporter: Where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._processor = BatchSpanProcessor(exporter)

    def put(self, spans: Iterable[ReadableSpan]) -> None:
        """Queues spans; never waits for the exporter."""
        for span in spans:
            self._processor.on_end(span)

    def close(self) -> None:
        """Lets what is queued leave, for a while."""
        self._processor.force_flush(FLUSH_MS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def open_sinks(spans_file: str, otlp_endpoint: str, stack: contextlib.ExitStack) -> list[SpanSink]:
    """Where a service's settings send spans; everything is closed by `stack`.

    Raises:
        InvalidInputError: The package for a collector is not installed.
    """
    found = []
    if spans_file:
        exporter, file = file_exporter(Path(spans_file))
        stack.callback(file.close)
        found.append(SpanSink(exporter))
    if otlp_endpoint:
        found.append(SpanSink(otlp_exporter(otlp_endpoint)))
    for sink in found:
        stack.callback(sink.close)
    return found


def span_context(trace_id: str, what: str) -> SpanContext:
    """A span's identity: a function of the trace and of what it is, so that no table of identities is kept.

    Args:
        trace_id: 32 hexadecimal digits.
        what: What the span is of, once in the trace.
    """
    digest = hashlib.sha256(f"{trace_id} {what}".encode()).digest()
    span_id = int.from_bytes(digest[:8], "big") or 1
    return SpanContext(int(trace_id, 16), span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def file_exporter(path: Path) -> tuple[SpanExporter, io.TextIOBase]:
    """Spans as JSON, a line each, added to a file; close the file after the exporter."""
    file = path.open("a", encoding="utf-8")
    return ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n"), file


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Spans to an OpenTelemetry collector at `endpoint` (OTLP over gRPC).

    Raises:
        InvalidInputError: Where the exporter's package is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise InvalidInputError(
            "--otlp-endpoint needs the OTLP exporter: pip install 'orbitmesh[otlp]'", reason="FAILED_PRECONDITION"
        ) from None
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    return exporter
