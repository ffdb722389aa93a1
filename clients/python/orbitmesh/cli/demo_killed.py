"""An act of the demo: a satellite is killed in mid-sentence, and the text goes on."""

from __future__ import annotations

import time

from orbitmesh import Generation, Mesh
from orbitmesh.cli.demo_telling import Pace, RunningText, agrees, stall_table
from orbitmesh.cli.generate import figures_of, started
from orbitmesh.cli.output import Output
from orbitmesh.results import Deployment
from orbitmesh.trace.render import format_seconds

TOKENS_MIN = 24
"""The fewest tokens that leave a sentence to be killed in."""
STALL_SHOWN_S = 0.4
"""A gap between two tokens that is marked in the text, in seconds."""


def show_killed(
    output: Output, mesh: Mesh, deployment: Deployment, prompt: str, max_new_tokens: int, before: Generation
) -> tuple[Generation, bool]:
    """Asks the same again and kills a node of the pipeline in the middle; the answer, and whether it is the same."""
    index, victim = pick_victim(deployment)
    output.say(f"the same again, and in the middle of it {victim} is killed", style="bold")
    tokens = max(max_new_tokens, TOKENS_MIN)
    text = RunningText(output, prompt)
    generation = mesh.generate(deployment.name, prompt=prompt, max_new_tokens=tokens, ignore_end=True)
    started(output, generation)
    pace = _stream(output, mesh, generation, text, victim, kill_after=tokens // 3)
    successor = mesh.deployment(deployment.name).stages[index].node
    breakdown = mesh.explain(generation.trace_id)
    ready = deployment.standbys.get(index) == successor
    equal = agrees(generation.token_ids, before.token_ids)
    output.document(
        {
            "event": "survived",
            "equal": equal,
            "victim": victim,
            "successor": successor,
            "after_tokens": tokens // 3,
            "stall_s": pace.longest_s(),
            "median_gap_s": pace.median_s(),
            "breakdown": breakdown,
            **figures_of(generation),
        }
    )
    output.view(stall_table(breakdown))
    output.say(
        f"{successor}{' held those layers ready and' if ready else ''} took the place of {victim}; the text stood "
        f"still for {format_seconds(pace.longest_s())}, where a token takes {format_seconds(pace.median_s())}; "
        "no error, no token lost, none twice",
        style="dim",
    )
    same = min(len(generation.token_ids), len(before.token_ids))
    if equal:
        output.say(f"equal: {same} tokens are those of the answer without the kill", style="green")
    else:
        output.say("DIFFERENT from the answer without the kill", style="red")
    return generation, equal


def pick_victim(deployment: Deployment) -> tuple[int, str]:
    """A stage in the middle of the pipeline that has a standby, else the one in the middle: its index and node."""
    middle = len(deployment.stages) // 2
    order = sorted(range(len(deployment.stages)), key=lambda index: (index not in deployment.standbys, index != middle))
    return order[0], deployment.stages[order[0]].node


def _stream(
    output: Output, mesh: Mesh, generation: Generation, text: RunningText, victim: str, kill_after: int
) -> Pace:
    pace = Pace()
    for index, token in enumerate(generation):
        pace.arrived_s.append(time.monotonic())
        if index >= kill_after and pace.gap_s(index) > STALL_SHOWN_S:
            text.mark(f"on after {format_seconds(pace.gap_s(index))}")
        text.token(token)
        if index + 1 == kill_after:
            mesh.local.kill(victim)
            output.document({"event": "killed", "node": victim, "after_tokens": kill_after})
            text.mark(f"{victim} killed")
    text.end()
    return pace
