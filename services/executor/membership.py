"""How a node belongs to the mesh: it keeps its lease by reporting its measures, and measures its links."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.limits import HEARTBEAT_INTERVAL_S
from orbitmesh.rpc import keep_status, map_rpc_error
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from services.executor.links import RATE_PROBE_BYTES, RTT_PROBES
from services.executor.measures import load_per_core
from services.executor.node import ExecutorNode

PROBE_INTERVAL_S = 15.0
"""How often a link that was measured is measured again."""
PROBE_DEADLINE_S = 10.0
"""How long one probe may take before the link counts as down."""
LEAVE_S = 15.0
"""How long a node that ends waits for others to take its places, of the 25 s that it has for its end, in seconds."""
LEAVE_POLL_S = 0.1
"""The pause between two questions whether they have, in seconds."""
ANSWER_S = 5.0
"""How long the scheduler may take to answer one of them: without a scheduler nobody takes anything, in seconds."""
SILENCE_S = 10.0
"""How long the scheduler may answer nothing to heartbeats before it is called anew, in seconds; above what a late link
takes."""
RECONNECT_MAX_S = 0.5
"""The longest pause before the scheduler is called again."""


class Membership:
    """Keeps one node in the mesh for as long as `run` runs."""

    def __init__(self, node: ExecutorNode, address: str) -> None:
        self._node = node
        self._address = address
        self._peers: dict[str, executor_pb2.PeerAddress] = {}
        self._sequence = 0
        self._interval_s = HEARTBEAT_INTERVAL_S
        self._beat = asyncio.Event()
        self.draining = False
        self._heard = 0
        self._answered = asyncio.Event()
        self._places_to_move = 0

    @property
    def peers(self) -> dict[str, executor_pb2.PeerAddress]:
        """The other members, by name, as the scheduler said last."""
        return self._peers

    async def run(self) -> None:
        """Speaks to the scheduler, again and again, and measures links beside it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._measure_links())

    async def leave(self) -> None:
        """Tells the scheduler that this node goes, and waits until other nodes have its places: for `LEAVE_S` at the
        most, and no longer than the scheduler answers and knows somebody who can take them."""
        self.want_work(False)
        if not self._node.runners:
            return
        before = self._heard
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                # The first answer may be to a heartbeat that was on its way already.
                while self._places_to_move or self._heard < before + 2:
                    self._answered.clear()
                    self._beat.set()
                    async with asyncio.timeout(ANSWER_S):
                        await self._answered.wait()
                    await asyncio.sleep(LEAVE_POLL_S)

    def want_work(self, wanted: bool) -> None:
        """Tells the scheduler at once whether this node wants new work."""
        self.draining = not wanted
        self._beat.set()

    async def _keep_lease(self) -> None:
        pause_s = 0.1
        while True:
            settings = self._node.settings
            try:
                channel = self._node.channels.get(Role.SCHEDULER, settings.scheduler_name, settings.scheduler)
                stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
                async for answer in self._answers(keep_status(stub.Heartbeat(self._heartbeats()))):
                    pause_s = 0.1
                    self._places_to_move = answer.places_to_move
                    self._heard += 1
                    self._answered.set()
                    self._interval_s = answer.interval.ToNanoseconds() / 1e9 or HEARTBEAT_INTERVAL_S
                    known = set(self._peers)
                    self._peers = {peer.name: peer for peer in answer.peers}
                    if set(self._peers) - known:
                        self._node.links.wake()
            except (grpc.RpcError, MeshError) as error:
                # Also our own certificate that has run out: the node waits for a new one and goes on.
                told = map_rpc_error(error, address=settings.scheduler) if isinstance(error, grpc.RpcError) else error
                self._node.log.warning("scheduler_out_of_reach", detail=told.message)
            await asyncio.sleep(pause_s)
            pause_s = min(RECONNECT_MAX_S, pause_s * 2)

    async def _answers(self, call: Any) -> AsyncIterator[scheduler_pb2.HeartbeatResponse]:
        """What the scheduler says; a scheduler that was stopped keeps its connections, and says nothing.

        Raises:
            TransportError: It said nothing for too long.
        """
        try:
            while True:
                async with asyncio.timeout(SILENCE_S + 2 * self._interval_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        except TimeoutError:
            raise TransportError(f"the scheduler said nothing for {SILENCE_S:g} s; it is called again") from None
        finally:
            call.cancel()

    async def _heartbeats(self) -> AsyncIterator[scheduler_pb2.HeartbeatRequest]:
        while True:
            self._beat.clear()
            yield self._measures()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._beat.wait()
            except TimeoutError:
                pass

    def _measures(self) -> scheduler_pb2.HeartbeatRequest:
        node = self._node
        self._sequence += 1
        message = scheduler_pb2.HeartbeatRequest(
            address=self._address,
            kind=node.settings.kind,
            memory_free_bytes=node.free_bytes,
            load=load_per_core(),
            sequence=self._sequence,
            draining=self.draining,
        )
        node.machine.fill(message)
        message.stages.extend(node.stage_message(key) for key in node.runners)
        message.links.extend(node.links.messages(set(self._peers)))
        return message

    async def _measure_links(self) -> None:
        while True:
            for peer in self._node.links.due(list(self._peers), time.monotonic(), PROBE_INTERVAL_S):
                address = self._peers.get(peer)
                if address is not None:
                    await self._measure(address)
            await self._node.links.wait(timeout_s=1.0)

    async def _measure(self, peer: executor_pb2.PeerAddress) -> None:
        """Some small probes for the round trip, then one large one whose extra time gives the rate."""
        payload = bytes(RATE_PROBE_BYTES)
        try:
            await self._timed(peer, b"")  # pays for the handshake
            round_trips = [await self._timed(peer, b"") for _ in range(RTT_PROBES)]
            await self._timed(peer, payload)  # opens the congestion window
            long = min(await self._timed(peer, payload), await self._timed(peer, payload))
        except (grpc.RpcError, MeshError) as error:
            detail = map_rpc_error(error).message if isinstance(error, grpc.RpcError) else error.message
            if self._node.links.failed(peer.name):
                self._node.log.warning("link_down", peer=peer.name, detail=detail)
        else:
            self._node.links.measured(peer.name, round_trips, long)
            self._beat.set()

    async def _timed(self, peer: executor_pb2.PeerAddress, payload: bytes) -> float:
        # Asked for each time: between two probes the connection may be retired, and calls on it would be misuse.
        channel = self._node.channels.get(Role.EXECUTOR, peer.name, peer.address)
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        began = time.perf_counter()
        await stub.Probe(executor_pb2.ProbeRequest(payload=payload), timeout=PROBE_DEADLINE_S)
        return time.perf_counter() - began
