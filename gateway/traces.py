"""The breakdowns that a gateway remembers, and the spans that it makes from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.breakdown import GenerationRecord, breakdown
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import TRACES_KEPT
from orbitmesh.v1 import gateway_pb2

REFUSALS_KEPT = 256
"""How many generations that were refused are remembered."""

Export = Callable[[GenerationRecord, gateway_pb2.Breakdown], None]


class Traces:
    """Records of generations, the last `TRACES_KEPT`; a breakdown is made when somebody asks.

    Those that were refused before they began are kept apart, so that a flood of them takes no place from others.

    Args:
        exports: Also told of every generation that ended.
    """

    def __init__(self, exports: Sequence[Export] = ()) -> None:
        self._records: OrderedDict[str, GenerationRecord] = OrderedDict()
        self._refused: OrderedDict[str, GenerationRecord] = OrderedDict()
        self._exports = exports
        self._told: list[Callable[[GenerationRecord], None]] = []

    def tell(self, told: Callable[[GenerationRecord], None]) -> None:
        """Calls `told` with the record of every generation that ended or was refused."""
        self._told.append(told)

    def add(self, record: GenerationRecord) -> None:
        """Remembers a generation that ended, well or not."""
        _keep(self._records, record, TRACES_KEPT)
        self._export(record)

    def refused(self, record: GenerationRecord) -> None:
        """Remembers a generation that was not let in; its `error_reason` says why."""
        _keep(self._refused, record, REFUSALS_KEPT)
        self._export(record)

    def _export(self, record: GenerationRecord) -> None:
        for told in self._told:
            told(record)
        if self._exports:
            explained = breakdown(record)
            for export in self._exports:
                export(record, explained)

    def explain(self, trace_id: str) -> gateway_pb2.Breakdown:
        """The breakdown of a generation; of the last one where the id is empty.

        Raises:
            InvalidInputError: Where it is not remembered.
        """
        if not trace_id and self._records:
            trace_id = next(reversed(self._records))
        record = self._records.get(trace_id) or self._refused.get(trace_id)
        if record is None:
            raise InvalidInputError(
                f"trace {trace_id!r} is not remembered here: the last {TRACES_KEPT} generations of this gateway are"
                if trace_id
                else "this gateway has not finished a generation yet",
                reason="NOT_FOUND",
            )
        return breakdown(record)


def _keep(records: OrderedDict[str, GenerationRecord], record: GenerationRecord, most: int) -> None:
    records[record.trace_id] = record
    while len(records) > most:
        records.popitem(last=False)
