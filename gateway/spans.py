"""OpenTelemetry spans from the record of a generation: its request, every stage's step, every transfer between stages.

The timings come home with the generation's end, so the spans are made then, with the times that were measured, on the
gateway's clock; nothing is exported from a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind

from gateway.ledger import GATEWAY, Step
from gateway.record import GenerationRecord
from gateway.ways import clock_slack_ns, executions
from orbitmesh.v1 import gateway_pb2
from services.runtime.tracing import SpanSink, span_context

SPANS_MAX = 4096
"""How many spans one generation makes at the most; later steps are left out and the request's span says so."""


class SpanExport:
    """Makes the spans of every generation.

    Args:
        sink: Where they go.
        gateway: The gateway's name, for the resource of its own span.
    """

    def __init__(self, sink: SpanSink, gateway: str) -> None:
        self._sink = sink
        self._gateway = gateway

    def __call__(self, record: GenerationRecord, breakdown: gateway_pb2.Breakdown) -> None:
        """Queues the spans of one generation; never waits for the exporter."""
        self._sink.put(spans(record, breakdown, self._gateway))


def spans(record: GenerationRecord, breakdown: gateway_pb2.Breakdown, gateway: str) -> Iterator[ReadableSpan]:
    """The spans of one generation, the request's last."""
    root = _context(record, "request")
    children = list(_children(record, root))
    end = record.last_ns
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
            **({"orbitmesh.slice": record.slice} if record.slice else {}),
            **({"error.type": record.error_reason} if record.error_reason else {}),
            "orbitmesh.spans_left_out": max(0, len(children) - SPANS_MAX),
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": record.deployment,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": len(record.arrived_ns),
        },
    )


def _children(record: GenerationRecord, root: SpanContext) -> Iterator[ReadableSpan]:
    if record.admitted_ns:
        times = (record.began_ns, record.admitted_ns)
        yield _span(record, "gateway.admit", _context(record, "admit"), root, times, GATEWAY)
    for number, stall in enumerate(record.stalls):
        yield _span(
            record,
            "generation.stall",
            _context(record, f"stall {number}"),
            root,
            (stall.began_ns, stall.ended_ns),
            GATEWAY,
            attributes={"orbitmesh.stall": stall.what, "orbitmesh.detail": stall.detail},
        )
    ran = _runs(record)
    for number, run in enumerate(ran):
        yield _step(record, root, number, run)
    for number, (sender, receiver) in enumerate(_sent(record, ran)):
        yield _transfer(record, root, number, sender, receiver)


@dataclass(frozen=True, slots=True)
class _Run:
    """One step somewhere."""

    stage: int
    """The stage's place."""
    node: str
    """Where it ran."""
    position: int
    """The position of its last row."""
    step: Step
    """When, on the gateway's clock."""


def _runs(record: GenerationRecord) -> list[_Run]:
    """Every step of every stage on every node, by the stage's place, the position and the time."""
    runs = [
        _Run(index, node, position, step)
        for (index, node), positions in executions(record).items()
        for position, steps in positions.items()
        for step in steps
    ]
    return sorted(runs, key=lambda run: (run.stage, run.position, run.step.received))


def _sent(record: GenerationRecord, runs: list[_Run]) -> Iterator[tuple[_Run, _Run]]:
    """Who sent each step's rows to it: the last one before it that had them. A journal sends without computing again,
    so one step may have sent to several."""
    slack_ns = clock_slack_ns(record, max([record.began_ns, *(run.step.ended for run in runs)]))
    ran: dict[tuple[int, int], list[_Run]] = {}
    for run in runs:
        ran.setdefault((run.stage, run.position), []).append(run)
    for run in runs:
        senders = ran.get((run.stage - 1, run.position), [])
        before = [sender for sender in senders if sender.step.ended <= run.step.received + slack_ns]
        if before or len(senders) == 1:
            yield (before or senders)[-1], run


def _step(record: GenerationRecord, root: SpanContext, number: int, run: _Run) -> ReadableSpan:
    step = run.step
    return _span(
        record,
        "stage.step",
        _context(record, f"step {number}"),
        root,
        (step.received, step.ended),
        run.node,
        attributes={
            "orbitmesh.stage": run.stage,
            "orbitmesh.position": run.position,
            "orbitmesh.open_us": (step.opened - step.received) / 1e3,
            "orbitmesh.queue_us": (step.started - step.opened) / 1e3,
            "orbitmesh.compute_us": (step.ended - step.started) / 1e3,
        },
    )


def _transfer(record: GenerationRecord, root: SpanContext, number: int, sender: _Run, receiver: _Run) -> ReadableSpan:
    step, received = sender.step, receiver.step.received
    # What was sent again from a journal left after the stall in which it was asked for.
    left = max([step.ended, *(stall.ended_ns for stall in record.stalls if step.ended < stall.ended_ns <= received)])
    return _span(
        record,
        "transfer",
        _context(record, f"transfer {number}"),
        root,
        (left, max(left, received)),
        sender.node,
        SpanKind.PRODUCER,
        {
            "orbitmesh.link": f"{sender.node}>{receiver.node}",
            "orbitmesh.position": receiver.position,
            "orbitmesh.codec_us": step.codec / 1e3,
            "orbitmesh.seal_us": step.seal / 1e3,
            "orbitmesh.credit_us": step.credit / 1e3,
        },
    )


def _context(record: GenerationRecord, what: str) -> SpanContext:
    return span_context(record.trace_id, what)


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

