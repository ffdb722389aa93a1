"""Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) among the slices that borrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Borrower(Protocol):
    """Who takes turns."""

    deficit: float
    """What it may still send in this round, in bytes."""
    quantum: float
    """What each round gives it, in bytes; above 0."""

    def head_bytes(self) -> int:
        """The size of its next frame; 0 where it has none."""


T = TypeVar("T", bound=Borrower)


class Round(Generic[T]):
    """Whose turn it is. A quantum may be smaller than a frame: rounds that serve nobody are passed over at once."""

    def __init__(self) -> None:
        self._ring: list[T] = []
        self._at = 0
        self._begun = False

    def set(self, borrowers: Sequence[T]) -> None:
        """Those who take turns from now on."""
        self._ring = list(borrowers)
        self._at = 0
        self._begun = False

    def pick(self, may_go: Sequence[T]) -> T:
        """The one whose frame goes next, which is paid for.

        Args:
            may_go: Those with a frame that may go now; at least one.
        """
        able = {id(each) for each in may_go}
        while True:
            for _ in range(len(self._ring) + 1):
                borrower = self._ring[self._at]
                size = borrower.head_bytes()
                if not size:
                    borrower.deficit = 0.0
                elif id(borrower) in able:
                    if not self._begun:
                        borrower.deficit += borrower.quantum
                        self._begun = True
                    if size <= borrower.deficit:
                        borrower.deficit -= size
                        return borrower
                self._at = (self._at + 1) % len(self._ring)
                self._begun = False
            rounds = min(math.ceil((each.head_bytes() - each.deficit) / each.quantum) for each in may_go) - 1
            for each in may_go:
                each.deficit += max(rounds, 0) * each.quantum
