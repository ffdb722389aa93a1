"""Where a node computes: steps of all stages, one at a time, in the order of the fair queue.

Without rules for slices, owners of generations take turns, and steps of one owner come in their order. Steps run on a
thread of their own, because a prefill takes longer than a heartbeat may wait. A step that is known to be short runs
between two turns of the event loop instead: handing it to the thread and back, with two threads then competing for the
interpreter, costs more than the loop loses by waiting for it. One thread, not several: torch itself spreads one step
over cores, and two steps at once would only take each other's caches.

What is divided among slices is the time for which a step occupies the engine: while it runs no other can, whatever its
threads do meanwhile.

Where there are rules for slices, other threads that compute ask for their turn here too (`Turns`): training does, one
optimiser step at a time. Without rules they compute beside the steps, and the machine divides itself.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from orbitmesh.errors import InternalError, MeshError
from services.executor.fairqueue import Entry, FairQueue, Share

SHORT_STEP_NS = 5_000_000
"""A step that is expected to take less, in nanoseconds, runs on the event loop."""

BREATHS = 8
"""How many times the event loop looks for news between two short steps that wait, where there are rules: as often as
it takes from the bytes of a message to the step that it asks for."""

TURN_MAX_NS = 2_000_000_000
"""How long another thread may compute in one turn before the steps that wait go on beside it, in nanoseconds."""
LOOK_S = 0.1
"""How often a thread that waits for its turn looks whether it is still to compute, in seconds."""

Done = Callable[["Ran"], None]
"""Called on the event loop with what became of a job."""


@dataclass(slots=True)
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
    held_ns: int = 0
    """For how long a rule of slices held it back, in nanoseconds."""
    held_by: str = ""
    """Which rule, for people."""
    asked_ns: int = 0
    """When it was asked for, monotonic."""


@dataclass(slots=True)
class Totals:
    """What the engine has done since it began."""

    steps: int = 0
    """Jobs that ended."""
    failed: int = 0
    """Of these, those that raised."""
    busy_ns: int = 0
    """How long they ran."""
    queue_ns: int = 0
    """How long they waited for their turn."""
    held_ns: int = 0
    """Of that, how long a rule of slices held them back."""

    def add(self, ran: Ran) -> None:
        """Counts a job."""
        self.steps += 1
        self.failed += ran.error is not None
        self.busy_ns += ran.ended_ns - ran.started_ns
        self.queue_ns += ran.started_ns - ran.asked_ns
        self.held_ns += ran.held_ns


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    done: Done
    inline: bool
    """Whether a turn of the event loop was asked for it."""
    asked_ns: int
    """When it was asked for, monotonic."""


@dataclass(slots=True, eq=False)
class _Turn:
    """The turn of another thread; what is written here is under the engine's lock."""

    bell: threading.Event
    """Set once it may compute, where somebody waits for that."""
    granted: bool = False
    """Whether it may compute."""
    waits: bool = False
    """Whether its thread waits."""
    entry: Entry[_Job | _Turn] | None = None
    """Its place in the queue, once its turn has come."""
    began_ns: int = 0
    """When that was."""
    given_up: bool = False
    """Nobody waits for it any more."""


class StepEngine:
    """Runs jobs one at a time and reports each on the event loop that made the engine.

    Either the loop or the thread runs a job, never both at once. The thread sleeps while there is nothing for it; what
    the two share is under one lock.
    """

    def __init__(self, name: str = "steps") -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._queue: FairQueue[_Job | _Turn] = FairQueue()
        self._turn_now: _Turn | None = None
        self._handed: Entry[_Job] | None = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asleep = True
        self._wake_ns: int | None = None
        self._running = False
        self._closing = False
        self._turning = False
        self._drain = False
        self._inline = 0
        self._for_thread = 0
        self._turns = 0
        self._pending = 0
        self._busy_ns = 0
        self._since_ns = time.monotonic_ns()
        self.totals = Totals()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        work: Callable[[], Any],
        done: Done,
        *,
        expected_ns: int | None = None,
        slice_name: str | None = "",
        owner: int = 0,
    ) -> None:
        """Queues a job; `done` is called on the event loop when it has run.

        Args:
            work: What to run.
            done: Told what became of it.
            expected_ns: How long it will take, where that is known: a short one may run on the event loop. It waits
                for those before it all the same.
            slice_name: Whose time it takes; empty for no slice's, None for the node's own.
            owner: Who takes turns with others in the same slice; 0 for nobody in particular.

        Raises:
            CapacityError: Too many wait.
        """
        inline = expected_ns is not None and expected_ns < SHORT_STEP_NS and self._pending == self._inline
        asked_ns = time.monotonic_ns()
        with self._lock:
            self._queue.put(_Job(work, done, inline, asked_ns), slice_name, asked_ns, owner)
            if inline:
                self._inline += 1
            else:
                self._for_thread += 1
                self._ring()
        self._pending += 1
        if inline and not self._queue.ruled:
            self._loop.call_soon(self._turn)
        elif inline and not self._turning:
            self._turning = True
            self._loop.call_soon(self._ruled_turn, 0)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Queues a job of the node's own and waits for its value; raises what it raised."""
        future: asyncio.Future[Ran] = self._loop.create_future()
        self.submit(work, lambda ran: None if future.done() else future.set_result(ran), slice_name=None)
        ran = await future
        if ran.error is not None:
            raise ran.error
        return ran.value

    def set_rules(self, shares: Mapping[str, Share]) -> None:
        """Divides the time among slices from the next step on; without shares, among owners alone.

        Raises:
            InvalidInputError: The shares are more than there is, or contradict themselves; nothing is changed then.
        """
        with self._lock:
            self._queue.set_rules(shares, time.monotonic_ns())
            # Turns of the loop were asked for in another order: the thread takes all that waits.
            for job in self._queue:
                if isinstance(job, _Job):
                    job.inline = False
            self._for_thread, self._inline = len(self._queue) - self._turns, 0
            self._ring()

    def turns(self, slice_name: str, given_up: Callable[[], bool]) -> Turns:
        """The turns of another thread that computes for a slice, one step at a time.

        Args:
            slice_name: Whose time it takes; empty for no slice's.
            given_up: Asked while it waits; True ends the waiting.
        """
        return Turns(self, slice_name, given_up)

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
        with self._lock:
            self._closing = True
            self._ring()
        self._thread.join(timeout=30.0)

    # Under the lock.

    def _ring(self) -> None:
        """Wakes the thread."""
        if self._asleep:
            self._asleep = False
            self._bell.put(None)

    def _next(self) -> Entry[_Job] | None:
        """Takes the job whose turn it is; where that is another thread's turn, it is given and there is no job."""
        now_ns = time.monotonic_ns()
        while (taken := self._queue.take(now_ns)) is not None:
            item = taken.item
            if isinstance(item, _Job):
                self._running = True
                if item.inline:
                    self._inline -= 1
                else:
                    self._for_thread -= 1
                return cast("Entry[_Job]", taken)
            self._turns -= 1
            if not item.given_up:
                self._running, self._turn_now = True, item
                item.entry, item.began_ns = taken, now_ns
                item.granted = True
                if item.waits:
                    item.bell.set()
                return None
            self._queue.ended(taken, 0, now_ns)
        return None

    def _end_turn(self, turn: _Turn, now_ns: int) -> None:
        """A turn is over, by its thread or because it took too long."""
        if turn is self._turn_now and turn.entry is not None:
            self._queue.ended(turn.entry, now_ns - turn.began_ns, now_ns)
            self._running, self._turn_now = False, None

    def _go_on(self) -> None:
        """Wakes the thread for what waits, short steps too."""
        if len(self._queue) or self._closing:
            self._drain = True
            self._ring()

    # On the thread.

    def _run(self) -> None:
        while True:
            self._wait()
            while (taken := self._take()) is not None:
                ran = self._serve(taken)
                try:
                    self._loop.call_soon_threadsafe(self._finish, ran, taken.item.done)
                except RuntimeError:  # the loop is closed: the process is on its way out
                    return
            if self._closing:
                return

    def _wait(self) -> None:
        if self._wake_ns is None:
            self._bell.get()
            return
        with suppress(queue.Empty):  # then what a rule held back may run
            self._bell.get(timeout=max(0, self._wake_ns - time.monotonic_ns()) / 1e9)

    def _take(self) -> Entry[_Job] | None:
        """What is to be run now; None where there is nothing, or the loop runs something and will ring."""
        with self._lock:
            self._wake_ns = None
            if self._handed is not None:
                handed, self._handed = self._handed, None
                return handed
            if self._turn_now is not None and (self._for_thread or self._drain):
                now_ns, over_ns = time.monotonic_ns(), self._turn_now.began_ns + TURN_MAX_NS
                if now_ns < over_ns:
                    self._wake_ns = over_ns
                else:
                    self._end_turn(self._turn_now, now_ns)
            # Short steps that nothing else is among are the loop's, unless it left them to this thread.
            if not self._running and not self._closing and (self._for_thread or self._turns or self._drain):
                taken = self._next()
                if taken is not None:
                    return taken
                if self._turn_now is not None:
                    self._wake_ns = self._turn_now.began_ns + TURN_MAX_NS if len(self._queue) else None
                else:
                    self._wake_ns = self._queue.next_ns(time.monotonic_ns())
                self._drain = self._wake_ns is not None
            self._asleep = True
            return None

    # On the loop.

    def _turn(self) -> bool:
        """Runs one step; False where there was none for the loop."""
        with self._lock:
            # Where the thread is awake it takes all that waits; where a rule holds that back, it waits for its time.
            taken = None if self._running or self._for_thread or self._closing else self._next()
            if taken is None:
                self._drain = self._queue.ruled
                self._ring()
                return False
        self._finish(self._serve(taken), taken.item.done)
        return True

    def _ruled_turn(self, breaths: int) -> None:
        """With rules, one step at a time, and between two of them the loop hears of what came in meanwhile: it may be a
        step that goes before those that wait."""
        if breaths:
            self._loop.call_soon(self._ruled_turn, breaths - 1)
            return
        ran = True
        try:
            ran = self._turn()
        finally:  # what waits has its turn, whatever whoever was told of this step made of it
            self._turning = ran and len(self._queue) > 0
            if self._turning:
                self._loop.call_soon(self._ruled_turn, BREATHS)

    def _finish(self, ran: Ran, done: Done) -> None:
        self._pending -= 1
        self._busy_ns += ran.ended_ns - ran.started_ns
        self.totals.add(ran)
        done(ran)

    def _serve(self, taken: Entry[_Job]) -> Ran:
        ran = _ran(taken)
        with self._lock:
            entry = cast("Entry[_Job | _Turn]", taken)
            self._queue.ended(entry, ran.ended_ns - ran.started_ns, ran.ended_ns)
            self._running = False
            if self._for_thread or self._turns or self._closing:
                self._ring()
        return ran


class Turns:
    """The turns of one thread, which is neither the engine's nor the event loop's: it computes between `take` and
    `rest`, or the next `take`. It has no more than one at a time.

    Where the engine has no rules, nobody waits here and nothing is counted.

    Args:
        engine: Whose turns they are.
        slice_name: Whose time they take.
        given_up: Asked while one is waited for.
    """

    def __init__(self, engine: StepEngine, slice_name: str, given_up: Callable[[], bool]) -> None:
        self._engine = engine
        self._slice = slice_name
        self._given_up = given_up
        self._bell = threading.Event()
        self._turn: _Turn | None = None

    def take(self) -> None:
        """Ends the turn that there is, if any, and waits for the next one; returns without it where `given_up` says so,
        the engine closes or has no rules."""
        turn = self._ask()
        if turn is None:
            return
        while turn.waits and not self._bell.wait(LOOK_S):
            if self._given_up() or self._engine._closing:
                with self._engine._lock:
                    turn.given_up = not turn.granted
                if turn.given_up:
                    return
        self._turn = turn

    def rest(self) -> None:
        """Ends the turn that there is, if any."""
        engine, turn, self._turn = self._engine, self._turn, None
        if turn is not None:
            with engine._lock:
                engine._end_turn(turn, time.monotonic_ns())
                engine._go_on()

    def _ask(self) -> _Turn | None:
        engine, before = self._engine, self._turn
        if before is None and not engine._queue.ruled:
            return None
        self._turn = None
        turn = _Turn(self._bell)
        with engine._lock:
            now_ns = time.monotonic_ns()
            if before is not None:
                engine._end_turn(before, now_ns)
            if engine._closing or not engine._queue.ruled:
                engine._go_on()
                return None
            engine._queue.put(turn, self._slice, now_ns)
            engine._turns += 1
            if not engine._running:
                # Decided here, with this step among those that wait: the thread would choose before it was asked for.
                engine._handed = engine._next()
                if not turn.granted:
                    engine._go_on()
            if not turn.granted:
                turn.waits = True
                self._bell.clear()
        return turn


def _ran(taken: Entry[_Job]) -> Ran:
    started = time.monotonic_ns()
    value, error = None, None
    try:
        value = taken.item.work()
    except MeshError as caught:
        error = caught
    except Exception as caught:
        error = InternalError(f"a step failed: {type(caught).__name__}: {caught}")
        error.__cause__ = caught
    return Ran(
        value, error, started, time.monotonic_ns(), taken.held_ns, taken.held_by, taken.item.asked_ns
    )
