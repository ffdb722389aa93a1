"""`orbitmesh explain`: where the time of an answer went."""

from __future__ import annotations

import argparse

from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.trace.render import breakdown_view


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "explain",
        run,
        summary="show where the time of a generation went, row by row, summing to the total",
        examples="""orbitmesh explain
        orbitmesh explain 5b8aa5a2d2c872e8321cf37308d69df2
        orbitmesh explain --json""",
    )
    parser.add_argument(
        "trace", nargs="?", help="the trace that `generate` named; left out: the last that ended"
    )
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Shows the breakdown."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        breakdown = mesh.explain(arguments.trace, timeout=arguments.timeout or CONTROL_DEADLINE_S)
    output.document({"breakdown": breakdown})
    output.view(breakdown_view(breakdown))
    return OK
