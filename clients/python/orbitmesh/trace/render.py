"""A breakdown as a table with bars, for a terminal."""

from __future__ import annotations

import io
from math import floor

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orbitmesh.trace.breakdown import (
    DETECT,
    RULED,
    STALLS,
    UNATTRIBUTED,
    UNREPORTED,
    WAITING_FOR_CONTACT,
    Breakdown,
    BreakdownRow,
    grouped,
)

BAR_COLUMNS = 24
"""The width of a bar of 100 %, in columns."""
TEXT_COLUMNS = 100
"""The width of the plain text, in columns."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_WORK, _WAIT, _STALL, _UNKNOWN = "cyan", "yellow", "magenta", "red"


def format_seconds(seconds: float) -> str:
    """A time with three or four digits and the unit that suits it.

    Example:
        >>> format_seconds(0.0213)
        '21.3 ms'
    """
    for scale, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(seconds) * scale >= 1.0:
            return (
                f"{seconds * scale:.2f} {unit}"
                if abs(seconds) * scale < 10
                else f"{seconds * scale:.1f} {unit}"
            )
    return "0" if seconds == 0 else f"{seconds * 1e9:.0f} ns"


def bar(share: float, columns: int = BAR_COLUMNS) -> str:
    """A bar of `share` (0 to 1, cut off at both ends) of `columns`, to an eighth of a column.

    Something that is not nothing always shows: a share above 0 draws at least an eighth.
    """
    eighths = max(0, min(columns * 8, floor(share * columns * 8 + 0.5)))
    if eighths == 0 and share > 0:
        eighths = 1
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def breakdown_table(breakdown: Breakdown) -> Table:
    """The rows grouped by place, with bars, and the total that they sum to."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_footer=True)
    table.add_column("where", "total", no_wrap=True, style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("time", format_seconds(breakdown.sum_s), justify="right", no_wrap=True)
    table.add_column("share", f"{_sum_share(breakdown):.1%}", justify="right", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    # The one column that a narrow terminal may cut.
    table.add_column("", overflow="crop")
    for place, rows in grouped(breakdown.rows):
        for index, row in enumerate(rows):
            table.add_row(
                place if index == 0 else "",
                _what(row),
                format_seconds(row.total_s),
                f"{row.share:.1%}",
                str(row.count),
                format_seconds(row.median_s),
                Text(bar(row.share), style=_style(row)),
            )
    return table


def breakdown_view(breakdown: Breakdown) -> RenderableType:
    """The whole view: title, table, and what to know about it."""
    head = Text(f"{breakdown.title}  trace {breakdown.trace_id}", style="bold")
    return Group(head, breakdown_table(breakdown), *(Text(line, style="dim") for line in _notes(breakdown)))


def render_text(breakdown: Breakdown, columns: int = TEXT_COLUMNS) -> str:
    """The view as plain text without colour."""
    console = Console(
        file=io.StringIO(), width=columns, force_terminal=False, color_system=None, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(breakdown_view(breakdown))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _what(row: BreakdownRow) -> Text:
    unusual = _style(row) in (_STALL, _UNKNOWN)
    says_so = not row.wait or row.what == WAITING_FOR_CONTACT or row.what.startswith(RULED)
    return Text(row.what if says_so else f"{row.what} (wait)", style=_style(row) if unusual else "")


def _style(row: BreakdownRow) -> str:
    if row.what in (UNATTRIBUTED, UNREPORTED):
        return _UNKNOWN
    if row.what == DETECT or row.what in STALLS:
        return _STALL
    return _WAIT if row.wait else _WORK


def _sum_share(breakdown: Breakdown) -> float:
    return breakdown.sum_s / breakdown.total_s if breakdown.total_s > 0 else 0.0


def _notes(breakdown: Breakdown) -> list[str]:
    waiting = breakdown.waiting_s / breakdown.total_s if breakdown.total_s > 0 else 0.0
    summary = (
        f"{format_seconds(breakdown.total_s)} end to end, {breakdown.attributed:.1%} attributed, "
        f"{format_seconds(breakdown.unattributed_s)} unattributed, {waiting:.0%} waiting"
    )
    notes = [f"ended by {breakdown.error_reason}: {breakdown.error}"] if breakdown.error_reason else []
    notes += [summary, *_stalls(breakdown)]
    if breakdown.slice:
        notes.append(f"in slice {breakdown.slice}")
    if breakdown.token_s:
        ordered = sorted(breakdown.token_s)
        notes.append(
            f"{breakdown.new_tokens} tokens: median {format_seconds(ordered[len(ordered) // 2])}, "
            f"slowest {format_seconds(ordered[-1])}"
            + (
                f", least attributed {min(breakdown.token_attributed):.1%}"
                if breakdown.token_attributed
                else ""
            )
        )
    if breakdown.clock_offsets:
        worst = max(offset.uncertainty_s for offset in breakdown.clock_offsets)
        notes.append(
            f"clocks of {len(breakdown.clock_offsets)} nodes compared, to {format_seconds(worst)} at the "
            "worst"
        )
    if breakdown.incomplete:
        notes.append(
            "incomplete: the timings of at least one stage never came home; its time shows as "
            "unreported or unattributed"
        )
    return notes


def _stalls(breakdown: Breakdown) -> list[str]:
    """What held the generation up, in a line."""
    if not breakdown.stalled_s:
        return []
    parts = [
        f"{row.what} {format_seconds(row.total_s)}" + (f" ({row.count} times)" if row.count > 1 else "")
        for row in breakdown.rows
        if row.what in STALLS
    ]
    noticed = sum(row.total_s for row in breakdown.rows if row.what == DETECT)
    parts += [f"noticed after {format_seconds(noticed)}"] if noticed else []
    return [f"stalled for {format_seconds(breakdown.stalled_s)}: {', '.join(parts)}"]
