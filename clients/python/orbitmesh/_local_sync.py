"""The sync face of a local mesh. Made by `python -m orbitmesh._generate_sync`: change `local.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from orbitmesh._local_entry import local_target
from orbitmesh._local_spec import local_sky
from orbitmesh._loop import LoopThread
from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import START_DEADLINE_S, AsyncLocal
from orbitmesh.results import Link, LocalNode, OnProgress

if TYPE_CHECKING:
    from orbitmesh.client import Mesh


class Local:
    """The processes under a local mesh: which they are, and how to break them. `Mesh.local` has made it.

    Example:
        >>> with Mesh.local(nodes=4) as mesh:
        ...     mesh.local.kill("sat-2")
    """

    def __init__(self, core: AsyncLocal, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def gateway(self) -> str:
        """Where the gateway listens, host:port.

        Example:
            >>> mesh.local.gateway
            '127.0.0.1:40771'
        """
        return self._core.gateway

    @property
    def identity(self) -> Path:
        """The directory of the identity that this mesh gave its user.

        Example:
            >>> mesh.local.identity.name
            'client-local'
        """
        return self._core.identity

    @property
    def operator_identity(self) -> Path:
        """The directory of the identity that this mesh gave its operator.

        Example:
            >>> mesh.local.operator_identity.name
            'operator-local'
        """
        return self._core.operator_identity

    @property
    def directory(self) -> Path:
        """Where it keeps its state.

        Example:
            >>> (mesh.local.directory / "ca").is_dir()
            True
        """
        return self._core.directory

    @property
    def pid(self) -> int:
        """The supervisor's process, 0 before the mesh has started.

        Example:
            >>> mesh.local.pid
            40310
        """
        return self._core.pid

    def processes(self) -> dict[str, LocalNode]:
        """The nodes' processes by name, as they were started last.

        Example:
            >>> sorted(mesh.local.processes())
            ['ground-1', 'sat-1', 'sat-2', 'sat-3']
        """
        return self._core.processes()

    def services(self) -> dict[str, int]:
        """The processes of the services that run once, as they were started last.

        Example:
            >>> sorted(mesh.local.services())
            ['aggregator', 'gateway', 'scheduler', 'slices']
        """
        return self._core.services()

    def kill(self, node: str) -> None:
        """Kills the process of a node, or of one of the services, with SIGKILL, as a failing machine would.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.

        Raises:
            InvalidInputError: there is no node of this name.

        Example:
            >>> mesh.local.kill("sat-2")
        """
        self._loop.run(lambda: self._core.kill(node))

    def restart(self, node: str, *, gracefully: bool = False) -> None:
        """Kills a process with SIGKILL and starts it again: it comes back without what it held in memory, and with what
        it keeps on disk. The services that run once come back at the address they had.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.
            gracefully: End it with SIGTERM, as an upgrade would: it gives away or ends what it has under way, for up
                to its grace of 25 s.

        Raises:
            InvalidInputError: there is no node of this name.
            TransportError: it does not come up again; the message quotes its log.

        Example:
            >>> mesh.local.restart("sat-2")
        """
        self._loop.run(lambda: self._core.restart(node, gracefully=gracefully))

    def cut(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Cuts the link between two nodes: what is under way is lost and nothing passes until `restore`.

        Args:
            a: A node.
            b: Another node.
            both_ways: False cuts only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> mesh.local.cut("sat-1", "sat-2")
        """
        self._loop.run(lambda: self._core.cut(a, b, both_ways=both_ways))

    def restore(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Brings a link back that was cut.

        Args:
            a: A node.
            b: Another node.
            both_ways: False restores only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> mesh.local.restore("sat-1", "sat-2")
        """
        self._loop.run(lambda: self._core.restore(a, b, both_ways=both_ways))

    def contact(self, a: str, b: str) -> Mapping[str, Any]:
        """Where two nodes stand to each other in the contact plan, at this moment of mesh time.

        Args:
            a: A node, `gateway`, `scheduler`, `aggregator`, `slices`, or a site of the plan.
            b: Another one.

        Returns:
            `open`; `window` (what is open: start_s, end_s, latency_ms, rate_bps, ... or None), `next` (the next
            window or None), `next_change_s` in mesh time and `next_change_in_s` in real seconds, `mesh_s`, `planned`
            (False where the plan does not speak of the pair).

        Raises:
            InvalidInputError: there is no such place, or the mesh was made without `contacts`.

        Example:
            >>> mesh.local.contact("sat-1", "gateway")["open"]
            True
        """
        return self._loop.run(lambda: self._core.contact(a, b))

    def clock(self) -> MeshClock:
        """The clock of this mesh, for which its contact plan is told.

        Raises:
            InvalidInputError: the mesh was made without `contacts`.

        Example:
            >>> clock = mesh.local.clock()
            >>> clock.factor
            60.0
        """
        return self._loop.run(lambda: self._core.clock())

    def stats(self) -> Mapping[str, Any]:
        """What the supervisor and the link emulator have counted.

        Example:
            >>> sorted(mesh.local.stats())
            ['ok', 'relays']
        """
        return self._loop.run(lambda: self._core.stats())


class LocalEntry:
    """What `Mesh.local` is on the class: a call that makes a mesh of real processes on this machine.

    Example:
        >>> with Mesh.local(nodes=4, link=Link(latency_ms=20, rate_mbps=100)) as mesh:
        ...     print(mesh.nodes())
    """

    def __init__(self, owner: type[Mesh]) -> None:
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
    ) -> Mesh:
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


class LocalAccess:
    """`Mesh.local` makes a local mesh; `mesh.local` is the handle on the processes of one.

    Example:
        >>> with Mesh.local(nodes=4) as mesh:
        ...     mesh.local.kill("sat-2")
    """

    @overload
    def __get__(self, mesh: None, owner: type[Mesh]) -> LocalEntry: ...

    @overload
    def __get__(self, mesh: Mesh, owner: type[Mesh]) -> Local: ...

    def __get__(self, mesh: Mesh | None, owner: type[Mesh]) -> LocalEntry | Local:
        return LocalEntry(owner) if mesh is None else mesh._local_handle()
