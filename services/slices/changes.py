"""All that is durable, and what of it is different from before: what the store has to write. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from services.slices.traffic import Totals, Traffic
from services.slices.values import Admission, Book, Node, Promise, Slice

Value = TypeVar("Value")


@dataclass(frozen=True)
class Whole:
    """The state and what was measured."""

    book: Book
    """Slices and nodes."""
    totals: Totals
    """What was measured."""


@dataclass(frozen=True)
class Changes:
    """What is different."""

    version: int
    """The state's version."""
    promises: tuple[Promise, ...]
    """New or other promises."""
    slices_gone: tuple[str, ...]
    """Slices that are over."""
    admissions: tuple[Admission, ...]
    """New ones."""
    admissions_gone: tuple[str, ...]
    """The keys of those that have ended."""
    nodes: Mapping[str, Node]
    """New or other nodes."""
    nodes_gone: tuple[str, ...]
    """Nodes that are not there any more."""
    traffic: Mapping[str, Traffic]
    """New or other counts."""
    traffic_gone: tuple[str, ...]
    """Slices whose counts are forgotten."""
    reporters: Mapping[str, tuple[tuple[bytes, int], ...]]
    """New or other numbers."""
    reporters_gone: tuple[str, ...]
    """Reporters that are forgotten."""


def changes(before: Whole, after: Whole) -> Changes:
    """What is different in `after`; it costs as much as that is."""
    nodes, nodes_gone = _changed(before.book.nodes, after.book.nodes)
    traffic, traffic_gone = _changed(before.totals.slices, after.totals.slices)
    reporters, reporters_gone = _changed(before.totals.reporters, after.totals.reporters)
    slices, slices_gone = _changed(before.book.slices, after.book.slices)
    promises, fresh, ended = [], list[Admission](), list[str]()
    for name, held in slices.items():
        was = before.book.slices.get(name) or Slice(held.promise)
        if name not in before.book.slices or held.promise is not was.promise:
            promises.append(held.promise)
        put, gone = held.admissions.since(was.admissions)
        fresh += put
        ended += gone
    for name in slices_gone:
        ended += [each.key for each in before.book.slices[name].admissions.values()]
    # One that left a slice and came to another is new there: what is new is written after what has ended.
    return Changes(
        after.book.version,
        tuple(promises),
        slices_gone,
        tuple(fresh),
        tuple(ended),
        nodes,
        nodes_gone,
        traffic,
        traffic_gone,
        reporters,
        reporters_gone,
    )


def ended(before: Book, after: Book) -> list[Admission]:
    """The work that is not there any more."""
    if before.slices is after.slices:
        return []
    found = []
    for name, was in before.slices.items():
        now = after.slices.get(name)
        if now is was:
            continue
        if now is None:
            found += list(was.admissions.values())
            continue
        _, gone = now.admissions.since(was.admissions)
        found += [each for each in map(was.admissions.get, gone) if each is not None]
    return found


def _changed(before: Mapping[str, Value], after: Mapping[str, Value]) -> tuple[dict[str, Value], tuple[str, ...]]:
    if before is after:
        return {}, ()
    fresh = {name: value for name, value in after.items() if before.get(name) is not value}
    return fresh, tuple(name for name in before if name not in after)
