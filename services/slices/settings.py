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
    store: str = ""
    """Where it keeps its state: postgresql://USER@HOST:PORT/DATABASE; empty means a SQLite file in `state`."""
    store_file: Path | None = None
    """File with that URL, where it holds a password; readable by its owner alone."""
    bandwidth: tuple[str, ...] = ()
    """What leaves a node, each `node=Gbit/s`: heartbeats do not measure it."""
    default_bandwidth: float = 1.0
    """What leaves any other node, in Gbit/s."""
    link_bandwidth: tuple[str, ...] = ()
    """What one direction of a link carries where that is less, each `sender>receiver=Gbit/s`; where the contact plan
    knows the two, the plan says it."""
    contacts: Path | None = None
    """File of a contact plan, for how long light takes and what links carry; read when the service starts."""
    clock: Path | None = None
    """File of the mesh's clock: origin_mesh_s, origin_wall_s, factor; without one mesh time is the real time."""
    constellation: str = ""
    """host:port of a constellation service to have the contact plan from, instead of a file."""
    constellation_name: str = "constellation"
    """Its name in its certificate."""
    places: tuple[str, ...] = ()
    """Where nodes, and services that send to them, stand that are not in the contact plan by name, each
    `name=place`."""
    otlp_endpoint: str = ""
    """Where an OpenTelemetry collector takes metrics, as http://host:port or https://host:port; empty sends none."""
    prometheus: str = ""
    """host:port where Prometheus fetches metrics, in plain HTTP; empty offers none."""
    probe: str = ""
    """host:port where health is answered in plain text, for a kubelet's probes; empty answers none."""
    ops: str = ""
    """host:port where operators (health, reflection, channelz, OpsService) are answered apart from users, besides
    `listen`; empty: there alone."""
    allow_faults: bool = False
    """Whether operators may break this process on purpose, with OpsService InjectFault: for development only."""
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
    given = (*table(settings.bandwidth, "bandwidth").items(), ("", str(settings.default_bandwidth)))
    return {name: _gbps(name or "--default-bandwidth", value) for name, value in given}


def link_bandwidths(settings: SlicesSettings) -> dict[tuple[str, str], float]:
    """What each link that is named carries, in Gbit/s, by sender and receiver.

    Raises:
        InvalidInputError: A rate is none, or two names are missing.
    """
    found = {}
    for names, value in table(settings.link_bandwidth, "link-bandwidth").items():
        sender, arrow, receiver = names.partition(">")
        if not sender or not arrow or not receiver:
            raise InvalidInputError(f"--link-bandwidth takes sender>receiver=Gbit/s, not {names!r}={value!r}")
        found[sender, receiver] = _gbps(names, value)
    return found


def _gbps(name: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise InvalidInputError(f"{name} has {value!r} Gbit/s; expected a number from 0")
    return rate
