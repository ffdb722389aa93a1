"""A mesh with two schedulers and two gateways over one PostgreSQL, each a process of its own."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from orbitmesh import Mesh
from orbitmesh.trust import Identity, Role, init_mesh, issue
from tests.store.processes import Process, until

NODES = ("sat-1", "sat-2")
JOIN_S = 120.0
"""A safety net: executors import torch one after the other."""


class HaMesh:
    """All its processes.

    Args:
        directory: Where logs and states are.
        url: The database.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self._url = url
        self.database = url.rpartition("/")[2] if "?" not in url else url.partition("?")[0].rpartition("/")[2]
        init_mesh(directory / "ca")
        self.operator: Identity = issue(directory / "ca", Role.OPERATOR, "olga", directory / "olga")
        self.client: Identity = issue(directory / "ca", Role.CLIENT, "ann", directory / "ann")
        key = directory / "record.key"
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
        self._held: list[socket.socket] = []
        self.schedulers = {name: self._port() for name in ("scheduler-1", "scheduler-2")}
        self.gateways = {name: self._port() for name in ("gateway-1", "gateway-2")}
        self._started: dict[str, list[Process]] = {}

    @property
    def scheduler(self) -> str:
        """The addresses of the schedulers, by name."""
        return ",".join(self.schedulers.values()).replace("127.0.0.1", "localhost")

    @property
    def gateway(self) -> str:
        """The addresses of the gateways."""
        return ",".join(self.gateways.values())

    def connect(self) -> Mesh:
        """As an operator."""
        return Mesh.connect(self.gateway, identity=self.directory / "olga")

    def start(self) -> None:
        """All of it; returns once every node has joined and is linked with the others."""
        for name in (*self.schedulers, *self.gateways):
            self.start_one(name)
        for node in NODES:
            self._launch(node, "services.executor", Role.EXECUTOR, node, "127.0.0.1:0", "--scheduler", self.scheduler,
                         "--threads", "1")  # fmt: skip
        until(lambda: self._joined() == set(NODES), "the nodes have joined", JOIN_S)

    def start_one(self, name: str, record_key: Path | None = None) -> Process:
        """A scheduler or a gateway, for the first time or again; a gateway with another key than the others'."""
        shared = ("--store", self._url)
        if name in self.schedulers:
            return self._launch(name, "services.scheduler", Role.SCHEDULER, "scheduler", self.schedulers[name], *shared)
        return self._launch(
            name, "gateway", Role.GATEWAY, "gateway", self.gateways[name], *shared, "--scheduler", self.scheduler,
            "--advertise", self.gateway, "--record-key", str(record_key or self.directory / "record.key"),
        )  # fmt: skip

    def leader(self, of: dict[str, str]) -> str:
        """The process of these that leads; waits until one does."""
        found: list[str] = []

        def one() -> bool:
            found[:] = [name for name in of if self.alive(name) and self._started[name][-1].leads]
            return len(found) == 1

        until(one, f"one of {', '.join(of)} leads")
        return found[0]

    def alive(self, name: str) -> bool:
        """Whether its newest process runs."""
        return self._started[name][-1].running

    def process(self, name: str) -> Process:
        """Its newest process."""
        return self._started[name][-1]

    def close(self) -> None:
        """Ends every process."""
        for processes in self._started.values():
            for process in processes:
                process.end()
        for each in self._held:
            each.close()

    def _joined(self) -> set[str]:
        with self.connect() as mesh:
            return {node.name for node in mesh.nodes() if node.state == "up"}

    def _launch(self, name: str, module: str, role: Role, title: str, listen: str, *flags: str) -> Process:
        lives = self._started.setdefault(name, [])
        issue(self.directory / "ca", role, title, self.directory / name / "identity")
        process = Process(
            module, self.directory / f"{name}.{len(lives)}.log", "--identity", str(self.directory / name / "identity"),
            "--listen", listen, "--state", str(self.directory / name / "state"), *flags,
        )  # fmt: skip
        lives.append(process)
        return process

    def _port(self) -> str:
        """An address that nobody else is given: a socket that is bound and does not listen keeps it."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        self._held.append(held)
        return f"127.0.0.1:{held.getsockname()[1]}"


def seconds_until(condition: Callable[[], bool], patience_s: float = 60.0) -> float:
    """How long it took until a condition held."""
    began = time.monotonic()
    until(condition, "it happens", patience_s)
    return time.monotonic() - began
