"""Who is in a local mesh and which relays stand between them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orbitmesh.errors import InvalidInputError

NODES_MAX = 64
"""The most nodes of a local mesh."""
GROUND = "ground-1"
"""The node beside the gateway and the scheduler."""


@dataclass(frozen=True)
class LinkSpec:
    """What every link of the mesh is like."""

    latency_ms: float
    """One-way latency."""
    rate_mbps: float
    """Rate in Mbit/s."""


@dataclass(frozen=True)
class MeshSpec:
    """A local mesh to start."""

    nodes: int
    """How many executors; the last one is the ground node."""
    link: LinkSpec | None
    """Every link between places; None connects all directly."""
    directory: str | None
    """Where state and logs live; None takes a temporary one and removes it at the end."""
    torch_threads: int
    """Threads of one computation."""

    @classmethod
    def parse(cls, raw: dict[str, object]) -> MeshSpec:
        """From JSON.

        Raises:
            InvalidInputError: Where it is not such a mesh.
        """
        nodes, link, threads = raw.get("nodes", 4), raw.get("link"), raw.get("torch_threads", 1)
        directory = raw.get("directory")
        if not isinstance(nodes, int) or not 1 <= nodes <= NODES_MAX:
            raise InvalidInputError(f"a local mesh has 1 to {NODES_MAX} nodes, not {nodes!r}")
        if not isinstance(threads, int) or threads < 1:
            raise InvalidInputError(f"torch_threads must be a positive whole number, not {threads!r}")
        spec = None
        if isinstance(link, dict):
            latency_ms, rate_mbps = float(link.get("latency_ms", 0.0)), float(link.get("rate_mbps", 0.0))
            if not (latency_ms >= 0 and rate_mbps > 0):
                raise InvalidInputError("a link has a latency of 0 ms or more and a rate above 0 Mbit/s")
            spec = LinkSpec(latency_ms, rate_mbps)
        return cls(nodes, spec, str(directory) if directory else None, threads)

    @property
    def node_names(self) -> tuple[str, ...]:
        """sat-1, sat-2, ..., ground-1."""
        return (*(f"sat-{index}" for index in range(1, self.nodes)), GROUND)


def place(name: str) -> str:
    """Where a service stands: the gateway and the scheduler beside the ground node, every other where it is named."""
    return GROUND if name in ("gateway", "scheduler") else name


def ways(spec: MeshSpec) -> list[tuple[str, str]]:
    """The directed ways (from, to) between services at different places: each gets a relay."""
    if spec.link is None:
        return []
    services = [*spec.node_names, "gateway", "scheduler"]
    used = []
    for source in services:
        for target in services:
            fixed = source in ("gateway", "scheduler") and target in ("gateway", "scheduler")
            if source != target and not fixed and place(source) != place(target):
                used.append((source, target))
    return used


def role(name: str) -> str:
    """The role of a service by its name."""
    return name if name in ("gateway", "scheduler") else "executor"
