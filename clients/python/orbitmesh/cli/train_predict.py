"""`orbitmesh train predict`: asks the model of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.contacts import need
from orbitmesh.cli.output import OK, Output
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTROL_DEADLINE_S

ROWS_SHOWN = 20
"""Answers that are shown for people; --json and --out have all."""


def register(commands: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        commands,
        "predict",
        run,
        summary="ask the model of a run about examples: a node answers with the weights of the moment",
        examples="orbitmesh train predict digits --inputs pictures.npy\n"
        "orbitmesh train predict digits --inputs pictures.npy --out answers.npy --json",
    )
    parser.add_argument("name", help="the run")
    parser.add_argument("--inputs", required=True, metavar="FILE.npy", help="examples in rows, as the task takes them")
    parser.add_argument("--out", metavar="FILE.npy", help="where all answers go as an array")
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks."""
    output = Output(arguments.json)
    inputs = _read(Path(arguments.inputs))
    if arguments.out is not None:
        _check_out(Path(arguments.out))
    with connect(arguments) as mesh:
        seconds = arguments.timeout or CONTROL_DEADLINE_S
        answers = mesh.training(arguments.name, timeout=seconds).predict(inputs, timeout=seconds)
    best = answers.reshape(len(answers), -1).argmax(axis=1)
    output.document({"event": "predicted", "run": arguments.name, "best": best.tolist(), "outputs": answers.tolist()})
    for row in range(min(len(best), ROWS_SHOWN)):
        output.say(f"{row}: {int(best[row])} ({float(answers[row].max()):.3f})")
    if len(best) > ROWS_SHOWN:
        output.say(f"and {len(best) - ROWS_SHOWN} more; --json or --out has all")
    if arguments.out is not None:
        import numpy

        try:
            numpy.save(arguments.out, answers)
        except OSError as error:
            raise InvalidInputError(f"{arguments.out} cannot be written: {error.strerror or error}") from None
        output.say(f"written: {arguments.out}, an array of {' x '.join(map(str, answers.shape))}")
    return OK


def _check_out(path: Path) -> None:
    # numpy adds the end by itself where it lacks: the answers would lie in another file than was named.
    if path.suffix != ".npy" or path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInputError(f"--out is {str(path)!r:.120}; give NAME.npy in a directory that is there")


def _read(path: Path) -> Any:
    need(("numpy",), "asking about arrays", "mesh")
    import numpy

    try:
        with path.open("rb") as file:
            return numpy.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InvalidInputError(f"--inputs {path} cannot be read: {error.strerror}") from None
    except (EOFError, ValueError, MemoryError):
        raise InvalidInputError(
            f"--inputs {path} is no whole .npy file of numbers; write one with numpy.save, an example in each row"
        ) from None
