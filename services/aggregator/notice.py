"""Something that changes, and those who wait for that."""

from __future__ import annotations

import asyncio


class Notice:
    """Counts changes; whoever waits is told when there was one since."""

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        """There was a change."""
        self.version += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, version: int) -> int:
        """Waits until there was a change since; the version then."""
        while self.version <= version:
            await self._next.wait()
        return self.version
