"""What this machine is and can do, measured, not assumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from orbitmesh.v1 import scheduler_pb2

MEASURE_S = 0.15
"""How long one of the two speed measurements may take, in seconds."""
MATRIX_ROWS = 256
"""Rows of the square matrices of the speed measurement: they fit a second-level cache."""
STREAM_BYTES = 64 << 20
"""Bytes that are read to measure the rate of memory: more than a last-level cache."""
DEFAULT_MEMORY_SHARE = 0.8
"""The share of the machine's memory that stages may take where no limit is set."""


@dataclass(frozen=True)
class Machine:
    """The facts that do not change while the process lives."""

    cores: int
    """Processor cores this process may use."""
    memory_bytes: int
    """Bytes that stages may take."""
    flops: float
    """Multiply-adds count as two operations; float32, operations per second."""
    memory_bandwidth: float
    """Bytes per second that one matrix-vector product reads."""
    accelerators: tuple[tuple[str, int], ...]
    """Name and bytes of memory of each."""

    def fill(self, message: scheduler_pb2.HeartbeatRequest) -> None:
        """Writes the facts into a heartbeat."""
        message.cores = self.cores
        message.memory_total_bytes = self.memory_bytes
        message.flops = self.flops
        message.memory_bandwidth = self.memory_bandwidth
        for name, memory_bytes in self.accelerators:
            message.accelerators.add(name=name, memory_bytes=memory_bytes)


def measure(memory_limit_bytes: int) -> Machine:
    """Measures this machine; takes about half a second."""
    total = psutil.virtual_memory().total
    accelerators: tuple[tuple[str, int], ...] = ()
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        accelerators = tuple((found.name, int(found.total_memory)) for found in properties)
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_limit_bytes or int(total * DEFAULT_MEMORY_SHARE),
        flops=_flops(),
        memory_bandwidth=_memory_bandwidth(),
        accelerators=accelerators,
    )


def load_per_core() -> float:
    """The load average over a minute, divided by the cores."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def _best_seconds(run: Callable[[], object], budget_s: float) -> float:
    """The shortest time of a call: what the machine can do, not what its neighbours leave."""
    run()
    best = float("inf")
    ends = time.monotonic() + budget_s
    while time.monotonic() < ends:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def _flops() -> float:
    with torch.inference_mode():
        left = torch.rand(MATRIX_ROWS, MATRIX_ROWS)
        return 2.0 * MATRIX_ROWS**3 / _best_seconds(lambda: left @ left, MEASURE_S)


def _memory_bandwidth() -> float:
    with torch.inference_mode():
        columns = 2048
        matrix = torch.ones(STREAM_BYTES // 4 // columns, columns)
        vector = torch.ones(columns)
        return STREAM_BYTES / _best_seconds(lambda: matrix @ vector, MEASURE_S)
