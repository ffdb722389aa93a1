"""A map and an order that are never changed in place: a change gives a new one that shares most with the old.

With them a state of 100,000 admissions is a value: whoever decides something, writes or watches has his own, and a
change costs microseconds where a copy would cost milliseconds.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")

WIDTH = 128
"""How many dictionaries a map is spread over."""
BLOCK = 512
"""Blocks of an order are cut in two above so many entries."""

Entry = tuple[int, str]
"""Something with its time: nanoseconds, key."""


@dataclass(frozen=True, slots=True)
class Table(Generic[Value]):
    """A map from text to values."""

    parts: tuple[dict[str, Value] | None, ...] = (None,) * WIDTH
    """Each key is in the part that its hash names; nothing in them is ever changed."""
    count: int = 0
    """How many keys there are."""

    def get(self, key: str) -> Value | None:
        """The value of a key, or None."""
        part = self.parts[hash(key) % WIDTH]
        return None if part is None else part.get(key)

    def put(self, key: str, value: Value) -> Table[Value]:
        """With this value."""
        index = hash(key) % WIDTH
        part = self.parts[index] or {}
        fresh = {**part, key: value}
        return Table((*self.parts[:index], fresh, *self.parts[index + 1 :]), self.count + len(fresh) - len(part))

    def drop(self, key: str) -> Table[Value]:
        """Without this key; the same where it is not there."""
        index = hash(key) % WIDTH
        part = self.parts[index]
        if part is None or key not in part:
            return self
        fresh = {each: value for each, value in part.items() if each != key} or None
        return Table((*self.parts[:index], fresh, *self.parts[index + 1 :]), self.count - 1)

    def __len__(self) -> int:
        return self.count

    def values(self) -> Iterator[Value]:
        """All values, in no order."""
        for part in self.parts:
            if part is not None:
                yield from part.values()

    def since(self, before: Table[Value]) -> tuple[list[Value], list[str]]:
        """What was put and which keys were dropped since another one; costs as much as has changed."""
        fresh: list[Value] = []
        gone: list[str] = []
        for now, then in zip(self.parts, before.parts, strict=True):
            if now is then:
                continue
            here, there = now or {}, then or {}
            fresh += [value for key, value in here.items() if there.get(key) is not value]
            gone += [key for key in there if key not in here]
        return fresh, gone


@dataclass(frozen=True, slots=True)
class Order:
    """Entries by time, then key."""

    blocks: tuple[tuple[Entry, ...], ...] = ()
    """None is empty; nothing in them is ever changed."""

    def add(self, entry: Entry) -> Order:
        """With one more."""
        if not self.blocks:
            return Order(((entry,),))
        index = self._block(entry)
        block = list(self.blocks[index])
        insort(block, entry)
        half = len(block) // 2
        made = (tuple(block[:half]), tuple(block[half:])) if len(block) > BLOCK else (tuple(block),)
        return Order((*self.blocks[:index], *made, *self.blocks[index + 1 :]))

    def drop(self, entry: Entry) -> Order:
        """Without one; the same where it is not there."""
        if not self.blocks:
            return self
        index = self._block(entry)
        block = self.blocks[index]
        place = bisect_right(block, entry) - 1
        if place < 0 or block[place] != entry:
            return self
        left = (*block[:place], *block[place + 1 :])
        return Order((*self.blocks[:index], *((left,) if left else ()), *self.blocks[index + 1 :]))

    @property
    def first(self) -> Entry | None:
        """The earliest, or None."""
        return self.blocks[0][0] if self.blocks else None

    def __iter__(self) -> Iterator[Entry]:
        for block in self.blocks:
            yield from block

    def _block(self, entry: Entry) -> int:
        return max(0, bisect_right(self.blocks, entry, key=lambda block: block[0]) - 1)
