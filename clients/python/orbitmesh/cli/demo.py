"""`orbitmesh demo`: a mesh, a model in three stages, an answer, where its time went, and whether it is
right."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.deploy import plan_table, show_reasons
from orbitmesh.cli.generate import figures_of, show_figures, stream
from orbitmesh.cli.output import FAILED, OK, Output
from orbitmesh.client import Generation, Mesh
from orbitmesh.errors import DeadlineError, InternalError, UnknownModelError
from orbitmesh.results import Link
from orbitmesh.trace.render import breakdown_view

PROMPT = "The with statement is used to wrap the execution of a block"
NODES = 4
"""Three satellites and a ground node."""
STAGES = 3
LINK = Link(latency_ms=20, rate_mbps=100)
"""What the emulator puts between every two nodes."""
UNSPLIT_DEADLINE_S = 120.0
"""How long the unsplit model may take, in seconds."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="see a model split over three satellites answer, and compare it with the unsplit model",
        examples="""orbitmesh demo
        orbitmesh demo --prompt "An iterator is" --max-new-tokens 100
        orbitmesh demo --json""",
    )
    parser.add_argument("--prompt", default=PROMPT, help="what to ask")
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="at the most (default 48)")
    parser.add_argument("--model", metavar="DIR", help="a model directory; left out: models/pydoc of the checkout")


def run(arguments: argparse.Namespace) -> int:
    """Runs the demonstration; the exit code is 1 where the tokens differ."""
    output = Output(arguments.json)
    model = find_model(arguments.model)
    output.say(
        f"starting {NODES - 1} satellites and a ground node as processes; every link between them takes "
        f"{LINK.latency_ms:g} ms one way at {LINK.rate_mbps:g} Mbit/s"
    )
    with output.progress() as tell, Mesh.local(nodes=NODES, link=LINK, on_progress=tell) as mesh:
        generation = answer(output, mesh, model, arguments)
    output.say("now the whole model in one process, run by transformers itself", style="bold")
    unsplit = run_unsplit(model, arguments.prompt, arguments.max_new_tokens)
    equal = list(unsplit["token_ids"]) == list(generation.token_ids)
    output.document({"event": "compared", "equal": equal, "unsplit": unsplit, "mesh": figures_of(generation)})
    if equal:
        output.say(f"equal: all {len(generation.token_ids)} tokens are those of the unsplit model", style="green")
        return OK
    place = first_difference(list(generation.token_ids), list(unsplit["token_ids"]))
    output.say(f"DIFFERENT from token {place} on; the unsplit model said: {unsplit['text']}", style="red")
    return FAILED


def answer(output: Output, mesh: Mesh, model: Path, arguments: argparse.Namespace) -> Generation:
    """Deploys the model, streams the answer and shows where its time went."""
    with output.progress() as on_progress:
        satellites = [node.name for node in mesh.nodes() if node.kind == "satellite"]
        deployment = mesh.deploy(model, name="demo", stages=STAGES, nodes=satellites, on_progress=on_progress)
    output.document({"event": "deployed", "deployment": deployment})
    if deployment.plan is not None:
        output.say("the plan", style="bold")
        output.view(plan_table(deployment.plan))
        show_reasons(output, deployment.plan)
    output.say("the answer", style="bold")
    output.piece(arguments.prompt)
    generation = mesh.generate("demo", prompt=arguments.prompt, max_new_tokens=arguments.max_new_tokens)
    stream(output, generation)
    show_figures(output, generation)
    breakdown = mesh.explain(generation.trace_id)
    output.document({"event": "breakdown", "breakdown": breakdown})
    output.say("where the time went", style="bold")
    output.view(breakdown_view(breakdown))
    return generation


def find_model(given: str | None) -> Path:
    """The directory of the model to show.

    Raises:
        UnknownModelError: there is none.
    """
    places = (
        [Path(given)]
        if given
        else [
            Path.cwd() / "models" / "pydoc",
            Path(__file__).resolve().parents[4] / "models" / "pydoc",
        ]
    )
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise UnknownModelError(
        f"there is no model at {places[0]}: expected a directory with config.json; run this in a checkout of "
        "the "
        "repository, or give --model DIR"
    )


def run_unsplit(model: Path, prompt: str, max_new_tokens: int) -> Mapping[str, Any]:
    """What the whole model answers in one process of its own.

    Raises:
        DeadlineError: it took too long.
        InternalError: it failed.
    """
    order = {"directory": str(model), "prompt": prompt, "max_new_tokens": max_new_tokens}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orbitmesh.cli.unsplit"],
            input=json.dumps(order) + "\n",
            capture_output=True,
            text=True,
            timeout=UNSPLIT_DEADLINE_S,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"the unsplit model took longer than {UNSPLIT_DEADLINE_S:g} s") from None
    if done.returncode != 0:
        raise InternalError(f"the unsplit model failed: {done.stderr.strip()[-400:]}")
    answered: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answered


def first_difference(ours: list[int], theirs: list[int]) -> int:
    """The index of the first token that differs."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return index
    return min(len(ours), len(theirs))
