"""Every service of the mesh as real processes, for who wants to talk to them in ways that nobody meant."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orbitmesh import Mesh
from orbitmesh.trust import Identity, Role, issue
from tests.fuzz.rpcs import Method, Server, identities_of, methods_of

SCENARIO = Path(__file__).parents[2] / "examples" / "iridium" / "scenario.toml"
START_S = 600.0
"""A safety net, for machines that are busy."""


@dataclass(frozen=True)
class Place:
    """A mesh, and a constellation service beside it."""

    mesh: Mesh
    servers: tuple[Server, ...]
    identities: dict[Role, Identity]

    def methods(self) -> list[Method]:
        """Every method of every process, as it says by reflection."""
        return [method for server in self.servers for method in methods_of(server, self.identities)]

    def server(self, role: Role) -> Server:
        """The process of a role."""
        return next(server for server in self.servers if server.role is role)


@contextmanager
def place(directory: Path) -> Iterator[Place]:
    """All processes, for as long as the block runs."""
    with Mesh.local(nodes=1, directory=directory, start_timeout=START_S) as mesh:
        ca, logs = mesh.local.directory / "ca", mesh.local.directory / "logs"
        identities = identities_of(ca, directory / "fuzz")
        services, nodes = mesh.local.services(), mesh.local.processes()
        found = [(Role(name), name, pid) for name, pid in services.items()]
        found += [(Role.EXECUTOR, name, node.pid) for name, node in nodes.items()]
        servers = [
            Server(role, name, _address(logs / f"{name}.log"), pid, logs / f"{name}.log") for role, name, pid in found
        ]
        with _constellation(ca, directory, logs / "constellation.log") as sky:
            yield Place(mesh, (*servers, sky), identities)


@contextmanager
def _constellation(ca: Path, directory: Path, log: Path) -> Iterator[Server]:
    issue(ca, Role.CONSTELLATION, "constellation", directory / "constellation")
    arguments = [
        sys.executable, "-m", "services.constellation", "--identity", str(directory / "constellation"),
        "--listen", "127.0.0.1:0", "--scenario", str(SCENARIO), "--clock", "scenario", "--hours", "0.5",
    ]  # fmt: skip
    with log.open("wb") as out, subprocess.Popen(arguments, stderr=out) as process:
        try:
            yield Server(Role.CONSTELLATION, "constellation", _address(log), process.pid, log)
        finally:
            process.send_signal(signal.SIGTERM)


def _address(log: Path) -> str:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                return str(event["address"])
        time.sleep(0.05)
    raise AssertionError(f"{log.stem} never listened: {log.read_text()[-2000:]}")
