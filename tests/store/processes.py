"""Processes of services over one PostgreSQL, as an operator starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orbitmesh.rpc import channel_options
from orbitmesh.trust import Identity, Role
from orbitmesh.trust.names import role_dns_name

PATIENCE_S = 60.0
"""A safety net, far above what anything here takes."""


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Waits for a condition."""
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)


class Process:
    """One process of a service; its log is read from its file.

    Args:
        module: What to run.
        log: Where its log goes.
        flags: Its flags.
    """

    def __init__(self, module: str, log: Path, *flags: str) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen([sys.executable, "-m", module, *flags], stderr=file, stdout=file)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a name in its log so far."""
        found = []
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def wait_for(self, name: str) -> dict[str, Any]:
        """The first event of a name."""

        def there() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return bool(self.events(name))

        until(there, f"{name} in {self._log}")
        return self.events(name)[0]

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.wait_for("listening")["address"])

    @property
    def leads(self) -> bool:
        """Whether it has said that it leads."""
        return bool(self.events("leads"))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it said."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, this very moment."""
        self.signal(signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def wait(self) -> int:
        """Waits until it has ended; its exit code."""
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


@contextlib.contextmanager
def plain_channel(address: str, identity: Identity, role: Role) -> Iterator[grpc.Channel]:
    """A synchronous channel to one address."""
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.tls_key_pem, identity.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", role_dns_name(role))]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


def health(address: str, identity: Identity, role: Role, service: str) -> str:
    """What health says there."""
    with plain_channel(address, identity, role) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        status = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_S).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
