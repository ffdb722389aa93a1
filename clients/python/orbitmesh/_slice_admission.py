"""Work in a slice: let in at the beginning of a `with` block, given back at its end, however that comes."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime
from types import TracebackType

import grpc

from orbitmesh._connection import Connection
from orbitmesh._deadlines import bounded
from orbitmesh._resuming import FAREWELL_S
from orbitmesh._stubs import Stubs
from orbitmesh.errors import CancelledError_, InvalidInputError, MeshError, TransportError
from orbitmesh.v1 import slices_pb2

_UNHEARD = (TransportError, CancelledError_, asyncio.CancelledError)
"""What leaves open whether the mesh did what it was asked."""


class AsyncSliceAdmission:
    """A piece of work in a slice, for as long as a `with` block lasts. `admit` has made it; it may be entered again
    after it was left.

    Example:
        >>> async with mesh.slices.admit("cam", resources={"CPU": 0.25}, lifetime_s=60) as admission:
        ...     print(admission.slice, admission.until)
    """

    def __init__(self, connection: Connection, request: slices_pb2.AdmitRequest, timeout: float) -> None:
        self._connection = connection
        self._request = request
        self._timeout = timeout
        self._until: datetime | None = None
        self._nodes: tuple[str, ...] = ()

    @property
    def slice(self) -> str:
        """The slice.

        Example:
            >>> admission.slice
            'cam'
        """
        return self._request.slice

    @property
    def until(self) -> datetime | None:
        """When it is given back by itself, in UTC; None outside of its `with` block.

        Example:
            >>> admission.until is None
            True
        """
        return self._until

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it is reserved on: those that were asked for, or the one that the slice chose; none outside of
        its `with` block.

        Example:
            >>> admission.nodes
            ()
        """
        return self._nodes

    async def __aenter__(self) -> AsyncSliceAdmission:
        if self._request.request_id:
            raise InvalidInputError(
                f"this admission to {self.slice!r} is in use already; ask for another with `admit`",
                reason="FAILED_PRECONDITION",
            )
        self._request.request_id = str(uuid.uuid4())
        stubs = None
        try:
            async with bounded(self._timeout, f"asking for admission to {self.slice}"):
                stubs = await self._connection.ready()
                answer = await self._connection.call(stubs.slices.Admit, self._request, self._timeout)
        except BaseException as error:
            request = slices_pb2.WithdrawRequest(request_id=self._request.request_id)
            self._request.request_id = ""
            if stubs is not None and isinstance(error, _UNHEARD):
                # Nobody knows whether it was admitted.
                self._give_back_later(stubs, request)
            raise
        self._until, self._nodes = answer.until.ToDatetime(tzinfo=UTC), tuple(answer.nodes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        request = slices_pb2.WithdrawRequest(request_id=self._request.request_id)
        until, self._until, self._nodes, self._request.request_id = self._until, None, (), ""
        stubs = None
        try:
            async with bounded(self._timeout, f"giving back the admission to {self.slice}"):
                stubs = await self._connection.ready()
                await self._connection.call(stubs.slices.Withdraw, request, self._timeout)
        except asyncio.CancelledError:
            if stubs is not None:
                self._give_back_later(stubs, request)
            raise
        except MeshError as failed:
            told = f"the admission to {self.slice!r} could not be given back and ends by itself at {until}"
            if error is None:
                failed.add_note(told)
                raise
            # What went wrong in the block is what its caller has to know.
            error.add_note(f"{told}: {failed}")

    def _give_back_later(self, stubs: Stubs, request: slices_pb2.WithdrawRequest) -> None:
        farewells = self._connection.farewells
        telling = asyncio.get_running_loop().create_task(_give_back(stubs, request))
        farewells.add(telling)
        telling.add_done_callback(farewells.discard)


async def _give_back(stubs: Stubs, request: slices_pb2.WithdrawRequest) -> None:
    # Where it cannot be told, the admission ends with its lifetime.
    with contextlib.suppress(grpc.RpcError):
        await stubs.slices.Withdraw(request, timeout=FAREWELL_S)
