"""A client's connection to a mesh: opened at the first call; each call has a bound, and may be asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orbitmesh import _requests
from orbitmesh._deadlines import bounded
from orbitmesh._loop import ForkGuard
from orbitmesh._resuming import ENDED, asked_again
from orbitmesh._stubs import Stubs
from orbitmesh.errors import InvalidInputError
from orbitmesh.local import AsyncLocal
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import load_identity
from orbitmesh.v1 import gateway_pb2

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A mesh that runs elsewhere."""

    address: str
    """Its gateway, host:port."""
    identity: Path
    """The directory of our identity."""


class Connection:
    """One connection, which everything that a client does of a mesh goes through.

    Args:
        target: The mesh.
        timeout: How long a control call may take where its caller names no time, in seconds.
        open_timeout: How long a local mesh may take to start, in seconds; None: as long as a control call.
        patience: How long a call that may be sent twice is asked again while a gateway that has answered before cannot
            be reached, in seconds.

    Raises:
        InvalidInputError: a time is out of range.
    """

    def __init__(
        self, target: Remote | AsyncLocal, *, timeout: float, open_timeout: float | None, patience: float
    ) -> None:
        self.target = target
        self.timeout = _requests.checked_timeout(timeout)
        self.patience = _requests.checked_patience(patience)
        self.farewells: set[asyncio.Task[None]] = set()
        """What the mesh is still told of; the connection outlives it."""
        self._open_timeout = _requests.checked_timeout(open_timeout or timeout)
        self._guard = ForkGuard()
        self._opening = asyncio.Lock()
        self._opened: Stubs | None = None
        self._closed = False

    async def ready(self) -> Stubs:
        """The services of its gateway, which has answered; opens the connection where that was not done.

        Raises:
            InvalidInputError: it was closed.
            IdentityError: our identity is missing, expired or of another mesh.
            TransportError: the gateway cannot be reached.
            DeadlineError: it did not answer in time.
        """
        self._guard.check()
        if self._closed:
            raise InvalidInputError("this mesh is closed; connect again", reason="FAILED_PRECONDITION")
        if self._opened is None:
            async with self._opening:
                if self._opened is None:
                    self._opened = await self._open_now()
        return self._opened

    async def close(self) -> None:
        """Ends it, and the processes of a local mesh. Repeating it changes nothing."""
        self._guard.check()
        self._closed = True
        async with self._opening:
            opened, self._opened = self._opened, None
            try:
                await asyncio.gather(*self.farewells)
                if opened is not None:
                    await opened.close()
            finally:
                if isinstance(self.target, AsyncLocal):
                    await self.target._stop()

    async def _open_now(self) -> Stubs:
        target = self.target
        if isinstance(target, AsyncLocal):
            await target._start(self._open_timeout)
            target_address, directory = target.gateway, target.identity
        else:
            target_address, directory = target.address, target.identity
        stubs: Stubs | None = None
        try:
            async with bounded(self.timeout, f"connecting to {target_address}"):
                identity = await asyncio.to_thread(load_identity, directory)
                stubs = Stubs.open(target_address, identity)
                await self.call(stubs.gateway.GetStatus, gateway_pb2.GetStatusRequest(), None, target_address)
        except BaseException:
            if stubs is not None:
                await stubs.close()
            if isinstance(target, AsyncLocal):
                await target._stop()
            raise
        return stubs

    async def call(
        self,
        method: Callable[..., Awaitable[T]],
        request: Any,
        timeout: float | None,
        address: str | None = None,
        *,
        once: bool = False,
    ) -> T:
        """One control call. Of a gateway that has answered before it is asked again while that is out of reach, unless
        it may be sent `once` only; one that never has is an error at once, since its address may be wrong."""
        bound = self.timeout if timeout is None else _requests.checked_timeout(timeout)
        opened, deadline = self._opened, asyncio.get_running_loop().time() + bound

        async def take() -> T:
            left = max(deadline - asyncio.get_running_loop().time(), 0.001)
            with mapped_errors(address=address or (opened.address if opened else None)):
                return await method(request, timeout=left)

        return await take() if once or opened is None else await asked_again(take, min(self.patience, bound), ENDED)
