"""A run of training as it goes on: a table that is redrawn on a terminal, a line for each finished round elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orbitmesh.cli.output import FAILED, INTERRUPTED, OK, Output
from orbitmesh.cli.train_view import nodes_table, round_line, rounds_table
from orbitmesh.client import Training
from orbitmesh.errors import InvalidInputError
from orbitmesh.training_results import TrainingRound, TrainingStatus

ROUNDS_SHOWN = 10
"""How many rounds the redrawn table has."""
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
        output.say(f"fetch what it has learnt with: orbitmesh train weights {run.name} --out FILE", style="dim")
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
        for index in sorted(self._rounds)[:-ROUNDS_SHOWN]:
            del self._rounds[index]
        known = dataclasses.replace(run, rounds=tuple(self._rounds[index] for index in sorted(self._rounds)))
        head = f"{run.name}: {run.state}, {run.rounds_done} of {run.spec.rounds} rounds"
        if run.spec.privacy is not None:
            head += f", epsilon {run.epsilon:.3f} of {run.spec.privacy.epsilon:g} spent"
        parts: list[RenderableType] = [Text(head), nodes_table(run)]
        if known.rounds:
            parts.append(rounds_table(known, None))
        if run.why:
            parts.append(Text(f"waiting: {run.why}" if not run.ended else run.why, style="dim"))
        self._live.update(Group(*parts))
