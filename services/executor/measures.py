"""What this machine is and can do, measured, not assumed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import scheduler_pb2
from services.executor.cgroups import own_group

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
    """Processor cores this process may use, at once."""
    memory_bytes: int
    """Bytes that stages may take."""
    flops: float
    """Multiply-adds count as two operations; float32, operations per second."""
    memory_bandwidth: float
    """Bytes per second that one matrix-vector product reads."""
    accelerators: tuple[tuple[str, int], ...]
    """Name and bytes of memory of each."""
    cpu: float = 0.0
    """Processor time it may use, in cores; 0 means as much as `cores`."""

    def fill(self, message: scheduler_pb2.HeartbeatRequest) -> None:
        """Writes the facts into a heartbeat."""
        message.cores = self.cores
        message.cpu = self.cpu
        message.memory_total_bytes = self.memory_bytes
        message.flops = self.flops
        message.memory_bandwidth = self.memory_bandwidth
        for name, memory_bytes in self.accelerators:
            message.accelerators.add(name=name, memory_bytes=memory_bytes)


def usable_cpu(cores: float) -> float:
    """The processor time that this process may use, in cores: what the machine and its control group leave it.

    Args:
        cores: What its operator gives it; 0 means all that is there.

    Raises:
        InvalidInputError: More than there is, or less than nothing.
    """
    machine = float(len(os.sched_getaffinity(0)))
    group = own_group()
    quota = group.quota if group is not None else None
    there = machine if quota is None else min(machine, quota)
    if not 0 <= cores <= there:
        raise InvalidInputError(f"{cores:g} cores; expected 0 to {there:g}, which is what this machine leaves it")
    return cores or there


def measure(memory_limit_bytes: int, cpu: float) -> Machine:
    """Measures this machine; takes about half a second.

    Args:
        memory_limit_bytes: What stages may take; 0 means most of the machine's.
        cpu: See `usable_cpu`.
    """
    total = psutil.virtual_memory().total
    accelerators: tuple[tuple[str, int], ...] = ()
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        accelerators = tuple((found.name, int(found.total_memory)) for found in properties)
    return Machine(
        cores=math.ceil(cpu),
        memory_bytes=memory_limit_bytes or int(total * DEFAULT_MEMORY_SHARE),
        flops=_flops(),
        memory_bandwidth=_memory_bandwidth(),
        accelerators=accelerators,
        cpu=cpu,
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
