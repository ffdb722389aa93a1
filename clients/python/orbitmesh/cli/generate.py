"""`orbitmesh generate`: a prompt in, tokens out as they are produced."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orbitmesh._requests import PROMPT_BYTES
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, size
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.client import Generation
from orbitmesh.errors import InvalidInputError
from orbitmesh.trace.render import breakdown_view, format_seconds


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "generate",
        run,
        summary="answer a prompt, streaming the tokens as they are produced",
        examples="""orbitmesh generate demo "The with statement" --max-new-tokens 64
        orbitmesh generate demo --prompt-file question.txt --temperature 0.8 --top-p 0.95 --seed 7
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
    parser.add_argument("--explain", action="store_true", help="show where the time went afterwards")
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answers a prompt."""
    output = Output(arguments.json)
    prompt = _prompt(arguments)
    with connect(arguments) as mesh:
        generation = mesh.generate(
            arguments.name,
            prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
            ignore_end=arguments.ignore_end,
            timeout=arguments.timeout,
        )
        stream(output, generation)
        show_figures(output, generation)
        if arguments.explain:
            breakdown = mesh.explain(generation.trace_id)
            output.document({"event": "breakdown", "breakdown": breakdown})
            output.view(breakdown_view(breakdown))
    return OK


def stream(output: Output, generation: Generation) -> None:
    """Writes the tokens as they come."""
    output.document(
        {"event": "started", "trace_id": generation.trace_id, "prompt_tokens": generation.prompt_tokens}
    )
    for token in generation:
        output.document({"event": "token", "id": token.id, "text": token.text, "position": token.position})
        output.piece(token.text)
    output.piece("\n")


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
