"""The frames of one slice that wait at a port: in order within a flow, flows in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

FLOWS_MAX = 1024
"""Of how many flows it is remembered what they had."""


class Waiting(Protocol):
    """A frame that waits."""

    flow: str
    """Which other frames it keeps its order with."""
    size: int
    """In bytes."""
    offered_ns: int
    """When it came."""


T = TypeVar("T", bound=Waiting)


class Flows(Generic[T]):
    """One queue of several flows that share what it gets, byte for byte (start-time fair queuing, Goyal, Vin and Cheng,
    SIGCOMM 1996): a thin link with its short frames does not wait for all the long ones that came before for others."""

    def __init__(self) -> None:
        self._flows: dict[str, deque[T]] = {}
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._now = 0

    def waits(self, flow: str) -> bool:
        """Whether a frame of a flow is there."""
        return flow in self._flows

    @property
    def head(self) -> T:
        """Whose turn it is; there must be one."""
        return self._flows[self._next()][0]

    def append(self, frame: T) -> None:
        """Queues a frame."""
        frames = self._flows.get(frame.flow)
        if frames is None:
            frames = self._flows[frame.flow] = deque()
            self._starts[frame.flow] = max(self._now, self._ends.get(frame.flow, 0))
        frames.append(frame)

    def pop(self) -> T:
        """Takes the head."""
        flow = self._next()
        frame = self._flows[flow].popleft()
        self._now = self._starts[flow]
        self._ends.pop(flow, None)
        self._ends[flow] = self._starts[flow] = self._now + frame.size
        self._left(flow)
        if len(self._ends) > FLOWS_MAX:
            del self._ends[next(iter(self._ends))]
        return frame

    def remove(self, frame: T) -> None:
        """Takes a frame out that waits."""
        self._flows[frame.flow].remove(frame)
        self._left(frame.flow)

    def take_all(self) -> Iterator[T]:
        """Takes all, in the order in which they came."""
        frames = [frame for flow in self._flows.values() for frame in flow]
        self._flows.clear()
        self._starts.clear()
        return iter(sorted(frames, key=lambda frame: frame.offered_ns))

    def extend(self, frames: Iterable[T]) -> None:
        """Queues several."""
        for frame in frames:
            self.append(frame)

    def _left(self, flow: str) -> None:
        if not self._flows[flow]:
            del self._flows[flow], self._starts[flow]

    def _next(self) -> str:
        if len(self._flows) == 1:
            return next(iter(self._flows))
        return min(self._starts, key=self._starts.__getitem__)
