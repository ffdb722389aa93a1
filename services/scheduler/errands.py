"""Work that nobody waits for: each errand in a task of its own, one at a time of a kind, again after a pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from orbitmesh.errors import MeshError
from services.runtime.logs import EventLog

RETRY_S = 5.0
"""How long after a failure the same errand is run again, in seconds."""
ERRANDS_MAX = 64
"""How many errands run at once."""

Work = Callable[[], Coroutine[Any, Any, None]]


class Errands:
    """Runs errands by key."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._not_before_s: dict[Hashable, float] = {}

    def start(self, key: Hashable, now_s: float, work: Work) -> None:
        """Runs `work` unless the same errand runs, failed a moment ago, or there are too many."""
        if self._not_before_s.get(key, now_s) > now_s or key in self._tasks or len(self._tasks) >= ERRANDS_MAX:
            return
        self._not_before_s.pop(key, None)

        async def guarded() -> None:
            try:
                await work()
            except MeshError as error:
                self.not_soon(key)
                self._log.warning("errand_failed", what=str(key), detail=error.message)
            finally:
                del self._tasks[key]

        self._tasks[key] = asyncio.create_task(guarded(), name=f"errand {key}")

    def not_soon(self, key: Hashable) -> None:
        """Keeps an errand from being run again at once."""
        now_s = time.monotonic()
        self._not_before_s = {other: at_s for other, at_s in self._not_before_s.items() if at_s > now_s}
        self._not_before_s[key] = now_s + RETRY_S

    async def close(self) -> None:
        """Ends every errand."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
