"""How a breakdown is shown."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh import Breakdown, BreakdownRow, ClockOffset
from orbitmesh.trace.breakdown import grouped
from orbitmesh.trace.render import BAR_COLUMNS, bar, format_seconds, render_text


def row(place: str, what: str, total_s: float, *, wait: bool = False, count: int = 1) -> BreakdownRow:
    return BreakdownRow(place, what, wait, total_s, count, total_s / count, total_s / 2.0)


BREAKDOWN = Breakdown(
    trace_id="ab" * 16,
    title="demo: 3 tokens in, 4 out",
    total_s=2.0,
    attributed=0.95,
    rows=(
        row("gateway", "admit", 0.1, wait=True),
        row("sat-1", "compute", 0.6, count=4),
        row("sat-1>sat-2", "link", 0.8, wait=True, count=4),
        row("sat-2", "compute", 0.3, count=4),
        row("sat-1", "send", 0.1, count=4),
        row("path", "unattributed", 0.1),
    ),
    new_tokens=4,
    token_s=(0.8, 0.4, 0.4, 0.4),
    token_attributed=(0.97, 0.94, 0.95, 0.95),
    clock_offsets=(ClockOffset("sat-1", 0.001, 0.0202),),
    incomplete=True,
)


def test_the_sums_are_those_of_the_rows() -> None:
    """Sum, waiting, unattributed and a place's time are plain sums."""
    assert BREAKDOWN.sum_s == pytest.approx(2.0)
    assert BREAKDOWN.waiting_s == pytest.approx(0.9)
    assert BREAKDOWN.unattributed_s == pytest.approx(0.1)
    assert BREAKDOWN.place_s("sat-1") == pytest.approx(0.7)
    assert BREAKDOWN.places == ("gateway", "sat-1", "sat-1>sat-2", "sat-2", "path")


def test_a_place_is_shown_once_with_all_its_rows_in_path_order() -> None:
    """A node that the path names twice is one group, at its first place."""
    places = [(place, [each.what for each in rows]) for place, rows in grouped(BREAKDOWN.rows)]
    assert places == [
        ("gateway", ["admit"]),
        ("sat-1", ["compute", "send"]),
        ("sat-1>sat-2", ["link"]),
        ("sat-2", ["compute"]),
        ("path", ["unattributed"]),
    ]


def test_the_text_shows_every_row_the_total_and_what_is_unknown() -> None:
    """`str` shows rows with their numbers whole, bars, the total, and says what it does not know."""
    text = str(BREAKDOWN)
    for words in (
        "demo: 3 tokens in, 4 out",
        "ab" * 16,
        "600.0 ms",
        "30.0%",
        "unattributed",
        "2.00 s",
        "100.0%",
        "95.0% attributed",
        "median 400.0 ms",
        "least attributed 94.0%",
        "to 20.2 ms at the worst",
        "incomplete",
    ):
        assert words in text, words
    assert "…" not in text
    line = next(line for line in text.splitlines() if "sat-1>sat-2" in line)
    assert line.endswith(bar(0.4))
    assert all(len(line) <= 100 for line in text.splitlines())


def test_an_empty_breakdown_prints() -> None:
    """No rows, no tokens, no time: still a table, no division by zero."""
    empty = Breakdown(trace_id="0" * 32, title="nothing", total_s=0.0, attributed=0.0, rows=())
    assert "nothing" in str(empty)


def test_a_narrow_terminal_loses_bars_before_numbers() -> None:
    """On 72 columns every number is still whole."""
    text = render_text(dataclasses.replace(BREAKDOWN, incomplete=False), columns=72)
    assert "600.0 ms" in text
    assert "150.0 ms" in text


@given(st.floats(-1, 3), st.integers(1, 60))
def test_a_bar_never_overflows_and_grows_with_its_share(share: float, columns: int) -> None:
    """Its length is the share of the columns to an eighth, cut off at both ends; something is never
    nothing."""
    drawn = bar(share, columns)
    assert len(drawn) <= columns
    assert (drawn == "") == (share <= 0)
    eighths = drawn.count("█") * 8 + (" ▏▎▍▌▋▊▉".index(drawn[-1]) if drawn and drawn[-1] != "█" else 0)
    assert abs(eighths - min(max(share, 0), 1) * columns * 8) <= 1
    assert bar(1.0) == "█" * BAR_COLUMNS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (2e-9, "2 ns"),
        (1.5e-6, "1.50 µs"),
        (0.0213, "21.3 ms"),
        (0.9994, "999.4 ms"),
        (12.34, "12.3 s"),
    ],
)
def test_times_take_the_unit_that_suits_them(seconds: float, text: str) -> None:
    """From nanoseconds to seconds."""
    assert format_seconds(seconds) == text
