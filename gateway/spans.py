"""OpenTelemetry spans from the record of a generation: its request, every stage's step, every transfer between stages.

The timings come home with the generation's end, so the spans are made then, with the times that were measured, on the
gateway's clock; nothing is exported from a node. Exporting happens on a thread of its own behind a bounded queue.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from gateway.breakdown import GenerationRecord, Step, steps_on_gateway_clock
from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import gateway_pb2

SPANS_MAX = 4096
"""How many spans one generation makes at the most; later steps are left out and the request's span says so."""
FLUSH_MS = 5000
"""How long a gateway that stops waits for spans to leave, in milliseconds."""


class SpanExport:
    """Makes spans and hands them to an exporter.

    Args:
        exporter: Where they go.
        gateway: The gateway's name, for the resource of its own span.
    """

    def __init__(self, exporter: SpanExporter, gateway: str) -> None:
        self._processor = BatchSpanProcessor(exporter)
        self._gateway = gateway

    def __call__(self, record: GenerationRecord, breakdown: gateway_pb2.Breakdown) -> None:
        """Queues the spans of one generation; never waits for the exporter."""
        for span in spans(record, breakdown, self._gateway):
            self._processor.on_end(span)

    def close(self) -> None:
        """Lets what is queued leave, for a while."""
        self._processor.force_flush(FLUSH_MS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def spans(record: GenerationRecord, breakdown: gateway_pb2.Breakdown, gateway: str) -> Iterator[ReadableSpan]:
    """The spans of one generation, the request's last."""
    root = _context(record, "request")
    children = list(_children(record, root))
    end = record.ended_ns or max(record.arrived_ns, default=record.began_ns)
    yield from children[:SPANS_MAX]
    yield _span(
        record,
        "gateway.generate",
        root,
        None,
        (record.began_ns, end),
        gateway,
        SpanKind.SERVER,
        {
            "orbitmesh.deployment": record.deployment,
            "orbitmesh.attributed": breakdown.attributed,
            "orbitmesh.spans_left_out": max(0, len(children) - SPANS_MAX),
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": record.deployment,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": len(record.arrived_ns),
        },
    )


def _children(record: GenerationRecord, root: SpanContext) -> Iterator[ReadableSpan]:
    if record.admitted_ns:
        yield _span(
            record, "gateway.admit", _context(record, "admit"), root, (record.began_ns, record.admitted_ns), "gateway"
        )
    stages = steps_on_gateway_clock(record)
    for index, steps in enumerate(stages):
        node = record.nodes[index]
        for position, step in sorted(steps.items()):
            yield _span(
                record,
                "stage.step",
                _context(record, f"step {index} {position}"),
                root,
                (step.received, step.ended),
                node,
                attributes={
                    "orbitmesh.stage": index,
                    "orbitmesh.position": position,
                    "orbitmesh.open_us": (step.opened - step.received) / 1e3,
                    "orbitmesh.queue_us": (step.started - step.opened) / 1e3,
                    "orbitmesh.compute_us": (step.ended - step.started) / 1e3,
                },
            )
            following = stages[index + 1].get(position) if index + 1 < len(stages) else None
            if following is not None:
                yield _transfer(record, root, (index, position), step, following)


def _transfer(
    record: GenerationRecord, root: SpanContext, where: tuple[int, int], step: Step, following: Step
) -> ReadableSpan:
    index, position = where
    return _span(
        record,
        "transfer",
        _context(record, f"transfer {index} {position}"),
        root,
        (step.ended, max(step.ended, following.received)),
        record.nodes[index],
        SpanKind.PRODUCER,
        {
            "orbitmesh.link": f"{record.nodes[index]}>{record.nodes[index + 1]}",
            "orbitmesh.position": position,
            "orbitmesh.codec_us": step.codec / 1e3,
            "orbitmesh.seal_us": step.seal / 1e3,
            "orbitmesh.credit_us": step.credit / 1e3,
        },
    )


def _context(record: GenerationRecord, what: str) -> SpanContext:
    """A span's identity: a function of the trace and of what it is, so that no table of identities is kept."""
    digest = hashlib.sha256(f"{record.trace_id} {what}".encode()).digest()
    span_id = int.from_bytes(digest[:8], "big") or 1
    return SpanContext(int(record.trace_id, 16), span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _span(
    record: GenerationRecord,
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    times: tuple[int, int],
    service: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: dict[str, Any] | None = None,
) -> ReadableSpan:
    wall = record.began_at_ns - record.began_ns
    return ReadableSpan(
        name,
        context=context,
        parent=parent,
        resource=Resource({"service.name": service}),
        attributes=attributes,
        kind=kind,
        start_time=times[0] + wall,
        end_time=times[1] + wall,
    )


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
