"""The calls that a service answers at this moment, and their orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from orbitmesh.errors import CapacityError, TransportError

CALLS_IN_FLIGHT = 1024
"""The most calls that one service answers at a time."""
CALLS_PER_USER = 128
"""The most of them for one client or operator: an eighth of what there is, and half of the generations that a node may
have open, so that nobody takes the place of all others."""
DRAIN_RETRY_MS = 1_000
"""When a caller that met a draining service may try again, in milliseconds."""


class InFlight:
    """Counts calls; once draining it lets no new one in.

    Args:
        limit: The most at a time.
        per_user: The most of them for one user.
    """

    def __init__(self, limit: int = CALLS_IN_FLIGHT, per_user: int = CALLS_PER_USER) -> None:
        self._limit = limit
        self._per_user = per_user
        self._count = 0
        self._finishing: set[str] = set()
        self._users: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = asyncio.Event()
        """Set once the service drains: long streams watch it and come to a good end."""

    @property
    def count(self) -> int:
        """How many calls are being answered."""
        return self._count

    def finish_by(self, methods: Iterable[str]) -> None:
        """Name methods, `/package.Service/Method`, that bring work that is under way to its end: they are taken in also
        while draining."""
        self._finishing.update(methods)

    def enter(self, method: str = "", user: str = "") -> None:
        """Take in one call; `leave` must follow.

        Args:
            method: Its full name, `/package.Service/Method`.
            user: Who calls, where it is a client or an operator; services of the mesh share what there is.

        Raises:
            TransportError: DRAINING: the service stops.
            CapacityError: As many calls as it may answer are under way, or as many of this user.
        """
        if self.draining.is_set() and method not in self._finishing:
            raise TransportError(
                "this service is stopping and takes no new calls; try again, or another instance",
                reason="DRAINING",
                metadata={"retry_after_ms": DRAIN_RETRY_MS},
            )
        if self._count >= self._limit:
            raise CapacityError(
                f"this service answers {self._limit} calls already; try again later",
                metadata={"calls_in_flight": self._count, "limit": self._limit},
            )
        if user:
            own = self._users.get(user, 0)
            if own >= self._per_user:
                raise CapacityError(
                    f"{user} has {own} calls under way here, as many as one user may; end some, or wait for their end",
                    metadata={"calls_in_flight": own, "limit": self._per_user},
                )
            self._users[user] = own + 1
        self._count += 1
        self._idle.clear()

    def leave(self, user: str = "") -> None:
        """One call that was taken in has ended."""
        self._count -= 1
        if user:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]
        if self._count == 0:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call is under way.

        Args:
            timeout_s: How long at most, in seconds.

        Returns:
            True where all have ended in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
