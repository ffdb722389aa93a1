"""What a local mesh is to be, checked before a process starts."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orbitmesh.contacts import ContactPlan
from orbitmesh.errors import InvalidInputError
from orbitmesh.results import Link

NODES_MAX = 64
"""The most nodes of a local mesh."""
NEEDED_MODULES = ("services.localmesh", "torch", "transformers")
"""What a local mesh needs beyond the base install."""
OUTAGES = ("cut", "hold")
"""What a closed window may do to connections."""


@dataclass(frozen=True)
class LocalSky:
    """The contact plan that the links of a local mesh follow."""

    contacts: ContactPlan | Path
    """The plan, or the file that holds it."""
    time_factor: float = 1.0
    """Mesh seconds per real second."""
    start_s: float | None = None
    """The mesh time at which the mesh is launched; None: where the plan begins."""
    outage: str = "cut"
    """What a closed window does to connections: `cut` resets them, `hold` keeps them and every byte."""


@dataclass(frozen=True)
class LocalSpec:
    """What a local mesh is to be."""

    nodes: int
    """How many executors: satellites, and one ground node."""
    link: Link | None
    """What the emulator puts between every two of them; None joins them directly."""
    directory: Path | None
    """Where it keeps its state; None takes a temporary directory and removes it at the end."""
    torch_threads: int
    """Threads that each executor computes with."""
    node_names: tuple[str, ...] | None = None
    """The executors' names in place of sat-1, sat-2, ..., ground-1."""
    sky: LocalSky | None = None
    """The contact plan that links follow; None: links do not move."""
    gateway_at: str | None = None
    """Where the services that run once stand; None takes ground-1, or the last node where there is none."""
    otlp_endpoint: str = ""
    """A collector that its processes send spans and metrics to; empty sends none."""
    allow_faults: bool = False
    """Whether operators may break its processes on purpose."""

    def to_json(self, contacts: Path | None = None) -> dict[str, object]:
        """The spec as the supervisor reads it.

        Args:
            contacts: The file that holds the contact plan.
        """
        link = (
            None
            if self.link is None
            else {"latency_ms": self.link.latency_ms, "rate_mbps": self.link.rate_mbps}
        )
        return {
            "nodes": self.nodes,
            "link": link,
            "directory": None if self.directory is None else str(self.directory),
            "torch_threads": self.torch_threads,
            "node_names": None if self.node_names is None else list(self.node_names),
            "gateway_at": self.gateway_at,
            "otlp_endpoint": self.otlp_endpoint,
            "allow_faults": self.allow_faults,
            **self._sky_to_json(contacts),
        }

    def _sky_to_json(self, contacts: Path | None) -> dict[str, object]:
        if self.sky is None:
            return {}
        return {
            "contacts": str(contacts),
            "time_factor": self.sky.time_factor,
            "contacts_start_s": self.sky.start_s,
            "outage": self.sky.outage,
        }

    @contextlib.contextmanager
    def contacts_file(self) -> Iterator[Path | None]:
        """The file that holds the contact plan, for as long as the mesh starts: it then has a copy of its own."""
        if self.sky is None or isinstance(self.sky.contacts, Path):
            yield None if self.sky is None else self.sky.contacts  # type: ignore[misc] # narrowed by the line above
            return
        with tempfile.TemporaryDirectory(prefix="orbitmesh-plan-") as directory:
            path = Path(directory) / "contacts.json"
            path.write_text(self.sky.contacts.dump(), encoding="utf-8")
            yield path


def local_sky(
    contacts: ContactPlan | str | Path | None, time_factor: float, start: float | datetime | None, outage: str
) -> LocalSky | None:
    """A checked sky; None where there is no plan.

    Raises:
        InvalidInputError: there is no such plan, a number is out of range, or there is no plan that it could be for.
    """
    if contacts is None:
        if time_factor != 1.0 or start is not None or outage != "cut":
            raise InvalidInputError(
                "time_factor, start and outage are of a contact plan, and none was given; give contacts=..."
            )
        return None
    if not 0 < time_factor < math.inf:
        raise InvalidInputError(f"time_factor is {time_factor}; expected mesh seconds per real second, above 0")
    if outage not in OUTAGES:
        raise InvalidInputError(f"outage is {outage!r:.80}; expected one of {', '.join(OUTAGES)}")
    plan = contacts if isinstance(contacts, ContactPlan) else Path(contacts).expanduser().absolute()
    if isinstance(plan, Path):
        ContactPlan.load(plan)
    if isinstance(start, datetime):
        start = (start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp()
    if start is not None and not 0 <= start < math.inf:
        raise InvalidInputError(f"start is {start}; expected mesh time in seconds since 1970, or a datetime")
    return LocalSky(plan, float(time_factor), start, outage)


def local_spec(
    nodes: int,
    link: Link | None,
    directory: str | Path | None,
    torch_threads: int,
    *,
    node_names: Sequence[str] | None = None,
    sky: LocalSky | None = None,
    gateway_at: str | None = None,
    otlp_endpoint: str = "",
    allow_faults: bool = False,
) -> LocalSpec:
    """A checked spec.

    Raises:
        InvalidInputError: a number is out of range.
    """
    names = None if node_names is None else tuple(node_names)
    if names is not None:
        nodes = len(names)
    if not 1 <= nodes <= NODES_MAX:
        raise InvalidInputError(f"a local mesh of {nodes} nodes cannot be made; expected 1 to {NODES_MAX}")
    if torch_threads < 1:
        raise InvalidInputError(f"torch_threads is {torch_threads}; expected at least 1")
    if link is not None and not (0 <= link.latency_ms < math.inf and 0 < link.rate_mbps < math.inf):
        raise InvalidInputError(f"{link} cannot be emulated; expected a latency from 0 and a rate above 0")
    if otlp_endpoint and not otlp_endpoint.startswith(("http://", "https://")):
        raise InvalidInputError(f"otlp_endpoint is {otlp_endpoint!r:.200}; expected http://host:port of a collector")
    place = None if directory is None else Path(directory).expanduser().absolute()
    return LocalSpec(nodes, link, place, torch_threads, names, sky, gateway_at, otlp_endpoint, allow_faults)


def check_can_run() -> None:
    """Raises `InvalidInputError`, naming the extra to install, unless a local mesh can run here."""
    missing = []
    for name in NEEDED_MODULES:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            missing.append(name)
    if missing:
        raise InvalidInputError(
            f"a local mesh needs {', '.join(missing)}, which the base install leaves out; "
            "run `pip install 'orbitmesh[mesh]'`",
            reason="FAILED_PRECONDITION",
            metadata={"missing": " ".join(missing)},
        )
