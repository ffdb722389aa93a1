"""What the commands say: a view for people or JSON for machines, and errors in one shape."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from orbitmesh.errors import (
    AuthError,
    CapacityError,
    DeadlineError,
    IdentityError,
    InfeasiblePlanError,
    InternalError,
    InvalidInputError,
    MeshError,
    NodeLostError,
    PackError,
    TransportError,
    UnknownModelError,
)
from orbitmesh.results import OnProgress, Progress

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""The exit codes: done; the mesh or its answer says no; the command line is wrong; Ctrl-C."""

PLAIN_COLUMNS = 120
"""The width of what is not written to a terminal, in columns."""

# The most specific class that fits gives the advice; the order is from special to general.
_ADVICE: tuple[tuple[type[MeshError], str], ...] = (
    (UnknownModelError, "see what there is with `orbitmesh status`, or deploy it with `orbitmesh deploy`"),
    (
        IdentityError,
        "look at the identity with `orbitmesh pki show`; make or renew it with `orbitmesh pki issue`",
    ),
    (AuthError, "use an identity of a role that may do this: `--identity DIR`"),
    (PackError, "build the pack anew with `orbitmesh model pack`, or sign it with `orbitmesh model sign`"),
    (CapacityError, "wait for other generations to end, or deploy with fewer `--kv-tokens` or more nodes"),
    (InfeasiblePlanError, "see the nodes with `orbitmesh nodes`; allow more of them or ask for other stages"),
    (DeadlineError, "allow more time with `--timeout SECONDS`"),
    (NodeLostError, "see which node is gone with `orbitmesh nodes`; start it again, or deploy again without it"),
    (TransportError, "check that the mesh runs (`orbitmesh status`) and retry"),
    (InvalidInputError, "see the options with `--help`"),
    (InternalError, "this is a defect of orbitmesh; please report it with the trace"),
)

_ADVICE_BY_REASON = {
    "ALREADY_EXISTS": "take another name, or remove what is there first (`orbitmesh delete`, `orbitmesh train delete`, "
    "`orbitmesh slices release`, `orbitmesh down`)",
    "NOT_FOUND": "take a name that the message, `orbitmesh status`, `orbitmesh train status` or "
    "`orbitmesh slices list` lists",
    "FAILED_PRECONDITION": "see to what the message names, then retry",
    "SLICES_INFEASIBLE": "give what the message names, or promise less; `slices optimize --what-if FILE` shows "
    "what other nodes or slices would do",
    "LATENCY_BELOW_FLOOR": "allow at least the floor that the message names, or let nodes nearer to its place serve it",
    "SLICE_FULL": "wait until work in the slice has ended, or give it more with `orbitmesh slices resize`",
    "SLICE_IN_USE": "wait until the work in it has ended, or let it end with that: `orbitmesh slices release --drain`",
    "SLICE_NOT_YOURS": "take a name that `orbitmesh slices list` shows, or an identity of its tenant or of an operator",
    "STALE_ETAG": "somebody else has changed it meanwhile: look again (`orbitmesh slices list`), then decide anew",
}


def plain(value: Any) -> Any:
    """The value as JSON knows it: dataclasses as objects, ranges as [first, one past the last], times in ISO
    8601, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, range):
        return [value.start, value.stop]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def advice(error: MeshError) -> str:
    """What to do about an error."""
    if error.reason in _ADVICE_BY_REASON:
        return _ADVICE_BY_REASON[error.reason]
    return next((text for kind, text in _ADVICE if isinstance(error, kind)), "retry")


def error_document(error: MeshError) -> dict[str, Any]:
    """An error as JSON knows it."""
    return {
        "error": {
            "reason": error.reason,
            "message": error.message,
            "advice": advice(error),
            "metadata": error.metadata,
            "retryable": error.retryable,
            "trace_id": error.trace_id,
        }
    }


class Output:
    """Where a command writes: JSON to stdout with `--json`, else a view to stdout and progress and errors to
    stderr."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _console(sys.stdout)
        self.errors = _console(sys.stderr)

    def document(self, value: Any) -> None:
        """With `--json`, writes one JSON value as one line."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
            sys.stdout.flush()

    def view(self, renderable: RenderableType) -> None:
        """Without `--json`, shows something."""
        if not self.as_json:
            self.console.print(renderable)

    def say(self, text: str, style: str = "") -> None:
        """Without `--json`, writes a line of text as it is."""
        if not self.as_json:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def piece(self, text: str) -> None:
        """Without `--json`, writes a piece of a stream at once: no markup, no wrapping, no newline."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def error(self, error: MeshError) -> None:
        """Says what was wrong: as JSON on stdout with `--json`, else as one block on stderr."""
        if self.as_json:
            self.document(error_document(error))
            return
        lines = [f"error: {error.message}", f"  reason: {error.reason}", f"  what to do: {advice(error)}"]
        if error.trace_id:
            lines.append(f"  trace: {error.trace_id}")
        self.errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """A sink for progress: JSON lines with `--json`, bars on a terminal, silence elsewhere."""
        if self.as_json:
            yield lambda step: self.document({"event": "progress", **plain(step)})
        elif not self.errors.is_terminal:
            yield lambda _: None
        else:
            columns = (
                TextColumn("{task.description:<44}"),
                BarColumn(bar_width=28),
                DownloadColumn(),
                TimeElapsedColumn(),
            )
            with RichProgress(*columns, console=self.errors, transient=True) as bars:
                yield _Bars(bars)


class _Bars:
    """One bar per phase and subject; uploads share one."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: Progress) -> None:
        stage = step.phase in ("waiting", "fetching", "verifying", "loading", "measuring", "ready")
        key = step.subject if stage else step.phase
        known = self._tasks.get(key)
        if known is None:
            known = self._tasks[key] = self._bars.add_task(key, total=None)
        self._bars.update(
            known,
            description=f"{step.phase} {step.subject}"[:44],
            completed=step.done_bytes,
            total=step.total_bytes or None,
        )


def _console(stream: Any) -> Console:
    return Console(file=stream, width=None if stream.isatty() else PLAIN_COLUMNS, highlight=False)


def size(count: float) -> str:
    """A number of bytes with the unit that suits it.

    Example:
        >>> size(5368709)
        '5.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
