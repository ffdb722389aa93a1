"""`orbitmesh generate`: a prompt in, tokens out as they are produced."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orbitmesh import Generation
from orbitmesh._requests import PROMPT_BYTES
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, size
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.errors import InvalidInputError
from orbitmesh.results import Token
from orbitmesh.trace.render import breakdown_view, format_seconds

_DOWN = "\x1bD\x1b[A\x1b7\r\n"
"""Makes sure that there is a line below, which may scroll, keeps the cursor's place and goes to that line (VT100)."""
_CLEAR = "\r\x1b[2K"
"""Empties the line of the cursor."""
_BACK = "\x1b8"
"""Goes back to the place that was kept."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "generate",
        run,
        summary="answer a prompt, streaming the tokens as they are produced",
        examples="""orbitmesh generate demo "The with statement" --max-new-tokens 64
        orbitmesh generate demo --prompt-file question.txt --temperature 0.8 --top-p 0.95 --seed 7
        orbitmesh generate demo "The with statement" --slice cam
        orbitmesh generate demo --token-ids 12,7,99 --json""",
    )
    parser.add_argument("name", help="the deployment")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("prompt", nargs="?", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file; - is stdin")
    prompt.add_argument("--token-ids", metavar="1,2,..", help="the prompt as token ids")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="at the most (default 64)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable (default)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from this share of probability (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--ignore-end", action="store_true", help="go on past the model's end token")
    parser.add_argument("--slice", metavar="NAME", help="the slice that it uses (see `orbitmesh slices`)")
    parser.add_argument("--explain", action="store_true", help="show where the time went afterwards")
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answers a prompt."""
    output = Output(arguments.json)
    prompt = _prompt(arguments)
    with connect(arguments) as mesh:
        status = WaitingLine(output)
        generation = mesh.generate(
            arguments.name,
            prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
            ignore_end=arguments.ignore_end,
            slice=arguments.slice,
            timeout=arguments.timeout,
            on_waiting=status,
        )
        with status:
            stream(output, generation)
        show_figures(output, generation)
        if arguments.explain:
            breakdown = mesh.explain(generation.trace_id)
            output.document({"event": "breakdown", "breakdown": breakdown})
            output.view(breakdown_view(breakdown))
    return OK


class WaitingLine:
    """Says under the text that an answer waits, and takes it away when it goes on.

    On a terminal the line stands below the cursor, which comes back to where it was: the text is not broken. Elsewhere
    each wait is a line on stderr, so that stdout holds the text and nothing else. With `--json` it is an event.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown = False

    def __call__(self, why: str | None) -> None:
        """Shows what is waited for; None takes it away."""
        self._output.document({"event": "waiting", "reason": why} if why else {"event": "going_on"})
        if self._output.as_json:
            return
        if not self._output.console.is_terminal:
            if why:
                self._output.errors.print(f"waiting: {why}", style="dim", markup=False, highlight=False, soft_wrap=True)
            return
        if why:
            line = f"waiting: {why}".replace("\n", " ")[: self._output.console.width - 1]
            self._output.piece(f"{_CLEAR if self._shown else _DOWN}\x1b[2m{line}\x1b[0m")
        elif self._shown:
            self._output.piece(_CLEAR + _BACK)
        self._shown = why is not None

    def __enter__(self) -> WaitingLine:
        return self

    def __exit__(self, *ended: object) -> None:
        if self._shown:
            self(None)


def stream(output: Output, generation: Generation) -> None:
    """Writes the tokens as they come."""
    started(output, generation)
    for token in generation:
        show_token(output, token)
    output.piece("\n")


def started(output: Output, generation: Generation) -> None:
    """An answer has begun."""
    output.document(
        {"event": "started", "trace_id": generation.trace_id, "prompt_tokens": generation.prompt_tokens}
    )


def show_token(output: Output, token: Token) -> None:
    """Writes a token."""
    output.document({"event": "token", "id": token.id, "text": token.text, "position": token.position})
    output.piece(token.text)


def show_figures(output: Output, generation: Generation) -> None:
    """The figures of an answer that has ended."""
    figures = figures_of(generation)
    output.document({"event": "finished", **figures})
    count = max(1, len(generation.token_ids))
    raw, wire = (generation.raw_bytes or 0) / count, (generation.wire_bytes or 0) / count
    output.say(
        f"{len(generation.token_ids)} tokens, {generation.tokens_per_second or 0.0:.1f} a second, first "
        "after "
        f"{format_seconds(generation.first_token_s or 0.0)}; a token crossed the links in {size(raw)} raw, "
        f"{size(wire)} on the wire; ended by {generation.finish_reason}",
        style="dim",
    )
    output.say(f"trace {generation.trace_id}", style="dim")


def figures_of(generation: Generation) -> dict[str, object]:
    """The figures of an answer as JSON knows them."""
    count = max(1, len(generation.token_ids))
    return {
        "trace_id": generation.trace_id,
        "finish_reason": generation.finish_reason,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "tokens_per_second": generation.tokens_per_second,
        "first_token_s": generation.first_token_s,
        "total_s": generation.total_s,
        "raw_bytes": generation.raw_bytes,
        "wire_bytes": generation.wire_bytes,
        "raw_bytes_per_token": (generation.raw_bytes or 0) / count,
        "wire_bytes_per_token": (generation.wire_bytes or 0) / count,
    }


def _prompt(arguments: argparse.Namespace) -> str | list[int]:
    if arguments.token_ids is not None:
        try:
            return [int(token) for token in arguments.token_ids.split(",") if token.strip()]
        except ValueError:
            raise InvalidInputError(
                f"--token-ids is {arguments.token_ids[:80]!r}; expected whole numbers with commas between"
            ) from None
    if arguments.prompt_file is None:
        return str(arguments.prompt)
    try:
        if arguments.prompt_file == "-":
            return sys.stdin.read(PROMPT_BYTES + 1)
        with Path(arguments.prompt_file).open(encoding="utf-8") as file:
            return file.read(PROMPT_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the prompt cannot be read from {arguments.prompt_file}: {error}") from None
