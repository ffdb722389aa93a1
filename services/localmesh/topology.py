"""Who is in a local mesh and which ways lead from one to another. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.names import check_name
from services.links.schedule import windows

NODES_MAX = 64
"""The most nodes of a local mesh."""
GROUND = "ground-1"
"""The node beside the services that run once, where nothing else is said."""
SERVICES = ("gateway", "scheduler", "aggregator", "slices")
"""What runs once, beside the ground node."""
DIALLED_BY_NONE = ("aggregator",)
"""Services that nodes never dial: there is no way from a node to them."""
DIALS_NONE = ("slices",)
"""Services that never dial nodes: there is no way from them to a node."""


@dataclass(frozen=True)
class LinkSpec:
    """What every link of the mesh is like."""

    latency_ms: float
    """One-way latency."""
    rate_mbps: float
    """Rate in Mbit/s."""


@dataclass(frozen=True)
class SkySpec:
    """The contact plan that the links of the mesh follow."""

    contacts: str
    """The file that holds it."""
    factor: float
    """Mesh seconds per real second."""
    start_s: float | None
    """The mesh time at which the mesh is launched; None: where the plan begins."""
    outage: str
    """What a closed window does to connections: `cut` or `hold`."""
    ramp_s: float
    """How long the rate climbs after acquisition, mesh time in seconds."""


@dataclass(frozen=True)
class MeshSpec:
    """A local mesh to start."""

    node_names: tuple[str, ...]
    """The executors: sat-1, sat-2, ..., ground-1 where no names were given."""
    link: LinkSpec | None
    """Every link between places that no contact plan speaks of; None connects those directly."""
    directory: str | None
    """Where state and logs live; None takes a temporary one and removes it at the end."""
    torch_threads: int
    """Threads of one computation."""
    gateway_at: str
    """The place of all services that run once: a node, or a site of the plan without one."""
    sky: SkySpec | None
    """The contact plan; None: links do not move."""
    otlp_endpoint: str = ""
    """A collector for spans and metrics; empty for none."""
    allow_faults: bool = False
    """Whether operators may break its processes on purpose."""

    @classmethod
    def parse(cls, raw: dict[str, object]) -> MeshSpec:
        """From JSON.

        Raises:
            InvalidInputError: Where it is not such a mesh.
        """
        threads, directory = raw.get("torch_threads", 1), raw.get("directory")
        names = _node_names(raw)
        if not isinstance(threads, int) or threads < 1:
            raise InvalidInputError(f"torch_threads must be a positive whole number, not {threads!r}")
        given = raw.get("gateway_at")
        gateway_at = str(given) if given else (GROUND if GROUND in names else names[-1])
        return cls(
            names, _link(raw), str(directory) if directory else None, threads, gateway_at, _sky(raw),
            str(raw.get("otlp_endpoint") or ""), raw.get("allow_faults") is True,
        )  # fmt: skip

    def place(self, name: str) -> str:
        """Where a service stands: what runs once at `gateway_at`, every node where it is named."""
        return self.gateway_at if name in SERVICES else name

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every service of the mesh."""
        return (*self.node_names, *SERVICES)


def _node_names(raw: dict[str, object]) -> tuple[str, ...]:
    nodes, names = raw.get("nodes", 4), raw.get("node_names")
    if names is None:
        if not isinstance(nodes, int) or not 1 <= nodes <= NODES_MAX:
            raise InvalidInputError(f"a local mesh has 1 to {NODES_MAX} nodes, not {nodes!r}")
        return (*(f"sat-{index}" for index in range(1, nodes)), GROUND)
    if not isinstance(names, list) or not 1 <= len(names) <= NODES_MAX:
        raise InvalidInputError(f"node_names is {names!r:.200}; expected 1 to {NODES_MAX} names")
    for name in names:
        check_name(str(name))
        if name in SERVICES:
            raise InvalidInputError(f"no node can be called {name!r}: the service beside the nodes is; choose another")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"two nodes are called {twice!r}; give each a name of its own", reason="ALREADY_EXISTS")
    return tuple(names)


def _link(raw: dict[str, object]) -> LinkSpec | None:
    link = raw.get("link")
    if not isinstance(link, dict):
        return None
    latency_ms, rate_mbps = float(link.get("latency_ms", 0.0)), float(link.get("rate_mbps", 0.0))
    if not (latency_ms >= 0 and rate_mbps > 0):
        raise InvalidInputError("a link has a latency of 0 ms or more and a rate above 0 Mbit/s")
    return LinkSpec(latency_ms, rate_mbps)


def _sky(raw: dict[str, object]) -> SkySpec | None:
    contacts, start = raw.get("contacts"), raw.get("contacts_start_s")
    if not contacts:
        return None
    factor, ramp_s = raw.get("time_factor", 1.0), raw.get("ramp_s", 0.0)
    for name, value in (("time_factor", factor), ("ramp_s", ramp_s), ("contacts_start_s", start or 0.0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InvalidInputError(f"{name} is {value!r:.80}; expected a number from 0")
    assert isinstance(factor, int | float) and isinstance(ramp_s, int | float)  # noqa: S101 - checked above
    if factor == 0:
        raise InvalidInputError("time_factor is 0; expected mesh seconds per real second, above 0")
    outage = str(raw.get("outage", "cut"))
    if outage not in ("cut", "hold"):
        raise InvalidInputError(f"outage is {outage!r:.80}; expected cut or hold")
    start_s = float(start) if isinstance(start, int | float) else None
    return SkySpec(str(contacts), float(factor), start_s, outage, float(ramp_s))


@dataclass(frozen=True)
class Way:
    """How one service reaches another at a different place."""

    source: str
    """The service that dials."""
    target: str
    """The service that answers."""
    kind: str
    """`link`: as every link; `plan`: as the contact plan says; `never`: the two have no contact in it."""

    @property
    def name(self) -> str:
        """What its relay is called."""
        return f"{self.source}>{self.target}"


def ways(spec: MeshSpec, plan: ContactPlan | None = None) -> list[Way]:
    """The directed ways between services at different places that a relay stands for; all others are direct."""
    found = []
    for source in spec.all_names:
        for target in spec.all_names:
            needless = target in DIALLED_BY_NONE or source in DIALS_NONE or (source in SERVICES and target in SERVICES)
            here, there = spec.place(source), spec.place(target)
            if source == target or needless or here == there:
                continue
            kind = "link" if spec.link is not None else ""
            if plan is not None and (here in plan.nodes or there in plan.nodes):
                kind = "plan" if windows(plan, here, there) else "never"
            if kind:
                found.append(Way(source, target, kind))
    return found


def grounds(spec: MeshSpec, plan: ContactPlan | None) -> frozenset[str]:
    """The places that are on the ground: where the gateway is, and every site that sees satellites it may see.

    A contact with an elevation joins a site and a satellite, so sites and satellites take turns along such contacts.
    """
    passes = [each for each in (plan.contacts if plan else ()) if each.max_elevation_deg is not None]
    sites, ends, satellites = {spec.gateway_at}, {spec.gateway_at}, set[str]()
    while ends:
        seen = _partners(passes, ends) - satellites
        satellites |= seen
        ends = _partners(passes, seen) - sites
        sites |= ends
    return frozenset(sites)


def _partners(contacts: list[Contact], of: set[str]) -> set[str]:
    there = {contact.target for contact in contacts if contact.source in of}
    return there | {contact.source for contact in contacts if contact.target in of}


def role(name: str) -> str:
    """The role of a service by its name."""
    return name if name in SERVICES else "executor"
