"""`orbitmesh contacts SCENARIO.toml`: which links of a scenario are open when, as a table, a file or a picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output
from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.errors import InternalError, InvalidInputError, error_for

NEEDED_MODULES = ("services.constellation", "sgp4", "numpy")
"""What finding contacts needs beyond the base install."""

HOURS_MAX = 24.0 * 31
"""Longest span, in hours."""

ROWS = 40
"""How many rows the table has unless `--all` is given."""

PLAN_WAIT_S = 3600.0
"""How long the planning may take, in seconds."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "contacts",
        run,
        summary="show which links of a scenario are open when",
        examples="orbitmesh contacts examples/iridium/scenario.toml --hours 3\n"
        "orbitmesh contacts examples/iridium/scenario.toml --between berlin iridium-33\n"
        "orbitmesh contacts examples/iridium/scenario.toml --plot iridium.png --out plan.json",
    )
    parser.add_argument("scenario", type=Path, help="the scenario file, TOML; see docs/constellation.md")
    parser.add_argument("--from", dest="start", metavar="ISO", help="begin of the span; by default the scenario's")
    parser.add_argument("--hours", type=float, metavar="H", help="its length in hours; the scenario's own by default")
    parser.add_argument("--between", nargs=2, metavar=("A", "B"), help="only the links between these two nodes")
    parser.add_argument("--all", action="store_true", help=f"show every row, not the first {ROWS}")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the timeline and the ground tracks")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the contact plan")


def run(arguments: argparse.Namespace) -> int:
    """Finds the contacts and shows them."""
    output = Output(arguments.json)
    if arguments.hours is not None and not 0 < arguments.hours <= HOURS_MAX:
        raise InvalidInputError(f"--hours is {arguments.hours:g}; expected above 0 and at most {HOURS_MAX:g}")
    if arguments.plot is not None:
        need(("matplotlib",), "drawing", "plot")
    found = _find(arguments)
    plan = ContactPlan.parse(found["plan"])
    if arguments.out is not None:
        _write(arguments.out, found["plan"])
    if arguments.plot is not None:
        from orbitmesh.cli.contacts_plot import draw

        draw(arguments.plot, plan, found["nodes"], found["tracks"], found["scenario"])
    if output.as_json:
        output.document(json.loads(found["plan"]))
    output.view(_table(plan, found["scenario"], None if arguments.all else ROWS))
    output.say(_closing(plan))
    for path in (arguments.out, arguments.plot):
        if path is not None:
            output.say(f"written: {path}")
    for warning in plan.warnings:
        output.say(f"warning: {warning}", style="yellow")
    return OK


def need(modules: tuple[str, ...], what: str, extra: str) -> None:
    """Say what to install before anything is begun.

    Raises:
        InvalidInputError: A module is not there.
    """
    for name in modules:
        try:
            missing = importlib.util.find_spec(name) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise InvalidInputError(
                f"{what} needs {name.partition('.')[0]}, which is not here; run `pip install 'orbitmesh[{extra}]'`",
                reason="FAILED_PRECONDITION",
            )


def _find(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the planning in a process of its own: services are not imported by the SDK."""
    need(NEEDED_MODULES, "finding contacts", "mesh")
    command = [sys.executable, "-P", "-m", "services.constellation.table", str(arguments.scenario)]
    for flag, value in (("--from", arguments.start), ("--hours", arguments.hours)):
        command += [] if value is None else [f"{flag}={value}"]
    command += ["--between", *arguments.between] if arguments.between else []
    command += ["--tracks"] if arguments.plot is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PLAN_WAIT_S)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise InternalError(f"the planning ended with code {done.returncode}: {done.stderr[-2000:]}") from None
    if "error" in found:
        raise error_for(found["error"]["reason"], found["error"]["message"])
    return found


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; give another path") from None


def _table(plan: ContactPlan, scenario: str, rows: int | None) -> Table:
    """One row for each window; the way back has the same and is left out."""
    title = f"contacts of {scenario} in {_year(plan)}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title, title_justify="left")
    for name, justify in (("from", "left"), ("to", "left"), ("kind", "left"), ("opens (UTC)", "left"),
                          ("closes (UTC)", "left"), ("lasts", "right"), ("highest", "right"),
                          ("latency", "right"), ("rate", "right")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name not in ("from", "to"), overflow="fold")  # type: ignore[arg-type]
    windows = one_way(plan)
    for contact in windows[:rows]:
        table.add_row(*_row(contact))
    if rows is not None and len(windows) > rows:
        table.caption = f"{len(windows) - rows} more; --all shows them, --out writes them"
    return table


def one_way(plan: ContactPlan) -> list[Contact]:
    """The windows without those whose way back, over the same span, is in the list."""
    seen: set[tuple[str, str, float]] = set()
    chosen = []
    for contact in plan.contacts:
        if (contact.target, contact.source, contact.start_s) not in seen:
            seen.add((contact.source, contact.target, contact.start_s))
            chosen.append(contact)
    return chosen


def _row(contact: Contact) -> tuple[str, ...]:
    delays_ms = [point.latency_s * 1e3 for point in contact.latency]
    low, high = min(delays_ms), max(delays_ms)
    return (
        contact.source,
        contact.target,
        contact.kind,
        ("< " if contact.truncated_start else "  ") + _clock(contact.start_s),
        ("> " if contact.truncated_end else "  ") + _clock(contact.end_s),
        f"{contact.duration_s:.1f} s",
        "" if contact.max_elevation_deg is None else f"{contact.max_elevation_deg:.1f}\N{DEGREE SIGN}",
        f"{low:.2f} ms" if high - low < 0.005 else f"{low:.2f}-{high:.2f} ms",
        _scaled(contact.rate_bps, "bit/s"),
    )


def _scaled(value: float, unit: str) -> str:
    step = min(4, max(0, math.floor(math.log10(value) / 3))) if value >= 1 else 0
    return f"{value / 1000**step:.4g} {('', 'k', 'M', 'G', 'T')[step]}{unit}"


def _clock(mesh_s: float) -> str:
    return datetime.fromtimestamp(mesh_s, UTC).strftime("%m-%d %H:%M:%S.%f")[:-5]


def _year(plan: ContactPlan) -> str:
    years = sorted({datetime.fromtimestamp(each_s, UTC).year for each_s in (plan.start_s, plan.end_s)})
    return "-".join(str(year) for year in years)


def _closing(plan: ContactPlan) -> str:
    kinds = ", ".join(
        f"{sum(1 for contact in one_way(plan) if contact.kind == kind)} {kind}"
        for kind in sorted({contact.kind for contact in plan.contacts})
    )
    cut = any(contact.truncated_start or contact.truncated_end for contact in plan.contacts)
    legend = "; < and > mark windows that the span cuts" if cut else ""
    return f"{len(one_way(plan))} windows ({kinds or 'none'}) over {(plan.end_s - plan.start_s) / 3600:g} h{legend}"
