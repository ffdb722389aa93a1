"""The private loop thread under the sync face, and the guard against use in a forked child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from orbitmesh.errors import CancelledError_, InvalidInputError

T = TypeVar("T")

STOP_WAIT_S = 5.0
"""How long the end of a loop thread is waited for, in seconds."""
CANCEL_WAIT_S = 10.0
"""How long an interrupted call may take to clean up before the interrupt goes on without it, in seconds."""


class ForkGuard:
    """Remembers the process it was made in: neither gRPC channels nor loop threads survive a fork."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self) -> None:
        """Raises `InvalidInputError` in any other process than the one this was made in."""
        if os.getpid() != self._pid:
            raise InvalidInputError(
                f"this mesh was connected in process {self._pid} and is used in process {os.getpid()}, its "
                "forked "
                "child: connections do not survive a fork; connect in the child itself, or start processes "
                "with "
                "multiprocessing.get_context('spawn')",
                reason="FAILED_PRECONDITION",
                metadata={"connected_in": self._pid, "used_in": os.getpid()},
            )


class LoopThread:
    """An event loop in a thread of its own; `run` has it begin a coroutine and waits for the result."""

    def __init__(self) -> None:
        self._guard = ForkGuard()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="orbitmesh-loop", daemon=True)
        self._thread.start()
        # Runs when the mesh is garbage and at interpreter exit, so that a forgotten close() leaves nothing
        # behind.
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._thread, os.getpid())

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return not self._finalizer.alive

    def check(self) -> None:
        """Raises `InvalidInputError` in a forked child and after `stop`."""
        self._guard.check()
        if self.stopped:
            raise InvalidInputError("this mesh is closed; connect again", reason="FAILED_PRECONDITION")

    def run(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine on the loop and returns its result; an interrupt (Ctrl-C) cancels it and lets it
        clean up.

        Args:
            begin: Makes the coroutine. It is called on the loop: an interrupt, which may come between any two
                steps of the caller, finds no coroutine there that nobody awaits.

        Raises:
            InvalidInputError: called in a forked child, after `stop`, or on the loop itself (from a
                callback), where waiting would never end.
        """
        self.check()
        if threading.current_thread() is self._thread:
            raise InvalidInputError(
                "a mesh was called from its own on_progress callback; note the progress there and call it "
                "afterwards",
                reason="FAILED_PRECONDITION",
            )
        handed = _Handed(begin)
        try:
            self._loop.call_soon_threadsafe(handed.begin)
            return handed.outcome.result()
        except asyncio.CancelledError:
            raise CancelledError_(
                "the call was cancelled because the mesh was closed in another thread"
            ) from None
        except BaseException:
            # An interrupt may come at any moment, also before the loop was told; then this comes first there.
            if not handed.outcome.done():
                # A loop that is closed has ended everything by itself.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(handed.give_up)
                    wait((handed.outcome,), CANCEL_WAIT_S)
            raise

    def stop(self) -> None:
        """Cancels what still runs, ends the loop and its thread. Repeating it changes nothing."""
        self._guard.check()
        self._finalizer()


async def next_of(values: AsyncGenerator[T, None]) -> T | None:
    """The next value, or None after the last one."""
    return await anext(values, None)


async def end_of(values: AsyncGenerator[T, None]) -> None:
    """Ends an iteration that is not to go on."""
    await values.aclose()


class _Handed(Generic[T]):
    """Work on its way to the loop; there it can be given up at any moment, also before it has begun."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self.outcome: Future[T] = Future()
        """Done once nothing of it runs any more."""

    def begin(self) -> None:
        """Runs it; called on the loop, once."""
        if not self.outcome.done():
            self._task = asyncio.get_running_loop().create_task(self._make())
            self._task.add_done_callback(self._ended)

    def give_up(self) -> None:
        """Cancels it; called on the loop."""
        if self._task is not None:
            self._task.cancel()
        else:
            self.outcome.set_exception(asyncio.CancelledError())

    def _ended(self, task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        _drain(loop)
        loop.close()


def _drain(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=STOP_WAIT_S))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    if os.getpid() != pid or not thread.is_alive():
        return
    loop.call_soon_threadsafe(loop.stop)
    if threading.current_thread() is not thread:
        thread.join(STOP_WAIT_S)
