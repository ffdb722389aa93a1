"""What any process of the mesh tells an operator of itself: `OpsService`, asked directly or through a gateway."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Any

import psutil

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.identity import IdentitySource
from orbitmesh.trust.names import Role
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc
from orbitmesh.wire.records import Sending
from orbitmesh.wire.session import Session, open_sessions
from services.runtime.drain import InFlight
from services.runtime.faults import Faults
from services.runtime.logs import EventLog, Level


class ProcessOps(ops_pb2_grpc.OpsServiceServicer):
    """Answers `OpsService` for one process; what is of the whole mesh is a gateway's to answer.

    Args:
        identities: Who the process is.
        log: Its log.
        in_flight: The calls that it answers.
        faults: What breaks it on purpose.
    """

    def __init__(self, identities: IdentitySource, log: EventLog, in_flight: InFlight, faults: Faults) -> None:
        self._faults = faults
        self._identities = identities
        self._log = log
        self._in_flight = in_flight
        self._process = psutil.Process(os.getpid())
        self._drain: Callable[[bool], None] | None = None
        self._drained = False

    @property
    def title(self) -> str:
        """role/name of this process."""
        return self._identities.current().title

    async def GetProcess(  # noqa: N802
        self, request: ops_pb2.GetProcessRequest, context: Any
    ) -> ops_pb2.GetProcessResponse:
        """What it is and how busy."""
        self._check_own(request.process)
        return self.describe()

    async def ListTransfers(  # noqa: N802
        self, request: ops_pb2.ListTransfersRequest, context: Any
    ) -> ops_pb2.ListTransfersResponse:
        """What is on the way."""
        self._check_own(request.process)
        now_s, now_ns = asyncio.get_running_loop().time(), time.monotonic_ns()
        sessions = sorted(open_sessions(), key=lambda each: (each.peer.role, each.peer.name))
        return ops_pb2.ListTransfersResponse(
            process=self.title, sessions=[_session(each, now_s, now_ns) for each in sessions]
        )

    async def SetLogLevel(  # noqa: N802
        self, request: ops_pb2.SetLogLevelRequest, context: Any
    ) -> ops_pb2.SetLogLevelResponse:
        """How much it logs."""
        level = level_of(request.level)
        self._check_own(request.process)
        before, self._log.level = self._log.level, level
        if before is not level:
            self._log.write(Level.WARNING, "log_level", {"before": before.name.lower(), "now": level.name.lower()})
        return ops_pb2.SetLogLevelResponse(process=self.title, before=before.name.lower())

    async def InjectFault(  # noqa: N802
        self, request: ops_pb2.InjectFaultRequest, context: Any
    ) -> ops_pb2.InjectFaultResponse:
        """Breaks it."""
        self._check_own(request.process)
        return ops_pb2.InjectFaultResponse(process=self.title, sessions_cut=await self._faults.inject(request))

    async def DrainNode(  # noqa: N802
        self, request: ops_pb2.DrainNodeRequest, context: Any
    ) -> ops_pb2.DrainNodeResponse:
        """Whether its stages are to leave."""
        name = request.node
        self._check_own(f"{Role.EXECUTOR.value}/{name}" if name and "/" not in name else name)
        if self._drain is None:
            raise InvalidInputError(f"{self.title} holds no stages: name an executor", reason="FAILED_PRECONDITION")
        before, self._drained = self._drained, not request.undo
        if before is not self._drained:
            self._drain(self._drained)
            self._log.info("drained" if self._drained else "wanted_again")
        return ops_pb2.DrainNodeResponse(process=self.title, before=before)

    def drain_by(self, drain: Callable[[bool], None]) -> None:
        """This process holds stages: `drain` is told whether they are to leave."""
        self._drain = drain

    async def GetTopology(  # noqa: N802
        self, request: ops_pb2.GetTopologyRequest, context: Any
    ) -> ops_pb2.GetTopologyResponse:
        """A gateway's to answer."""
        raise self._not_here("GetTopology")

    async def ListGenerations(  # noqa: N802
        self, request: ops_pb2.ListGenerationsRequest, context: Any
    ) -> ops_pb2.ListGenerationsResponse:
        """A gateway's to answer."""
        raise self._not_here("ListGenerations")

    async def ExplainTrace(  # noqa: N802
        self, request: ops_pb2.ExplainTraceRequest, context: Any
    ) -> ops_pb2.ExplainTraceResponse:
        """A gateway's to answer."""
        raise self._not_here("ExplainTrace")

    def describe(self) -> ops_pb2.GetProcessResponse:
        """This process."""
        with self._process.oneshot():
            started_s, memory = self._process.create_time(), self._process.memory_info().rss
            spent = self._process.cpu_times()
        message = ops_pb2.GetProcessResponse(
            process=self.title,
            version=version("orbitmesh"),
            pid=self._process.pid,
            up_s=max(0.0, time.time() - started_s),
            memory_bytes=memory,
            cpu_s=spent.user + spent.system,
            calls_in_flight=self._in_flight.count,
            draining=self._in_flight.draining.is_set(),
            log_level=self._log.level.name.lower(),
        )
        message.started_at.FromNanoseconds(round(started_s * 1e9))
        until: datetime = self._identities.current().not_after
        message.certificate_until.FromDatetime(until)
        return message

    def _check_own(self, process: str) -> None:
        if process not in ("", self.title):
            raise InvalidInputError(
                f"this is {self.title}, not {process[:80]!r}: ask a gateway, which asks others, or that process itself"
            )

    def _not_here(self, method: str) -> InvalidInputError:
        return InvalidInputError(
            f"this is {self.title}; {method} is of the whole mesh: ask a gateway", reason="FAILED_PRECONDITION"
        )


def level_of(name: str) -> Level:
    """A level by its name.

    Raises:
        InvalidInputError: There is none of that name.
    """
    try:
        return Level[name.upper()]
    except KeyError:
        known = ", ".join(level.name.lower() for level in Level)
        raise InvalidInputError(f"there is no level {name[:40]!r}; expected one of {known}") from None


def _session(session: Session, now_s: float, now_ns: int) -> ops_pb2.OpenSession:
    stats = session.stats
    return ops_pb2.OpenSession(
        peer=session.peer.title,
        attached=session.attached,
        round_trip_s=session.round_trip_s,
        sent_bytes=stats.sent_bytes,
        received_bytes=stats.received_bytes,
        unacknowledged_bytes=session.unacknowledged_bytes,
        resumes=stats.resumes,
        resent_bytes=stats.resent_bytes,
        silent_s=max(0.0, now_s - session.heard_s),
        sending=[_transfer(each, now_ns) for each in session.sending],
        receiving=session.receiving,
    )


def _transfer(sending: Sending, now_ns: int) -> ops_pb2.OpenTransfer:
    return ops_pb2.OpenTransfer(
        what=sending.info.WhichOneof("purpose") or "tensor",
        slice=sending.info.slice,
        total_bytes=sending.total_bytes,
        sent_bytes=sending.done_bytes,
        age_s=(now_ns - sending.began_ns) / 1e9,
        waits_for=sending.waits_for,
    )
