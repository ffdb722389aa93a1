"""The one thread that trains.

Rounds run on it one after the other, in the order in which they were asked for. Short work, such as looking at a task
for a new run, is done between two steps of a round: a round may take hours. All that touches torch is on this thread,
because torch's random generator is the process's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from orbitmesh.errors import TransportError
from services.training import turns

CLOSE_S = 30.0
"""How long the end of the process waits for a step that is under way."""

T = TypeVar("T")


class TrainingThread:
    """Jobs in order; the thread is started by the first of them."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._short: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closed = False

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Runs a job once those before it have ended.

        Raises:
            TransportError: `DRAINING`, the process is on its way out.
        """
        if self._closed:
            raise TransportError("this node is being stopped; ask it again when it is back", reason="DRAINING")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")
        return self._pool.submit(job)

    async def run_short(self, job: Callable[[], T]) -> T:
        """Runs a job between two steps of whatever runs, and gives what it gave; raises as `submit` does."""
        future: Future[T] = Future()
        self._short.append((future, job))
        try:
            self.submit(self.breathe)
        except TransportError:
            self._short.remove((future, job))
            raise
        return await asyncio.wrap_future(future)

    def breathe(self) -> None:
        """Does the short work that waits; called on the thread, between two steps. It is no part of the step before."""
        if self._short:
            turns.rest()
        while self._short:
            future, job = self._short.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # it belongs to whoever waits, not to the job in between
                future.set_exception(error)

    async def close(self) -> None:
        """Waits for the job that runs, which was told to stop, and runs no other."""
        self._closed = True
        if self._pool is not None:
            last = self._pool.submit(lambda: None)
            await asyncio.wait([asyncio.wrap_future(last)], timeout=CLOSE_S)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
