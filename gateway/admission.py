"""Generations and deployments that name a slice are let in by the slices service, and out of it when they end.

What is counted is that one more generation works in the slice: whose slice it is, whether it is active, and how many
pieces of work it takes. How much each may have while it runs is kept to where it runs, by executors.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from gateway.book import Entry
from gateway.upstream import Upstream
from orbitmesh.errors import MeshError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.behalf import behalf_metadata
from services.runtime.caller import time_left_s
from services.runtime.logs import EventLog

LIFETIME_MAX_S = 86_400.0
"""For how long the service admits work at most, in seconds."""
GIVE_BACK_S = 5.0
"""For how long it is tried to give an admission back; after that it ends with the time of the generation."""
WORK_MAX_S = 3600.0
"""For how long a deployment holds its place at most, in seconds: also for a gateway that is killed meanwhile."""
PAUSE_S = 0.5
"""Between two tries, in seconds."""


class Admissions:
    """Lets generations into slices.

    Args:
        upstream: The way to the slices service.
        log: Where to say what could not be given back.
    """

    def __init__(self, upstream: Upstream, log: EventLog) -> None:
        self._upstream = upstream
        self._log = log

    async def admit(self, entry: Entry, nodes: Sequence[str], life_s: float) -> None:
        """Lets a generation into the slice that it names; one that names none needs nobody's leave.

        Args:
            entry: The generation.
            nodes: The nodes of its pipeline.
            life_s: How long it may last, in seconds; longer than a day it is not held.

        Raises:
            PermissionError_: `SLICE_NOT_YOURS`.
            CapacityError: `SLICE_FULL`, with when there is room in its metadata.
            InvalidInputError: `FAILED_PRECONDITION`, the slice is not active, or has nothing on any of the nodes, or
                this mesh has no slices.
            MeshError: The service cannot be asked: nobody is let in unasked.
        """
        if not entry.request.slice:
            return
        request = slices_pb2.AdmitRequest(slice=entry.request.slice, request_id=_request_id(entry), through=nodes)
        request.lifetime.FromNanoseconds(round(min(life_s, LIFETIME_MAX_S) * 1e9))
        with mapped_errors(address=self._upstream.slices_address, server="the slices service"):
            await self._stub().Admit(
                request, timeout=time_left_s(CONTROL_DEADLINE_S), metadata=behalf_metadata(entry.caller)
            )

    async def give_back(self, entry: Entry) -> None:
        """A generation has ended; where nobody hears of it, its place ends with its time."""
        await self._withdraw(_request_id(entry), entry.caller, entry.request.slice)

    @asynccontextmanager
    async def during(self, slice_name: str, caller: str, life_s: float) -> AsyncIterator[None]:
        """A block that is work in a slice; in none where no name is given.

        Args:
            slice_name: The slice.
            caller: Whose work it is, by SPIFFE identifier.
            life_s: How long it may last, in seconds.

        Raises:
            MeshError: As `admit` does.
        """
        if not slice_name:
            yield
            return
        request = slices_pb2.AdmitRequest(slice=slice_name, request_id=f"deployment {secrets.token_hex(16)}")
        request.lifetime.FromNanoseconds(round(min(life_s, WORK_MAX_S) * 1e9))
        try:
            with mapped_errors(address=self._upstream.slices_address, server="the slices service"):
                await self._stub().Admit(
                    request, timeout=time_left_s(CONTROL_DEADLINE_S), metadata=behalf_metadata(caller)
                )
            yield
        finally:
            # Also where nobody knows whether it was let in; and however the block ended.
            await asyncio.shield(self._withdraw(request.request_id, caller, slice_name))

    async def _withdraw(self, request_id: str, caller: str, slice_name: str) -> None:
        request = slices_pb2.WithdrawRequest(request_id=request_id)
        clock = asyncio.get_running_loop().time
        give_up = clock() + GIVE_BACK_S
        while True:
            try:
                with mapped_errors(address=self._upstream.slices_address, server="the slices service"):
                    metadata = behalf_metadata(caller)
                    await self._stub().Withdraw(request, timeout=CONTROL_DEADLINE_S, metadata=metadata)
                return
            except MeshError as error:
                if not error.retryable or clock() > give_up:
                    self._log.warning(
                        "admission_not_given_back", slice=slice_name, work=request_id, detail=error.message
                    )
                    return
            await asyncio.sleep(PAUSE_S)

    def _stub(self) -> slices_pb2_grpc.SlicesServiceStub:
        return slices_pb2_grpc.SlicesServiceStub(self._upstream.slices_channel())


def _request_id(entry: Entry) -> str:
    """The same for whoever takes the generation up after this process."""
    return f"generation {entry.number:016x}"
