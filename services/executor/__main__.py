"""`python -m services.executor --identity DIR --listen HOST:PORT --state DIR --scheduler HOST:PORT`: one executor."""

from __future__ import annotations

import os
import sys

from services.executor.settings import ExecutorSettings
from services.runtime.process import run_service

SWITCH_INTERVAL_S = 0.0005
"""How soon the computing thread must hand the interpreter to the event loop: a tenth of Python's default, because a
token that waits for the interpreter is late by the whole interval."""


async def run(settings: ExecutorSettings) -> None:
    """Measures the machine, then serves."""
    import torch

    from orbitmesh.trust import IdentitySource
    from services.executor.measures import measure
    from services.executor.node import ExecutorNode
    from services.executor.server import serve
    from services.runtime.server import ServiceHost

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    identities = IdentitySource(settings.identity)
    host = ServiceHost(identities, listen=settings.listen)
    machine = measure(settings.memory_bytes)
    host.log.info("measured", cores=machine.cores, gflops=round(machine.flops / 1e9, 1))
    await serve(host, ExecutorNode(settings, identities, machine, host.log), settings.advertise)


if __name__ == "__main__":
    code = run_service("services.executor", "Holds and runs stages of models.", ExecutorSettings, run)
    # Everything of ours is closed by now; what the libraries do as the interpreter ends took seconds, for nothing.
    sys.stderr.flush()
    os._exit(code)
