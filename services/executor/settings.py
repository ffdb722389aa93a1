"""What an executor is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    threads: int = 0
    """Threads of one computation; 0 means all cores."""
    device: str = "cpu"
    """Where torch computes: cpu, cuda, cuda:0."""
    peers: tuple[str, ...] = ()
    """Other ways to peers, each `role/name=host:port`, where the address that they advertise is not the one to use."""
