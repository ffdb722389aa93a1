"""Tells the slices service what a sender has measured of each slice."""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

import grpc

from orbitmesh.errors import MeshError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Role
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.egress.rules import traffic_since
from services.egress.traffic import Traffic
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

REPORT_INTERVAL_S = 1.0
"""How often it is told, where there is something to tell."""
REPORT_DEADLINE_S = 10.0
"""How long one report may take."""
PROCESS_BYTES = 16
"""How long the name of this process is."""


class Measured(Protocol):
    """What measures."""

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Counts of each slice, that never get less but for what was taken back."""


async def report_traffic(
    channels: ChannelPool, address: str, name: str, egress: Measured, log: EventLog
) -> None:
    """Reports as long as this process lives; what could not be told is told again, and counts once.

    Args:
        channels: How the service is reached.
        address: host:port of the slices service.
        name: Its name in its certificate.
        egress: What measures.
        log: Where to say that a report was not taken.
    """
    process, number = secrets.token_bytes(PROCESS_BYTES), 0
    told: dict[str, Traffic] = {}
    request: slices_pb2.ReportTrafficRequest | None = None
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        if request is None and (traffic := traffic_since(egress.traffic, told)):
            number += 1
            request = slices_pb2.ReportTrafficRequest(traffic=traffic, number=number, process=process)
        if request is None:
            continue
        try:
            stub = slices_pb2_grpc.SlicesServiceStub(channels.get(Role.SLICES, name, address))
            await stub.ReportTraffic(request, timeout=REPORT_DEADLINE_S)
            request = None
        except (grpc.RpcError, MeshError) as error:
            # Who is away is told later; what is refused for good would be refused again.
            found = map_rpc_error(error, address=address) if isinstance(error, grpc.RpcError) else error
            if not found.retryable and found.reason != "DEADLINE":
                log.warning("traffic_not_taken", reason=found.reason, detail=found.message)
                request = None
