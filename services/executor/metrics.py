"""What an executor measures: its steps, its caches, its memory."""

from __future__ import annotations

from collections.abc import Iterable

from services.executor.measures import load_per_core
from services.executor.node import ExecutorNode
from services.runtime.metrics import Labels, Metrics


def offer(metrics: Metrics, node: ExecutorNode) -> None:
    """Adds it to the figures of the process."""
    totals = node.engine.totals
    metrics.gauge("node.load", "1", "Load average over a minute, by the cores.", lambda: [(load_per_core(), {})])
    metrics.gauge("node.memory.free", "By", "Memory that new stages may take.", lambda: [(node.free_bytes, {})])
    metrics.gauge("steps.waiting", "{step}", "Steps that wait or run.", lambda: [(node.engine.waiting, {})])
    metrics.total("steps", "{step}", "Steps computed.", lambda: [(totals.steps, {})])
    metrics.total("steps.failed", "{step}", "Steps that failed.", lambda: [(totals.failed, {})])
    metrics.total("steps.busy", "s", "How long steps were computed.", lambda: [(totals.busy_ns / 1e9, {})])
    metrics.total("steps.queue_wait", "s", "How long steps waited to run.", lambda: [(totals.queue_ns / 1e9, {})])
    metrics.total(
        "steps.held", "s", "Of that, how long a rule of slices held them back.", lambda: [(totals.held_ns / 1e9, {})]
    )
    metrics.gauge("generations.open", "{generation}", "Generations that are open, by stage.", lambda: _open(node))
    metrics.gauge("cache.used", "By", "Keys and values that are reserved, by stage.", lambda: _used(node))
    metrics.gauge("cache.budget", "By", "Keys and values that may be reserved, by stage.", lambda: _budget(node))


def _stage(key: tuple[str, int]) -> Labels:
    return {"deployment": key[0], "stage": str(key[1])}


def _open(node: ExecutorNode) -> Iterable[tuple[float, Labels]]:
    return [(runner.open_generations, _stage(key)) for key, runner in node.runners.items()]


def _used(node: ExecutorNode) -> Iterable[tuple[float, Labels]]:
    return [(runner.pool.budget_bytes - runner.pool.free_bytes, _stage(key)) for key, runner in node.runners.items()]


def _budget(node: ExecutorNode) -> Iterable[tuple[float, Labels]]:
    return [(runner.pool.budget_bytes, _stage(key)) for key, runner in node.runners.items()]
