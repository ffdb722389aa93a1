"""`python -m services.executor --identity DIR --listen HOST:PORT --state DIR --scheduler HOST:PORT`: one executor."""

from __future__ import annotations

import gc
import math
import os
import sys
from contextlib import ExitStack

from orbitmesh.errors import InvalidInputError
from services.executor.cgroups import Confinement
from services.executor.settings import Confine, ExecutorSettings
from services.runtime.admin import SidePorts
from services.runtime.logs import EventLog
from services.runtime.process import run_service

SWITCH_INTERVAL_S = 0.0005
"""How soon the computing thread must hand the interpreter to the event loop: a tenth of Python's default, because a
token that waits for the interpreter is late by the whole interval."""


async def run(settings: ExecutorSettings) -> None:
    """Measures the machine, then serves."""
    # What is imported stays: the collector would look at all of it again and again, for a quarter of the time.
    gc.disable()
    import torch

    from orbitmesh.trust import IdentitySource
    from services.executor.measures import measure, usable_cpu
    from services.executor.node import ExecutorNode
    from services.executor.server import serve
    from services.runtime.metrics import Telemetry
    from services.runtime.server import ServiceHost

    gc.freeze()
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    cpu = usable_cpu(settings.cores)
    torch.set_num_threads(settings.threads or math.ceil(cpu))
    identities = IdentitySource(settings.identity)
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        identities, listen=settings.listen, telemetry=told, side=SidePorts.of(settings), faults=settings.allow_faults
    )
    with ExitStack() as until_the_end:
        confine(settings, host.log, until_the_end)
        machine = measure(settings.memory_bytes, cpu)
        host.log.info("measured", cores=cpu, gflops=round(machine.flops / 1e9, 1))
        await serve(host, ExecutorNode(settings, identities, machine, host.log), settings.advertise)


def confine(settings: ExecutorSettings, log: EventLog, until: ExitStack) -> None:
    """Holds this process to its cores, where it was given some.

    Raises:
        InvalidInputError: It must be, and the machine does not allow it.
    """
    if not settings.cores or settings.confine is Confine.OFF:
        return
    try:
        group = Confinement(settings.cores)
    except InvalidInputError as error:
        if settings.confine is Confine.REQUIRE:
            raise
        log.warning("not_confined", detail=error.message)
    else:
        until.callback(group.close)
        log.info("confined", cores=settings.cores, group=str(group.path))


if __name__ == "__main__":
    code = run_service("services.executor", "Holds and runs stages of models.", ExecutorSettings, run)
    # Everything of ours is closed by now; what the libraries do as the interpreter ends took seconds, for nothing.
    sys.stderr.flush()
    os._exit(code)
