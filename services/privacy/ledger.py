"""What a run has spent: every round's event, and epsilon composed over those that share an account.

Records: each node has an account of its own, because no two nodes hold the same record; the run's figure is the worst.
Nodes: one account for the run, as if one node had been in every round. The ledger is pure; the aggregator stores
`to_json` with what it stores of a round, in one step with counting it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orbitmesh.errors import CapacityError, InvalidInputError
from services.privacy.accountant import epsilon
from services.privacy.events import Release, RoundEvent, Unit

EVENTS_MAX = 200_000
"""Events that a ledger holds: 128 nodes over 1,500 rounds."""
STATE_VERSION = 1
"""The form of `to_json`."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    unit: Unit
    """Whose presence is hidden."""
    epsilon: float
    """The most that may be spent of any account."""
    delta: float
    """The chance with which epsilon may not hold; well below one over the number of units."""

    def __post_init__(self) -> None:
        # `not above` also refuses NaN.
        if not self.epsilon > 0 or not 0 < self.delta < 1:
            raise InvalidInputError(
                f"a budget has an epsilon above 0 and a delta between 0 and 1, not {self.epsilon} and {self.delta}"
            )


class Ledger:
    """The events of one run and what they come to.

    Args:
        budget: What may be spent. The ledger records also what exceeds it: what happened, happened.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._events: dict[tuple[str | None, int, int], RoundEvent] = {}

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[RoundEvent]:
        return iter(self._events.values())

    def record(self, event: RoundEvent) -> bool:
        """Adds what happened; False where the very same event is there already.

        Raises:
            InvalidInputError: The event is of the other unit, or another event of that account, round and attempt is
                there.
            CapacityError: The ledger is full: the run has to end, because it could no longer be accounted for.
        """
        self._check_unit(event)
        key = (event.node, event.round, event.attempt)
        known = self._events.get(key)
        if known == event:
            return False
        if known is not None:
            raise InvalidInputError(
                f"round {event.round}, attempt {event.attempt} of {_name(event.node)} was recorded with other numbers: "
                "a round made again with fresh noise is another attempt",
                reason="ALREADY_EXISTS",
            )
        if len(self._events) >= EVENTS_MAX:
            raise CapacityError(
                f"the privacy ledger is full with {EVENTS_MAX} events: end the run and start one that goes on from it"
            )
        self._events[key] = event
        return True

    def accounts(self) -> tuple[str | None, ...]:
        """The accounts that have an event: nodes where the unit is a record, None where it is a node."""
        return tuple(dict.fromkeys(event.node for event in self))

    def epsilon(self, node: str | None = None) -> float:
        """Epsilon spent so far, at the budget's delta.

        Args:
            node: One node's account, where the unit is a record; None for the worst of all.
        """
        accounts = self.accounts() if node is None else (node,)
        return max((epsilon(self._releases(account), self.budget.delta) for account in accounts), default=0.0)

    def epsilon_with(self, event: RoundEvent, times: int = 1) -> float:
        """What that event's account would have spent after it had happened `times` times."""
        self._check_unit(event)
        return epsilon([*self._releases(event.node), *[event.release()] * times], self.budget.delta)

    def would_exceed(self, event: RoundEvent) -> bool:
        """Whether the budget would be overspent if that event happened."""
        return self.epsilon_with(event) > self.budget.epsilon

    def rounds_left(self, event: RoundEvent, most: int) -> int:
        """How many rounds like that event the budget still pays for, up to `most`."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon_with(event, middle) <= self.budget.epsilon else (low, middle - 1)
        return low

    def to_json(self) -> dict[str, Any]:
        """Plain values, the inverse of `from_json`."""
        budget = {"unit": self.budget.unit.value, "epsilon": self.budget.epsilon, "delta": self.budget.delta}
        return {"version": STATE_VERSION, "budget": budget, "events": [event.to_json() for event in self]}

    @staticmethod
    def from_json(state: dict[str, Any]) -> Ledger:
        """The ledger of such values.

        Raises:
            InvalidInputError: They are not a ledger's, or of a version that this program does not know.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise InvalidInputError(
                f"not a privacy ledger of version {STATE_VERSION}: it cannot be told what was spent"
            )
        try:
            budget = state["budget"]
            ledger = Ledger(Budget(Unit(budget["unit"]), float(budget["epsilon"]), float(budget["delta"])))
            rows = list(state["events"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"the privacy ledger's state is damaged: {error!r}") from error
        for row in rows:
            ledger.record(RoundEvent.from_json(row))
        return ledger

    def _releases(self, account: str | None) -> list[Release]:
        return [event.release() for event in self if event.node == account]

    def _check_unit(self, event: RoundEvent) -> None:
        if (self.budget.unit is Unit.RECORD) is (event.node is None):
            raise InvalidInputError(
                f"this ledger's unit is a {self.budget.unit.value}: expected an event "
                f"{'of a named node' if event.node is None else 'without a node'}, got one of {_name(event.node)}"
            )


def _name(node: str | None) -> str:
    return "the whole run" if node is None else f"node {node!r}"
