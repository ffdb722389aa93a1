"""`orbitmesh train start|status|watch|resume|cancel|delete|ledger|curves|weights|predict`: federated training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from orbitmesh import Mesh
from orbitmesh._training_proto import UNITS
from orbitmesh.cli import train_curves, train_predict, train_weights
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.cli.train_view import ledger_table, nodes_table, rounds_table, runs_table, say_run, spent
from orbitmesh.cli.train_watch import found, watch
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.training_results import LocalTraining, Privacy, SecureSums

LOCAL = LocalTraining()
ROUNDS_SHOWN = 20
"""How many rounds `status` shows unless `--all` is given."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on what the nodes have: begin, watch, stop, fetch",
        description="Train a model on what the nodes have. A run goes on in the mesh, whether or not anybody watches.",
        epilog="examples:\n  orbitmesh train start digits --rounds 20 --watch\n  orbitmesh train status digits\n"
        "  orbitmesh train weights digits --out digits.npy\n\nevery command takes --help, and --json for machines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="train_command", metavar="COMMAND", required=True)
    _register_start(commands)
    _register_looking(commands)
    _register_acting(commands)
    _register_fetching(commands)
    train_predict.register(commands)


def _register_start(commands: Subparsers) -> None:
    start = add_command(
        commands,
        "start",
        run_start,
        summary="begin a run: every node trains on what it has, and what they learn becomes one model, round by round",
        examples="""orbitmesh train start digits --rounds 20 --watch
        orbitmesh train start mnist5k --name thin --rounds 60 --compression topk:0.01 --alpha 0.3
        orbitmesh train start mnist5k --name sums --rounds 20 --secure-sums --compression int8
        orbitmesh train start mnist5k --name planes --rounds 20 --secure-sums --group sat-1,sat-2 --group sat-3,sat-4
        orbitmesh train start mnist5k --name hidden --rounds 20 --secure-sums --privacy record --epsilon 2 --steps 1 \
--lr 3.33 --clip 0.3 --strategy fedadam:server_lr=0.02,tau=0.0001
        orbitmesh train start pydoc-small --rounds 10 --strategy diloco --steps 50 --optimiser adamw --lr 0.001
        orbitmesh train start digits --rounds 20 --slice bulk""",
    )
    start.add_argument(
        "task",
        help="what to train: an entry point in orbitmesh.tasks that is installed on the nodes; shipped are digits, "
        "mnist5k, pydoc and pydoc-small",
    )
    start.add_argument("--name", help="what to call the run; left out: as the task")
    start.add_argument("--rounds", type=int, required=True, metavar="N", help="how many rounds at the most")
    start.add_argument("--nodes", metavar="A,B,..", help="the nodes; left out: all that are up")
    start.add_argument(
        "--strategy",
        type=strategy,
        default=("fedavg", {}),
        metavar="NAME[:OPTION=VALUE,..]",
        help="what turns contributions into weights: fedavg (default), fedprox:mu=0.1, fedadam, fedyogi, fedbuff, "
        "diloco, trimmed_mean, krum",
    )
    start.add_argument(
        "--compression",
        default="fp32",
        metavar="SCHEME",
        help="of contributions: fp32 (default), fp16, int8, int4, topk:0.01, blocks:0.25+int4, ..",
    )
    start.add_argument("--alpha", type=float, metavar="A", help="skew of labels between nodes; smaller is more skewed")
    start.add_argument("--seed", type=int, default=0, metavar="N", help="of splits, weights and orders (default 0)")
    start.add_argument("--quorum", type=int, default=0, metavar="N", help="contributions that a round needs; 0 is all")
    start.add_argument("--cohort", type=int, default=0, metavar="N", help="nodes that a round asks; 0 is all")
    start.add_argument(
        "--patience", type=float, default=0.0, metavar="S", help="seconds of contact that a silent node is waited for"
    )
    start.add_argument(
        "--slice", metavar="NAME", help="the slice that it trains and sends in (see `orbitmesh slices`)"
    )
    start.add_argument("--no-evaluate", action="store_true", help="do not measure the weights after every round")
    start.add_argument("--watch", action="store_true", help="watch it until it ends; Ctrl-C ends the watching alone")
    _add_local_options(start)
    _add_hiding_options(start)
    add_connection_options(start)


def _add_local_options(start: argparse.ArgumentParser) -> None:
    local = start.add_argument_group("what a node does in a round")
    length = local.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=0, metavar="N", help="passes over its examples (default 1)")
    length.add_argument("--steps", type=int, default=0, metavar="N", help="optimiser steps, in place of passes")
    local.add_argument("--batch-size", type=int, default=LOCAL.batch_size, metavar="N", help="examples of a step (32)")
    local.add_argument("--optimiser", choices=("sgd", "adamw"), default=LOCAL.optimiser, help="(default sgd)")
    local.add_argument("--lr", type=float, default=LOCAL.lr, metavar="X", help="learning rate (default 0.05)")
    local.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of SGD, below 1 (default 0)")
    local.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="(default 0)")
    local.add_argument("--gradient-norm", type=float, default=0.0, metavar="X", help="gradients are scaled down to it")
    local.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default=LOCAL.dtype, help="of the forward pass")
    local.add_argument("--keep-optimiser", action="store_true", help="momenta go on from the node's last round")


def _add_hiding_options(start: argparse.ArgumentParser) -> None:
    hiding = start.add_argument_group("what is hidden")
    hiding.add_argument("--secure-sums", action="store_true", help="the aggregator sees sums, and no node's own part")
    hiding.add_argument("--threshold", type=int, metavar="N", help="nodes that it takes to unmask a sum")
    hiding.add_argument("--bits", type=int, metavar="N", help="bits of one node's integers, 2 to 24")
    hiding.add_argument(
        "--group",
        action="append",
        metavar="A,B,..",
        help="with --secure-sums: nodes that reach each other well, such as those of an orbital plane: one of them "
        "adds up the others' masked contributions, and one upload leaves the group; again for another group",
    )
    hiding.add_argument("--privacy", choices=UNITS, help="hide the presence of each record, or of each node")
    hiding.add_argument("--epsilon", type=float, metavar="X", help="the most that may be spent")
    hiding.add_argument("--delta", type=float, metavar="X", help="the chance with which epsilon may not hold (1e-5)")
    hiding.add_argument("--clip", type=float, metavar="X", help="the norm to which each unit is clipped (1)")
    hiding.add_argument(
        "--noise-multiplier", type=float, metavar="X", help="noise in clips; left out: what pays for all rounds"
    )


def _register_looking(commands: Subparsers) -> None:
    status = add_command(
        commands,
        "status",
        run_status,
        summary="show the runs, or one of them with its nodes and rounds",
        examples="orbitmesh train status\norbitmesh train status digits --all",
    )
    status.add_argument("name", nargs="?", help="the run; left out: all of them")
    status.add_argument("--all", action="store_true", help=f"show every round, not the last {ROUNDS_SHOWN}")
    watch_it = add_command(
        commands,
        "watch",
        run_watch,
        summary="follow a run until it ends, over restarts of gateway and aggregator; Ctrl-C leaves it running",
        examples="orbitmesh train watch digits\norbitmesh train watch digits --from-round 10 --json",
    )
    watch_it.add_argument("name", help="the run")
    watch_it.add_argument("--from-round", type=int, default=0, metavar="N", help="the first round to show (default 0)")
    ledger = add_command(
        commands,
        "ledger",
        run_ledger,
        summary="show what a run's promise of privacy has cost, round by round",
        examples="orbitmesh train ledger hidden",
    )
    ledger.add_argument("name", help="the run")
    for command in (status, watch_it, ledger):
        add_connection_options(command)


def _register_acting(commands: Subparsers) -> None:
    resume = add_command(
        commands,
        "resume",
        run_resume,
        summary="let a run that was cancelled or has failed go on from its last whole round",
        examples="orbitmesh train resume digits\norbitmesh train resume digits --rounds 40 --watch",
    )
    resume.add_argument("name", help="the run")
    resume.add_argument("--rounds", type=int, metavar="N", help="how many there are to be in all; left out: as before")
    resume.add_argument("--watch", action="store_true", help="watch it until it ends")
    cancel = add_command(
        commands,
        "cancel",
        run_cancel,
        summary="end a run before its last round; its weights stay",
        examples="orbitmesh train cancel digits",
    )
    cancel.add_argument("name", help="the run")
    delete = add_command(
        commands,
        "delete",
        run_delete,
        summary="remove a run that has ended: its weights, and what its nodes keep of it",
        examples="orbitmesh train delete digits",
    )
    delete.add_argument("name", help="the run")
    for command in (resume, cancel, delete):
        add_connection_options(command)


def _register_fetching(commands: Subparsers) -> None:
    curves = add_command(
        commands,
        "curves",
        run_curves,
        summary="draw what the weights were worth, against rounds and against bytes sent up",
        examples="orbitmesh train curves digits --out digits.png",
    )
    curves.add_argument("name", nargs="+", help="the runs; several share the picture")
    curves.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    weights = add_command(
        commands,
        "weights",
        run_weights,
        summary="fetch a run's weights: one vector, tensors by name, or a directory that `orbitmesh deploy` takes",
        examples="""orbitmesh train weights digits --out digits.npy
        orbitmesh train weights digits --out digits.safetensors
        orbitmesh train weights pydoc --out trained-pydoc/""",
    )
    weights.add_argument("name", help="the run")
    weights.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="NAME.npy: one vector of float32; NAME.safetensors: tensors by name, where the task is installed here; "
        "NAME/: a model directory, where the task can write one",
    )
    for command in (curves, weights):
        add_connection_options(command)


def strategy(text: str) -> tuple[str, dict[str, float]]:
    """`fedadam:lr=0.1,beta1=0.9` as a name and its options.

    Raises:
        argparse.ArgumentTypeError: It has another form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, float] = {}
    for entry in filter(None, rest.split(",")):
        key, equals, value = entry.partition("=")
        try:
            options[key.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not key.strip():
            raise argparse.ArgumentTypeError(f"{entry!r:.80} is no option; expected such as fedprox:mu=0.1")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r:.80} names no strategy; expected such as fedprox:mu=0.1")
    return name, options


def run_start(arguments: argparse.Namespace) -> int:
    """Begins a run."""
    output = Output(arguments.json)
    name, options = arguments.strategy
    sums, privacy = _secure_sums(arguments), _privacy(arguments)
    nodes = _nodes(arguments)
    with connect(arguments) as mesh:
        not_up = _not_up(mesh, nodes or [], arguments)
        training = mesh.train(
            arguments.name or arguments.task.replace("_", "-"),
            task=arguments.task,
            rounds=arguments.rounds,
            nodes=nodes,
            strategy=name,
            strategy_options=options,
            local=LocalTraining(
                epochs=arguments.epochs,
                steps=arguments.steps,
                batch_size=arguments.batch_size,
                optimiser=arguments.optimiser,
                lr=arguments.lr,
                momentum=arguments.momentum,
                weight_decay=arguments.weight_decay,
                gradient_norm=arguments.gradient_norm,
                dtype=arguments.dtype,
                keep_optimiser=arguments.keep_optimiser,
            ),
            compression=arguments.compression,
            secure_sums=sums,
            privacy=privacy,
            alpha=arguments.alpha,
            seed=arguments.seed,
            quorum=arguments.quorum,
            cohort=arguments.cohort,
            patience_s=arguments.patience,
            evaluate=not arguments.no_evaluate,
            slice=arguments.slice,
            timeout=_timeout(arguments),
        )
        status = training.status(timeout=_timeout(arguments))
        output.document({"event": "begun", "run": status, "not_up": not_up})
        say_run(output, status)
        if not_up:
            output.say(f"not up: {', '.join(not_up)}; the run begins once as many nodes as its quorum are there")
        if arguments.watch:
            return watch(output, training)
    output.say(f"watch it with: orbitmesh train watch {status.name}", style="dim")
    return OK


def run_status(arguments: argparse.Namespace) -> int:
    """Shows the runs, or one."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        if arguments.name is None:
            runs = mesh.trainings(timeout=_timeout(arguments))
            output.document({"runs": runs})
            if runs:
                output.view(runs_table(runs))
            else:
                output.say("no runs; begin one with `orbitmesh train start`")
            return OK
        status = mesh.training(arguments.name, timeout=_timeout(arguments)).status(timeout=_timeout(arguments))
    output.document({"run": status})
    say_run(output, status)
    output.view(nodes_table(status))
    if status.rounds:
        output.view(rounds_table(status, None if arguments.all else ROUNDS_SHOWN))
    return OK


def run_watch(arguments: argparse.Namespace) -> int:
    """Follows a run."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        return watch(output, found(output, mesh, arguments.name, _timeout(arguments)), arguments.from_round)


def run_resume(arguments: argparse.Namespace) -> int:
    """Lets a run go on."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        training = mesh.training(arguments.name, timeout=_timeout(arguments))
        status = training.resume(arguments.rounds, timeout=_timeout(arguments))
        output.document({"event": "resumed", "run": status})
        output.say(f"{status.name} goes on after {status.rounds_done} of {status.spec.rounds} rounds")
        if arguments.watch:
            return watch(output, training, status.rounds_done)
    return OK


def run_cancel(arguments: argparse.Namespace) -> int:
    """Ends a run."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        status = mesh.training(arguments.name, timeout=_timeout(arguments)).cancel(timeout=_timeout(arguments))
    output.document({"event": "cancelled", "run": status})
    if status.state == "cancelled":
        output.say(f"{status.name} is cancelled after {status.rounds_done} of {status.spec.rounds} rounds; it may be "
                   f"resumed: orbitmesh train resume {status.name}")  # fmt: skip
    else:
        output.say(f"{status.name} had ended before: {status.state} after {status.rounds_done} rounds")
    return OK


def run_delete(arguments: argparse.Namespace) -> int:
    """Removes a run."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        not_told = mesh.training(arguments.name, timeout=_timeout(arguments)).delete(timeout=_timeout(arguments))
    output.document({"event": "deleted", "run": arguments.name, "not_told": list(not_told)})
    output.say(f"{arguments.name} is deleted")
    if not_told:
        output.say(f"not reached, so that they keep what they have of it: {', '.join(not_told)}")
    return OK


def run_ledger(arguments: argparse.Namespace) -> int:
    """Shows what a promise has cost."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        ledger = mesh.training(arguments.name, timeout=_timeout(arguments)).ledger(timeout=_timeout(arguments))
    output.document({"ledger": ledger})
    if ledger.promised is None:
        output.say(f"{arguments.name} promises nothing about privacy")
        return OK
    promised = ledger.promised
    output.say(
        f"{spent(ledger.epsilon)} of epsilon {promised.epsilon:g} at delta {promised.delta:g} is spent; each "
        f"{promised.unit} is hidden; the rest pays for {ledger.rounds_left} rounds more at the last price"
    )
    if ledger.entries:
        output.view(ledger_table(ledger))
    return OK


def run_curves(arguments: argparse.Namespace) -> int:
    """Draws what the weights were worth."""
    output = Output(arguments.json)
    train_curves.check(arguments.out)
    with connect(arguments) as mesh:
        runs = [_status(mesh, name, arguments) for name in arguments.name]
    train_curves.draw(arguments.out, runs)
    output.document({"event": "drawn", "path": arguments.out, "runs": [train_curves.points(run) for run in runs]})
    output.say(f"written: {arguments.out}")
    return OK


def run_weights(arguments: argparse.Namespace) -> int:
    """Fetches a run's weights."""
    output = Output(arguments.json)
    kind = train_weights.kind_of(arguments.out)
    with connect(arguments) as mesh:
        training = mesh.training(arguments.name, timeout=_timeout(arguments))
        written = train_weights.fetch(training, Path(arguments.out), kind, arguments.timeout)
    output.document({"event": "written", **written})
    output.say(f"written: {written['path']}, {written['values']} values after round {written['rounds_done']}")
    if kind is train_weights.Kind.DIRECTORY:
        output.say(f"serve it with: orbitmesh deploy {written['path']}", style="dim")
    return OK


def _status(mesh: Mesh, name: str, arguments: argparse.Namespace) -> Any:
    return mesh.training(name, timeout=_timeout(arguments)).status(timeout=_timeout(arguments))


def _timeout(arguments: argparse.Namespace) -> float:
    return CONTROL_DEADLINE_S if arguments.timeout is None else float(arguments.timeout)


def _nodes(arguments: argparse.Namespace) -> list[str] | None:
    if arguments.nodes is None:
        return None
    names = [name for name in map(str.strip, arguments.nodes.split(",")) if name]
    if not names:
        raise InvalidInputError("--nodes names no node; give such as --nodes sat-1,sat-2, or leave it out for all")
    return names


def _not_up(mesh: Mesh, names: list[str], arguments: argparse.Namespace) -> list[str]:
    """Nodes that a run is to have and that are not there: a name that was mistyped is seen now, not after an hour."""
    if not names:
        return []
    up = {node.name for node in mesh.nodes(timeout=_timeout(arguments)) if node.state == "up"}
    return [name for name in names if name not in up]


def _secure_sums(arguments: argparse.Namespace) -> SecureSums | None:
    if arguments.secure_sums:
        groups = [[node for node in group.split(",") if node] for group in arguments.group or ()]
        return SecureSums(threshold=arguments.threshold, bits=arguments.bits, groups=groups)
    _alone(arguments, "--secure-sums", "threshold", "bits", "group")
    return None


def _privacy(arguments: argparse.Namespace) -> Privacy | None:
    if arguments.privacy is None:
        _alone(arguments, "--privacy", "epsilon", "delta", "clip", "noise_multiplier")
        return None
    if arguments.epsilon is None:
        raise InvalidInputError("--privacy was given without --epsilon: say how much may be spent, such as --epsilon 8")
    given = {name: getattr(arguments, name) for name in ("delta", "clip") if getattr(arguments, name) is not None}
    return Privacy(
        unit=arguments.privacy, epsilon=arguments.epsilon, noise_multiplier=arguments.noise_multiplier, **given
    )


def _alone(arguments: argparse.Namespace, option: str, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise InvalidInputError(f"--{name.replace('_', '-')} means something with {option} only; give both")
