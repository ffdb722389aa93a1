"""What a run's promise of privacy costs: how much noise it takes, what each round has spent, and when it is over.

Records, noise by each node: a node's update is released as soon as a part of it can have arrived, so it is counted
when the node announces it, before it is taken, whether or not it ends up in a sum. Noise in shares: a round is counted
before anybody is asked to unmask its sum, with as many survivors as there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import aggregator_pb2
from services.aggregator.spec import RunSpec
from services.privacy.accountant import noise_for
from services.privacy.events import RoundEvent, SharedNoise, Unit
from services.privacy.ledger import Budget, Ledger

ROUNDS_LEFT_MAX = 10_000
"""As far as it is counted how many rounds the budget still pays for."""


class Accounting:
    """The privacy of one run.

    Args:
        spec: The run, with privacy.
        written: What `to_json` gave; None at the beginning.
    """

    def __init__(self, spec: RunSpec, written: dict[str, Any] | None) -> None:
        self._spec = spec
        asked = spec.message.privacy
        unit = Unit.NODE if spec.node_private else Unit.RECORD
        self.ledger = Ledger(Budget(unit, asked.epsilon, asked.delta)) if written is None else Ledger.from_json(written)
        self._last: RoundEvent | None = list(self.ledger)[-1] if len(self.ledger) else None

    def noise(self, examples: Mapping[str, int]) -> float:
        """The least noise, in clips, with which every node can take part in every round.

        Args:
            examples: How many each node has.

        Raises:
            InvalidInputError: No noise is enough.
        """
        asked, rounds = self._spec.message.privacy, self._spec.message.rounds
        if self._spec.shared_noise:
            return noise_for(asked.epsilon, asked.delta, rounds)
        kinds = {(self.local_steps(count), self.sample_rate(count)) for count in examples.values()}
        return max(noise_for(asked.epsilon, asked.delta, rounds * steps, rate) for steps, rate in kinds)

    def local_steps(self, examples: int) -> int:
        """Noisy steps of a node in a round."""
        local = self._spec.message.local
        return local.steps or local.epochs * math.ceil(examples / self._batch(examples))

    def sample_rate(self, examples: int) -> float:
        """The chance of each example of a node to be in each of them."""
        return self._batch(examples) / examples

    def _batch(self, examples: int) -> int:
        return min(examples, self._spec.message.local.batch_size or 32)

    def exhausted(self, round_index: int, examples: Mapping[str, int]) -> str:
        """Why a further round would overspend, or nothing.

        Args:
            round_index: The round.
            examples: The nodes that it would ask, and how many examples each has.
        """
        asked = self._spec.message.privacy
        if self._spec.shared_noise:
            coming = [self._shared(round_index, self._spec.quorum, None)]
        else:
            # Nodes with the same history spend the same: each account is asked all the same, for it may have missed
            # rounds that others took part in.
            coming = [self._own(round_index, node, count) for node, count in examples.items()]
        worst = max((self.ledger.epsilon_with(event) for event in coming), default=0.0)
        if worst <= asked.epsilon:
            return ""
        return (
            f"the promise of privacy is spent: epsilon is {self.ledger.epsilon():.4g} of {asked.epsilon:g}, and round "
            f"{round_index} would make it {worst:.4g}"
        )

    def announced(self, round_index: int, node: str, release: str) -> bool:
        """A node is about to release an update with noise of its own; whether that is news.

        Raises:
            InvalidInputError: What it says it released is something else than was asked.
        """
        if self._spec.shared_noise:
            return False
        try:
            event = RoundEvent.from_json(json.loads(release))
        except ValueError as error:
            raise InvalidInputError(f"{node} says no release of privacy that can be counted: {error}") from None
        asked = self._spec.message.privacy
        least = asked.noise_multiplier * (1 - 1e-9)
        told = event.noise if isinstance(event.noise, float) else 0.0
        if (event.node, event.round) != (node, round_index) or told < least:
            raise InvalidInputError(
                f"{node} has released something else than was asked in round {round_index}: noise {told:.4g}, asked "
                f"{asked.noise_multiplier:.4g}"
            )
        self._last = event
        return self.ledger.record(event)

    def revealed(self, round_index: int, survivors: int, clip_steps: float) -> bool:
        """A sum with noise in shares is about to be unmasked; whether that is news."""
        self._last = self._shared(round_index, survivors, clip_steps)
        return self.ledger.record(self._last)

    def _own(self, round_index: int, node: str, examples: int) -> RoundEvent:
        asked = self._spec.message.privacy
        steps, rate = self.local_steps(examples), self.sample_rate(examples)
        return RoundEvent(round_index, node, steps, rate, asked.noise_multiplier, asked.clip)

    def _shared(self, round_index: int, survivors: int, clip_steps: float | None) -> RoundEvent:
        asked = self._spec.message.privacy
        noise = SharedNoise(asked.noise_multiplier, self._spec.quorum, survivors, 0, clip_steps)
        node = None if self._spec.node_private else ALL
        return RoundEvent(round_index, node, 1, 1.0, noise, asked.clip)

    def message(self) -> aggregator_pb2.GetLedgerResponse:
        """The ledger as others see it."""
        left = 0 if self._last is None else self.ledger.rounds_left(self._last, ROUNDS_LEFT_MAX)
        answer = aggregator_pb2.GetLedgerResponse(
            promised=self._spec.message.privacy, epsilon=self.ledger.epsilon(), rounds_left=left
        )
        so_far = Ledger(self.ledger.budget)
        for event in sorted(self.ledger, key=lambda each: (each.round, each.node or "")):
            so_far.record(event)
            shared = event.noise if isinstance(event.noise, SharedNoise) else None
            answer.entries.add(
                round=event.round,
                node=event.node or "",
                steps=event.steps,
                sample_rate=event.sample_rate,
                noise_multiplier=event.release().noise_multiplier,
                survivors=0 if shared is None else shared.shares_arrived,
                survivors_promised=0 if shared is None else shared.shares_promised,
                epsilon=so_far.epsilon(event.node) if event.node else so_far.epsilon(),
            )
        return answer

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return self.ledger.to_json()


ALL = "*"
"""The account of all records where their noise is shared: every node's records are in every sum."""


def none_promised(name: str) -> InvalidInputError:
    """The error where there is no ledger."""
    return InvalidInputError(f"{name!r} promises no privacy: there is no ledger", reason="FAILED_PRECONDITION")

