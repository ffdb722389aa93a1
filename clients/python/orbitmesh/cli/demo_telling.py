"""What the acts of the demo share: marks in a running text, stalls as a table, tokens that ought to be equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from orbitmesh.cli.generate import show_token
from orbitmesh.cli.output import Output
from orbitmesh.results import Token
from orbitmesh.trace.breakdown import DETECT, STALLS, Breakdown
from orbitmesh.trace.render import bar, format_seconds


@dataclass
class Pace:
    """How evenly tokens come, as their reader sees it."""

    arrived_s: list[float] = field(default_factory=list)
    """When each token came, on one monotonic clock, in seconds."""
    waited: set[int] = field(default_factory=set)
    """Tokens, by index, before which a wait was told."""

    def gap_s(self, index: int) -> float:
        """The time from the token before to this one, in seconds; 0 for the first."""
        return self.arrived_s[index] - self.arrived_s[index - 1] if index else 0.0

    def gaps_s(self) -> list[float]:
        """All of them but the waits, in seconds."""
        return [self.gap_s(index) for index in range(1, len(self.arrived_s)) if index not in self.waited]

    def median_s(self) -> float:
        """The median, in seconds; 0 where there are none."""
        gaps = sorted(self.gaps_s())
        return gaps[len(gaps) // 2] if gaps else 0.0

    def longest_s(self) -> float:
        """The longest, in seconds; 0 where there are none."""
        return max(self.gaps_s(), default=0.0)


class RunningText:
    """A text as it is produced, with marks where something happens to it, each on a line of its own."""

    def __init__(self, output: Output, prompt: str) -> None:
        self._output = output
        self._at_start = False
        output.piece(prompt)

    def token(self, token: Token) -> None:
        """The text goes on."""
        show_token(self._output, token)
        self._at_start = token.text.endswith("\n") or (self._at_start and not token.text)

    def mark(self, text: str) -> None:
        """Something happens."""
        self._break()
        self._output.say(f"-- {text} --", style="bold magenta")

    def end(self) -> None:
        """The text has ended."""
        self._break()

    def _break(self) -> None:
        if not self._at_start:
            self._output.piece("\n")
        self._at_start = True


def stall_table(breakdown: Breakdown) -> Table:
    """The rows in which the answer did not get on, and all others as one."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_footer=True)
    table.add_column("what", "total", no_wrap=True)
    table.add_column("time", format_seconds(breakdown.total_s), justify="right", no_wrap=True)
    table.add_column("share", "100.0%", justify="right", no_wrap=True)
    table.add_column("", overflow="crop")
    stalls = [row for row in breakdown.rows if row.what == DETECT or row.what in STALLS]
    shown = [(row.what, row.total_s) for row in stalls]
    shown.append(("all else: compute, links, queues", breakdown.total_s - sum(row.total_s for row in stalls)))
    for what, seconds in shown:
        share = seconds / breakdown.total_s if breakdown.total_s > 0 else 0.0
        table.add_row(what, format_seconds(seconds), f"{share:.1%}", bar(share))
    return table


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The index of the first token that differs."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return index
    return min(len(ours), len(theirs))


def agrees(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether one of two answers is the beginning of the other."""
    return first_difference(ours, theirs) == min(len(ours), len(theirs))
