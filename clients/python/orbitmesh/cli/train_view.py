"""Runs of training for people: tables, and one line for a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table

from orbitmesh.cli.output import Output, size
from orbitmesh.trace.render import format_seconds
from orbitmesh.training_results import Ledger, SecureSums, TrainingNode, TrainingRound, TrainingStatus

PREFERRED = ("accuracy", "loss")
"""The order of figures; others come after these, by name."""
WHY_CHARS = 60
"""How much the list of runs shows of why one waits or has ended."""

_STYLES = {"done": "green", "running": "green", "paused": "yellow", "cancelled": "yellow", "failed": "red"}
_NODE_STYLES = {"away": "red", "given_up": "red", "stored": "green", "idle": "dim"}


def say_run(output: Output, run: TrainingStatus) -> None:
    """What a run is, and how it is, in two or three lines."""
    spec = run.spec
    hidden = [f"{spec.privacy.unit}s hidden within epsilon {spec.privacy.epsilon:g}"] if spec.privacy else []
    hidden += ["secure sums" + _groups(spec.secure_sums)] if spec.secure_sums else []
    output.say(
        ", ".join(
            [
                f"{run.name}: {spec.task} on {len(spec.nodes)} nodes, {spec.rounds} rounds of {spec.strategy}",
                f"contributions as {spec.compression}",
                *hidden,
                *([f"in slice {spec.slice}"] if spec.slice else []),
            ]
        )
    )
    output.say(f"{run.state} after {run.rounds_done} rounds" + (f": {run.why}" if run.why else ""))


def _groups(sums: SecureSums) -> str:
    return f" in {len(sums.groups)} groups" if sums.groups else ""


def runs_table(runs: Iterable[TrainingStatus]) -> Table:
    """One row for each run."""
    runs = list(runs)
    sliced = any(run.spec.slice for run in runs)
    columns = ["run", "task", "state", "rounds", "nodes", "strategy", "compression", "epsilon"]
    table = _table(*columns, *(["slice"] if sliced else []), "why")
    for run in runs:
        spec = run.spec
        table.add_row(
            run.name,
            spec.task,
            _styled(run.state, _STYLES),
            f"{run.rounds_done} of {spec.rounds}",
            str(len(spec.nodes)),
            spec.strategy,
            spec.compression + (", secure sums" if spec.secure_sums else ""),
            f"{spent(run.epsilon)} of {spec.privacy.epsilon:g}" if spec.privacy else "-",
            *([spec.slice or "-"] if sliced else []),
            run.why if len(run.why) <= WHY_CHARS else run.why[: WHY_CHARS - 1] + "…",
        )
    return table


def nodes_table(run: TrainingStatus, most: int | None = None) -> Table:
    """One row for each node of a run; or a line for each of the first ones."""
    table = _table("node", "state", "examples", "step", "sent up", "sent down")
    if most is None:
        table.add_column("", overflow="fold")
    else:
        table.add_column("", overflow="ellipsis", no_wrap=True)
    shown = run.nodes[:most]
    if len(shown) < len(run.nodes):
        table.caption = f"and {len(run.nodes) - len(shown)} more"
    for node in shown:
        # Nobody is connected to the nodes of a run that is over: that they are not is no sign of trouble.
        over = run.ended and node.state != "given_up"
        table.add_row(
            node.name,
            "-" if over else _styled(node.state, _NODE_STYLES),
            str(node.examples or "-"),
            "-" if over else _steps(node),
            size(node.up_bytes),
            size(node.down_bytes),
            node.why,
        )
    return table


def rounds_table(run: TrainingStatus, last: int | None, *, without: bool = True) -> Table:
    """One row for each round, or for the last ones; a line each, but for the nodes that some went on `without`."""
    figures = in_order({name for each in run.rounds for name in each.figures})
    private = [] if run.spec.privacy is None else ["epsilon"]
    table = _table("round", *figures, "train loss", "up", "down", "took", *private, "nodes", wraps=False)
    shown = run.rounds if last is None else run.rounds[-last:]
    without = without and any(each.given_up for each in shown)
    if without:
        table.add_column("without", overflow="fold")
    if len(shown) < len(run.rounds):
        table.caption = f"{len(run.rounds) - len(shown)} before; --all shows them"
    for each in shown:
        table.add_row(
            str(each.index),
            *(_number(each.figures.get(name)) for name in figures),
            _number(each.train_loss),
            size(each.up_bytes),
            size(each.down_bytes),
            "goes on" if each.done_at is None else format_seconds(each.seconds),
            *([spent(each.epsilon) if each.done_at else "-"] if private else []),
            f"{len(each.contributed)} of {len(each.cohort)}",
            *([_without(each.given_up)] if without else []),
        )
    return table


def round_line(each: TrainingRound, run: TrainingStatus) -> str:
    """What became of a round, in one line."""
    parts = [f"{name} {_number(each.figures[name])}" for name in in_order(each.figures)]
    if each.train_loss is not None:
        parts.append(f"train loss {_number(each.train_loss)}")
    parts += [f"{size(each.up_bytes)} up", f"{size(each.down_bytes)} down"]
    if run.spec.privacy is not None:
        parts.append(f"epsilon {spent(each.epsilon)} of {run.spec.privacy.epsilon:g}")
    parts += [format_seconds(each.seconds), f"{len(each.contributed)} of {len(each.cohort)} nodes"]
    without = _without(each.given_up)
    return f"round {each.index}: {', '.join(parts)}" + (f"; without {without}" if without else "")


def ledger_table(ledger: Ledger) -> Table:
    """One row for each entry."""
    table = _table("round", "whose", "sums", "sample rate", "noise", "survivors", "epsilon after it")
    for entry in ledger.entries:
        table.add_row(
            str(entry.round),
            entry.node or "all nodes",
            str(entry.steps),
            f"{entry.sample_rate:.4g}",
            f"{entry.noise_multiplier:.4g} clips",
            f"{entry.survivors}, at least {entry.survivors_promised} promised" if entry.survivors else "-",
            spent(entry.epsilon, 4),
        )
    return table


def spent(epsilon: float, digits: int = 3) -> str:
    """What was spent, with so many digits behind the point; a little is not shown as nothing."""
    return f"{epsilon:.{digits}f}" if epsilon == 0 or epsilon >= 10.0**-digits else f"{epsilon:.2g}"


def in_order(figures: Iterable[str]) -> list[str]:
    """Names of figures, the one that says most first."""
    return sorted(figures, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name))


def _without(given_up: Mapping[str, str]) -> str:
    return ", ".join(f"{node} ({why})" if why else node for node, why in sorted(given_up.items()))


def _steps(node: TrainingNode) -> str:
    return f"{node.step} of {node.steps}" if node.steps else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _styled(state: str, styles: Mapping[str, str]) -> str:
    style = styles.get(state)
    text = state.replace("_", " ")
    return f"[{style}]{text}[/]" if style else text


def _table(*columns: str, wraps: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not wraps)
    return table
