"""When a training may compute, where it shares a processor with others.

Whoever leads a training says so with `by_turns`; what computes takes a turn before each step, whoever called it: also a
task's own code may. Elsewhere everybody computes at will.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Turns(Protocol):
    """Turns of one thread: it computes between `take` and `rest`, or the next `take`."""

    def take(self) -> None:
        """Ends the turn that there is, and waits for the next one; returns without it where nobody wants the work."""

    def rest(self) -> None:
        """Ends the turn that there is."""


_TURNS: ContextVar[Turns | None] = ContextVar("orbitmesh_turns", default=None)


@contextmanager
def by_turns(turns: Turns) -> Iterator[None]:
    """A block in which this thread computes by these turns, and after which it has none."""
    before = _TURNS.set(turns)
    try:
        yield
    finally:
        _TURNS.reset(before)
        turns.rest()


def take() -> None:
    """Before a step: the one before is over, and this one may be computed on return."""
    turns = _TURNS.get()
    if turns is not None:
        turns.take()


def rest() -> None:
    """Before something that is no step, such as writing to a disk: others may compute meanwhile."""
    turns = _TURNS.get()
    if turns is not None:
        turns.rest()
