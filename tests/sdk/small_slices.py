"""A small service of slices behind a small gateway: real gRPC, one node, slices in memory, and what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from tests.sdk.small_gateway import refuse

DEFINED, ACTIVE = slices_pb2.SLICE_STATE_DEFINED, slices_pb2.SLICE_STATE_ACTIVE
CHANGED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CAPACITY = {"CPU": 16.0, "GPU": 2.0, "MemoryGB": 64.0, "BandwidthGbps": 40.0}
TEMPLATES = {
    "urllc": slices_pb2.SliceProfile(
        template="urllc",
        snssai=slices_pb2.Snssai(sst=2),
        resources={"CPU": 4, "MemoryGB": 8},
        latency_ms=20,
        within_latency_permille=999,
        least_served=1,
        weight=1,
        nodes_max=1,
        max_number_of_ues=100,
    ),
    "embb": slices_pb2.SliceProfile(template="embb", resources={"CPU": 8, "BandwidthGbps": 30}, latency_ms=100),
    "mmtc": slices_pb2.SliceProfile(template="mmtc", resources={"CPU": 8}, latency_ms=1000),
}


@dataclass
class SmallSlices(slices_pb2_grpc.SlicesServiceServicer):
    """Keeps slices as the contract says, on one node and without an optimiser: everybody gets all that they need."""

    slices: dict[str, slices_pb2.Slice] = field(default_factory=dict)
    """By name."""
    asked: list[Any] = field(default_factory=list)
    """Requests in order, but for watches."""
    refusing: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and message by the name of a request's type: refused, however often."""
    unavailable: dict[str, int] = field(default_factory=dict)
    """How often a request of a type is answered with UNAVAILABLE, before anything is done."""
    cuts: list[str] = field(default_factory=list)
    """With what each watch ends once it has told how it is: a reason, or empty for good order; then it goes on."""
    delay_s: float = 0.0
    """How long each answer takes."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to let watches tell again."""
    admitted: dict[str, str] = field(default_factory=dict)
    """Slices by the request ids of what is admitted."""
    etag: int = 1
    """The state's."""

    async def ListTemplates(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        templates = [
            slices_pb2.SliceTemplate(name=name, profile=profile, about=f"what {name} is for")
            for name, profile in TEMPLATES.items()
        ]
        return slices_pb2.ListTemplatesResponse(templates=templates)

    async def DefineSlice(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        there = self.slices.get(request.name)
        if there is not None and not request.etag:
            await refuse(context, "ALREADY_EXISTS", f"there is a slice {request.name!r}")
        if request.etag:
            await self._etag(context, request)
        profile = slices_pb2.SliceProfile()
        profile.CopyFrom(TEMPLATES.get(request.profile.template, profile))
        profile.MergeFrom(request.profile)
        kept = slices_pb2.Slice(name=request.name, tenant=request.tenant or "me", profile=profile, state=DEFINED)
        return slices_pb2.DefineSliceResponse(slice=self._keep(kept))

    async def GetSlice(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        return slices_pb2.GetSliceResponse(slice=await self._there(context, request.name))

    async def ListSlices(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        return slices_pb2.ListSlicesResponse(slices=self._named(), nodes=[self._node()], etag=f"all-{self.etag}")

    async def Optimize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        names = request.slices or self.slices
        slices = list(request.what_if) or [each for each in self._named() if each.name in names]
        node = request.nodes[0].name if request.nodes else "sat-1"
        answer = slices_pb2.OptimizeResponse(
            allocations=[
                slices_pb2.SliceAllocation(
                    slice=each.name,
                    node=node,
                    served=1.0,
                    resources=each.profile.resources,
                    traffic=request.traffic.get(each.name, 1.0),
                )
                for each in slices
            ],
            objective=1.0,
            bound=1.0,
            etag=f"all-{self.etag}",
            goal=request.goal,
        )
        answer.took.FromMilliseconds(12)
        return answer

    async def Apply(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        if request.etag != f"all-{self.etag}":
            await refuse(context, "STALE_ETAG", f"allocations were changed since {request.etag}")
        changed = []
        for name in dict.fromkeys(each.slice for each in request.allocations):
            kept = await self._there(context, name)
            del kept.allocations[:]
            kept.allocations.extend(each for each in request.allocations if each.slice == name)
            kept.state = ACTIVE
            changed.append(self._keep(kept))
        return slices_pb2.ApplyResponse(slices=changed, etag=f"all-{self.etag}")

    async def Resize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        kept = await self._etag(context, request)
        for name, amount in request.resources.items():
            kept.profile.resources[name] = amount
        for name, share in request.shares.items():
            kept.profile.shares[name].CopyFrom(share)
        return slices_pb2.ResizeResponse(slice=self._keep(kept))

    async def Release(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        await self._etag(context, request)
        if request.name in self.admitted.values():
            if not request.drain:
                await refuse(context, "SLICE_IN_USE", f"work is admitted in {request.name!r}")
            kept = self.slices[request.name]
            kept.state = slices_pb2.SLICE_STATE_RELEASING
            return slices_pb2.ReleaseResponse(slice=self._keep(kept))
        del self.slices[request.name]
        self.etag += 1
        return slices_pb2.ReleaseResponse()

    async def Admit(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        await self._there(context, request.slice)
        self.admitted[request.request_id] = request.slice
        answer = slices_pb2.AdmitResponse(nodes=request.nodes or ["sat-1"])
        answer.until.FromDatetime(CHANGED + timedelta(seconds=request.lifetime.ToSeconds() or 3600))
        return answer

    async def Withdraw(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._noted(request, context)
        self.admitted.pop(request.request_id, None)
        return slices_pb2.WithdrawResponse()

    async def WatchSlices(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            self.changed.clear()
            yield slices_pb2.WatchSlicesResponse(slices=self._named(), nodes=[self._node()], etag=f"all-{self.etag}")
            if self.cuts:
                if reason := self.cuts.pop(0):
                    await refuse(context, reason, "as the test wants it")
                return
            await self.changed.wait()

    def requests(self, kind: type[Any]) -> list[Any]:
        """Those of one type that came."""
        return [each for each in self.asked if isinstance(each, kind)]

    async def _noted(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        kind = type(request).__name__
        await asyncio.sleep(self.delay_s)
        if self.unavailable.get(kind, 0) > 0:
            self.unavailable[kind] -= 1
            await refuse(context, "TRANSPORT", "not now")
        if kind in self.refusing:
            await refuse(context, *self.refusing[kind])

    async def _there(self, context: Any, name: str) -> slices_pb2.Slice:
        if name not in self.slices:
            await refuse(context, "NOT_FOUND", f"there is no slice {name!r}")
        return self.slices[name]

    async def _etag(self, context: Any, request: Any) -> slices_pb2.Slice:
        kept = await self._there(context, request.name)
        if request.etag != kept.etag:
            await refuse(context, "STALE_ETAG", f"{request.name} was changed since {request.etag}", etag=kept.etag)
        return kept

    def _keep(self, kept: slices_pb2.Slice) -> slices_pb2.Slice:
        self.etag += 1
        kept.etag = f"{kept.name}-{self.etag}"
        kept.changed_at.FromDatetime(CHANGED)
        self.slices[kept.name] = kept
        self.changed.set()
        return kept

    def _named(self) -> list[slices_pb2.Slice]:
        return [self.slices[name] for name in sorted(self.slices)]

    def _node(self) -> slices_pb2.SliceNode:
        reserved: dict[str, float] = {}
        for kept in self.slices.values():
            for allocation in kept.allocations:
                for name, amount in allocation.resources.items():
                    reserved[name] = reserved.get(name, 0.0) + amount
        return slices_pb2.SliceNode(name="sat-1", capacity=CAPACITY, reserved=reserved)
