"""Slices as they are used: a table that is redrawn on a terminal, and one for each change elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orbitmesh import Mesh
from orbitmesh.cli.output import INTERRUPTED, OK, Output, size
from orbitmesh.cli.slices_view import PERCENTILES, budget, document, wait
from orbitmesh.errors import InvalidInputError
from orbitmesh.slice_results import Slice, SlicesOverview
from orbitmesh.trace.render import format_seconds

WINDOW_S = 10.0
"""Over how long rates are measured, in seconds."""
DRAWS_PER_S = 2
"""How often the table is redrawn: rates fall also while nothing is told."""
FRAME_LINES = 9
"""Lines of what is redrawn that are no slices."""
ROWS_MIN = 3
"""How many slices are shown on a terminal however low."""
QUIET_S = 5.0
"""After so long without news it is said how old they are, in seconds."""


@dataclass(frozen=True)
class Rate:
    """What a slice does now, in bytes per second."""

    offered: float
    """What senders want to send."""
    sent: float
    """What is sent."""


class Rates:
    """Rates from counts: over the last seconds, as far back as was heard."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._heard: dict[str, deque[tuple[float, int, int]]] = {}

    def note(self, now_s: float, overview: SlicesOverview) -> None:
        """Takes what was told.

        Args:
            now_s: When, in seconds of a clock that does not go back.
            overview: What was told: all slices.
        """
        for gone in self._heard.keys() - {each.name for each in overview.slices}:
            del self._heard[gone]
        for each in overview.slices:
            counted = each.traffic
            heard = self._heard.setdefault(each.name, deque())
            if heard and (counted.offered_bytes < heard[-1][1] or counted.sent_bytes < heard[-1][2]):
                heard.clear()  # it was released and is another one by the same name
            heard.append((now_s, counted.offered_bytes, counted.sent_bytes))
            # One that is older than the window stays: it is where the window begins.
            while len(heard) > 1 and heard[1][0] <= now_s - self._window_s:
                heard.popleft()

    def of(self, name: str, now_s: float) -> Rate | None:
        """The rates of a slice at a moment; None before there is anything to compare with."""
        heard = self._heard.get(name)
        if not heard:
            return None
        begin = heard[0]
        for each in heard:
            if each[0] <= now_s - self._window_s:
                begin = each
        seconds = min(now_s - begin[0], self._window_s) if begin[0] < now_s else 0.0
        if seconds <= 0:
            return None
        last = heard[-1]
        return Rate((last[1] - begin[1]) / seconds, (last[2] - begin[2]) / seconds)


def top(output: Output, mesh: Mesh, node: str, *, once: bool) -> int:
    """Follows the slices until Ctrl-C, or shows them once, and returns the exit code.

    Raises:
        MeshError: The mesh could not be reached for long.
    """
    redrawn = not once and not output.as_json and output.console.is_terminal
    view: _Tables | _Redrawn = _Redrawn(output) if redrawn else _Tables(output)
    try:
        with view, contextlib.closing(_overviews(mesh)) as overviews:
            for told in overviews:
                overview = told if not node else _on(node, told)
                output.document(
                    {"event": "update", "slices": [document(each) for each in overview.slices], "etag": overview.etag}
                )
                view.show(overview)
                if once:
                    return OK
    except KeyboardInterrupt:
        output.document({"event": "interrupted"})
        return INTERRUPTED
    return OK


def traffic_table(
    slices: Mapping[str, Slice], rates: Mapping[str, Rate | None] | None, more: int = 0
) -> Table:
    """One row for each slice: what is offered and sent, now or since it became active, and how its promise was kept.

    Args:
        slices: The slices, by name.
        rates: Their rates, by name; None shows the sums.
        more: How many slices are not shown.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    unit = "" if rates is None else "\nbit/s"
    table.add_column("slice", no_wrap=True, overflow="ellipsis")
    for name in (f"offered{unit}", f"sent{unit}", "dropped", *PERCENTILES, "late", "budget"):
        table.add_column(name, no_wrap=True, justify="right")
    for name, each in slices.items():
        counted = each.traffic
        if rates is None:
            offered, sent = size(counted.offered_bytes), size(counted.sent_bytes)
        else:
            now = rates.get(name)
            offered, sent = ("-", "-") if now is None else (bits(now.offered), bits(now.sent))
        table.add_row(
            name if each.state == "active" else f"[dim]{name}[/]",
            offered,
            sent,
            size(counted.dropped_bytes) if counted.dropped_bytes else "0",
            *(wait(counted.wait_s(part)) for part in PERCENTILES.values()),
            str(counted.violations),
            budget(each.error_budget_left),
        )
    if more:
        table.caption = f"and {more} more"
    return table


def bits(bytes_per_s: float) -> str:
    """A rate in bits per second, in the unit that suits it.

    Example:
        >>> bits(25e6)
        '200 M'
    """
    rate = bytes_per_s * 8
    for unit in ("", " k", " M"):
        if rate < 999.5:
            return f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g} G"


def _overviews(mesh: Mesh) -> Generator[SlicesOverview, None, None]:
    yield from mesh.slices.watch()


def _on(node: str, told: SlicesOverview) -> SlicesOverview:
    """Only the slices of a node; the mesh itself would then leave out what was measured.

    Raises:
        InvalidInputError: There is no such node.
    """
    if all(each.name != node for each in told.nodes):
        raise InvalidInputError(
            f"there is no node {node[:80]!r}; the nodes are {', '.join(each.name for each in told.nodes) or 'none'}",
            reason="NOT_FOUND",
        )
    slices = tuple(each for each in told.slices if any(part.node == node for part in each.allocations))
    return dataclasses.replace(told, slices=slices)


def _in_need_first(each: Slice) -> tuple[float, int]:
    left = each.error_budget_left
    return (math.inf if left is None else left, -each.traffic.offered_bytes)


class _Tables:
    """A table for each change, below each other."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *ended: object) -> None:
        return None

    def show(self, overview: SlicesOverview) -> None:
        """Shows how they are now."""
        if not overview.slices:
            self._output.say(_NONE)
        else:
            self._output.view(traffic_table({each.name: each for each in overview.slices}, None))


class _Redrawn:
    """The slices in place; those that are in need stay when not all fit."""

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = output.console
        self._clock = clock
        self._rates = Rates()
        self._lock = threading.Lock()
        self._heard: tuple[float, SlicesOverview] | None = None
        self._live = Live(
            console=output.console, get_renderable=self.drawn, refresh_per_second=DRAWS_PER_S, transient=False
        )

    def __enter__(self) -> _Redrawn:
        self._live.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._live.stop()

    def show(self, overview: SlicesOverview) -> None:
        """Takes how they are now; it is drawn with the next frame."""
        with self._lock:
            now_s = self._clock()
            self._rates.note(now_s, overview)
            self._heard = (now_s, overview)

    def drawn(self) -> RenderableType:
        """A frame; called from the thread that draws."""
        with self._lock:
            if self._heard is None:
                return Text("waiting for the first news", style="dim")
            heard_s, overview = self._heard
            now_s = self._clock()
            rates = {each.name: self._rates.of(each.name, now_s) for each in overview.slices}
        if not overview.slices:
            return Text(_NONE)
        room = max(ROWS_MIN, self._console.size.height - FRAME_LINES)
        shown = {each.name for each in sorted(overview.slices, key=_in_need_first)[:room]}
        slices = {each.name: each for each in overview.slices if each.name in shown}
        active = sum(each.state == "active" for each in overview.slices)
        work = sum(each.admitted for each in overview.slices)
        head = f"{active} of {len(overview.slices)} slices active, {work} pieces of work"
        if now_s - heard_s >= QUIET_S:
            head += f"; no news for {format_seconds(now_s - heard_s)}"
        return Group(
            Text(head, no_wrap=True, overflow="ellipsis"),
            traffic_table(slices, rates, len(overview.slices) - len(slices)),
            Text("waits at most so long; late: frames beyond the slice's latency; Ctrl-C ends", style="dim",
                 no_wrap=True, overflow="ellipsis"),
        )  # fmt: skip


_NONE = "no slices here; define one with `orbitmesh slices define`"
