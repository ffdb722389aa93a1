"""The configuration of a slices service."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.errors import InvalidInputError


@dataclass(frozen=True)
class SlicesSettings:
    """The configuration of a slices service."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role slices`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    state: Path
    """Directory of its database."""
    scheduler: str
    """host:port of the scheduler, which knows the nodes."""
    scheduler_name: str = "scheduler"
    """Its name in its certificate."""
    bandwidth: tuple[str, ...] = ()
    """What leaves a node, each `node=Gbit/s`: heartbeats do not measure it."""
    default_bandwidth: float = 1.0
    """What leaves any other node, in Gbit/s."""
    contacts: Path | None = None
    """File of a contact plan, for how long light takes; read when the service starts."""
    constellation: str = ""
    """host:port of a constellation service to have the contact plan from, instead of a file."""
    constellation_name: str = "constellation"
    """Its name in its certificate."""
    places: tuple[str, ...] = ()
    """Where nodes stand that are not in the contact plan by name, each `node=place`."""
    otlp_endpoint: str = ""
    """Where an OpenTelemetry collector takes metrics, as http://host:port or https://host:port; empty sends none."""
    prometheus: str = ""
    """host:port where Prometheus fetches metrics, in plain HTTP; empty offers none."""
    solvers: int = 2
    """How many allocations are computed at once, each in a process of its own."""
    peers: tuple[str, ...] = ()
    """Other ways to services, each `role/name=host:port`, where the address that they are given by is not the one."""


def table(entries: tuple[str, ...], what: str) -> dict[str, str]:
    """Settings of the form `name=value`.

    Raises:
        InvalidInputError: An entry has another form.
    """
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals or not value:
            raise InvalidInputError(f"--{what} takes name=value, not {entry!r}")
        found[name] = value
    return found


def bandwidths(settings: SlicesSettings) -> dict[str, float]:
    """What leaves each node that is named, in Gbit/s.

    Raises:
        InvalidInputError: A rate is none.
    """
    found = {}
    for name, value in (*table(settings.bandwidth, "bandwidth").items(), ("", str(settings.default_bandwidth))):
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] < math.inf:
            raise InvalidInputError(f"{name or '--default-bandwidth'} has {value!r} Gbit/s; expected a number from 0")
    return found
