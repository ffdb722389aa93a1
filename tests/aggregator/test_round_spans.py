"""A round's trace: one tree, the parts of every contribution in it, and a link from the sum to each."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from services.aggregator.report import RoundReport, Timing, report_from, round_message
from services.aggregator.rounds import Round, Stored
from services.aggregator.spans import round_spans

S = 1_000_000_000
NODES = ("sat-1", "sat-2", "sat-3")


def story() -> tuple[Round, RoundReport]:
    stored = {node: Stored(f"{number:064x}", 100 * (number + 1), 2000) for number, node in enumerate(NODES[:2])}
    state = Round(4, NODES, 2, 5.0, stored=MappingProxyType(stored), done=True)
    timings = {
        "sat-1": Timing(1 * S, 2 * S, 5 * S, 6 * S, 2.5),
        "sat-2": Timing(1 * S, 3 * S, 8 * S, 9 * S, 5.0),
        "sat-3": Timing(1 * S, 3 * S, 8 * S, 9 * S, 5.0),
    }
    return state, RoundReport(trace_id="ab" * 16, began_ns=1 * S, done_ns=10 * S, timings=timings, sum_s=1.0)


def test_it_is_one_tree_with_the_parts_of_each_contribution_that_counts() -> None:
    """Every span lies in its parent, in the round's trace; a node that was not counted has none."""
    made = list(round_spans("r", *story()))
    spans = {f"{span.name} {(span.attributes or {}).get('orbitmesh.node', '')}": span for span in made}
    root = spans["round "]
    assert root.parent is None and (root.start_time, root.end_time) == (1 * S, 10 * S)
    by_id = {span.context.span_id: span for span in spans.values()}
    assert len(by_id) == len(spans) == 2 + 2 * 4
    for span in spans.values():
        assert f"{span.context.trace_id:032x}" == "ab" * 16
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time
    train = spans["contribution.train sat-1"]
    assert train.end_time - train.start_time == int(2.5 * S)
    links = {link.context.span_id for link in spans["round.sum "].links}
    assert links == {spans[f"contribution {node}"].context.span_id for node in NODES[:2]}


def test_what_came_in_a_sum_has_no_upload_of_its_own_and_points_to_the_sum() -> None:
    """The head's upload says who is in it."""
    state, report = story()
    stored = {**Stored("0" * 64, 100, 2000, others={"sat-2": 300}).parts("sat-1")}
    made = list(round_spans("r", replace(state, stored=MappingProxyType(stored)), report))
    spans = {f"{span.name} {(span.attributes or {}).get('orbitmesh.node', '')}": span for span in made}
    head, member = spans["contribution sat-1"], spans["contribution sat-2"]
    assert (head.attributes or {})["orbitmesh.summed"] == ("sat-2",)
    assert (member.attributes or {})["orbitmesh.via"] == "sat-1"
    assert [link.context.span_id for link in member.links] == [head.context.span_id]
    assert "contribution.upload sat-1" in spans and "contribution.upload sat-2" not in spans
    told = round_message(replace(state, stored=MappingProxyType(stored)), report).contributions
    assert [(each.node, each.via, each.size_bytes, each.examples) for each in told] == [
        ("sat-1", "", 2000, 100), ("sat-2", "sat-1", 0, 300),
    ]  # fmt: skip


def test_the_same_times_are_told_in_seconds() -> None:
    """From the order to the sum, contribution by contribution; also after they were written down."""
    state, report = story()
    for told in (report, report_from(report.to_json())):
        message = round_message(state, told)
        assert [each.node for each in message.contributions] == ["sat-1", "sat-2"]
        first = message.contributions[0]
        assert (first.down_s, first.train_s, first.wait_s, first.up_s) == (1.0, 2.5, 0.5, 1.0)
        assert message.sum_s == 1.0 and message.trace_id == "ab" * 16
