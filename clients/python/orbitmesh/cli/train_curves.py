"""The picture of a run: what its weights were worth, against rounds and against bytes sent up. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.cli.contacts import need
from orbitmesh.cli.train_view import in_order
from orbitmesh.errors import InvalidInputError
from orbitmesh.training_results import TrainingStatus


@dataclass(frozen=True)
class Curve:
    """The points of one run."""

    name: str
    """The run."""
    rounds: tuple[int, ...]
    """Rounds done at each point."""
    up_bytes: tuple[int, ...]
    """Bytes of contributions up to there, from the first round on."""
    figures: tuple[dict[str, float], ...]
    """What the weights were worth."""


def check(path: Path) -> None:
    """Says what is missing before anything is begun.

    Raises:
        InvalidInputError: matplotlib is not here, or the file is to be of another kind than PNG.
    """
    need(("matplotlib",), "drawing", "plot")
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"--out writes PNG here; give a name that ends in .png instead of {path.name!r}")


def points(run: TrainingStatus) -> Curve:
    """The rounds of a run that were measured."""
    rounds, bytes_up, figures, total = [], [], [], 0
    for each in run.rounds:
        total += each.up_bytes
        if each.figures:
            rounds.append(each.index + 1)
            bytes_up.append(total)
            figures.append(dict(each.figures))
    return Curve(run.name, tuple(rounds), tuple(bytes_up), tuple(figures))


def draw(path: Path, runs: Sequence[TrainingStatus]) -> None:
    """Writes the picture as PNG.

    Args:
        path: Where to.
        runs: With all their rounds.

    Raises:
        InvalidInputError: A run has no measured round, they have no figure in common, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [points(run) for run in runs]
    figure_name = _figure_name(curves)
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    against_rounds, against_bytes = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        values = [each[figure_name] for each in curve.figures]
        against_rounds.plot(curve.rounds, values, marker=".", label=curve.name)
        against_bytes.plot([count / 1e6 for count in curve.up_bytes], values, marker=".", label=curve.name)
    against_rounds.set_xlabel("rounds")
    against_bytes.set_xlabel("MB of contributions sent up, all nodes together")
    against_rounds.set_ylabel(figure_name)
    if all(max(curve.up_bytes) > 10 * min(curve.up_bytes) > 0 for curve in curves) or len(curves) > 1:
        against_bytes.set_xscale("log")
    for axes in (against_rounds, against_bytes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    titles = [f"{run.name}: {run.spec.task}, {run.spec.strategy}, {run.spec.compression}" for run in runs]
    figure.suptitle("\n".join(titles), fontsize=10)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; give another path") from None


def _figure_name(curves: Sequence[Curve]) -> str:
    for curve in curves:
        if not curve.rounds:
            raise InvalidInputError(
                f"no round of {curve.name!r} was measured: wait for one, or begin runs without --no-evaluate",
                reason="FAILED_PRECONDITION",
            )
    names = [set.intersection(*(set(each) for each in curve.figures)) for curve in curves]
    shared = set.intersection(*names)
    if not shared:
        raise InvalidInputError("these runs have no figure in common; draw them one by one")
    return in_order(shared)[0]
