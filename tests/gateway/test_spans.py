"""Spans of a generation, read back from OpenTelemetry's own exporters."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.breakdown import breakdown
from gateway.record import RECOVER
from gateway.spans import SpanExport, spans
from orbitmesh.errors import InvalidInputError
from services.runtime.tracing import SpanSink, open_sinks, otlp_exporter
from tests.gateway.stories import Story
from tests.gateway.test_breakdown import MS, make_record

STAGES, TOKENS = 3, 5


def test_a_generation_is_one_tree_with_a_span_per_step_and_per_transfer() -> None:
    """One root; every other span is its child, in its trace, and lies within its time."""
    record, _ = make_record(3, STAGES, TOKENS, link_ns=20 * MS)
    exporter = InMemorySpanExporter()
    sink = SpanSink(exporter)
    SpanExport(sink, "gateway")(record, breakdown(record))
    sink.close()
    found = exporter.get_finished_spans()
    roots = [span for span in found if span.parent is None]
    assert [root.name for root in roots] == ["gateway.generate"]
    root = roots[0]
    assert {f"{span.context.trace_id:032x}" for span in found} == {record.trace_id}
    assert len({span.context.span_id for span in found}) == len(found)
    for span in found:
        assert span is root or span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
    names = [span.name for span in found]
    assert names.count("stage.step") == STAGES * TOKENS
    assert names.count("transfer") == (STAGES - 1) * TOKENS
    assert root.end_time - root.start_time == record.ended_ns - record.began_ns


def test_parts_of_a_step_sum_to_its_span() -> None:
    """Opening, queueing and computing fill the step."""
    record, _ = make_record(4, STAGES, TOKENS, link_ns=MS)
    for span in spans(record, breakdown(record), "gateway"):
        if span.name == "stage.step":
            parts = sum(float(span.attributes[f"orbitmesh.{part}_us"]) for part in ("open", "queue", "compute"))
            assert parts * 1e3 == pytest.approx(span.end_time - span.start_time)


def test_a_file_of_spans_has_one_json_object_a_line(tmp_path: Path) -> None:
    """The file can be read by anything that reads JSON lines."""
    record, _ = make_record(5, STAGES, TOKENS, link_ns=MS)
    with contextlib.ExitStack() as stack:
        (sink,) = open_sinks(str(tmp_path / "spans.jsonl"), "", stack)
        SpanExport(sink, "gateway")(record, breakdown(record))
    lines = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert sum(line["name"] == "gateway.generate" for line in lines) == 1


def test_no_span_holds_what_was_asked_or_answered() -> None:
    """Attributes are sizes, places and times: neither text nor token ids."""
    record, _ = make_record(6, STAGES, TOKENS, link_ns=MS)
    for span in spans(record, breakdown(record), "gateway"):
        assert all(isinstance(value, int | float | str) for value in span.attributes.values())
        assert not any("text" in key and "." not in key for key in span.attributes)


def test_a_stall_is_a_span_and_every_node_that_had_a_stage_has_its_steps() -> None:
    """A node was replaced: what both computed is told, and what was sent again left when the stall was over."""
    story = Story(7, "abc")
    story.tokens(2)
    story.run(1)
    story.unnoticed(800 * MS)
    story.stall(RECOVER, 300 * MS, "adc", replays=(1,))
    story.tokens(2)
    record = story.end()
    found = list(spans(record, breakdown(record), "gateway"))
    assert len({span.context.span_id for span in found}) == len(found)
    root = found[-1]
    assert all(span.start_time >= root.start_time and span.end_time <= root.end_time for span in found)
    stalls = [span for span in found if span.name == "generation.stall"]
    assert [dict(span.attributes) for span in stalls] == [
        {"orbitmesh.stall": RECOVER, "orbitmesh.detail": record.stalls[0].detail}
    ]
    stall = stalls[0]
    assert stall.end_time - stall.start_time == 300 * MS
    assert stall.parent.span_id == root.context.span_id
    ran = Counter(span.resource.attributes["service.name"] for span in found if span.name == "stage.step")
    assert ran == {"a": 4, "b": 2, "d": 2 + 2, "c": 4}
    again = [
        span
        for span in found
        if span.name == "transfer"
        and span.attributes["orbitmesh.link"] == "a>d"
        and span.attributes["orbitmesh.position"] == 10
    ]
    assert [span.start_time for span in again] == [stall.end_time]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans in by the collector's own protocol and keeps them."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_every_span_by_otlp() -> None:
    """A real OTLP receiver over gRPC holds the whole tree, in the trace that the client was told."""
    record, _ = make_record(8, STAGES, TOKENS, link_ns=MS)
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with contextlib.ExitStack() as stack:
            (sink,) = open_sinks("", f"http://127.0.0.1:{port}", stack)
            SpanExport(sink, "gateway")(record, breakdown(record))
    finally:
        server.stop(0).wait()
    assert {span.trace_id.hex() for span in collector.spans} == {record.trace_id}
    expected = {f"{span.context.span_id:016x}" for span in spans(record, breakdown(record), "gateway")}
    assert {span.span_id.hex() for span in collector.spans} == expected


def test_a_collector_without_the_exporter_installed_is_an_error_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(InvalidInputError, match="otlp"):
        otlp_exporter("http://127.0.0.1:4317")
