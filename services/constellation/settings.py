"""The configuration of a constellation service."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orbitmesh.contacts import MeshClock
from services.constellation.scenario import Scenario


class Clock(StrEnum):
    """Which time the mesh lives in."""

    REAL = "real"
    SCENARIO = "scenario"


@dataclass(frozen=True)
class ConstellationSettings:
    """The configuration of a constellation service."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role constellation`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    scenario: Path
    """The scenario file, TOML."""
    clock: Clock = Clock.REAL
    """real: mesh time is the time of day; scenario: it begins at the scenario's start when the service starts."""
    time_factor: float = 1.0
    """Seconds of mesh time per real second."""
    origin_mesh_s: float | None = None
    """Mesh time at the clock's origin, in seconds since 1970-01-01 UTC; overrides `clock`. With `origin_wall_s`."""
    origin_wall_s: float | None = None
    """Real time at the clock's origin, in seconds since 1970-01-01 UTC; the service's start where left out."""
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
    hours: float | None = None
    """How far ahead it plans, in hours of mesh time; the scenario's own where left out."""


def clock_of(settings: ConstellationSettings, scenario: Scenario) -> MeshClock:
    """The clock that the settings ask for.

    Raises:
        InvalidInputError: A number is not finite, or the factor is not above 0.
    """
    wall_s = MeshClock.real().origin_wall_s if settings.origin_wall_s is None else settings.origin_wall_s
    mesh_s = settings.origin_mesh_s
    if mesh_s is None:
        mesh_s = scenario.start_s if settings.clock is Clock.SCENARIO else wall_s
    return MeshClock(mesh_s, wall_s, settings.time_factor)
