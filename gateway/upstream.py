"""The gateway's ways into the mesh: scheduler, aggregator, and one session to every executor that it works with."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError, UnknownModelError, error_for
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import keep_status, map_rpc_error, mapped_errors
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc, wire_pb2
from orbitmesh.wire.dialler import GIVE_UP_ROUND_TRIPS
from orbitmesh.wire.egress import Egress
from orbitmesh.wire.records import SessionPeer
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, dial
from services.egress import FarEgress
from services.egress.reporting import report_traffic
from services.runtime.caller import time_left_s
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.slicewatch import follow_slices

SESSION_GIVE_UP_S = 0.9
"""How long a cut session to an executor is dialled again before its generations are told that the node is lost."""
BRIEF_S = 0.3
"""How long it may take to open a session, at the least, with a node that may be gone."""
WATCH_PAUSE_MIN_S = 0.2
"""The first pause before the scheduler is asked again to say what changes."""
WATCH_PAUSE_MAX_S = 2.0
"""The longest."""
WHOLE_WAIT_S = 15.0
"""How long a deployment that lacks a node is waited for before it counts as one that does not serve, in seconds: a node
that is started anew is back in less."""
WHOLE_POLL_S = 0.25
"""How often it is looked at meanwhile, in seconds."""
REPLACE_DEADLINE_S = 3600.0
"""How long it may take to load a stage on a spare node: weights cross thin links."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A token as it reached the gateway."""

    epoch: int
    """The run that it belongs to."""
    position: int
    """Its position."""
    token: int
    """Its id."""
    finish: int
    """A `FinishReason`; 0 while more will come."""
    at_ns: int
    """When it arrived, monotonic."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Word that a generation does not get on, or cannot."""

    error: MeshError
    """What is wrong."""
    epoch: int
    """The run that it happened in; 0 where a session between the gateway and a node was lost."""
    node: str
    """The node that says so, or that was lost."""
    at_ns: int
    """When it arrived, monotonic."""


Listener = Callable[[Arrival | Trouble], None]


class Upstream:
    """Channels and sessions from this gateway."""

    def __init__(
        self,
        identities: IdentitySource,
        scheduler: str,
        scheduler_name: str,
        ways: dict[str, str],
        log: EventLog,
        *,
        aggregator: str = "",
        aggregator_name: str = "aggregator",
        slices: str = "",
        slices_name: str = "slices",
    ) -> None:
        self.identities = identities
        self._log = log
        self.scheduler_address = scheduler
        self._scheduler_name = scheduler_name
        self.aggregator_address = aggregator
        self._aggregator_name = aggregator_name
        self.slices_address = slices
        self._slices_name = slices_name
        self._channels = ChannelPool(identities, ways)
        self.egress = FarEgress() if slices else None
        self._sessions: dict[str, Session] = {}
        self._dialling: dict[str, asyncio.Lock] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._listeners: dict[int, tuple[Listener, set[str]]] = {}

    def scheduler_channel(self) -> grpc.aio.Channel:
        """The connection to the scheduler."""
        return self._channels.get(Role.SCHEDULER, self._scheduler_name, self.scheduler_address)

    def aggregator_channel(self) -> grpc.aio.Channel:
        """The connection to the aggregator.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, this gateway was given none.
        """
        if not self.aggregator_address:
            raise InvalidInputError(
                "this mesh has no aggregator, so nothing can be trained on it: start one (`python -m "
                "services.aggregator`) and give the gateway its address with --aggregator host:port",
                reason="FAILED_PRECONDITION",
            )
        return self._channels.get(Role.AGGREGATOR, self._aggregator_name, self.aggregator_address)

    def slices_channel(self) -> grpc.aio.Channel:
        """The connection to the slices service.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, this gateway was given none.
        """
        if not self.slices_address:
            raise InvalidInputError(
                "this mesh has no slices service: start one (`python -m services.slices`) and give the gateway its "
                "address with --slices host:port",
                reason="FAILED_PRECONDITION",
            )
        return self._channels.get(Role.SLICES, self._slices_name, self.slices_address)

    def services(self) -> dict[str, grpc.aio.Channel]:
        """The connections to the services that this gateway was given, by role/name."""
        told = {
            f"{Role.SCHEDULER.value}/{self._scheduler_name}": (self.scheduler_channel, self.scheduler_address),
            f"{Role.AGGREGATOR.value}/{self._aggregator_name}": (self.aggregator_channel, self.aggregator_address),
            f"{Role.SLICES.value}/{self._slices_name}": (self.slices_channel, self.slices_address),
        }
        return {process: channel() for process, (channel, address) in told.items() if address}

    def node_channel(self, name: str, address: str) -> grpc.aio.Channel:
        """The connection to a node's executor."""
        return self._channels.get(Role.EXECUTOR, name, address)

    async def deployment(self, name: str) -> scheduler_pb2.Deployment:
        """A deployment that serves; one that lacks a node at the moment is waited for.

        Raises:
            UnknownModelError: Where there is none of that name.
            NodeLostError: Where it does not serve.
        """
        # Half of the caller's time at the most: it is to hear which node is missing, not only that it took too long.
        give_up_s = time.monotonic() + min(WHOLE_WAIT_S, time_left_s(WHOLE_WAIT_S) / 2)
        while True:
            held = await self.describe(name)
            degraded = held.state == scheduler_pb2.DEPLOYMENT_STATE_DEGRADED
            if not degraded or time.monotonic() + WHOLE_POLL_S > give_up_s:
                break
            await asyncio.sleep(WHOLE_POLL_S)
        if held.state == scheduler_pb2.DEPLOYMENT_STATE_LOADING:
            raise UnknownModelError(f"deployment {name!r} is still being loaded: wait until it is ready")
        if held.state != scheduler_pb2.DEPLOYMENT_STATE_READY:
            raise NodeLostError(f"deployment {name!r} does not serve: {held.failure or 'it failed'}")
        return held

    async def describe(self, name: str) -> scheduler_pb2.Deployment:
        """A deployment as it is, whether it serves or not.

        Raises:
            UnknownModelError: Where there is none of that name.
            TransportError: Where the scheduler cannot be reached.
        """
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self.scheduler_channel())
        request = scheduler_pb2.GetDeploymentRequest(name=name)
        with mapped_errors(address=self.scheduler_address):
            answer = await stub.GetDeployment(request, timeout=min(CONTROL_DEADLINE_S, time_left_s(CONTROL_DEADLINE_S)))
        held: scheduler_pb2.Deployment = answer.deployment
        return held

    async def replace_stage(
        self, deployment: str, stage_index: int, node: str, why: str, *, hand_over: bool = False
    ) -> scheduler_pb2.Deployment:
        """Another node in a place of a deployment; waits until it can serve.

        Raises:
            NodeLostError: `NO_SPARE_NODE`, there is none at the moment; or the scheduler cannot be reached.
            MeshError: What else the scheduler says.
        """
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self.scheduler_channel())
        request = scheduler_pb2.ReplaceStageRequest(
            request_id=secrets.token_hex(8),
            deployment=deployment,
            stage_index=stage_index,
            node=node,
            why=why,
            hand_over=hand_over,
        )
        found: scheduler_pb2.Deployment | None = None
        with mapped_errors(address=self.scheduler_address):
            async for answer in keep_status(stub.ReplaceStage(request, timeout=REPLACE_DEADLINE_S)):
                found = answer.deployment
        if found is None:
            raise NodeLostError("the scheduler ended the replacement without a word")
        return found

    async def watch(self) -> AsyncIterator[scheduler_pb2.Deployment]:
        """The deployments as they are and whenever one changes, for as long as this process lives."""
        pause_s = WATCH_PAUSE_MIN_S
        while True:
            try:
                stub = scheduler_pb2_grpc.SchedulerServiceStub(self.scheduler_channel())
                async for answer in keep_status(stub.WatchDeployments(scheduler_pb2.WatchDeploymentsRequest())):
                    pause_s = WATCH_PAUSE_MIN_S
                    if not answer.deleted:
                        yield answer.deployment
            except (grpc.RpcError, MeshError) as error:
                told = map_rpc_error(error) if isinstance(error, grpc.RpcError) else error
                self._log.info("deployments_not_watched", detail=told.message)
            await asyncio.sleep(pause_s)
            pause_s = min(WATCH_PAUSE_MAX_S, 2 * pause_s)

    def executor(self, node: executor_pb2.PeerAddress) -> executor_pb2_grpc.ExecutorServiceStub:
        """Calls to a node's executor. The relays in its address are those of the stage before it, not ours."""
        return executor_pb2_grpc.ExecutorServiceStub(self._channels.get(Role.EXECUTOR, node.name, node.address))

    async def session(self, node: executor_pb2.PeerAddress, *, brief: bool = False) -> Session:
        """The session to a node's executor; opened when first needed, and anew when the last one failed.

        Args:
            node: The node.
            brief: Wait only as long as a handshake needs on a link like the last one's: to see whether the node is
                there at all.

        Raises:
            MeshError: It could not be opened.
        """
        if not brief:
            return await self._session(node, SESSION_GIVE_UP_S)
        held = self._sessions.get(node.name)
        if held is None:
            return await self._session(node, SESSION_GIVE_UP_S)
        patience_s = max(BRIEF_S, GIVE_UP_ROUND_TRIPS * held.round_trip_s)
        try:
            async with asyncio.timeout(patience_s):
                return await self._session(node, SESSION_GIVE_UP_S)
        except TimeoutError:
            self._channels.renew(Role.EXECUTOR, node.name)
            raise NodeLostError(f"{node.name} did not answer within {patience_s:.1f} s") from None

    async def _session(self, node: executor_pb2.PeerAddress, give_up_after_s: float) -> Session:
        lock = self._dialling.setdefault(node.name, asyncio.Lock())
        async with lock:
            held = self._sessions.get(node.name)
            if held is not None and not held.closed:
                return held
            session = await dial(
                self._channels.exchange(Role.EXECUTOR, node.name, node.address, EXCHANGE),
                self.identities,
                receiver_role=Role.EXECUTOR,
                receiver_name=node.name,
                give_up_after_s=give_up_after_s,
                egress=None if self.egress is None else self.egress.towards(node.name),
            )
            self._sessions[node.name] = session
            reader = asyncio.create_task(self._read(node.name, session), name=f"tokens from {node.name}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            return session

    async def warm(self, nodes: Sequence[executor_pb2.PeerAddress]) -> None:
        """Opens the sessions to these nodes now, so that the first prompt does not wait for handshakes."""
        await asyncio.gather(*(self.session(node) for node in nodes), return_exceptions=True)

    def listen(self, generation: int, nodes: Iterable[str], listener: Listener) -> None:
        """Hands what arrives for a generation to `listener`, also the loss of one of its nodes. Repeating it with
        other nodes changes whose loss counts."""
        self._listeners[generation] = (listener, set(nodes))

    def forget(self, generation: int) -> None:
        """Hands nothing more on."""
        self._listeners.pop(generation, None)

    def turns_towards(self, peer: SessionPeer) -> Egress | None:
        """Who gives turns in a session that a peer opened; clients are no nodes, and nobody is promised their links."""
        return None if self.egress is None or peer.role != Role.EXECUTOR else self.egress.towards(peer.name)

    async def keep_to_slices(self) -> None:
        """Sends to nodes as the slices on them allow, and tells what was sent of each, for as long as this process
        lives; where this mesh has no slices, nothing is to be kept to."""
        if self.egress is None:
            return
        to = self._channels, self.slices_address, self._slices_name
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow_slices(*to, "", self.egress.take, self._log))
            tasks.create_task(report_traffic(*to, self.egress, self._log))

    async def close(self) -> None:
        """Ends sessions and connections."""
        for reader in list(self._readers):
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
        await self._channels.close()

    async def _read(self, node: str, session: Session) -> None:
        error: MeshError = NodeLostError(f"{node} ended its session", metadata={"node": node})
        try:
            async for received in session:
                self._hand_on(node, received.info, bytes(received.data), received.received_ns)
            await session.close()  # the node is on its way out and waits for our end of the session
        except MeshError as caught:
            error = NodeLostError(f"{node} is out of reach: {caught.message}", metadata={"node": node})
        self._channels.renew(Role.EXECUTOR, node)
        self._log.warning("session_ended", node=node, message=error.message)
        for listener, nodes in list(self._listeners.values()):
            if node in nodes:
                listener(Trouble(error, 0, node, time.monotonic_ns()))

    def _hand_on(self, node: str, info: wire_pb2.TransferInfo, data: bytes, at_ns: int) -> None:
        if info.HasField("failure"):
            failure = info.failure
            held = self._listeners.get(failure.generation)
            if held is not None:
                error = error_for(failure.reason, failure.message, dict(failure.metadata))
                held[0](Trouble(error, failure.epoch, node, at_ns))
        elif info.HasField("token") and len(data) == 4:
            held = self._listeners.get(info.token.generation)
            if held is not None:
                token = int.from_bytes(data, "little", signed=True)
                held[0](Arrival(info.token.epoch, info.token.position, token, info.token.finish, at_ns))
