"""`orbitmesh demo`: a mesh, a model in three stages, an answer and where its time went; a satellite that is killed in
mid-sentence; an answer under a contact plan; and whether all of it is right."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orbitmesh import Generation, Mesh
from orbitmesh.cli import demo_train
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.demo_killed import show_killed
from orbitmesh.cli.demo_sky import show_sky
from orbitmesh.cli.demo_telling import agrees, first_difference
from orbitmesh.cli.deploy import plan_table, show_reasons
from orbitmesh.cli.generate import figures_of, show_figures, stream
from orbitmesh.cli.output import FAILED, OK, Output
from orbitmesh.errors import DeadlineError, InternalError, UnknownModelError
from orbitmesh.results import Deployment, Link
from orbitmesh.trace.render import breakdown_view

PROMPT = "The with statement is used to wrap the execution of a block"
NODES = 5
"""Four satellites, of which one stands by, and a ground node."""
STAGES = 3
STANDBYS = 1
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
        summary="see a model split over satellites answer, lose one of them, wait for another, and be right",
        examples="""orbitmesh demo
        orbitmesh demo --prompt "An iterator is" --max-new-tokens 100
        orbitmesh demo --short --json
        orbitmesh demo --train""",
    )
    parser.add_argument("--prompt", default=PROMPT, help="what to ask")
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="at the most (default 48)")
    parser.add_argument("--short", action="store_true", help="only the first act: nothing is killed, no link moves")
    parser.add_argument("--train", action="store_true", help="another one: nodes train, and the mesh reads digits")
    parser.add_argument("--model", metavar="DIR", help="a model directory; left out: models/pydoc of the checkout")


def run(arguments: argparse.Namespace) -> int:
    """Runs the demonstration; the exit code is 1 where tokens differ."""
    output = Output(arguments.json)
    if arguments.train:
        return demo_train.run(output)
    model = find_model(arguments.model)
    acts, same, deploy_s = on_calm_links(output, model, arguments)
    if not arguments.short:
        acts["under the contact plan"] = show_sky(output, model, arguments.prompt, deploy_s).generation
    return OK if compare(output, model, arguments.prompt, acts) and same else FAILED


def on_calm_links(
    output: Output, model: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Generation], bool, float]:
    """The acts on links that do not move: the answers by what was done to them, whether they are the same, and how long
    it took to deploy, in seconds."""
    output.say(
        f"starting {NODES - 1} satellites and a ground node as processes; every link between them takes "
        f"{LINK.latency_ms:g} ms one way at {LINK.rate_mbps:g} Mbit/s"
    )
    with ExitStack() as stack:
        with output.progress() as tell:
            mesh = stack.enter_context(Mesh.local(nodes=NODES, link=LINK, on_progress=tell))
        deployment, deploy_s = deploy(output, mesh, model)
        acts = {"left alone": answer(output, mesh, arguments)}
        same = True
        if not arguments.short:
            before = acts["left alone"]
            killed, same = show_killed(output, mesh, deployment, arguments.prompt, arguments.max_new_tokens, before)
            acts["with a node killed"] = killed
    return acts, same, deploy_s


def deploy(output: Output, mesh: Mesh, model: Path) -> tuple[Deployment, float]:
    """Deploys the model with standbys and shows the plan; the time it took is in seconds."""
    began_s = time.monotonic()
    with output.progress() as tell:
        satellites = [node.name for node in mesh.nodes() if node.kind == "satellite"]
        deployment = mesh.deploy(
            model, name="demo", stages=STAGES, nodes=satellites, standbys=STANDBYS, on_progress=tell
        )
    deploy_s = time.monotonic() - began_s
    output.document({"event": "deployed", "deployment": deployment})
    if deployment.plan is not None:
        output.say("the plan", style="bold")
        output.view(plan_table(deployment.plan))
        show_reasons(output, deployment.plan)
    return deployment, deploy_s


def answer(output: Output, mesh: Mesh, arguments: argparse.Namespace) -> Generation:
    """Streams the answer and shows where its time went."""
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


def compare(output: Output, model: Path, prompt: str, acts: Mapping[str, Generation]) -> bool:
    """Asks the unsplit model for as many tokens as the longest answer has; returns whether all are its beginnings."""
    output.say("now the whole model in one process, run by transformers itself", style="bold")
    unsplit = run_unsplit(model, prompt, max(len(generation.token_ids) for generation in acts.values()))
    theirs = list(unsplit["token_ids"])
    equal = {name: agrees(generation.token_ids, theirs) for name, generation in acts.items()}
    output.document(
        {
            "event": "compared",
            "equal": all(equal.values()),
            "unsplit": unsplit,
            "mesh": figures_of(acts["left alone"]),
            "acts": equal,
        }
    )
    for name, generation in acts.items():
        count = len(generation.token_ids)
        if equal[name]:
            output.say(f"equal: {name}, all {count} tokens are those of the unsplit model", style="green")
        else:
            place = first_difference(generation.token_ids, theirs)
            output.say(f"DIFFERENT: {name}, from token {place} on", style="red")
            output.say(f"the unsplit model said: {unsplit['text']}", style="red")
    return all(equal.values())


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
