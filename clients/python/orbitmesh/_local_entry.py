"""`Mesh.local`: on the class, a call that makes a local mesh; on a mesh, the handle on its processes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from orbitmesh._local_spec import local_sky, local_spec
from orbitmesh.contacts import ContactPlan
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import START_DEADLINE_S, AsyncLocal
from orbitmesh.results import Link, OnProgress

if TYPE_CHECKING:
    from orbitmesh.aio import AsyncMesh


class AsyncLocalEntry:
    """What `AsyncMesh.local` is on the class: a call that makes a mesh of real processes on this machine.

    Example:
        >>> async with AsyncMesh.local(nodes=4, link=Link(latency_ms=20, rate_mbps=100)) as mesh:
        ...     print(await mesh.nodes())
    """

    def __init__(self, owner: type[AsyncMesh]) -> None:
        self._owner = owner

    def __call__(
        self,
        nodes: int = 4,
        link: Link | None = None,
        *,
        node_names: Sequence[str] | None = None,
        contacts: ContactPlan | str | Path | None = None,
        time_factor: float = 1.0,
        start: float | datetime | None = None,
        gateway_at: str | None = None,
        outage: str = "cut",
        directory: str | Path | None = None,
        torch_threads: int = 1,
        otlp_endpoint: str = "",
        allow_faults: bool = False,
        timeout: float = CONTROL_DEADLINE_S,
        start_timeout: float = START_DEADLINE_S,
        on_progress: OnProgress | None = None,
    ) -> AsyncMesh:
        """A mesh of real processes with real gRPC on this machine; it starts on entering and ends on leaving.

        Args:
            nodes: How many executors: satellites, and one ground node.
            link: What an emulator puts between every two of them; None joins them directly.
            node_names: The executors' names, in place of sat-1, sat-2, ..., ground-1 and of `nodes`.
            contacts: A contact plan, or the file that holds one: every link between nodes that it knows opens, closes,
                and is late and thin as it says; nodes that have no contact in it have no way to each other.
            time_factor: Mesh seconds per real second: at 60 an orbit of 95 minutes passes in 95 seconds. Latencies and
                rates stay real.
            start: The mesh time at the moment at which the mesh is up, as seconds since 1970 or a datetime; None takes
                the beginning of the plan.
            gateway_at: The node or site of the plan beside which gateway, scheduler and aggregator stand; None takes
                ground-1, or the last node where there is none.
            outage: What the end of a contact does to connections: `cut` resets them, `hold` keeps them and all bytes.
            directory: Where it keeps its state; None takes a temporary directory and removes it at the end.
            torch_threads: Threads that each executor computes with.
            otlp_endpoint: An OpenTelemetry collector, http://host:port, that its processes send spans and metrics to.
            allow_faults: Whether operators may break its processes on purpose, with `OpsService` `InjectFault`.
            timeout: How long a control call may take, in seconds.
            start_timeout: How long the start may take, in seconds.
            on_progress: Called as its processes start.

        Raises:
            InvalidInputError: a number is out of range, or the contact plan is wrong.
        """
        target = local_target(
            nodes,
            link,
            directory,
            torch_threads,
            on_progress,
            node_names=node_names,
            sky=local_sky(contacts, time_factor, start, outage),
            gateway_at=gateway_at,
            otlp_endpoint=otlp_endpoint,
            allow_faults=allow_faults,
        )
        return self._owner(target, timeout=timeout, open_timeout=start_timeout)


class AsyncLocalAccess:
    """`AsyncMesh.local` makes a local mesh; `mesh.local` is the handle on the processes of one.

    Example:
        >>> async with AsyncMesh.local(nodes=4) as mesh:
        ...     await mesh.local.kill("sat-2")
    """

    @overload
    def __get__(self, mesh: None, owner: type[AsyncMesh]) -> AsyncLocalEntry: ...

    @overload
    def __get__(self, mesh: AsyncMesh, owner: type[AsyncMesh]) -> AsyncLocal: ...

    def __get__(self, mesh: AsyncMesh | None, owner: type[AsyncMesh]) -> AsyncLocalEntry | AsyncLocal:
        return AsyncLocalEntry(owner) if mesh is None else mesh._local_handle()


def local_target(
    nodes: int,
    link: Link | None,
    directory: str | Path | None,
    torch_threads: int,
    on_progress: OnProgress | None,
    **more: Any,
) -> AsyncLocal:
    """A local mesh that was not started yet, for both faces of the client; the arguments are those of `local_spec`.

    Raises:
        InvalidInputError: a number is out of range.
    """
    return AsyncLocal(local_spec(nodes, link, directory, torch_threads, **more), on_progress)
