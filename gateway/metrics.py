"""What a gateway measures: generations, their tokens, how long these took and why some ended early.

Times come from the record of a generation when it has ended; each points at its trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from gateway.generations import Generations
from gateway.record import GenerationRecord
from orbitmesh.v1 import wire_pb2
from services.runtime.metrics import Labels, Metrics, exemplar_of


class GenerationMetrics:
    """Counts what ends, and tells of what runs.

    Args:
        metrics: The figures of the process.
        generations: What runs.
    """

    def __init__(self, metrics: Metrics, generations: Generations) -> None:
        self._generations = generations
        self._ended = metrics.counter("generations", "{generation}", "Generations that ended, by outcome.")
        self._first = metrics.times("generation.first_token", "From the request to the first token.")
        self._token = metrics.times("generation.token", "From one token to the next.")
        metrics.total("tokens", "{token}", "Tokens produced, by deployment and slice.", self._tokens)
        metrics.gauge("generations.running", "{generation}", "Generations that run.", self._running)

    def ended(self, record: GenerationRecord) -> None:
        """A generation has ended, well or not, or was refused."""
        labels = {"deployment": record.deployment, "slice": record.slice}
        trace = exemplar_of(record.trace_id)
        outcome = record.error_reason or wire_pb2.FinishReason.Name(record.finish)
        self._ended.add(1, {**labels, "outcome": outcome}, context=trace)
        arrived = record.arrived_ns
        if arrived and not record.taken_up_tokens:
            self._first.record((arrived[0] - record.began_ns) / 1e9, labels, context=trace)
        for earlier, later in pairwise(arrived):
            self._token.record((later - earlier) / 1e9, labels, context=trace)

    def _tokens(self) -> Iterable[tuple[float, Labels]]:
        found = self._generations.tokens
        return [(count, {"deployment": key[0], "slice": key[1]}) for key, count in found.items()]

    def _running(self) -> Iterable[tuple[float, Labels]]:
        lives = self._generations.lives
        waiting = sum(bool(life.waiting) for life in lives)
        return [(len(lives) - waiting, {"state": "running"}), (waiting, {"state": "waiting"})]
