"""`orbitmesh deploy`, `plan` and `delete`: bring a model up, see how it would be cut, take it down."""

from __future__ import annotations

import argparse
from typing import Any

from rich import box
from rich.table import Table

from orbitmesh._from_proto import CODECS, OBJECTIVES
from orbitmesh.aio import DEPLOY_DEADLINE_S
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, size
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.cli.status import layers, stages_table
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.results import Plan
from orbitmesh.trace.render import format_seconds


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = add_command(
        subparsers,
        "deploy",
        run_deploy,
        summary="pack a model where needed, cut it, place it, load it and verify it",
        examples="""orbitmesh deploy models/pydoc --name demo --stages 3
        orbitmesh deploy Qwen/Qwen3-0.6B --objective throughput
        orbitmesh deploy ./pack --name demo --nodes sat-1,sat-2 --codec bf16
        orbitmesh deploy ./pack --name demo --slice bulk""",
    )
    _add_model_options(parser)
    parser.add_argument("--name", help="what to call the deployment; left out: the model's name")
    parser.add_argument(
        "--codec", choices=CODECS, default="auto", help="how tensors cross links; auto is lossless (default)"
    )
    parser.add_argument(
        "--standbys",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 loads each stage on a second node too, which takes over at once where the first is lost",
    )
    parser.add_argument(
        "--slice", metavar="NAME", help="the slice that its files go to the nodes in (see `orbitmesh slices`)"
    )
    add_connection_options(parser)
    parser = add_command(
        subparsers,
        "plan",
        run_plan,
        summary="show how a model would be cut over the nodes, and why; changes nothing",
        examples="""orbitmesh plan models/pydoc --stages 3
        orbitmesh plan ./pack --objective throughput --json""",
    )
    _add_model_options(parser)
    add_connection_options(parser)
    parser = add_command(
        subparsers,
        "delete",
        run_delete,
        summary="take a deployment down on every node",
        examples="orbitmesh delete demo",
    )
    parser.add_argument("name", help="the deployment")
    add_connection_options(parser)


def run_deploy(arguments: argparse.Namespace) -> int:
    """Brings a model up."""
    output = Output(arguments.json)
    with connect(arguments) as mesh, output.progress() as on_progress:
        deployment = mesh.deploy(
            arguments.source,
            name=arguments.name,
            codec=arguments.codec,
            standbys=arguments.standbys,
            slice=arguments.slice,
            on_progress=on_progress,
            **_model_options(arguments),
        )
    output.document({"event": "deployed", "deployment": deployment})
    output.say(
        f"{deployment.name} serves {deployment.model or 'the model'} in {len(deployment.stages)} stages"
    )
    output.view(stages_table(deployment.stages))
    if deployment.plan is not None:
        show_reasons(output, deployment.plan)
    output.say(f'ask it with: orbitmesh generate {deployment.name} "..."', style="dim")
    return OK


def run_plan(arguments: argparse.Namespace) -> int:
    """Shows how a model would be cut."""
    output = Output(arguments.json)
    with connect(arguments) as mesh, output.progress() as on_progress:
        plan = mesh.plan(arguments.source, on_progress=on_progress, **_model_options(arguments))
    output.document({"event": "planned", "plan": plan})
    output.view(plan_table(plan))
    show_reasons(output, plan)
    return OK


def run_delete(arguments: argparse.Namespace) -> int:
    """Takes a deployment down."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        mesh.delete(arguments.name, timeout=arguments.timeout or CONTROL_DEADLINE_S)
    output.document({"deleted": arguments.name})
    output.say(f"{arguments.name} is down")
    return OK


def plan_table(plan: Plan) -> Table:
    """The stages of a plan with the crossings between them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (
        "stage",
        "node",
        "layers",
        "compute a token",
        "memory",
        "then over",
        "latency",
        "transfer",
    ):
        table.add_column(column)
    for index, stage in enumerate(plan.stages):
        crossing = plan.crossings[index] if index < len(plan.crossings) else None
        table.add_row(
            str(index),
            stage.node,
            layers(stage.layers),
            format_seconds(stage.compute_s),
            size(stage.memory_bytes),
            f"{crossing.source}>{crossing.target}" if crossing else "-",
            format_seconds(crossing.latency_s) if crossing else "-",
            format_seconds(crossing.transfer_s) if crossing else "-",
        )
    return table


def show_reasons(output: Output, plan: Plan) -> None:
    """The prediction, the runner-up and the planner's sentences."""
    proven = "proven best" if plan.proven_optimal else "best found within the bound of the search"
    output.say(
        f"a token takes {format_seconds(plan.token_s)} by prediction; {plan.objective} "
        f"{format_seconds(plan.objective_s)}, {proven}, planned in {format_seconds(plan.planning_s)}"
    )
    if plan.runner_up_s is not None:
        stages = " > ".join(f"{stage.node}[{layers(stage.layers)}]" for stage in plan.runner_up)
        output.say(f"runner-up: {stages} with {format_seconds(plan.runner_up_s)}")
    for reason in plan.reasons:
        output.say(f"- {reason}")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a pack, a model directory in Hugging Face layout, or a hub id")
    parser.add_argument("--stages", type=int, help="how many stages; left out: the planner chooses")
    parser.add_argument(
        "--objective", choices=OBJECTIVES, default="latency", help="what to minimise (default: latency)"
    )
    parser.add_argument("--nodes", metavar="A,B,..", help="only these nodes; left out: all that are up")
    parser.add_argument(
        "--kv-tokens", type=int, metavar="N", help="tokens of cache that each stage must hold"
    )
    parser.add_argument(
        "--work-s",
        type=float,
        metavar="S",
        help="for how long the links must last, in seconds, where the mesh knows a contact plan (default: 60)",
    )
    parser.add_argument(
        "--work-tokens", type=int, metavar="N", help="how many tokens the work is (default: 256)"
    )


def _model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "stages": arguments.stages,
        "objective": arguments.objective,
        "nodes": None if arguments.nodes is None else [name for name in arguments.nodes.split(",") if name],
        "kv_tokens": arguments.kv_tokens,
        "work_s": arguments.work_s,
        "work_tokens": arguments.work_tokens,
        "timeout": arguments.timeout or DEPLOY_DEADLINE_S,
    }
