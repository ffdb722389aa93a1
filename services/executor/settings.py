"""What an executor is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Confine(Enum):
    """Whether a control group holds an executor to its cores."""

    AUTO = "auto"
    """Where the machine allows it; elsewhere a line of the log says why not."""
    REQUIRE = "require"
    """It does not start otherwise."""
    OFF = "off"
    """Never."""


@dataclass(frozen=True)
class ExecutorSettings:
    """The configuration of one executor."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role executor`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    state: Path
    """Directory for files of packs; survives restarts."""
    scheduler: str
    """host:port of the scheduler."""
    scheduler_name: str = "scheduler"
    """Its name in its certificate."""
    slices: str = ""
    """host:port of the service that keeps slices; empty divides nothing: first come, first served."""
    slices_name: str = "slices"
    """Its name in its certificate."""
    advertise: str = ""
    """host:port where others reach this node; empty means the address it listens on."""
    kind: str = "edge"
    """What kind of place it is: satellite, edge or ground."""
    memory_bytes: int = 0
    """Bytes that stages may take, weights and caches; 0 means 80 % of the machine's memory."""
    cores: float = 0.0
    """Processor time that it may use, in cores, such as 1.5; 0 means all that its machine or control group leaves."""
    confine: Confine = Confine.AUTO
    """Whether the kernel holds it to --cores, by a control group: auto (where that is allowed), require, off."""
    threads: int = 0
    """Threads of one computation; 0 means as many as it may use cores."""
    device: str = "cpu"
    """Where torch computes: cpu, cuda, cuda:0."""
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
    peers: tuple[str, ...] = ()
    """Other ways to peers, each `role/name=host:port`, where the address that they advertise is not the one to use."""
