"""The slices of a mesh: templates, what is defined, what it is best given, and changes that overwrite nobody else's."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from orbitmesh import _slices_proto
from orbitmesh._connection import Connection
from orbitmesh._deadlines import bounded
from orbitmesh._requests import between, checked_name, checked_timeout, slice_name
from orbitmesh._slice_admission import AsyncSliceAdmission
from orbitmesh._streams import told_again
from orbitmesh.rpc import keep_status
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
from orbitmesh.v1 import slices_pb2

PATIENCE_S = 120.0
"""How long a cut watch is asked for again before its loss is an error, in seconds."""


class AsyncSlices:
    """The slices of a mesh: shares of its CPU, GPU, memory and bandwidth with a latency bound, each promised to one
    tenant. `mesh.slices` is the handle.

    Every change names what it was decided on (its etag): where somebody else changed that meanwhile it is refused with
    `STALE_ETAG`, and nothing is changed.

    Example:
        >>> needs = {"CPU": 0.5, "GPU": 0, "MemoryGB": 0.5, "BandwidthGbps": 0.1}
        >>> cam = await mesh.slices.define("cam", template="urllc", resources=needs, latency_ms=20)
        >>> outcome = await mesh.slices.optimize(goal="balanced")
        >>> applied = await mesh.slices.apply(outcome)
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def templates(self, *, timeout: float | None = None) -> tuple[SliceTemplate, ...]:
        """The templates that slices are defined from.

        Example:
            >>> [template.name for template in await mesh.slices.templates()]
            ['urllc', 'embb', 'mmtc']
        """
        answer = await self._ask("ListTemplates", slices_pb2.ListTemplatesRequest(), timeout)
        return tuple(map(_slices_proto.template, answer.templates))

    async def define(
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
            >>> (await mesh.slices.define("sensors", template="mmtc", resources={"GPU": 0}, place="sat-1")).state
            'defined'
        """
        profile = SliceProfile(
            template=template,
            resources={} if resources is None else resources,
            shares={} if shares is None else shares,
            latency_ms=latency_ms,
            within_latency_permille=within_latency_permille,
            least_served=least_served,
            weight=weight,
            place=place,
            nodes=tuple(_slices_proto.node_names(nodes)),
            nodes_max=nodes_max,
            max_number_of_ues=max_number_of_ues,
            sst=sst,
            sd=sd,
        )
        request = slices_pb2.DefineSliceRequest(
            name=slice_name(name),
            profile=_slices_proto.profile_message(profile),
            tenant=_slices_proto.text(tenant, "tenant"),
            etag=_slices_proto.text(etag, "etag"),
            request_id=str(uuid.uuid4()),
        )
        return _slices_proto.a_slice((await self._ask("DefineSlice", request, timeout)).slice)

    async def get(self, name: str, *, timeout: float | None = None) -> Slice:
        """One slice, as it is now.

        Raises:
            PermissionError_: `SLICE_NOT_YOURS`, you have none of this name.
            InvalidInputError: `NOT_FOUND`, nobody has; said to operators.

        Example:
            >>> (await mesh.slices.get("cam")).profile.latency_ms
            20.0
        """
        request = slices_pb2.GetSliceRequest(name=slice_name(name))
        return _slices_proto.a_slice((await self._ask("GetSlice", request, timeout)).slice)

    async def list(self, tenant: str = "", *, timeout: float | None = None) -> SlicesOverview:
        """The slices that the caller may see, and the nodes with what is reserved of them.

        Args:
            tenant: Only this tenant's; empty means all that the caller may see.
            timeout: How long it may take, in seconds.

        Example:
            >>> [each.name for each in (await mesh.slices.list()).slices]
            ['cam', 'sensors']
        """
        request = slices_pb2.ListSlicesRequest(tenant=_slices_proto.text(tenant, "tenant"))
        return _slices_proto.overview(await self._ask("ListSlices", request, timeout))

    async def optimize(
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
            >>> outcome = await mesh.slices.optimize(goal="balanced", slices=["cam"], traffic={"cam": 0.5})
            >>> outcome.objective
            1.0
        """
        request = _slices_proto.optimize_request(
            goal, slices=slices, traffic=traffic, nodes=nodes, what_if=what_if, time_limit_s=time_limit_s
        )
        # The solver's time comes on top of what a control call takes.
        allowed = self._connection.timeout + time_limit_s if timeout is None else timeout
        return _slices_proto.outcome(await self._ask("Optimize", request, allowed), request)

    async def apply(self, outcome: SliceOutcome, *, timeout: float | None = None) -> SlicesApplied:
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
            >>> applied = await mesh.slices.apply(await mesh.slices.optimize(slices=["cam"]))
            >>> [each.state for each in applied.slices]
            ['active']
        """
        request = _slices_proto.apply_request(outcome, str(uuid.uuid4()))
        return _slices_proto.applied(await self._ask("Apply", request, timeout))

    async def resize(
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
            >>> (await mesh.slices.resize("cam", resources={"CPU": 0.75})).profile.resources["CPU"]
            0.75
        """
        request = _slices_proto.resize_request(_name_of(which), resources, shares, str(uuid.uuid4()))
        async with self._bounded(timeout, f"resizing {request.name}"):
            request.etag = await self._etag(which, etag)
            return _slices_proto.a_slice((await self._ask("Resize", request, timeout)).slice)

    async def release(
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
            >>> await mesh.slices.release("cam")
        """
        name = slice_name(_name_of(which))
        async with self._bounded(timeout, f"releasing {name}"):
            request = slices_pb2.ReleaseRequest(
                name=name, etag=await self._etag(which, etag), drain=bool(drain), request_id=str(uuid.uuid4())
            )
            answer = await self._ask("Release", request, timeout)
        return _slices_proto.a_slice(answer.slice) if answer.HasField("slice") else None

    def admit(
        self,
        name: str,
        *,
        resources: Mapping[str, float] | None = None,
        nodes: Sequence[str] = (),
        lifetime_s: float | None = None,
        tenant: str = "",
        timeout: float | None = None,
    ) -> AsyncSliceAdmission:
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
            >>> async with mesh.slices.admit("cam", resources={"CPU": 0.25}) as admission:
            ...     print(admission.nodes, admission.until)
        """
        request = slices_pb2.AdmitRequest(
            slice=slice_name(name),
            resources=_slices_proto.amounts(resources, "resources"),
            nodes=_slices_proto.node_names(nodes),
            tenant=_slices_proto.text(tenant, "tenant"),
        )
        if lifetime_s is not None:
            seconds = between(lifetime_s, "lifetime_s", 0.001, _slices_proto.LIFETIME_MAX_S)
            request.lifetime.FromNanoseconds(round(seconds * 1e9))
        seconds = self._connection.timeout if timeout is None else checked_timeout(timeout)
        return AsyncSliceAdmission(self._connection, request, seconds)

    def watch(self, node: str = "") -> AsyncIterator[SlicesOverview]:
        """How the slices are now, and again whenever that changes, for as long as it is read.

        A gateway or a service that is started anew is asked again; only when neither has answered for 120 s the loop
        ends with an error.

        Args:
            node: Only what concerns this node, without what was measured; empty tells of all that the caller may see.

        Raises:
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> async for overview in mesh.slices.watch():
            ...     print([(each.name, each.traffic.sent_bytes) for each in overview.slices])
            ...     break
        """
        return self._watch(node)

    async def _watch(self, node: str) -> AsyncGenerator[SlicesOverview, None]:
        request = slices_pb2.WatchSlicesRequest(node=checked_name(node, "the node's name") if node else "")

        async def open_stream() -> tuple[Any, str]:
            stubs = await self._connection.ready()
            return keep_status(stubs.slices.WatchSlices(request)), stubs.address

        ended = "the mesh stopped telling of its slices"
        async with contextlib.aclosing(told_again(open_stream, PATIENCE_S, ended)) as messages:
            async for message in messages:
                yield _slices_proto.overview(message)

    async def _etag(self, which: str | Slice, etag: str | None) -> str:
        if etag is None:
            etag = which.etag if isinstance(which, Slice) else (await self.get(which)).etag
        return _slices_proto.checked_etag(etag)

    def _bounded(self, timeout: float | None, what: str) -> contextlib.AbstractAsyncContextManager[None]:
        return bounded(self._connection.timeout if timeout is None else timeout, what)

    async def _ask(self, method: str, request: Any, timeout: float | None) -> Any:
        async with self._bounded(timeout, f"{method} of slices"):
            stubs = await self._connection.ready()
            return await self._connection.call(getattr(stubs.slices, method), request, timeout)


def _name_of(which: str | Slice) -> str:
    return which.name if isinstance(which, Slice) else which
