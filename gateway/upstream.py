"""The gateway's ways into the mesh: the scheduler, and one session to every executor that it works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from orbitmesh.errors import MeshError, NodeLostError, UnknownModelError, error_for
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc, wire_pb2
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, dial
from services.runtime.caller import time_left_s
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

SESSION_GIVE_UP_S = 5.0
"""How long a cut session to an executor is dialled again before its generations are told that the node is lost."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A token, or the end by failure, as it reached the gateway."""

    position: int
    """The token's position."""
    token: int
    """Its id."""
    finish: int
    """A `FinishReason`; 0 while more will come."""
    at_ns: int
    """When it arrived, monotonic."""
    error: MeshError | None = None
    """Why nothing more will come."""


Listener = Callable[[Arrival], None]


class Upstream:
    """Channels and sessions from this gateway."""

    def __init__(
        self, identities: IdentitySource, scheduler: str, scheduler_name: str, ways: dict[str, str], log: EventLog
    ) -> None:
        self.identities = identities
        self._log = log
        self.scheduler_address = scheduler
        self._scheduler_name = scheduler_name
        self._channels = ChannelPool(identities, ways)
        self._sessions: dict[str, Session] = {}
        self._dialling: dict[str, asyncio.Lock] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._listeners: dict[int, tuple[Listener, frozenset[str]]] = {}

    def scheduler_channel(self) -> grpc.aio.Channel:
        """The connection to the scheduler."""
        return self._channels.get(Role.SCHEDULER, self._scheduler_name, self.scheduler_address)

    async def deployment(self, name: str) -> scheduler_pb2.Deployment:
        """A deployment that serves.

        Raises:
            UnknownModelError: Where there is none of that name.
            NodeLostError: Where it does not serve.
        """
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self.scheduler_channel())
        request = scheduler_pb2.GetDeploymentRequest(name=name)
        with mapped_errors(address=self.scheduler_address):
            answer = await stub.GetDeployment(request, timeout=min(CONTROL_DEADLINE_S, time_left_s(CONTROL_DEADLINE_S)))
        held: scheduler_pb2.Deployment = answer.deployment
        if held.state == scheduler_pb2.DEPLOYMENT_STATE_LOADING:
            raise UnknownModelError(f"deployment {name!r} is still being loaded: wait until it is ready")
        if held.state != scheduler_pb2.DEPLOYMENT_STATE_READY:
            raise NodeLostError(f"deployment {name!r} does not serve: {held.failure or 'it failed'}")
        return held

    def executor(self, node: executor_pb2.PeerAddress) -> executor_pb2_grpc.ExecutorServiceStub:
        """Calls to a node's executor."""
        return executor_pb2_grpc.ExecutorServiceStub(self._channels.get(Role.EXECUTOR, node.name, node.address))

    async def session(self, node: executor_pb2.PeerAddress) -> Session:
        """The session to a node's executor; opened when first needed, and anew when the last one failed."""
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
                give_up_after_s=SESSION_GIVE_UP_S,
            )
            self._sessions[node.name] = session
            reader = asyncio.create_task(self._read(node.name, session), name=f"tokens from {node.name}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            return session

    async def warm(self, nodes: Sequence[executor_pb2.PeerAddress]) -> None:
        """Opens the sessions to these nodes now, so that the first prompt does not wait for handshakes."""
        await asyncio.gather(*(self.session(node) for node in nodes), return_exceptions=True)

    def listen(self, generation: int, nodes: frozenset[str], listener: Listener) -> None:
        """Hands what arrives for a generation to `listener`, also the loss of one of its nodes."""
        self._listeners[generation] = (listener, nodes)

    def forget(self, generation: int) -> None:
        """Hands nothing more on."""
        self._listeners.pop(generation, None)

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
                self._hand_on(received.info, bytes(received.data), received.received_ns)
            await session.close()  # the node is on its way out and waits for our end of the session
        except MeshError as caught:
            error = NodeLostError(f"{node} is out of reach: {caught.message}", metadata={"node": node})
        self._log.warning("session_ended", node=node, message=error.message)
        for listener, nodes in list(self._listeners.values()):
            if node in nodes:
                listener(Arrival(0, 0, 0, 0, error))

    def _hand_on(self, info: wire_pb2.TransferInfo, data: bytes, at_ns: int) -> None:
        if info.HasField("failure"):
            failure = info.failure
            held = self._listeners.get(failure.generation)
            if held is not None:
                error = error_for(failure.reason, failure.message, dict(failure.metadata))
                held[0](Arrival(0, 0, 0, at_ns, error))
        elif info.HasField("token") and len(data) == 4:
            held = self._listeners.get(info.token.generation)
            if held is not None:
                token = int.from_bytes(data, "little", signed=True)
                held[0](Arrival(info.token.position, token, info.token.finish, at_ns))
