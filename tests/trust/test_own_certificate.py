"""Nodes and gateways outlive their own certificates: without one they ask on, and with the next they are back."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream import Upstream
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.executor.measures import Machine
from services.executor.membership import Membership
from services.executor.node import ExecutorNode
from services.executor.settings import ExecutorSettings
from services.runtime.caller import current_caller
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from tests.runtime.conftest import until

Part = Callable[[], Coroutine[Any, Any, None]]

LIFE = timedelta(seconds=4)
"""Of a certificate; it ends with a whole second, so up to one less."""


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Ends every call after one answer, so that all who want more call again."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()

    async def Heartbeat(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            self.answered[current_caller().name] += 1
            yield scheduler_pb2.HeartbeatResponse()
            return

    async def WatchDeployments(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.answered[current_caller().name] += 1
        yield scheduler_pb2.WatchDeploymentsResponse()


@asynccontextmanager
async def scheduler(identity: Path) -> AsyncIterator[tuple[Scheduler, str]]:
    host = ServiceHost(IdentitySource(identity), log=EventLog("scheduler", stream=io.StringIO()))
    made = Scheduler()
    host.add("orbitmesh.v1.SchedulerService", scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, made)
    await host.start()
    try:
        yield made, f"127.0.0.1:{host.port}"
    finally:
        await host.drain(0.1)


def keep_lease(identity: Path, address: str, log: EventLog) -> Part:
    """A node's part, ready to run."""
    settings = ExecutorSettings(
        identity=identity,
        listen="127.0.0.1:0",
        state=identity.with_suffix(".state"),
        scheduler=address,
        scheduler_name="scheduler",
    )
    machine = Machine(cores=1, memory_bytes=1 << 30, flops=1e9, memory_bandwidth=1e9, accelerators=())
    node = ExecutorNode(settings, IdentitySource(identity), machine, log)

    async def run() -> None:
        try:
            await Membership(node, "127.0.0.1:9").run()
        finally:
            await node.close()

    return run


def watch(identity: Path, address: str, log: EventLog) -> Part:
    """A gateway's part, ready to run."""
    upstream = Upstream(IdentitySource(identity), address, "scheduler", {}, log)

    async def run() -> None:
        try:
            async for _ in upstream.watch():
                pass
        finally:
            await upstream.close()

    return run


@pytest.mark.parametrize(("part", "role"), [(keep_lease, Role.EXECUTOR), (watch, Role.GATEWAY)])
async def test_a_certificate_that_runs_out_ends_nothing(
    tmp_path: Path, part: Callable[[Path, str, EventLog], Part], role: Role
) -> None:
    """Neither for who is connected, whose calls are refused, nor for who has yet to connect, which cannot be tried."""
    ca = init_mesh(tmp_path / "ca")
    issue(ca, Role.SCHEDULER, "scheduler", tmp_path / "scheduler")
    names = ("connected", "late")
    async with scheduler(tmp_path / "scheduler") as (heard, address):
        ends = max(issue(ca, role, name, tmp_path / name, LIFE).not_after for name in names)
        said = {name: io.StringIO() for name in names}
        run = {name: part(tmp_path / name, address, EventLog(name, stream=said[name])) for name in names}
        running = [asyncio.create_task(run["connected"]())]
        await until(lambda: heard.answered["connected"] > 0)
        await asyncio.sleep((ends - datetime.now(UTC)).total_seconds() + 0.1)
        running.append(asyncio.create_task(run["late"]()))

        def refused() -> bool:
            assert not any(task.done() for task in running)
            return all(said[name].getvalue().count("expired") >= 2 for name in names)

        await until(refused)
        before = heard.answered.copy()
        assert before["late"] == 0
        for name in names:
            issue(ca, role, name, tmp_path / name)
        await until(lambda: all(heard.answered[name] >= before[name] + 2 for name in names))
        assert not any(task.done() for task in running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
