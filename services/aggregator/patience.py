"""How long a round waits for whom: in seconds in which a node could have got further and did not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.aggregator.rounds import Contact, Progress, Round, advance

if TYPE_CHECKING:
    from services.aggregator.driver import RunDriver

TICK_S = 1.0
"""How often contact is counted."""


class Patience:
    """The patience of one run.

    Args:
        driver: The run.
    """

    def __init__(self, driver: RunDriver) -> None:
        self._driver = driver
        self._moved: set[str] = set()

    def moved(self, node: str) -> None:
        """A node got further."""
        self._moved.add(node)

    async def count(self) -> None:
        """Counts, as long as this runs."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(TICK_S)
            passed, last = clock() - last, clock()
            moved, self._moved = self._moved, set()
            book = self._driver.book
            before = book.round
            book.changed.tell()
            if before is None or before.done:
                continue
            state = self._after(before, moved, passed)
            if state is not before:
                book.put(state)
                self._driver.tasks.give_out()

    def _after(self, state: Round, moved: set[str], passed_s: float) -> Round:
        driver, crew = self._driver, self._driver.crew
        for node in state.cohort:
            if node in moved:
                state = advance(state, Progress(node))
            elif driver.groups.rests(node, state, lambda name: crew.links[name].attached):
                continue  # others of its group are waited for, or it has nothing more to do
            elif driver.members.in_contact(node):
                state = advance(state, Contact(node, passed_s))
                if state.given_up.get(node) == "DEADLINE":
                    crew.lost(node)
        return state
