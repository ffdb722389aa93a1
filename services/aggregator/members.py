"""The nodes of the mesh as the scheduler knows them: where each is reached, and whether it is in contact."""

from __future__ import annotations

import asyncio
import math
import time

from orbitmesh.errors import MeshError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2, scheduler_pb2, scheduler_pb2_grpc
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

PAYLOAD_SHARE = 0.8
"""The part of a contact that a contribution may fill: the rest is for handshakes, frames and what else passes."""
POLL_S = 1.0
"""How often the scheduler is asked."""


class Members:
    """What is known of the nodes; what was said last stays, also while the scheduler is away.

    Args:
        channels: Our connections.
        scheduler: host:port of the scheduler.
        scheduler_name: Its name in its certificate.
        log: Where to say what happened.
    """

    def __init__(self, channels: ChannelPool, scheduler: str, scheduler_name: str, log: EventLog) -> None:
        self._channels = channels
        self._address = scheduler
        self._name = scheduler_name
        self._log = log
        self._nodes: dict[str, scheduler_pb2.Node] = {}
        self._asked_s = 0.0
        self._out_of_reach = False

    async def follow(self) -> None:
        """Asks again and again, as long as this runs."""
        while True:
            try:
                await self.refresh()
                self._out_of_reach = False
            except MeshError as error:
                if not self._out_of_reach:
                    self._log.warning("scheduler_out_of_reach", detail=error.message)
                self._out_of_reach = True
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Asks once.

        Raises:
            TransportError: The scheduler cannot be reached.
        """
        channel = self._channels.get(Role.SCHEDULER, self._name, self._address)
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        asked_s = time.monotonic()
        with mapped_errors(address=self._address):
            answer = await stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=CONTROL_DEADLINE_S)
        self._asked_s = asked_s
        for node in answer.nodes:
            self._nodes[node.name] = node

    def up(self) -> list[str]:
        """The nodes whose lease holds and that take new work, by name."""
        return sorted(name for name, node in self._nodes.items() if node.state == scheduler_pb2.NODE_STATE_UP)

    def address(self, name: str) -> executor_pb2.PeerAddress | None:
        """Where a node was reached last; None for one that was never there."""
        node = self._nodes.get(name)
        if node is None or not node.measures.address:
            return None
        return executor_pb2.PeerAddress(role=Role.EXECUTOR, name=name, address=node.measures.address)

    def in_contact(self, name: str) -> bool:
        """Whether the contact plan has a way to a node now; also where there is no plan, or it does not know the node:
        then a node that cannot be reached is late and not out of sight."""
        return self.away_s(name) <= 0

    def away_s(self, name: str) -> float:
        """Seconds until a node's next contact as planned; 0 in contact, or where nothing is planned; `inf` where the
        plan knows of none any more."""
        node = self._nodes.get(name)
        if node is None or not node.HasField("in_contact") or node.in_contact:
            return 0.0
        if not node.HasField("next_contact_in_s"):
            return math.inf
        return max(0.0, node.next_contact_in_s - (time.monotonic() - self._asked_s))

    def payload_bytes(self, name: str) -> int:
        """What a node's contribution may take so that a contact carries it; 0 where nothing is planned."""
        node = self._nodes.get(name)
        if node is None or not node.HasField("contact_bytes"):
            return 0
        return max(1, int(node.contact_bytes * PAYLOAD_SHARE))
