"""What a gateway remembers of generations that ended and of those that were refused."""

from __future__ import annotations

import pytest

from gateway.record import GenerationRecord
from gateway.traces import REFUSALS_KEPT, Traces
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import TRACES_KEPT


def record(number: int, *, refused: bool = False) -> GenerationRecord:
    reason, error = ("SLICE_FULL", "the slice is full") if refused else ("", "")
    return GenerationRecord(
        f"{number:032x}", "demo", [], 4, began_ns=1_000, began_at_ns=1, ended_ns=3_000, slice="cam",
        error_reason=reason, error=error,
    )  # fmt: skip


def test_a_flood_of_refusals_takes_no_place_from_generations_that_ran() -> None:
    """The last of each kind are remembered, as many as the bound says, and each says how it ended."""
    traces = Traces()
    traces.add(record(1))
    for number in range(10_000, 10_000 + 2 * TRACES_KEPT):
        traces.refused(record(number, refused=True))
    assert traces.explain(f"{1:032x}").error_reason == ""
    last = traces.explain(f"{10_000 + 2 * TRACES_KEPT - 1:032x}")
    assert (last.slice, last.error_reason, last.error) == ("cam", "SLICE_FULL", "the slice is full")
    assert last.total_s == pytest.approx(2e-6)
    gone = 10_000 + 2 * TRACES_KEPT - REFUSALS_KEPT - 1
    with pytest.raises(InvalidInputError, match="not remembered"):
        traces.explain(f"{gone:032x}")
    assert traces.explain(f"{gone + 1:032x}").error_reason == "SLICE_FULL"


def test_the_last_trace_is_of_a_generation_that_ran() -> None:
    """Who asks for the last one without a number wants to know where the time of an answer went."""
    traces = Traces()
    traces.refused(record(2, refused=True))
    with pytest.raises(InvalidInputError, match="not finished a generation"):
        traces.explain("")
    traces.add(record(3))
    traces.refused(record(4, refused=True))
    assert traces.explain("").trace_id == f"{3:032x}"
