"""A run of training as it goes on: a table that is redrawn on a terminal, a line for each finished round elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orbitmesh import Mesh, Training
from orbitmesh._resuming import LOST
from orbitmesh._training import PATIENCE_S
from orbitmesh.cli.output import FAILED, INTERRUPTED, OK, Output
from orbitmesh.cli.train_view import nodes_table, round_line, rounds_table, spent
from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.training_results import TrainingRound, TrainingStatus

ROUNDS_SHOWN = 10
"""How many rounds the redrawn table has at the most."""
ROUNDS_SHOWN_MIN = 3
"""How many it has on a terminal however low."""
FRAME_LINES = 13
"""Lines of what is redrawn that are neither rounds nor nodes: the heads of both tables, and what is waited for."""
ASK_AGAIN_S = 1.0
"""The pause before an aggregator that is out of reach is asked again, in seconds."""
DRAWS_PER_S = 8
"""How often the table is redrawn at the most."""


def watch(output: Output, training: Training, from_round: int = 0) -> int:
    """Follows a run until it ends, and returns the exit code; Ctrl-C ends the following and leaves the run.

    Raises:
        InvalidInputError: The run has failed; the message says why.
        MeshError: The mesh could not be reached for long.
    """
    view: _Lines | _Redrawn = _Redrawn(output) if _redraws(output) else _Lines(output)
    last: TrainingStatus | None = None
    try:
        with view, contextlib.closing(_updates(training, from_round)) as updates:
            for last in updates:
                output.document({"event": "update", "run": last})
                view.show(last)
    except KeyboardInterrupt:
        output.document({"event": "interrupted", "run": training.name})
        output.say(
            f"\nwatching has ended, the run goes on: orbitmesh train watch {training.name} takes it up again, "
            f"orbitmesh train cancel {training.name} ends the run"
        )
        return INTERRUPTED
    return _ended(output, last)


def found(output: Output, mesh: Mesh, name: str, timeout: float) -> Training:
    """The handle on a run; an aggregator that is being started anew is asked again, as a watch does later.

    Raises:
        MeshError: There is no such run, the gateway cannot be reached, or the aggregator could not be for 120 s.
    """
    mesh.status(timeout=timeout)  # a gateway that is not there is an error at once: its address may be wrong
    give_up, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return mesh.training(name, timeout=timeout)
        except MeshError as error:
            if error.reason not in LOST or time.monotonic() > give_up:
                raise
            if not told and not output.as_json:
                output.errors.print(
                    f"waiting: {error.message}; asked again for {PATIENCE_S:g} s",
                    style="dim", markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip
            told = True
            time.sleep(ASK_AGAIN_S)


def _updates(training: Training, from_round: int) -> Generator[TrainingStatus, None, None]:
    yield from training.watch(from_round)


def _redraws(output: Output) -> bool:
    return not output.as_json and output.console.is_terminal


def _ended(output: Output, run: TrainingStatus | None) -> int:
    if run is None:
        return OK
    if run.state == "failed":
        why = run.why or "no reason was given"
        raise InvalidInputError(
            f"the run {run.name!r} failed after {run.rounds_done} rounds: {why}; mend that, then: "
            f"orbitmesh train resume {run.name}",
            reason="FAILED_PRECONDITION",
            metadata={"run": run.name, "rounds_done": run.rounds_done},
        )
    output.say(f"{run.name} is {run.state} after {run.rounds_done} rounds" + (f": {run.why}" if run.why else ""))
    if run.state == "done":
        fetch = f"orbitmesh train weights {run.name} --out {run.name}.npy"
        output.say(f"fetch what it has learnt with: {fetch}", style="dim")
    return OK if run.state == "done" else FAILED


class _Lines:
    """A line for each round, once its figures are there; on stderr what is waited for."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._open: dict[int, TrainingRound] = {}
        self._why = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *ended: object) -> None:
        return None

    def show(self, run: TrainingStatus) -> None:
        """Shows what is new."""
        self._open.update((each.index, each) for each in run.rounds if each.done_at is not None)
        newest = max(self._open, default=0)
        for index in sorted(self._open):
            each = self._open[index]
            # What a round's weights are worth is measured after it, while the next one goes on.
            if each.figures or not run.spec.evaluate or index < newest or run.ended:
                self._output.say(round_line(each, run))
                del self._open[index]
        why = run.why if run.state == "paused" else ""
        if why != self._why:
            self._why = why
            if why and not self._output.as_json:
                self._output.errors.print(f"waiting: {why}", style="dim", markup=False, highlight=False, soft_wrap=True)


class _Redrawn:
    """Nodes and the last rounds, in place."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rounds: dict[int, TrainingRound] = {}
        self._live = Live(console=output.console, refresh_per_second=DRAWS_PER_S, transient=False)

    def __enter__(self) -> _Redrawn:
        self._live.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._live.stop()

    def show(self, run: TrainingStatus) -> None:
        """Shows how it is now."""
        self._rounds.update((each.index, each) for each in run.rounds)
        # What does not fit would be cut off at the foot, and that is where the newest round is.
        room = self._live.console.size.height - FRAME_LINES
        rounds = max(ROUNDS_SHOWN_MIN, min(ROUNDS_SHOWN, room - len(run.nodes)))
        for index in sorted(self._rounds)[:-rounds]:
            del self._rounds[index]
        known = dataclasses.replace(run, rounds=tuple(self._rounds[index] for index in sorted(self._rounds)))
        head = f"{run.name}: {run.state}, {run.rounds_done} of {run.spec.rounds} rounds"
        head += f", in slice {run.spec.slice}" if run.spec.slice else ""
        if run.spec.privacy is not None:
            head += f", epsilon {spent(run.epsilon)} of {run.spec.privacy.epsilon:g} spent"
        parts: list[RenderableType] = [Text(head), nodes_table(run, max(1, room - rounds))]
        if known.rounds:
            parts.append(rounds_table(known, None, without=False))  # the nodes' own table has them
        if run.why:
            parts.append(Text(f"waiting: {run.why}" if not run.ended else run.why, style="dim"))
        self._live.update(Group(*parts))
