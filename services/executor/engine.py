"""The one thread of a node that computes: steps of all stages, first come first served.

Model code never runs on the event loop: a prefill takes longer than a heartbeat may wait. One thread, not several:
torch itself spreads one step over cores, and two steps at once would only take each other's caches.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orbitmesh.errors import InternalError, MeshError

Done = Callable[["Ran"], None]
"""Called on the event loop with what became of a job."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one job."""

    value: Any
    """What it returned, None where it raised."""
    error: MeshError | None
    """What it raised; an error that is not of the mesh's tree is wrapped as `InternalError`."""
    started_ns: int
    """When it began, monotonic."""
    ended_ns: int
    """When it ended, monotonic."""


class StepEngine:
    """Runs jobs in order on a thread of its own and reports each on the event loop that made the engine.

    The queue itself has no bound; whoever submits is bounded by the bytes that it may hold (`runner`).
    """

    def __init__(self, name: str = "steps") -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._busy_ns = 0
        self._since_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        """Queues a job; `done` is called on the event loop when it has run."""
        self._jobs.put((job, done))

    async def run(self, job: Callable[[], Any]) -> Any:
        """Queues a job and waits for its value; raises what it raised."""
        future: asyncio.Future[Ran] = self._loop.create_future()
        self.submit(job, lambda ran: None if future.done() else future.set_result(ran))
        ran = await future
        if ran.error is not None:
            raise ran.error
        return ran.value

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._jobs.qsize()

    def take_utilisation(self) -> float:
        """The share of time since the last call in which a job ran, from 0 to 1."""
        now = time.monotonic_ns()
        share = self._busy_ns / max(1, now - self._since_ns)
        self._busy_ns, self._since_ns = 0, now
        return min(1.0, share)

    def close(self) -> None:
        """Lets the running job end and runs no other."""
        self._jobs.put(None)
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            started = time.monotonic_ns()
            value, error = None, None
            try:
                value = job()
            except MeshError as caught:
                error = caught
            except Exception as caught:
                error = InternalError(f"a step failed: {type(caught).__name__}: {caught}")
                error.__cause__ = caught
            ended = time.monotonic_ns()
            self._busy_ns += ended - started
            try:
                self._loop.call_soon_threadsafe(done, Ran(value, error, started, ended))
            except RuntimeError:  # the loop is closed: the process is on its way out
                return
