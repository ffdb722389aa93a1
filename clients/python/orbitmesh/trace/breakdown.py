"""Where the time of one path went, as values. Pure: no gRPC, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

UNATTRIBUTED = "unattributed"
"""The `what` of the row that holds the time nothing could be said about."""
UNREPORTED = "unreported"
"""The `what` of the row of a lost node that took its timings with it."""
DETECT = "detect"
"""The `what` of the row that holds the time until stalls were noticed."""
RECOVER = "recover"
"""The `what` of a stall in which stages were stopped, a node replaced and its rows computed again."""
WAITING_FOR_CONTACT = "waiting for contact"
"""The `what` of a stall in which no path existed."""
HAND_OVER = "hand over"
"""The `what` of a stall for a planned move that could not be made without stopping."""
RULED = "waiting: "
"""The `what` of the rows of what a rule of slices held back begins so; the rule follows, for people."""
STALLS = (RECOVER, WAITING_FOR_CONTACT, HAND_OVER)
"""The `what` of the rows in which a generation did not get on."""


@dataclass(frozen=True)
class BreakdownRow:
    """One row of a breakdown.

    Example:
        >>> row = mesh.explain().rows[0]
        >>> f"{row.place} {row.what} {row.total_s * 1e3:.1f} ms"
        'gateway admit 1.9 ms'
    """

    place: str
    """Where: a node, a link `a>b`, the gateway."""
    what: str
    """admit, queue, compute, codec, seal, credit, send, link, open or deliver; detect, recover, waiting for contact or
    hand over where it stalled; "waiting: " and a rule of slices where one held it back; unreported or unattributed
    where nobody told."""
    wait: bool
    """True for waiting, false for work."""
    total_s: float
    """The time of all occurrences, in seconds."""
    count: int
    """How many times it happened."""
    median_s: float
    """The median of one occurrence, in seconds."""
    share: float
    """Its share of the whole, from 0 to 1."""


@dataclass(frozen=True)
class ClockOffset:
    """How far a node's monotonic clock is from the gateway's.

    Example:
        >>> mesh.explain().clock_offsets[0].node
        'sat-1'
    """

    node: str
    """The node."""
    offset_s: float
    """Its clock minus the gateway's, in seconds."""
    uncertainty_s: float
    """Half of the round trip it was estimated from, in seconds: the most it can be wrong by."""


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one generation went, row by row, summing to the total. `print` it for a table with
    bars.

    Example:
        >>> breakdown = mesh.explain(generation.trace_id)
        >>> print(breakdown)
        >>> breakdown.attributed > 0.95
        True
    """

    trace_id: str
    """The trace, 32 hex digits."""
    title: str
    """What it was: the deployment's name and the numbers of tokens."""
    total_s: float
    """From the request to the last token, in seconds."""
    attributed: float
    """The part of the total that has a name, from 0 to 1."""
    rows: tuple[BreakdownRow, ...]
    """The rows, in order of the path."""
    new_tokens: int = 0
    """Tokens produced."""
    token_s: tuple[float, ...] = ()
    """The wall time of each token, in seconds: from the token before (for the first: from the request)."""
    token_attributed: tuple[float, ...] = ()
    """The attributed part of each token's wall time, from 0 to 1, in order."""
    clock_offsets: tuple[ClockOffset, ...] = ()
    """The clock offsets that were used to split round trips."""
    started_at: datetime | None = None
    """When it began, in UTC."""
    incomplete: bool = False
    """True when a stage's timings never came home: rows `unreported` or `unattributed` hold its time."""
    slice: str = ""
    """The slice that it was in; empty for none."""
    error_reason: str = ""
    """Why it ended before its last token, or was refused: a reason such as `SLICE_FULL`; empty where it was not."""
    error: str = ""
    """The same for people."""

    @property
    def places(self) -> tuple[str, ...]:
        """The places, in order of the path, each once."""
        return tuple(dict.fromkeys(row.place for row in self.rows))

    @property
    def sum_s(self) -> float:
        """The sum of all rows, in seconds; equals `total_s` within 1 %."""
        return math.fsum(row.total_s for row in self.rows)

    @property
    def unattributed_s(self) -> float:
        """The time nothing could be said about, in seconds."""
        return math.fsum(row.total_s for row in self.rows if row.what == UNATTRIBUTED)

    @property
    def stalled_s(self) -> float:
        """The time in which it did not get on, the time until that was noticed included, in seconds.

        Example:
            >>> breakdown.stalled_s
            1.31
        """
        return math.fsum(row.total_s for row in self.rows if row.what == DETECT or row.what in STALLS)

    @property
    def waiting_s(self) -> float:
        """The time spent waiting, in seconds."""
        return math.fsum(row.total_s for row in self.rows if row.wait)

    def place_s(self, place: str) -> float:
        """The time of one place, in seconds.

        Example:
            >>> breakdown.place_s("sat-1>sat-2")
            0.64
        """
        return math.fsum(row.total_s for row in self.rows if row.place == place)

    def __str__(self) -> str:
        """A table with bars, for a terminal of 100 columns, without colour."""
        from orbitmesh.trace.render import render_text

        return render_text(self)


def grouped(rows: Iterable[BreakdownRow]) -> tuple[tuple[str, tuple[BreakdownRow, ...]], ...]:
    """The rows by place, places in order of their first row: a path may name a place twice, a table shows it
    once."""
    listed = list(rows)
    order = {place: index for index, place in enumerate(dict.fromkeys(row.place for row in listed))}
    ordered = sorted(listed, key=lambda row: order[row.place])
    return tuple((place, tuple(group)) for place, group in groupby(ordered, key=lambda row: row.place))
