"""`orbitmesh up` and `down`: a mesh of real processes on this machine, in the background."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orbitmesh._local_spec import OUTAGES, LocalSpec, check_can_run, local_sky, local_spec
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output
from orbitmesh.cli.state import (
    LOG_NAME,
    MeshState,
    forget_state,
    is_running,
    process_started,
    read_state,
    state_directory,
    write_state,
)
from orbitmesh.errors import DeadlineError, InternalError, InvalidInputError, MeshError, TransportError, error_for
from orbitmesh.results import Link, OnProgress, Progress

ORDERS_NAME = "mesh.orders"
START_DEADLINE_S = 180.0
"""How long the mesh may take to start, in seconds."""
STOP_WAIT_S = 30.0
"""How long the mesh may take to end before it is killed, in seconds."""
POLL_S = 0.05
"""How often is looked whether something has happened, in seconds."""
LOG_TAIL_BYTES = 2000
"""How much of the log an error shows, in bytes."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = add_command(
        subparsers,
        "up",
        run_up,
        summary="start a mesh on this machine, in the background; other commands then need no options",
        examples="orbitmesh up\norbitmesh up --nodes 6 --latency-ms 20 --rate-mbps 100\n"
        "orbitmesh up --node sat-1 --node sat-2 --node oslo --gateway-at oslo --contacts plan.json --time-factor 60",
    )
    add_mesh_options(parser)
    add_sky_options(parser)
    parser.add_argument("--directory", metavar="DIR", help="where it keeps its state")
    parser.add_argument(
        "--otlp-endpoint", default="", metavar="URL", help="an OpenTelemetry collector for spans and metrics"
    )
    parser.add_argument(
        "--allow-faults", action="store_true", help="let operators break its processes on purpose (InjectFault)"
    )
    add_command(subparsers, "down", run_down, summary="stop the mesh that `up` started", examples="orbitmesh down")


def add_mesh_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a local mesh is to be."""
    parser.add_argument("--nodes", type=int, default=4, help="how many, the last one on the ground (default 4)")
    parser.add_argument("--latency-ms", type=float, help="emulated one-way latency between nodes")
    parser.add_argument("--rate-mbps", type=float, help="emulated rate between nodes, in megabits per second")
    parser.add_argument("--torch-threads", type=int, default=1, help="threads of each node (default 1)")


def add_sky_options(parser: argparse.ArgumentParser) -> None:
    """The options that put a local mesh under a contact plan."""
    sky = parser.add_argument_group("a sky that moves")
    sky.add_argument(
        "--contacts", metavar="FILE", help="a contact plan (see `orbitmesh contacts`) that all links follow"
    )
    sky.add_argument(
        "--time-factor", type=float, default=1.0, metavar="N", help="mesh seconds per real second (default 1)"
    )
    sky.add_argument(
        "--contacts-start",
        type=mesh_time,
        metavar="TIME",
        help="the mesh time at which the mesh is up, ISO 8601 or seconds since 1970 (default: the plan's start)",
    )
    sky.add_argument("--node", action="append", metavar="NAME", help="a node by its name in the plan, again for each")
    sky.add_argument("--gateway-at", metavar="NAME", help="where the gateway stands (default ground-1)")
    sky.add_argument(
        "--outage", choices=OUTAGES, default="cut", help="what the end of a contact does to connections (default cut)"
    )


def mesh_time(text: str) -> float:
    """A mesh time as people write it, in seconds since 1970; without a zone it is UTC."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is no time; expected such as 2026-03-01T12:00:00Z, or seconds since 1970"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def link_of(arguments: argparse.Namespace) -> Link | None:
    """The emulated link that the options describe; None where they describe none."""
    if arguments.latency_ms is None and arguments.rate_mbps is None:
        return None
    return Link(
        latency_ms=0.0 if arguments.latency_ms is None else arguments.latency_ms,
        rate_mbps=10_000.0 if arguments.rate_mbps is None else arguments.rate_mbps,
    )


def run_up(arguments: argparse.Namespace) -> int:
    """Starts a mesh and leaves it running."""
    output = Output(arguments.json)
    check_can_run()
    known = read_state()
    if known is not None and is_running(known):
        raise InvalidInputError(
            f"a mesh runs already (process {known.pid}, gateway {known.gateway}); stop it with `orbitmesh down`",
            reason="ALREADY_EXISTS",
        )
    directory = arguments.directory or state_directory() / "mesh"
    spec = local_spec(
        arguments.nodes,
        link_of(arguments),
        directory,
        arguments.torch_threads,
        node_names=arguments.node,
        sky=local_sky(arguments.contacts, arguments.time_factor, arguments.contacts_start, arguments.outage),
        gateway_at=arguments.gateway_at,
        otlp_endpoint=arguments.otlp_endpoint,
        allow_faults=arguments.allow_faults,
    )
    with output.progress() as on_progress:
        state = start_detached(spec, on_progress)
    output.document({"event": "up", "mesh": state})
    output.say(f"the mesh is up: {', '.join(state.nodes)}; gateway {state.gateway}")
    output.say("next: orbitmesh deploy models/pydoc --name demo --stages 3", style="dim")
    return OK


def run_down(arguments: argparse.Namespace) -> int:
    """Stops the mesh that `up` started."""
    output = Output(arguments.json)
    state = read_state()
    if state is None or not is_running(state):
        forget_state()
        output.document({"event": "down", "was_running": False})
        output.say("no mesh is running here")
        return OK
    stop(state)
    forget_state()
    output.document({"event": "down", "was_running": True, "pid": state.pid})
    output.say("the mesh is down")
    return OK


def start_detached(spec: LocalSpec, on_progress: OnProgress) -> MeshState:
    """Starts a supervisor that outlives us, waits until its mesh is ready and records it.

    Raises:
        MeshError: it did not come up; nothing is left running.
    """
    place = state_directory()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    log, orders = place / LOG_NAME, place / ORDERS_NAME
    orders.unlink(missing_ok=True)
    os.mkfifo(orders, 0o600)
    with ExitStack() as stack:
        log.unlink(missing_ok=True)
        log.touch(0o600)
        out = stack.enter_context(log.open("wb"))
        # The supervisor ends when its stdin closes. A pipe that it holds open at both ends by itself never
        # does, so the mesh lives until `down` ends it, whatever becomes of this process.
        pipe = os.open(orders, os.O_RDWR)
        stack.callback(os.close, pipe)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.localmesh", "--spec", "-"],
            stdin=pipe,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with spec.contacts_file() as contacts:
                os.write(pipe, json.dumps(spec.to_json(contacts)).encode() + b"\n")
                ready = _until_ready(process, log, on_progress)
            state = _state_of(process, ready)
            write_state(state)
        except BaseException:
            _end(process.pid, lambda: process.poll() is None)
            raise
    # Its parent is init from now on: without this the interpreter would warn at our exit that a child still
    # runs.
    process.returncode = 0
    return state


def stop(state: MeshState) -> None:
    """Ends the supervisor of that state, and with it the whole mesh.

    Raises:
        InternalError: it cannot be ended.
    """
    _end(state.pid, lambda: is_running(state))


def _end(pid: int, alive: Callable[[], bool]) -> None:
    # First in order; then the whole session, which is the supervisor's own since it was started as its
    # leader.
    for number, whole_group in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        if not alive():
            return
        try:
            (os.killpg if whole_group else os.kill)(pid, number)
        except ProcessLookupError:
            return
        give_up = time.monotonic() + STOP_WAIT_S
        while alive() and time.monotonic() < give_up:
            time.sleep(POLL_S)
    if alive():
        raise InternalError(f"process {pid} does not end; look at it with `ps -p {pid}`")


def _until_ready(process: subprocess.Popen[bytes], log: Path, on_progress: OnProgress) -> dict[str, Any]:
    for line in _lines(process, log):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # what a library prints stands in the same log
        if not isinstance(event, dict):
            continue
        if event.get("event") == "ready":
            return event
        if event.get("event") == "failed" or "error" in event:
            raise _failure(event)
        subject = event.get("process") or event.get("node") or event.get("what") or "mesh"
        on_progress(Progress(phase=str(event.get("event", "starting")), subject=str(subject)))
    raise TransportError(f"the mesh ended while it started; the end of {log}:\n{_tail(log)}")


def _failure(event: dict[str, Any]) -> MeshError:
    error = event.get("error")
    if isinstance(error, dict):
        return error_for(str(error.get("reason")), f"the mesh did not come up: {error.get('message')}")
    return TransportError(f"the mesh did not come up: {event}")


def _lines(process: subprocess.Popen[bytes], log: Path) -> Iterator[bytes]:
    """Whole lines of the log as they come, until the process ends."""
    give_up = time.monotonic() + START_DEADLINE_S
    rest = b""
    with log.open("rb") as file:
        while True:
            ended = process.poll() is not None
            rest += file.read()
            *whole, rest = rest.split(b"\n")
            yield from whole
            if ended:
                return
            if time.monotonic() > give_up:
                raise DeadlineError(
                    f"the mesh was not ready after {START_DEADLINE_S:g} s; the end of its log:\n{_tail(log)}"
                )
            time.sleep(POLL_S)


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def _state_of(process: subprocess.Popen[bytes], ready: dict[str, Any]) -> MeshState:
    started = process_started(process.pid)
    if started is None:
        raise TransportError("the mesh ended as soon as it was ready")
    return MeshState(
        pid=process.pid,
        started=started,
        gateway=str(ready["gateway"]),
        identity=str(ready["identity"]),
        operator_identity=str(ready.get("operator_identity") or ready["identity"]),
        directory=str(ready["directory"]),
        nodes=tuple(sorted(ready.get("nodes", {}))),
    )
