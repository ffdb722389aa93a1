"""`orbitmesh slices templates|define|list|show|optimize|apply|resize|release|top`: shares of the mesh for tenants."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TypeVar

from orbitmesh import Mesh
from orbitmesh._slices_proto import TIME_LIMIT_S
from orbitmesh.cli import slices_files, slices_top
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, plain
from orbitmesh.cli.slices_view import (
    amounts,
    document,
    nodes_table,
    say_outcome,
    say_slice,
    slices_table,
    templates_table,
)
from orbitmesh.cli.state import add_connection_options, connect
from orbitmesh.errors import InvalidInputError
from orbitmesh.slice_results import GOALS, SliceOutcome, SliceShare

T = TypeVar("T")

_RESOURCES_HELP = "what full traffic needs: CPU (cores), GPU (devices), MemoryGB, BandwidthGbps; may be given again"
_SHARE_HELP = "parts of a node's capacity, 0 to 1: dedicated (never lent), min (guaranteed), max (ceiling); also again"


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = subparsers.add_parser(
        "slices",
        help="promise tenants shares of the mesh: define, optimise, apply, resize, watch",
        description="Promise tenants shares of the mesh's CPU, GPU, memory and bandwidth, with a latency bound.",
        epilog="examples:\n  orbitmesh slices define cam --template urllc --resource CPU=2 --latency-ms 20\n"
        "  orbitmesh slices optimize --apply\n  orbitmesh slices top\n\nevery command takes --help, and --json for "
        "machines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="slices_command", metavar="COMMAND", required=True)
    _register_looking(commands)
    _register_define(commands)
    _register_optimize(commands)
    _register_changing(commands)


def _register_looking(commands: Subparsers) -> None:
    templates = add_command(
        commands,
        "templates",
        run_templates,
        summary="show the templates that slices are defined from",
        examples="orbitmesh slices templates",
    )
    listed = add_command(
        commands,
        "list",
        run_list,
        summary="show the slices, and what is reserved of each node",
        examples="orbitmesh slices list\norbitmesh slices list --tenant acme --json",
    )
    listed.add_argument("--tenant", default="", metavar="NAME", help="only this tenant's; left out: all you may see")
    show = add_command(
        commands,
        "show",
        run_show,
        summary="show one slice: what was promised, what it has, what was measured",
        examples="orbitmesh slices show cam",
    )
    show.add_argument("name", help="the slice")
    top = add_command(
        commands,
        "top",
        run_top,
        summary="watch the traffic of the slices: offered, sent, dropped, waits, error budget; Ctrl-C ends it",
        examples="orbitmesh slices top\norbitmesh slices top --node sat-1\norbitmesh slices top --once --json",
    )
    top.add_argument("--node", default="", metavar="NAME", help="only slices that are on this node")
    top.add_argument("--once", action="store_true", help="show them once, as sums since each became active")
    for command in (templates, listed, show, top):
        add_connection_options(command)


def _register_define(commands: Subparsers) -> None:
    define = add_command(
        commands,
        "define",
        run_define,
        summary="write down what a slice is to be; nothing is reserved for it before `apply`",
        examples="""orbitmesh slices define cam --template urllc
        orbitmesh slices define cam --template urllc --resource CPU=2,BandwidthGbps=0.5 --latency-ms 20 --place berlin
        orbitmesh slices define bulk --template embb --share CPU:min=0.1,max=0.5 --nodes sat-1,sat-2 --nodes-max 2
        orbitmesh slices define cam --template urllc --resource CPU=4 --etag ETAG""",
    )
    define.add_argument("name", help="what to call it: 1 to 63 of a-z, 0-9 and -")
    define.add_argument("--template", default="urllc", metavar="NAME", help="what is left out comes from it (urllc)")
    _add_size_options(define)
    define.add_argument("--latency-ms", type=float, default=0.0, metavar="MS", help="there and back at most")
    define.add_argument(
        "--within-permille", type=float, default=0.0, metavar="N", help="of 1000 transfers, so many keep the latency"
    )
    define.add_argument("--least-served", type=float, default=0.0, metavar="X", help="part to be served, 0 to 1")
    define.add_argument("--weight", type=float, default=0.0, metavar="X", help="how it weighs beside others (1)")
    define.add_argument("--place", default="", metavar="NAME", help="where its traffic comes from: a node or a site")
    define.add_argument("--nodes", default="", metavar="A,B,..", help="only these nodes; left out: all")
    define.add_argument("--nodes-max", type=int, default=0, metavar="N", help="on how many it may be spread (1)")
    define.add_argument("--max-ues", type=int, default=0, metavar="N", help="pieces of work at once (1000)")
    define.add_argument("--sst", type=int, default=0, metavar="N", help="slice/service type; left out: the template's")
    define.add_argument("--sd", default="", metavar="HEX", help="slice differentiator: six hexadecimal digits")
    define.add_argument("--tenant", default="", metavar="NAME", help="whose it is; left out: yours")
    define.add_argument("--etag", default="", help="to change one that is there: its etag, as `show` tells it")
    add_connection_options(define)


def _register_optimize(commands: Subparsers) -> None:
    optimize = add_command(
        commands,
        "optimize",
        run_optimize,
        summary="compute what each slice is best given; with --apply, and make it hold",
        examples="""orbitmesh slices optimize
        orbitmesh slices optimize --goal throughput_max --traffic cam=0.5 --apply
        orbitmesh slices optimize --out plan.json
        orbitmesh slices optimize --what-if examples/slices/node-42.toml --goal latency_sensitive""",
    )
    optimize.add_argument("--goal", choices=GOALS, help="what it is to be best in (balanced, or as the file says)")
    optimize.add_argument("--slices", default="", metavar="A,B,..", help="only these; left out: all")
    optimize.add_argument(
        "--traffic", type=_numbers, action="append", metavar="NAME=X,..", help="parts of their full traffic (1)"
    )
    optimize.add_argument("--what-if", metavar="FILE.toml", help="slices and nodes from a file, in place of the mesh's")
    optimize.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT_S, metavar="S", help="how long the solver may take (1)"
    )
    then = optimize.add_mutually_exclusive_group()
    then.add_argument("--apply", action="store_true", help="make it the allocation that holds, at once")
    then.add_argument("--out", metavar="FILE.json", help="keep it for `orbitmesh slices apply`")
    add_connection_options(optimize)


def _register_changing(commands: Subparsers) -> None:
    apply = add_command(
        commands,
        "apply",
        run_apply,
        summary="make an outcome that was kept the allocation that holds, whole or not at all",
        examples="orbitmesh slices optimize --out plan.json\norbitmesh slices apply plan.json",
    )
    apply.add_argument("file", help="what `optimize --out` wrote")
    resize = add_command(
        commands,
        "resize",
        run_resize,
        summary="change what a slice has, while it is in use",
        examples="""orbitmesh slices resize cam --resource CPU=4
        orbitmesh slices resize bulk --share BandwidthGbps:min=0.1,max=0.5 --etag ETAG""",
    )
    resize.add_argument("name", help="the slice")
    _add_size_options(resize)
    release = add_command(
        commands,
        "release",
        run_release,
        summary="end a slice and free what it had",
        examples="orbitmesh slices release cam\norbitmesh slices release cam --drain",
    )
    release.add_argument("name", help="the slice")
    release.add_argument("--drain", action="store_true", help="one that is in use ends with the last of its work")
    for command in (resize, release):
        command.add_argument("--etag", help="what this was decided on; left out: the slice as it is now")
    for command in (apply, resize, release):
        add_connection_options(command)


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resource", type=_numbers, action="append", metavar="NAME=X,..", help=_RESOURCES_HELP)
    parser.add_argument("--share", type=share, action="append", metavar="NAME:min=X,..", help=_SHARE_HELP)


def share(text: str) -> dict[str, SliceShare]:
    """`CPU:dedicated=0.1,min=0.2,max=0.5` as a share by its resource.

    Raises:
        argparse.ArgumentTypeError: It has another form.
    """
    name, colon, rest = text.partition(":")
    parts = _numbers(rest) if colon and rest else {}
    if not name or not parts or parts.keys() - {"dedicated", "min", "max"}:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no share; expected such as CPU:min=0.2,max=0.5")
    return {name.strip(): SliceShare(**parts)}


def run_templates(arguments: argparse.Namespace) -> int:
    """Shows the templates."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        templates = mesh.slices.templates(timeout=arguments.timeout)
    output.document({"templates": templates})
    output.view(templates_table(templates))
    return OK


def run_list(arguments: argparse.Namespace) -> int:
    """Shows the slices and the nodes."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        overview = mesh.slices.list(arguments.tenant, timeout=arguments.timeout)
    slices = [document(each) for each in overview.slices]
    output.document({"slices": slices, "nodes": overview.nodes, "etag": overview.etag})
    if overview.slices:
        output.view(slices_table(overview.slices))
    else:
        output.say("no slices; define one with `orbitmesh slices define`")
    if overview.nodes:
        output.view(nodes_table(overview.nodes))
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Shows one slice."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        seen = mesh.slices.get(arguments.name, timeout=arguments.timeout)
    output.document({"slice": document(seen)})
    say_slice(output, seen)
    if seen.traffic.offered_bytes:
        output.view(slices_top.traffic_table({seen.name: seen}, None))
    return OK


def run_top(arguments: argparse.Namespace) -> int:
    """Watches the traffic of the slices."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        return slices_top.top(output, mesh, arguments.node, once=arguments.once)


def run_define(arguments: argparse.Namespace) -> int:
    """Defines a slice, or another one in its place."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        defined = mesh.slices.define(
            arguments.name,
            arguments.template,
            resources=_merged(arguments.resource, "--resource"),
            shares=_merged(arguments.share, "--share"),
            latency_ms=arguments.latency_ms,
            within_latency_permille=arguments.within_permille,
            least_served=arguments.least_served,
            weight=arguments.weight,
            place=arguments.place,
            nodes=_names(arguments.nodes, "--nodes"),
            nodes_max=arguments.nodes_max,
            max_number_of_ues=arguments.max_ues,
            sst=arguments.sst,
            sd=arguments.sd,
            tenant=arguments.tenant,
            etag=arguments.etag,
            timeout=arguments.timeout,
        )
    output.document({"event": "defined", "slice": document(defined)})
    say_slice(output, defined)
    return OK


def run_optimize(arguments: argparse.Namespace) -> int:
    """Computes an allocation, and applies or keeps it where that is asked for."""
    output = Output(arguments.json)
    asked = slices_files.WhatIf() if arguments.what_if is None else slices_files.read_what_if(arguments.what_if)
    if arguments.apply and arguments.what_if is not None:
        raise InvalidInputError(
            "--apply and --what-if do not go together: an outcome for other slices and nodes than the mesh's cannot "
            "hold in it; define the slices, then optimize with --apply"
        )
    with connect(arguments) as mesh:
        outcome = mesh.slices.optimize(
            arguments.goal or asked.goal or GOALS[0],
            slices=_names(arguments.slices, "--slices"),
            traffic={**asked.traffic, **(_merged(arguments.traffic, "--traffic") or {})},
            nodes=asked.nodes,
            what_if=asked.slices,
            time_limit_s=arguments.time_limit,
            timeout=arguments.timeout,
        )
        output.document({"event": "optimized", "outcome": outcome, "served": outcome.served})
        say_outcome(output, outcome)
        if arguments.apply:
            return _apply(output, mesh, outcome, arguments)
    if arguments.out is not None:
        slices_files.write_outcome(arguments.out, plain(outcome))
        output.say(f"written: {arguments.out}; make it hold with: orbitmesh slices apply {arguments.out}", style="dim")
    elif arguments.what_if is None:
        output.say("nothing was changed; make it hold with: orbitmesh slices optimize --apply", style="dim")
    return OK


def run_apply(arguments: argparse.Namespace) -> int:
    """Makes an outcome that was kept hold."""
    output = Output(arguments.json)
    outcome = slices_files.read_outcome(arguments.file)
    with connect(arguments) as mesh:
        return _apply(output, mesh, outcome, arguments)


def run_resize(arguments: argparse.Namespace) -> int:
    """Changes what a slice has."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        resized = mesh.slices.resize(
            arguments.name,
            resources=_merged(arguments.resource, "--resource"),
            shares=_merged(arguments.share, "--share"),
            etag=arguments.etag,
            timeout=arguments.timeout,
        )
    output.document({"event": "resized", "slice": document(resized)})
    output.say(f"{resized.name} is resized: {amounts(resized.profile.resources)}; etag {resized.etag}")
    return OK


def run_release(arguments: argparse.Namespace) -> int:
    """Ends a slice."""
    output = Output(arguments.json)
    with connect(arguments) as mesh:
        ending = mesh.slices.release(
            arguments.name, drain=arguments.drain, etag=arguments.etag, timeout=arguments.timeout
        )
    if ending is not None:
        output.document({"event": "releasing", "slice": document(ending)})
        output.say(f"{ending.name} takes no new work and ends with the last of its {ending.admitted} pieces")
        return OK
    output.document({"event": "released", "slice": arguments.name})
    output.say(f"{arguments.name} is released; what it had is free")
    return OK


def _apply(output: Output, mesh: Mesh, outcome: SliceOutcome, arguments: argparse.Namespace) -> int:
    applied = mesh.slices.apply(outcome, timeout=arguments.timeout)
    output.document(
        {"event": "applied", "slices": [document(each) for each in applied.slices], "etag": applied.etag}
    )
    names = ", ".join(each.name for each in applied.slices) or "nothing"
    output.say(f"applied to {names}; the state is {applied.etag} now")
    return OK


def _merged(given: Sequence[Mapping[str, T]] | None, option: str) -> dict[str, T] | None:
    """What an option that may be given again says in all; a name stands in one of them only."""
    if given is None:
        return None
    merged: dict[str, T] = {}
    for each in given:
        for name, value in each.items():
            if name in merged:
                raise InvalidInputError(f"{option} names {name!r:.80} twice; give each once")
            merged[name] = value
    return merged


def _numbers(text: str) -> dict[str, float]:
    """`CPU=4,MemoryGB=8` as numbers by name."""
    found: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, value = entry.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip() or name.strip() in found:
            raise argparse.ArgumentTypeError(f"{text!r:.80} is no list of numbers; expected such as NAME=4,OTHER=0.5")
        found[name.strip()] = number
    return found


def _names(text: str, option: str) -> list[str]:
    names = [name for name in map(str.strip, text.split(",")) if name]
    if text and not names:
        raise InvalidInputError(f"{option} names nothing; give such as {option} one,two, or leave it out for all")
    return names
