"""Where a node computes: steps of all stages, one at a time, first come first served.

Steps run on a thread of their own, because a prefill takes longer than a heartbeat may wait. A step that is known to
be short runs between two turns of the event loop instead: handing it to the thread and back, with two threads then
competing for the interpreter, costs more than the loop loses by waiting for it. One thread, not several: torch itself
spreads one step over cores, and two steps at once would only take each other's caches.
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

SHORT_STEP_NS = 5_000_000
"""A step that is expected to take less, in nanoseconds, runs on the event loop."""

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
        self._pending = 0
        self._inline = 0
        self._busy_ns = 0
        self._since_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Done, *, expected_ns: int | None = None) -> None:
        """Queues a job; `done` is called on the event loop when it has run.

        Args:
            job: What to run.
            done: Told what became of it.
            expected_ns: How long it will take, where that is known: a short one may run on the event loop. It waits
                for those before it all the same.
        """
        self._pending += 1
        if expected_ns is not None and expected_ns < SHORT_STEP_NS and self._pending == self._inline + 1:
            self._inline += 1
            self._loop.call_soon(self._run_inline, job, done)
        else:
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
        """Jobs that have not ended."""
        return self._pending

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
            ran = _ran(job)
            try:
                self._loop.call_soon_threadsafe(self._finish, ran, done)
            except RuntimeError:  # the loop is closed: the process is on its way out
                return

    def _run_inline(self, job: Callable[[], Any], done: Done) -> None:
        self._inline -= 1
        self._finish(_ran(job), done)

    def _finish(self, ran: Ran, done: Done) -> None:
        self._pending -= 1
        self._busy_ns += ran.ended_ns - ran.started_ns
        done(ran)


def _ran(job: Callable[[], Any]) -> Ran:
    started = time.monotonic_ns()
    value, error = None, None
    try:
        value = job()
    except MeshError as caught:
        error = caught
    except Exception as caught:
        error = InternalError(f"a step failed: {type(caught).__name__}: {caught}")
        error.__cause__ = caught
    return Ran(value, error, started, time.monotonic_ns())
