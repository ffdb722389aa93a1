"""One thread that waits for many sockets and for exact moments at once.

`epoll` alone rounds its timeout up to a millisecond, which is more than the whole error a link may add. A
`timerfd` in the same wait wakes at the nanosecond asked for, to within what the machine's scheduler allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from orbitmesh.errors import CapacityError, TransportError
from services.links.shaper import Medium

MAX_COMMANDS = 1024
"""Commands from other threads that may wait for the engine at once."""
JOIN_TIMEOUT_S = 5.0
"""How long `close` waits for the thread."""
MAX_LEAD_S = 0.0003
"""The most by which the timer is set early to make up for the time that waking up takes, and so the longest
spin."""
STALE_WAKES = 256
"""Moments that were taken back and may still stand in the queue, beside as many as there are live ones."""
LEAD_STEP_S = 0.000005
"""By how much that lead follows each wake-up: up after a late one, down after an early one."""

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1

_T = TypeVar("_T")
Handler = Callable[[int, float], None]
"""Called on the engine's thread with the epoll mask and the time of the wake-up, seconds."""


class Sleeper(Protocol):
    """Whatever asks to be woken at a moment."""

    def wake(self) -> None:
        """Called on the engine's thread at or after the moment asked for; the request is then spent."""


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class _PreciseTimer:
    """A timerfd on the monotonic clock (Python has a wrapper for it only from 3.13 on)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = int(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed: the link emulator needs Linux")
        self._armed_s = 0.0

    def arm(self, when_s: float) -> None:
        if when_s == self._armed_s:
            return
        self._armed_s = when_s
        nanoseconds = max(int(when_s * 1e9), 1)  # a zero would disarm
        spec = _Itimerspec(value=_Timespec(*divmod(nanoseconds, 1_000_000_000)))
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        os.close(self.fd)


class Engine:
    """The thread, its sockets and its moments. All but `submit`, `medium` and `close` are for the engine's own
    thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._timer = _PreciseTimer()
        self._wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handlers: dict[int, Handler] = {}
        self._wakes: dict[Sleeper, float] = {}
        self._queue: list[tuple[float, int, Sleeper]] = []  # a heap; an entry counts while `_wakes` agrees
        self._numbers = itertools.count()
        self._media: WeakValueDictionary[str, Medium] = WeakValueDictionary()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lock = threading.Lock()
        self._closing = False
        self._lead_s = 0.0
        # Edge-triggered: the expiry need not be read away, arming the timer again clears it.
        self._epoll.register(self._timer.fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(self._wakeup_fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

    def submit(self, command: Callable[[], _T]) -> Future[_T]:
        """Run `command` on the engine's thread; safe from any thread.

        Raises:
            CapacityError: `MAX_COMMANDS` are waiting already.
            TransportError: The engine is closed.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._closing:
                raise TransportError("the link emulator is closed; start a new one")
            if len(self._commands) >= MAX_COMMANDS:
                raise CapacityError(f"{MAX_COMMANDS} commands wait for the link emulator; wait for some to finish")
            self._commands.append((command, future))
            os.eventfd_write(self._wakeup_fd, 1)
        return future

    def medium(self, name: str) -> Medium:
        """The medium of that name, which lives as long as someone uses it; one of its own where the name is empty. Safe
        from any thread."""
        if not name:
            return Medium()
        with self._lock:
            medium = self._media.get(name)
            if medium is None:
                medium = self._media[name] = Medium(shared=True)
            return medium

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler` when one of the epoll `events` happens on `fd`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wake_at(self, sleeper: Sleeper, when_s: float | None) -> None:
        """Wake `sleeper` at `when_s` on the monotonic clock, instead of any moment it asked for before; None:
        never."""
        if when_s is None:
            self._wakes.pop(sleeper, None)
        else:
            self._wakes[sleeper] = when_s
            heapq.heappush(self._queue, (when_s, next(self._numbers), sleeper))
            if len(self._queue) > 2 * len(self._wakes) + STALE_WAKES:
                self._queue = [(at_s, next(self._numbers), each) for each, at_s in self._wakes.items()]
                heapq.heapify(self._queue)

    def close(self) -> None:
        """Stop the thread; whoever watched a socket must have closed it before. Safe to call twice."""
        with self._lock:
            if not self._closing:
                self._closing = True
                os.eventfd_write(self._wakeup_fd, 1)
        self._thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        # Where the system allows it, this thread goes before others: it needs little of a core, but on time.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
        try:
            while not self._closing:
                self._wake_the_due()
                for fd, mask in self._wait():
                    self._dispatch(fd, mask, time.monotonic())
        finally:
            with self._lock:
                self._closing = True
            self._run_commands()
            self._epoll.close()
            self._timer.close()
            os.close(self._wakeup_fd)

    def _wake_the_due(self) -> None:
        now_s = time.monotonic()
        due = []
        while self._queue and self._queue[0][0] <= now_s:
            due.append(heapq.heappop(self._queue))
        for when_s, _, sleeper in due:
            if self._wakes.get(sleeper) == when_s:  # an earlier one may have taken it back
                del self._wakes[sleeper]
                sleeper.wake()

    def _next_wake_s(self) -> float | None:
        while self._queue:
            when_s, _, sleeper = self._queue[0]
            if self._wakes.get(sleeper) == when_s:
                return when_s
            heapq.heappop(self._queue)
        return None

    def _wait(self) -> list[tuple[int, int]]:
        next_s = self._next_wake_s()
        if next_s is None:
            return self._epoll.poll()
        if next_s - self._lead_s <= time.monotonic():
            return self._epoll.poll(0)  # the last moments are spun away: a sleep would overshoot
        self._timer.arm(next_s - self._lead_s)
        events = self._epoll.poll()
        if events and events[0][0] == self._timer.fd:
            late = time.monotonic() > next_s
            self._lead_s = min(max(self._lead_s + (LEAD_STEP_S if late else -LEAD_STEP_S), 0.0), MAX_LEAD_S)
        return events

    def _dispatch(self, fd: int, mask: int, now_s: float) -> None:
        if fd == self._wakeup_fd:
            os.eventfd_read(fd)
            self._run_commands()
            return
        handler = self._handlers.get(fd)  # gone where an earlier event of the same wait closed it
        if handler is not None:
            handler(mask, now_s)

    def _run_commands(self) -> None:
        while self._commands:
            command, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(command())
            except Exception as error:  # the caller's thread gets it, whatever it is
                future.set_exception(error)
