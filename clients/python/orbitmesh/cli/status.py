"""`orbitmesh status`, `nodes` and `version`: what there is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rich import box
from rich.table import Table

import orbitmesh
from orbitmesh import Mesh
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, size
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.cli.train_view import runs_table
from orbitmesh.errors import InvalidInputError, TransportError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.results import Deployment, Node, Stage
from orbitmesh.trace.render import format_seconds
from orbitmesh.training_results import TrainingStatus

BEHIND_WAIT_S = 5.0
"""How long each service behind the gateway is waited for at the most, in seconds: the rest is known by then."""

_STATE_STYLES = {
    "up": "green",
    "ready": "green",
    "loading": "yellow",
    "draining": "yellow",
    "degraded": "red",
}


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = add_command(
        subparsers,
        "status",
        run_status,
        summary="show the gateway and what is behind it, deployments, runs of training that go on, and nodes",
        examples="""orbitmesh status
        orbitmesh status --gateway gateway.example:7443 --identity ~/.orbitmesh/me""",
    )
    add_connection_options(parser)
    parser = add_command(
        subparsers,
        "nodes",
        run_nodes,
        summary="show the nodes and their links, as they measured them",
        examples="orbitmesh nodes\norbitmesh nodes --json",
    )
    add_connection_options(parser)
    add_command(
        subparsers,
        "version",
        run_version,
        summary="show the version of orbitmesh",
        examples="orbitmesh version",
    )


def run_status(arguments: argparse.Namespace) -> int:
    """Shows the gateway, what is behind it, the deployments, the runs that go on and the nodes."""
    output = Output(arguments.json)
    timeout = arguments.timeout or CONTROL_DEADLINE_S
    with connect(arguments) as mesh:
        status = mesh.status(timeout=timeout)
        deployments, nodes = mesh.deployments(timeout=timeout), mesh.nodes(timeout=timeout)
        training = _training(mesh, min(timeout, BEHIND_WAIT_S))
        slices = _slices(mesh, min(timeout, BEHIND_WAIT_S))
    output.document(
        {"gateway": status, "deployments": deployments, "nodes": nodes, "training": training, "slices": slices}
    )
    scheduler = "up" if status.scheduler_up else "unreachable"
    output.say(
        f"gateway {status.name} at {status.address}, version {status.version}, scheduler {scheduler}, "
        f"aggregator {training.aggregator}, slices {slices.service}"
    )
    output.say(f"{status.generations} generations running, {status.packs} packs kept")
    going_on = [run for run in training.runs if not run.ended]
    if training.runs:
        ended = len(training.runs) - len(going_on)
        output.say(f"{len(going_on)} runs of training go on, {ended} have ended (orbitmesh train status)")
    if going_on:
        output.view(runs_table(going_on))
    if slices.known:
        output.say(f"{slices.active} of {slices.known} slices are active (orbitmesh slices list)")
    if deployments:
        output.view(deployments_table(deployments))
    else:
        output.say("no deployments; make one with `orbitmesh deploy`")
    output.view(nodes_table(nodes))
    return OK


@dataclass(frozen=True)
class TrainingOverview:
    """What there is to say of training."""

    aggregator: str
    """`up`; `unreachable`; or `none`, where the gateway was given none."""
    runs: tuple[TrainingStatus, ...]
    """The runs that it knows, by name, without their rounds."""


def _training(mesh: Mesh, timeout: float) -> TrainingOverview:
    """Nothing but training needs an aggregator: that there is none is no reason to say nothing of the rest."""
    try:
        return TrainingOverview("up", tuple(mesh.trainings(timeout=timeout)))
    except TransportError:
        return TrainingOverview("unreachable", ())
    except InvalidInputError:
        return TrainingOverview("none", ())


@dataclass(frozen=True)
class SlicesState:
    """What there is to say of slices."""

    service: str
    """`up`; `unreachable`; or `none`, where the gateway was given none."""
    known: int
    """How many slices the caller has, or may see."""
    active: int
    """How many of them something is reserved for."""


def _slices(mesh: Mesh, timeout: float) -> SlicesState:
    """As for training."""
    try:
        found = mesh.slices.list(timeout=timeout).slices
    except TransportError:
        return SlicesState("unreachable", 0, 0)
    except InvalidInputError:
        return SlicesState("none", 0, 0)
    return SlicesState("up", len(found), sum(bool(each.allocations) for each in found))


def run_nodes(arguments: argparse.Namespace) -> int:
    """Shows the nodes and their links."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        nodes = mesh.nodes(timeout=arguments.timeout or CONTROL_DEADLINE_S)
    output.document({"nodes": nodes})
    output.view(nodes_table(nodes))
    if any(node.links for node in nodes):
        output.view(links_table(nodes))
    return OK


def run_version(arguments: argparse.Namespace) -> int:
    """Shows the version."""
    output = Output(arguments.json)
    output.document({"version": orbitmesh.__version__})
    output.say(orbitmesh.__version__)
    return OK


def deployments_table(deployments: list[Deployment]) -> Table:
    """The deployments with their stages."""
    table = _table("deployment", "model", "state", "codec", "stages")
    for deployment in deployments:
        table.add_row(
            deployment.name,
            deployment.model,
            _state(deployment.state),
            deployment.codec,
            " > ".join(f"{stage.node}[{layers(stage.layers)}]" for stage in deployment.stages)
            + (f"  {deployment.failure}" if deployment.failure else ""),
        )
    return table


def stages_table(stages: tuple[Stage, ...]) -> Table:
    """The stages of one deployment, as loaded."""
    table = _table("stage", "node", "layers", "weights", "cache free", "a layer takes")
    for index, stage in enumerate(stages):
        table.add_row(
            str(index),
            stage.node,
            layers(stage.layers),
            size(stage.weight_bytes),
            f"{size(stage.kv_free_bytes)} of {size(stage.kv_budget_bytes)}",
            format_seconds(stage.layer_s),
        )
    return table


def nodes_table(nodes: list[Node]) -> Table:
    """The nodes with what they measured."""
    table = _table("node", "kind", "state", "cores", "load", "memory free", "Gflop/s", "holds")
    for node in nodes:
        table.add_row(
            node.name,
            node.kind,
            _state(node.state),
            f"{node.cores:.4g}",
            f"{node.load:.0%}",
            f"{size(node.memory_free_bytes)} of {size(node.memory_total_bytes)}",
            f"{node.flops / 1e9:.1f}",
            ", ".join([*node.accelerators, *node.stages]) or "-",
        )
    return table


def links_table(nodes: list[Node]) -> Table:
    """The links, as their senders measured them."""
    table = _table("link", "round trip", "rate", "state")
    for node in nodes:
        for link in node.links:
            table.add_row(
                f"{node.name} > {link.peer}",
                format_seconds(link.rtt_s),
                f"{link.rate_bps / 1e6:.0f} Mbit/s",
                _state("up" if link.up else "down"),
            )
    return table


def layers(run: range) -> str:
    """A run of layers for people: first and last."""
    return str(run.start) if len(run) == 1 else f"{run.start}..{run.stop - 1}"


def _state(state: str) -> str:
    return f"[{_STATE_STYLES.get(state, 'red')}]{state}[/]"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
