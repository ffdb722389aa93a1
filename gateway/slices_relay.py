"""Answers the slices' service on the gateway, and tells that service for whom each call is: slices have tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gateway.handing_on import hand_on, until_drained, watch_deadline_s
from gateway.upstream import Upstream
from orbitmesh.errors import TransportError
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.behalf import behalf_metadata
from services.runtime.caller import current_caller

SERVER = "the slices service"
"""What messages call it."""


class SlicesRelay(slices_pb2_grpc.SlicesServiceServicer):
    """`SlicesService` without `ReportTraffic`, which nodes send to the service itself; every method says so where this
    gateway was given no such service.

    Args:
        upstream: The way to it.
        draining: Set once this gateway drains.
    """

    def __init__(self, upstream: Upstream, draining: asyncio.Event) -> None:
        self._upstream = upstream
        self._draining = draining

    async def ListTemplates(self, request: slices_pb2.ListTemplatesRequest, context: Any) -> Any:  # noqa: N802
        """Lists the templates."""
        return await self._unary("ListTemplates", request)

    async def DefineSlice(self, request: slices_pb2.DefineSliceRequest, context: Any) -> Any:  # noqa: N802
        """Writes one down."""
        return await self._unary("DefineSlice", request)

    async def GetSlice(self, request: slices_pb2.GetSliceRequest, context: Any) -> Any:  # noqa: N802
        """Gets one."""
        return await self._unary("GetSlice", request)

    async def ListSlices(self, request: slices_pb2.ListSlicesRequest, context: Any) -> Any:  # noqa: N802
        """Lists them."""
        return await self._unary("ListSlices", request)

    async def Optimize(self, request: slices_pb2.OptimizeRequest, context: Any) -> Any:  # noqa: N802
        """Computes an allocation."""
        return await self._unary("Optimize", request)

    async def Apply(self, request: slices_pb2.ApplyRequest, context: Any) -> Any:  # noqa: N802
        """Makes an allocation hold."""
        return await self._unary("Apply", request)

    async def Resize(self, request: slices_pb2.ResizeRequest, context: Any) -> Any:  # noqa: N802
        """Changes one."""
        return await self._unary("Resize", request)

    async def Release(self, request: slices_pb2.ReleaseRequest, context: Any) -> Any:  # noqa: N802
        """Ends one."""
        return await self._unary("Release", request)

    async def Admit(self, request: slices_pb2.AdmitRequest, context: Any) -> Any:  # noqa: N802
        """Asks whether one can take work on."""
        return await self._unary("Admit", request)

    async def Renew(self, request: slices_pb2.RenewRequest, context: Any) -> Any:  # noqa: N802
        """Keeps work for longer."""
        return await self._unary("Renew", request)

    async def Withdraw(self, request: slices_pb2.WithdrawRequest, context: Any) -> Any:  # noqa: N802
        """Gives back what was admitted."""
        return await self._unary("Withdraw", request)

    async def WatchSlices(  # noqa: N802
        self, request: slices_pb2.WatchSlicesRequest, context: Any
    ) -> AsyncIterator[slices_pb2.WatchSlicesResponse]:
        """Tells how they are, as long as both services stay."""
        call = self._stub().WatchSlices(
            request, timeout=watch_deadline_s(), metadata=behalf_metadata(current_caller().spiffe)
        )
        address = self._upstream.slices_address
        async with aclosing(until_drained(call, self._draining, address=address, server=SERVER)) as answers:
            async for answer in answers:
                yield answer
        raise TransportError(f"{SERVER} stopped telling of its slices; ask again")

    def _stub(self) -> slices_pb2_grpc.SlicesServiceStub:
        return slices_pb2_grpc.SlicesServiceStub(self._upstream.slices_channel())

    async def _unary(self, method: str, request: Any) -> Any:
        call = getattr(self._stub(), method)
        metadata = behalf_metadata(current_caller().spiffe)
        return await hand_on(call, request, address=self._upstream.slices_address, server=SERVER, metadata=metadata)
