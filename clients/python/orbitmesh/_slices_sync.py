"""The sync face of slices. Made by `python -m orbitmesh._generate_sync`: change `_slices.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType

from orbitmesh import _slices_proto
from orbitmesh._loop import LoopThread, end_of, next_of
from orbitmesh._slice_admission import AsyncSliceAdmission
from orbitmesh._slices import AsyncSlices
from orbitmesh.slice_results import (
    Slice,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SlicesApplied,
    SliceShare,
    SlicesOverview,
    SliceTemplate,
)


class SliceAdmission:
    """A piece of work in a slice, for as long as a `with` block lasts. `admit` has made it; it may be entered again
    after it was left.

    Example:
        >>> with mesh.slices.admit("cam", resources={"CPU": 0.25}, lifetime_s=60) as admission:
        ...     print(admission.slice, admission.until)
    """

    def __init__(self, core: AsyncSliceAdmission, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def slice(self) -> str:
        """The slice.

        Example:
            >>> admission.slice
            'cam'
        """
        return self._core.slice

    @property
    def until(self) -> datetime | None:
        """When it is given back by itself, in UTC; None outside of its `with` block.

        Example:
            >>> admission.until is None
            True
        """
        return self._core.until

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it is reserved on: those that were asked for, or the one that the slice chose; none outside of
        its `with` block.

        Example:
            >>> admission.nodes
            ()
        """
        return self._core.nodes

    def __enter__(self) -> SliceAdmission:
        self._loop.run(lambda: self._core.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the mesh is closed already, it ends with its lifetime.
        if not self._loop.stopped:
            self._loop.run(lambda: self._core.__aexit__(kind, error, trace))


class Slices:
    """The slices of a mesh: shares of its CPU, GPU, memory and bandwidth with a latency bound, each promised to one
    tenant. `mesh.slices` is the handle.

    Every change names what it was decided on (its etag): where somebody else changed that meanwhile it is refused with
    `STALE_ETAG`, and nothing is changed.

    Example:
        >>> needs = {"CPU": 0.5, "GPU": 0, "MemoryGB": 0.5, "BandwidthGbps": 0.1}
        >>> cam = mesh.slices.define("cam", template="urllc", resources=needs, latency_ms=20)
        >>> outcome = mesh.slices.optimize(goal="balanced")
        >>> applied = mesh.slices.apply(outcome)
    """

    def __init__(self, core: AsyncSlices, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    def templates(self, *, timeout: float | None = None) -> tuple[SliceTemplate, ...]:
        """The templates that slices are defined from.

        Example:
            >>> [template.name for template in mesh.slices.templates()]
            ['urllc', 'embb', 'mmtc']
        """
        return self._loop.run(lambda: self._core.templates(timeout=timeout))

    def define(
        self,
        name: str,
        template: str = "urllc",
        *,
        resources: Mapping[str, float] | None = None,
        shares: Mapping[str, SliceShare] | None = None,
        latency_ms: float = 0.0,
        within_latency_permille: float = 0.0,
        least_served: float = 0.0,
        weight: float = 0.0,
        place: str = "",
        nodes: Sequence[str] = (),
        nodes_max: int = 0,
        max_number_of_ues: int = 0,
        sst: int = 0,
        sd: str = "",
        tenant: str = "",
        etag: str = "",
        timeout: float | None = None,
    ) -> Slice:
        """Writes down what a slice is to be. Nothing is reserved for it before `apply`.

        Args:
            name: What to call it: 1 to 63 of a-z, 0-9 and -.
            template: `urllc`, `embb`, `mmtc`; what is left out below comes from it. Empty for none.
            resources: What its full traffic needs: `CPU` (cores), `GPU` (devices), `MemoryGB`, `BandwidthGbps`.
            shares: Parts of a node's capacity, by the same names.
            latency_ms: From its place to a node that serves it and back by light at least, in milliseconds.
            within_latency_permille: Of 1000 transfers, so many keep the latency.
            least_served: The part of its traffic that has to be served, 0 to 1.
            weight: How it weighs beside others; 0 means 1.
            place: Where its traffic comes from: a node, or a site of the contact plan.
            nodes: Only these nodes; empty means all.
            nodes_max: On how many nodes it may be spread; 0 means 1.
            max_number_of_ues: How many pieces of work may be admitted at once; 0 means 1000.
            sst: Slice/service type of its S-NSSAI; 0 takes the template's.
            sd: Slice differentiator of its S-NSSAI: six hexadecimal digits.
            tenant: Whose it is; empty means the caller's. Only operators define slices for others.
            etag: Empty for a new one; the etag of the one to be changed.
            timeout: How long it may take, in seconds.

        Raises:
            InvalidInputError: something is out of range, the name is taken (`ALREADY_EXISTS`), or the one to be changed
                has changed meanwhile (`STALE_ETAG`).
            InfeasiblePlanError: `LATENCY_BELOW_FLOOR`, light alone takes longer; `metadata` has the floor.

        Example:
            >>> mesh.slices.define("sensors", template="mmtc", resources={"GPU": 0}, place="sat-1").state
            'defined'
        """
        return self._loop.run(
            lambda: self._core.define(
                name,
                template,
                resources=resources,
                shares=shares,
                latency_ms=latency_ms,
                within_latency_permille=within_latency_permille,
                least_served=least_served,
                weight=weight,
                place=place,
                nodes=nodes,
                nodes_max=nodes_max,
                max_number_of_ues=max_number_of_ues,
                sst=sst,
                sd=sd,
                tenant=tenant,
                etag=etag,
                timeout=timeout,
            )
        )

    def get(self, name: str, *, timeout: float | None = None) -> Slice:
        """One slice, as it is now.

        Raises:
            PermissionError_: `SLICE_NOT_YOURS`, you have none of this name.
            InvalidInputError: `NOT_FOUND`, nobody has; said to operators.

        Example:
            >>> mesh.slices.get("cam").profile.latency_ms
            20.0
        """
        return self._loop.run(lambda: self._core.get(name, timeout=timeout))

    def list(self, tenant: str = "", *, timeout: float | None = None) -> SlicesOverview:
        """The slices that the caller may see, and the nodes with what is reserved of them.

        Args:
            tenant: Only this tenant's; empty means all that the caller may see.
            timeout: How long it may take, in seconds.

        Example:
            >>> [each.name for each in mesh.slices.list().slices]
            ['cam', 'sensors']
        """
        return self._loop.run(lambda: self._core.list(tenant, timeout=timeout))

    def optimize(
        self,
        goal: str = "balanced",
        *,
        slices: Sequence[str] | None = None,
        traffic: Mapping[str, float] | None = None,
        nodes: Sequence[SliceNode] | None = None,
        what_if: Mapping[str, SliceProfile] | None = None,
        time_limit_s: float = _slices_proto.TIME_LIMIT_S,
        timeout: float | None = None,
    ) -> SliceOutcome:
        """Computes what each slice is best given, and changes nothing.

        Args:
            goal: `balanced` (the least served slice gets the most that it can, then the next), `latency_sensitive` (the
                weighted latency is least, then as much as possible is served) or `throughput_max` (the weighted sum of
                what is served is greatest).
            slices: Which ones; None means all that are defined or active.
            traffic: How much of the traffic of its profile each slice has, by name; 1 where it is not named.
            nodes: Nodes in place of the mesh's, to ask what would be.
            what_if: Slices in place of those that are defined, by name, to ask what would be.
            time_limit_s: How long the solver may take, in seconds, at most 60.
            timeout: How long all of it may take, in seconds.

        Raises:
            InfeasiblePlanError: `SLICES_INFEASIBLE`: the message names what binds, and the least that would have to
                give; `LATENCY_BELOW_FLOOR`: light alone takes longer than a slice allows.
            InvalidInputError: something is out of range, or there is no such slice.

        Example:
            >>> outcome = mesh.slices.optimize(goal="balanced", slices=["cam"], traffic={"cam": 0.5})
            >>> outcome.objective
            1.0
        """
        return self._loop.run(
            lambda: self._core.optimize(
                goal,
                slices=slices,
                traffic=traffic,
                nodes=nodes,
                what_if=what_if,
                time_limit_s=time_limit_s,
                timeout=timeout,
            )
        )

    def apply(self, outcome: SliceOutcome, *, timeout: float | None = None) -> SlicesApplied:
        """Makes an outcome the allocation that holds, whole or not at all. Slices that it does not name keep what they
        have.

        Args:
            outcome: What `optimize` returned.
            timeout: How long it may take, in seconds.

        Raises:
            InvalidInputError: `STALE_ETAG`, an allocation has changed since: optimise again; or it was computed for
                slices or nodes that are not the mesh's.
            InfeasiblePlanError: it does not fit any more.

        Example:
            >>> applied = mesh.slices.apply(mesh.slices.optimize(slices=["cam"]))
            >>> [each.state for each in applied.slices]
            ['active']
        """
        return self._loop.run(lambda: self._core.apply(outcome, timeout=timeout))

    def resize(
        self,
        which: str | Slice,
        *,
        resources: Mapping[str, float] | None = None,
        shares: Mapping[str, SliceShare] | None = None,
        etag: str | None = None,
        timeout: float | None = None,
    ) -> Slice:
        """Changes what a slice has while it is in use; what is not named stays as it is.

        Args:
            which: The slice as it was seen, or its name.
            resources: What its full traffic needs from now on, by resource.
            shares: Its shares from now on, by resource.
            etag: What the change was decided on; None takes that of the slice, and of a name that of the slice as it is
                now.
            timeout: How long all of it may take, in seconds.

        Raises:
            InvalidInputError: `STALE_ETAG`, it has changed since; or something is out of range.
            PermissionError_: `SLICE_NOT_YOURS`.
            InfeasiblePlanError: `SLICES_INFEASIBLE`, it does not fit beside the others: nothing was changed.

        Example:
            >>> mesh.slices.resize("cam", resources={"CPU": 0.75}).profile.resources["CPU"]
            0.75
        """
        return self._loop.run(
            lambda: self._core.resize(
                which,
                resources=resources,
                shares=shares,
                etag=etag,
                timeout=timeout,
            )
        )

    def release(
        self, which: str | Slice, *, drain: bool = False, etag: str | None = None, timeout: float | None = None
    ) -> Slice | None:
        """Ends a slice and frees what it had.

        Args:
            which: The slice as it was seen, or its name.
            drain: Where it is in use: take no new work, and end with the last that was admitted, in place of refusing.
            etag: As for `resize`.
            timeout: How long all of it may take, in seconds.

        Returns:
            The slice where it ends later, with what it still has; None where it is over.

        Raises:
            InvalidInputError: `SLICE_IN_USE`, work is admitted in it; `STALE_ETAG`, it has changed since.
            PermissionError_: `SLICE_NOT_YOURS`.

        Example:
            >>> mesh.slices.release("cam")
        """
        return self._loop.run(lambda: self._core.release(which, drain=drain, etag=etag, timeout=timeout))

    def admit(
        self,
        name: str,
        *,
        resources: Mapping[str, float] | None = None,
        nodes: Sequence[str] = (),
        lifetime_s: float | None = None,
        tenant: str = "",
        timeout: float | None = None,
    ) -> SliceAdmission:
        """Lets a piece of work into a slice for as long as a `with` block lasts: entering it asks and reserves, leaving
        it gives back.

        Args:
            name: The slice.
            resources: What the work needs while it lasts, by resource.
            nodes: The nodes that it runs on, each with all of `resources`; empty leaves that to the slice.
            lifetime_s: For how long at most, in seconds: it is given back then even if nobody does; None means an hour.
            tenant: Who wants it; empty means the caller's. Only a gateway speaks for others.
            timeout: How long asking may take, in seconds, and how long giving back.

        Raises:
            InvalidInputError: something is out of range.

        Example:
            >>> with mesh.slices.admit("cam", resources={"CPU": 0.25}) as admission:
            ...     print(admission.nodes, admission.until)
        """
        core = (
            self._core.admit(
                name,
                resources=resources,
                nodes=nodes,
                lifetime_s=lifetime_s,
                tenant=tenant,
                timeout=timeout,
            )
        )
        return SliceAdmission(core, self._loop)

    def watch(self, node: str = "") -> Iterator[SlicesOverview]:
        """How the slices are now, and again whenever that changes, for as long as it is read.

        A gateway or a service that is started anew is asked again; only when neither has answered for 120 s the loop
        ends with an error.

        Args:
            node: Only what concerns this node, without what was measured; empty tells of all that the caller may see.

        Raises:
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> for overview in mesh.slices.watch():
            ...     print([(each.name, each.traffic.sent_bytes) for each in overview.slices])
            ...     break
        """
        overviews = self._core._watch(node)
        try:
            while (overview := self._loop.run(lambda: next_of(overviews))) is not None:
                yield overview
        finally:
            # Where the mesh is closed already, the stream went with it.
            if not self._loop.stopped:
                self._loop.run(lambda: end_of(overviews))
