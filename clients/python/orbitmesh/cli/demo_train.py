"""`orbitmesh demo --train`: eight nodes train on pictures that never leave them, one of them is killed, nobody sees
what a node learned, every picture is hidden; and then the mesh reads digits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orbitmesh import Mesh, Training
from orbitmesh.cli.contacts import need
from orbitmesh.cli.output import FAILED, OK, Output, size
from orbitmesh.errors import InternalError
from orbitmesh.results import Link
from orbitmesh.training_results import LocalTraining, Privacy, SecureSums, TrainingRound

TASK = "mnist5k"
NODES = 8
LINK = Link(latency_ms=20, rate_mbps=100)
"""What the emulator puts between the aggregator and every node."""
ROUNDS = 20
CLIP = 0.3
EPSILON, DELTA = 2.0, 1e-5
SERVER_LR = 0.02
PATIENCE_S = 5.0
"""A node that is killed is waited for so long, in seconds of contact."""
VICTIM = "sat-3"
KILL_AFTER, BACK_AFTER = 5, 9
"""Rounds after which a satellite is killed, and is started again."""
ACCURACY_MIN = 0.75
"""Below, something is wrong: the demo fails."""
PICTURES, AT_ONCE = 1_000, 500
SHADES = " .:-=+*#%@"
WIDTH = 28
LEARNT_WITHIN_S = 600.0
"""How long the training may take on any machine, in seconds."""


def run(output: Output) -> int:
    """Trains and serves; the exit code is 1 where the model does not read, or answers otherwise than was measured."""
    need(("numpy", "services.training"), "training", "mesh")
    began_s = time.monotonic()
    output.say(
        f"starting {NODES} nodes as processes, each with 500 pictures of its own; every link {LINK.latency_ms:g} ms "
        f"one way at {LINK.rate_mbps:g} Mbit/s"
    )
    with output.progress() as tell:
        mesh = Mesh.local(nodes=NODES, link=LINK, on_progress=tell)
        mesh.open()
    try:
        training = _train(output, mesh)
        right = _serve(output, training)
    finally:
        mesh.close()
    output.say(f"all of it took {time.monotonic() - began_s:.0f} s", style="dim")
    return OK if right else FAILED


def _train(output: Output, mesh: Mesh) -> Training:
    output.say("training: only sums are seen, and every picture is hidden in them", style="bold")
    training = mesh.train(
        TASK,
        task=TASK,
        rounds=ROUNDS,
        local=LocalTraining(steps=1, lr=1 / CLIP),
        strategy="fedadam",
        strategy_options={"server_lr": SERVER_LR, "tau": 1e-4},
        secure_sums=SecureSums(),
        privacy=Privacy(unit="record", epsilon=EPSILON, delta=DELTA, clip=CLIP),
        patience_s=PATIENCE_S,
    )
    told, gone = -1, False
    for update in training.watch():
        for each in update.rounds:
            if each.done_at is None:
                continue
            if each.figures and each.index > told:
                told = each.index
                _say_round(output, each)
            if each.index + 1 == KILL_AFTER and not gone:
                gone = True
                mesh.local.kill(VICTIM)
                output.say(f"-- {VICTIM} is killed: the others can take its masks out of the sum --")
            if each.index + 1 == BACK_AFTER and gone:
                gone = False
                mesh.local.restart(VICTIM)
                output.say(f"-- {VICTIM} is back --")
    status = training.wait(timeout=LEARNT_WITHIN_S)
    ledger = training.ledger()
    output.document({"event": "trained", "run": status, "ledger": ledger})
    up = sum(each.up_bytes for each in status.rounds)
    output.say(
        f"{status.rounds_done} rounds, {size(up)} up from all nodes; epsilon {ledger.epsilon:.2f} of {EPSILON:g} at "
        f"delta {DELTA:g} is spent: whoever sees every sum tells by a factor of at most e^{ledger.epsilon:.2f} whether "
        "a given picture was in it. The aggregator has seen no node's update",
        style="dim",
    )
    return training


def _say_round(output: Output, each: TrainingRound) -> None:
    accuracy = each.figures.get("accuracy", 0.0)
    bar = "█" * round(40 * accuracy)
    output.say(
        f"round {each.index + 1:>2} of {ROUNDS}  {accuracy:6.1%}  {bar:<40}  {len(each.contributed)} nodes  "
        f"epsilon {each.epsilon:.2f}  {each.seconds:.1f} s"
    )


def _serve(output: Output, training: Training) -> bool:
    """Asks the model about pictures that no node had."""
    import numpy

    output.say("and now the mesh reads digits that no node has seen", style="bold")
    inputs, answers = _samples()
    began_s = time.monotonic()
    said = training.predict(inputs[:AT_ONCE])
    first_s = time.monotonic() - began_s
    later = [training.predict(inputs[start : start + AT_ONCE]) for start in range(AT_ONCE, len(inputs), AT_ONCE)]
    said = numpy.concatenate([said, *later])
    began_s = time.monotonic()
    training.predict(inputs[:1])
    again_s = time.monotonic() - began_s
    best = said.argmax(axis=1)
    shown = [int(numpy.flatnonzero(answers == digit)[0]) for digit in (3, 5, 8)]
    for line in _side_by_side([inputs[index] for index in shown]):
        output.say(line)
    output.say("".join(f"{f'{best[index]} ({said[index].max():.0%})':^{WIDTH + 2}}" for index in shown))
    accuracy = float((best == answers).mean())
    told = training.status().rounds[-1].figures.get("accuracy", 0.0)
    equal = abs(accuracy - told) < 1e-6
    output.document({"event": "served", "accuracy": accuracy, "measured": told, "equal": equal, "answer_s": again_s})
    output.say(
        f"{accuracy:.1%} of {len(best)} pictures right, {'as' if equal else 'NOT as'} the nodes had measured; the "
        f"first question took {first_s * 1e3:.0f} ms, one more {again_s * 1e3:.0f} ms",
        style="green" if equal and accuracy >= ACCURACY_MIN else "red",
    )
    return equal and accuracy >= ACCURACY_MIN


def _samples() -> tuple[Any, Any]:
    import numpy

    with tempfile.TemporaryDirectory(prefix="orbitmesh-demo-") as place:
        path = Path(place) / "samples.npz"
        command = [sys.executable, "-P", "-m", "services.training.samples", TASK, str(PICTURES), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InternalError(f"the held-out pictures could not be read: {done.stderr[-500:]}")
        with numpy.load(path, allow_pickle=False) as found:
            return found["inputs"], found["answers"]


def _side_by_side(pictures: list[Any]) -> list[str]:
    """Pictures as shades of text, next to each other; every second row is left out, since letters are tall."""
    lines = []
    for row in range(0, WIDTH, 2):
        parts = []
        for picture in pictures:
            pixels = picture.reshape(WIDTH, WIDTH)[row]
            parts.append("".join(SHADES[int(value / 256 * len(SHADES))] for value in pixels))
        lines.append("  ".join(parts))
    return lines
