"""What the slices service measures: of every active slice what was sent in it, how it waited and what is left of its
error budget; of every node what is promised of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.runtime.metrics import Labels, Metrics
from services.slices.amounts import to_map
from services.slices.keeper import Keeper
from services.slices.solving import Solvers
from services.slices.traffic import Traffic

QUANTILES = (0.5, 0.99, 0.999)
"""Of which parts of the frames it is told how long they waited at most."""


def offer(metrics: Metrics, keeper: Keeper, solvers: Solvers) -> None:
    """Adds it to the figures of the process."""

    def by_slice(of: Callable[[Traffic], float]) -> Callable[[], Iterable[tuple[float, Labels]]]:
        return lambda: [(of(traffic), {"slice": name}) for name, traffic in keeper.whole.totals.slices.items()]

    def waits() -> Iterable[tuple[float, Labels]]:
        return [
            (traffic.wait_ms(part) / 1e3, {"slice": name, "quantile": f"{part:g}"})
            for name, traffic in keeper.whole.totals.slices.items()
            for part in QUANTILES
        ]

    def admitted() -> Iterable[tuple[float, Labels]]:
        return [(len(each.admissions), {"slice": name}) for name, each in keeper.whole.book.slices.items()]

    def reserved() -> Iterable[tuple[float, Labels]]:
        return [
            (amount, {"slice": name, "node": node, "resource": resource})
            for name, each in keeper.whole.book.slices.items()
            for node, part in each.reserved.items()
            for resource, amount in to_map(part.amounts).items()
        ]

    metrics.total("slice.offered", "By", "What senders wanted to send.", by_slice(lambda one: one.offered_bytes))
    metrics.total("slice.sent", "By", "What was sent.", by_slice(lambda one: one.sent_bytes))
    metrics.total("slice.dropped", "By", "What was refused by rule.", by_slice(lambda one: one.dropped_bytes))
    metrics.total("slice.frames", "{frame}", "Frames sent.", by_slice(lambda one: one.frames))
    metrics.total(
        "slice.violations", "{frame}", "Frames that waited longer than promised.", by_slice(lambda one: one.violations)
    )
    metrics.gauge("slice.wait", "s", "How long frames waited at most, by part of them.", waits)
    metrics.gauge("slice.admitted", "{work}", "Pieces of work that are admitted.", admitted)
    metrics.gauge("slice.reserved", "1", "What is reserved, in units of the resource.", reserved)
    metrics.gauge("solvers.busy", "{allocation}", "Allocations being computed.", lambda: [(solvers.busy, {})])
