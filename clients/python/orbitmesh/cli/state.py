"""What `orbitmesh up` leaves for the other commands: which mesh runs here, and how to reach it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from orbitmesh import Mesh
from orbitmesh._requests import checked_timeout
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTROL_DEADLINE_S

STATE_NAME = "mesh.json"
LOG_NAME = "mesh.log"
STATE_BYTES = 64 * 1024
"""A larger state file is none of ours, in bytes."""


@dataclass(frozen=True)
class MeshState:
    """A mesh that runs in the background."""

    pid: int
    """The supervisor's process."""
    started: str
    """When that process started, as the system tells: a process id alone may have been given away again."""
    gateway: str
    """The gateway, host:port."""
    identity: str
    """The directory of the user's identity."""
    operator_identity: str
    """The directory of the operator's identity."""
    directory: str
    """Where the mesh keeps its state."""
    nodes: tuple[str, ...]
    """The names of its nodes."""


def state_directory() -> Path:
    """`$XDG_STATE_HOME/orbitmesh`, which is `~/.local/state/orbitmesh` where that is not set."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "orbitmesh"


def read_state() -> MeshState | None:
    """The mesh that `orbitmesh up` started, whether or not it still runs; None where there is none."""
    path = state_directory() / STATE_NAME
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(STATE_BYTES))
        return MeshState(**{**raw, "nodes": tuple(raw["nodes"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInputError(
            f"{path} cannot be read ({type(error).__name__}); stop what runs with its process id and remove "
            "the file",
            reason="FAILED_PRECONDITION",
        ) from None


def write_state(state: MeshState) -> None:
    """Writes the state whole or not at all, readable by its owner only."""
    directory = state_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = directory / (STATE_NAME + ".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(state), file, indent=1)
    partial.replace(directory / STATE_NAME)


def forget_state() -> None:
    """Removes the state."""
    (state_directory() / STATE_NAME).unlink(missing_ok=True)


def process_started(pid: int) -> str | None:
    """When the process started, as a word to compare; None where there is none or it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The command's name stands in parentheses and may itself hold spaces: count from the last one.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    found = subprocess.run(
        ["ps", "-p", str(pid), "-o", "lstart="], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def is_running(state: MeshState) -> bool:
    """Whether the supervisor of that state is alive: the same process, not another that got its number."""
    return process_started(state.pid) == state.started


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which mesh and who we are."""
    group = parser.add_argument_group("connection", "left out: the mesh that `orbitmesh up` started")
    group.add_argument("--gateway", metavar="ADDRESS", help="the gateway, host:port; or several, a:1,b:2")
    group.add_argument("--identity", metavar="DIR", help="the directory of an identity of that mesh")
    group.add_argument("--timeout", metavar="SECONDS", type=float, help="how long the command may take")


def connect(arguments: argparse.Namespace) -> Mesh:
    """The mesh that the options, or else the state, name.

    Raises:
        InvalidInputError: neither does, or the time that is allowed is none.
    """
    seconds = checked_timeout(CONTROL_DEADLINE_S if arguments.timeout is None else arguments.timeout, "--timeout")
    state = read_state()
    if arguments.gateway is None and state is not None and not is_running(state):
        raise InvalidInputError(
            f"the mesh that `orbitmesh up` started (process {state.pid}) has ended; run `orbitmesh up` "
            "again, or name "
            "another with --gateway and --identity",
            reason="FAILED_PRECONDITION",
        )
    gateway = arguments.gateway or (state.gateway if state else None)
    # Another mesh than ours does not know our identity: a gateway by name needs an identity by name.
    identity = arguments.identity or (state.identity if state and arguments.gateway is None else None)
    if not gateway or not identity:
        raise InvalidInputError(
            "it is not said which mesh to talk to; start one here with `orbitmesh up`, or give both "
            "--gateway ADDRESS "
            "and --identity DIR",
            reason="FAILED_PRECONDITION",
        )
    return Mesh.connect(gateway, identity=identity, timeout=min(seconds, CONTROL_DEADLINE_S), patience=0.0)
