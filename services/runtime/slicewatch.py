"""Follows how the slices of the mesh are, for any service that keeps to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.rpc import keep_status, map_rpc_error
from orbitmesh.trust import Role
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

PAUSE_MIN_S = 0.1
"""The first pause before the service is asked again, in seconds."""
PAUSE_MAX_S = 2.0
"""The longest."""


async def follow_slices(
    channels: ChannelPool,
    address: str,
    name: str,
    node: str,
    take: Callable[[slices_pb2.WatchSlicesResponse], None],
    log: EventLog,
) -> None:
    """Hands every state of the slices on, as long as this process lives; while the service is away, nothing is.

    Args:
        channels: How the service is reached.
        address: host:port of the slices service.
        name: Its name in its certificate.
        node: Only what concerns this node is asked for.
        take: Given each state; an `InvalidInputError` of it is logged, and the next state is awaited.
        log: Where to say that the service is away, once each time.
    """
    pause_s, away = PAUSE_MIN_S, False
    while True:
        detail = "it ended the watch"
        try:
            stub = slices_pb2_grpc.SlicesServiceStub(channels.get(Role.SLICES, name, address))
            async for told in keep_status(stub.WatchSlices(slices_pb2.WatchSlicesRequest(node=node))):
                pause_s, away = PAUSE_MIN_S, False
                try:
                    take(told)
                except InvalidInputError as error:
                    log.warning("slices_not_taken", detail=error.message)
        except (grpc.RpcError, MeshError) as error:
            # Also our own certificate that has run out: it is renewed, and the service asked again.
            told_error = map_rpc_error(error, address=address) if isinstance(error, grpc.RpcError) else error
            detail = told_error.message
        if not away:
            away = True
            log.warning("slices_out_of_reach", detail=detail)
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_MAX_S, 2 * pause_s)
