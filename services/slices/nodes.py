"""The nodes as the scheduler knows them, and how much of what each has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import Role
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.slices.amounts import exact
from services.slices.book import NODES_MAX, seen
from services.slices.changes import Whole
from services.slices.keeper import Keeper
from services.slices.resources import Resources
from services.slices.values import Node

POLL_S = 1.0
"""How often the scheduler is asked."""


def node_of(message: scheduler_pb2.Node, bandwidths: Mapping[str, float]) -> Node:
    """What a node has, by its heartbeat; bandwidth by name, of others that of the empty name.

    Raises:
        InvalidInputError: It says that it has more than anything has.
    """
    measures = message.measures
    capacity = Resources(
        cpu=measures.cpu or float(measures.cores),
        gpu=float(len(measures.accelerators)),
        memory_gb=measures.memory_total_bytes / 1e9,
        bandwidth_gbps=bandwidths.get(message.name, bandwidths[""]),
    )
    return Node(exact(capacity), absent=message.state != scheduler_pb2.NODE_STATE_UP)


class Nodes:
    """Keeps the nodes of the state as the scheduler says; while it is away they stay as they were.

    Args:
        channels: Our connections.
        scheduler: host:port of the scheduler.
        scheduler_name: Its name in its certificate.
        bandwidths: What leaves each node, in Gbit/s; the empty name is all others.
        keeper: The state.
        log: Where to say what happened.
    """

    def __init__(
        self,
        channels: ChannelPool,
        scheduler: str,
        scheduler_name: str,
        bandwidths: Mapping[str, float],
        keeper: Keeper,
        log: EventLog,
    ) -> None:
        self._channels = channels
        self._address = scheduler
        self._name = scheduler_name
        self._bandwidths = bandwidths
        self._keeper = keeper
        self._log = log
        self._said = ""

    async def follow(self) -> None:
        """Asks again and again, as long as this runs."""
        while True:
            try:
                await self.refresh()
                self._said = ""
            except MeshError as error:
                self._say("nodes_not_known", error.message)
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Asks once.

        Raises:
            TransportError: The scheduler cannot be reached.
            CapacityError: What it says cannot be written down.
        """
        channel = self._channels.get(Role.SCHEDULER, self._name, self._address)
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        with mapped_errors(address=self._address, server="the scheduler"):
            answer = await stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=CONTROL_DEADLINE_S)
        found = {}
        for message in answer.nodes:
            try:
                found[message.name] = node_of(message, self._bandwidths)
            except InvalidInputError as error:
                self._say("node_left_out", f"{message.name}: {error.message}")
        if len(found) > NODES_MAX:
            self._say("nodes_left_out", f"the mesh has {len(found)} nodes; slices are on the first {NODES_MAX} by name")
        await self._keeper.change(_decide(found))

    def _say(self, event: str, detail: str) -> None:
        if detail != self._said:
            self._log.warning(event, detail=detail)
        self._said = detail


def _decide(found: Mapping[str, Node]) -> Callable[[Whole, int], tuple[Whole, bytes]]:
    def decide(whole: Whole, _: int) -> tuple[Whole, bytes]:
        book = seen(whole.book, found)
        return (whole if book is whole.book else Whole(book, whole.totals)), b""

    return decide
