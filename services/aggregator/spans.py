"""OpenTelemetry spans of a round: the round, each contribution with its parts, and the sum with a link to each.

Made when the round is in the weights, with the times that the aggregator saw and the training time that the node said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext

from services.aggregator.report import RoundReport, Timing
from services.aggregator.rounds import Round
from services.runtime.tracing import span_context

SERVICE = "aggregator"


def round_spans(run: str, state: Round, report: RoundReport, slice_name: str = "") -> Iterator[ReadableSpan]:
    """The spans of a round that is done, the round's own last.

    Args:
        run: The run's name.
        state: The round.
        report: Its times.
        slice_name: The slice that it was in; empty for none.
    """
    root = span_context(report.trace_id, "round")
    links = []
    for node in state.cohort:
        timing = report.timings.get(node)
        if timing is not None and node in state.stored:
            context = span_context(report.trace_id, f"contribution {node}")
            links.append(Link(context, {"orbitmesh.node": node}))
            yield from _contribution(report.trace_id, node, state, timing, context, root)
    last_ns = max([each.stored_ns for each in report.timings.values()], default=report.began_ns)
    yield _span(
        "round.sum",
        span_context(report.trace_id, "sum"),
        root,
        (min(last_ns, report.done_ns), report.done_ns),
        SERVICE,
        {"orbitmesh.contributions": len(state.stored)},
        links,
    )
    yield _span(
        "round",
        root,
        None,
        (report.began_ns, report.done_ns),
        SERVICE,
        {
            "orbitmesh.run": run,
            "orbitmesh.round": state.index,
            "orbitmesh.asked": len(state.cohort),
            "orbitmesh.contributed": len(state.stored),
            "orbitmesh.up_bytes": report.up_bytes,
            "orbitmesh.down_bytes": report.down_bytes,
            **({"orbitmesh.slice": slice_name} if slice_name else {}),
        },
    )


def _contribution(
    trace_id: str, node: str, state: Round, timing: Timing, context: SpanContext, root: SpanContext
) -> Iterator[ReadableSpan]:
    stored = state.stored[node]
    trained_ns = timing.weights_ns + int(timing.train_s * 1e9)
    parts = [
        ("weights", timing.ordered_ns, timing.weights_ns, SERVICE),
        # The node says how long it trained; where in the time between both messages is not known.
        ("train", timing.weights_ns, min(trained_ns, timing.announced_ns), node),
    ]
    attributes: dict[str, Any] = {}
    links = []
    if stored.via:
        # What was sent is with the one in whose sum it came.
        attributes["orbitmesh.via"] = stored.via
        links = [Link(span_context(trace_id, f"contribution {stored.via}"), {"orbitmesh.node": stored.via})]
    else:
        parts.append(("upload", timing.announced_ns, timing.stored_ns, node))
    if stored.others:
        attributes["orbitmesh.summed"] = tuple(sorted(stored.others))
    for name, begun, ended, place in parts:
        what = span_context(trace_id, f"{name} {node}")
        yield _span(f"contribution.{name}", what, context, (begun, max(begun, ended)), place, {"orbitmesh.node": node})
    yield _span(
        "contribution",
        context,
        root,
        (timing.ordered_ns, timing.stored_ns),
        node,
        {
            "orbitmesh.node": node,
            "orbitmesh.examples": stored.examples,
            "orbitmesh.bytes": stored.size_bytes,
            "orbitmesh.staleness": max(0, state.index - stored.begun),
            **attributes,
        },
        links,
    )


def _span(
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    times: tuple[int, int],
    service: str,
    attributes: dict[str, Any],
    links: list[Link] | None = None,
) -> ReadableSpan:
    return ReadableSpan(
        name,
        context=context,
        parent=parent,
        resource=Resource({"service.name": service}),
        attributes=attributes,
        links=links or [],
        start_time=times[0],
        end_time=times[1],
    )
