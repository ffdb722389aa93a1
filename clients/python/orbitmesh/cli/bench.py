"""`orbitmesh bench NAME`: runs a bench of the checkout, which the installed package does not carry."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.errors import InvalidInputError


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "bench",
        run,
        summary="measure ours and peers interleaved in one run: wire, hop, generate, contacts, recovery, train, slices",
        examples="orbitmesh bench wire\norbitmesh bench generate --json\norbitmesh bench recovery -- --help",
    )
    parser.add_argument("name", help="the bench: wire, hop, generate or another of bench/")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="after --: options of the bench itself")


def run(arguments: argparse.Namespace) -> int:
    """Runs the bench in a process of its own and returns its exit code."""
    script = find_bench(arguments.name)
    rest = [word for word in arguments.rest if word != "--"]
    flags = ["--json"] if arguments.json and "--json" not in rest else []
    return subprocess.run([sys.executable, str(script), *flags, *rest], check=False).returncode


def find_bench(name: str) -> Path:
    """The script of a bench, in the checkout we run from or the current directory.

    Raises:
        InvalidInputError: there is no such bench, or no checkout.
    """
    places = [Path(__file__).resolve().parents[4] / "bench", Path.cwd() / "bench"]
    known = {
        path.stem: path for place in reversed(places) for path in place.glob("*.py") if path.stem[0] != "_"
    }
    if not known:
        raise InvalidInputError(
            "there are no benches here: they are part of the repository; run this in a checkout of it",
            reason="FAILED_PRECONDITION",
        )
    if name not in known:
        raise InvalidInputError(f"there is no bench {name!r:.80}; expected one of {', '.join(sorted(known))}")
    return known[name]
