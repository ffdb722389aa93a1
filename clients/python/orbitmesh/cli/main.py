"""`orbitmesh`: the command line. Each subcommand is a module that registers itself here.

Exit codes: 0 done, 1 the mesh or its answer says no, 2 the command line is wrong, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from orbitmesh.cli import bench, contacts, demo, deploy, explain, generate, model, pki, slices, status, train, up
from orbitmesh.cli.output import FAILED, INTERRUPTED, USAGE, Output
from orbitmesh.errors import InvalidInputError, MeshError

_EPILOG = """\
examples:
  orbitmesh demo                                  a model split over three satellites answers, in a minute
  orbitmesh up                                    a mesh on this machine, in the background
  orbitmesh deploy models/pydoc --name demo --stages 3
  orbitmesh generate demo "The with statement"
  orbitmesh explain                               where the time of the last answer went
  orbitmesh train start digits --rounds 20 --watch   what the nodes have becomes one model; no data travels
  orbitmesh slices define cam --template urllc     a share of the mesh, promised to a tenant
  orbitmesh down

exit codes: 0 done, 1 the mesh says no, 2 wrong usage, 130 interrupted
every command takes --help, and --json for machines
"""


class _Parser(argparse.ArgumentParser):
    """Wrong usage becomes an error like any other, so that `--json` holds for it too."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see `{self.prog} --help`")


class _UsageError(InvalidInputError):
    """The command line is wrong."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = _Parser(
        prog="orbitmesh",
        description="Run and train AI models over satellites, edge nodes and the ground.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for module in (demo, up, status, deploy, generate, explain, train, slices, contacts, model, pki, bench):
        module.register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Example:
        >>> main(["version"])
        0.1.0
        0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        # Being told to end unwinds like Ctrl-C: a local mesh under this command must not stay behind.
        signal.signal(signal.SIGTERM, _interrupt)
        parsed = build_parser().parse_args(given)
        return int(parsed.func(parsed))
    except _UsageError as error:
        Output(as_json).error(error)
        return USAGE
    except MeshError as error:
        Output(as_json).error(error)
        return FAILED
    except KeyboardInterrupt:
        if as_json:
            Output(True).document({"error": {"reason": "CANCELLED", "message": "interrupted"}})
        else:
            sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads us has left (`| head`): say no more, also not at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
