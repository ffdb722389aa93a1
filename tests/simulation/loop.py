"""An asyncio event loop in virtual time: nothing sleeps, and every clock that code may read shows the same time."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from tests.simulation.world import StandstillError

T = TypeVar("T")


TURNS_MAX = 100_000
"""So many turns of the loop without time going on: something runs in circles."""


class _Selector(selectors.SelectSelector):
    """Lets time pass where the loop would sleep; there is no real socket to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError(f"everything waits at {self.now_s:.6f} s and no timer runs")
        self.turns = 0 if timeout > 0 else self.turns + 1
        if self.turns > TURNS_MAX:
            raise StandstillError(f"{TURNS_MAX} turns at {self.now_s:.6f} s and no time goes by")
        self.now_s += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in order without waiting for them, and threads' work in place."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self._virtual.now_s

    def block(self, for_s: float) -> None:
        """Lets time pass without running anything: as a long garbage collection or a stopped process does."""
        self._virtual.now_s += for_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Does the work at once: what threads finish first is not for a seed to say."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def _clocks(loop: VirtualTimeLoop) -> Iterator[None]:
    """Makes `time.monotonic` and `time.monotonic_ns` show the loop's time."""
    real, real_ns = time.monotonic, time.monotonic_ns
    time.monotonic = loop.time
    time.monotonic_ns = lambda: int(loop.time() * 1e9)
    try:
        yield
    finally:
        time.monotonic, time.monotonic_ns = real, real_ns


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in virtual time.

    Raises:
        StandstillError: Everything waits and no timer runs.
        AssertionError: An exception was lost: a task failed and nobody looked.
    """
    lost: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.set_exception_handler(lambda _, context: lost.append(context))
        with _clocks(loop):
            result = runner.run(main)
    assert not lost, f"failures that nobody saw: {lost}"
    return result
