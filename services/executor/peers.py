"""An executor's ways to others: sessions that it opens to nodes of its pipelines, and those that were opened to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from orbitmesh.errors import MeshError, NodeLostError
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, TRANSFER, SessionAcceptor, StreamCall, dial
from services.egress import NodeEgress
from services.executor.outbound import Outbound
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

SESSION_GIVE_UP_S = 0.9
"""How long a cut session to a peer is dialled again before those who need it are told."""
SOURCE_GIVE_UP_S = 5.0
"""The same for a session that fetches files: it has nowhere else to go."""
GATEWAY_SESSION_WAIT_S = 1.0
"""How long a token waits for the session of the gateway that asked for it; later the gateway asks for it."""

Dispatch = Callable[[Received, Session], Awaitable[None]]
PeerLost = Callable[[str, NodeLostError], None]
Addresses = Callable[[], Mapping[str, executor_pb2.PeerAddress]]


class Peers:
    """The sessions of one executor.

    Args:
        name: The node's own name.
        identities: Who it is.
        channels: Its connections.
        log: Where to say what happened.
        dispatch: Takes what others send.
        peer_lost: Told when a node that this one sends to is out of reach.
        egress: The ways out, on which what is sent has its turn; None: it goes as it comes.
    """

    def __init__(
        self,
        name: str,
        identities: IdentitySource,
        channels: ChannelPool,
        log: EventLog,
        dispatch: Dispatch,
        peer_lost: PeerLost,
        egress: NodeEgress | None = None,
    ) -> None:
        self._name = name
        self._identities = identities
        self._channels = channels
        self._log = log
        self._dispatch = dispatch
        self._peer_lost = peer_lost
        self._egress = egress
        self.acceptor = SessionAcceptor(
            identities, self._serve, egress=None if egress is None else lambda peer: egress.towards(peer.name)
        )
        self._outbounds: dict[str, Outbound] = {}
        self._sessions: dict[str, Session] = {}
        self._accepted: dict[str, Session] = {}
        self._accepted_changed = asyncio.Event()
        self._watches: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, executor_pb2.PeerAddress] = {}
        self._members: Addresses = dict

    def learn(self, peers: Iterable[executor_pb2.PeerAddress]) -> None:
        """Takes note of where executors are reached: a peer that came back may have another address."""
        for peer in peers:
            if peer.name and peer.address and peer.name != self._name:
                self._addresses[peer.name] = peer

    def learn_own(self, address: str) -> None:
        """Takes note of where this node listens: it sends to itself where it has two stages of a pipeline, and others
        may still name the address that it had before it was started anew."""
        self._addresses[self._name] = executor_pb2.PeerAddress(role=Role.EXECUTOR, name=self._name, address=address)

    def to_node(self, name: str) -> Outbound:
        """The way to a node of a pipeline."""
        found = self._outbounds.get(name)
        if found is None:
            found = self._outbounds[name] = Outbound(name, lambda: self._session(name))
        return found

    def to_gateway(self, spiffe: str) -> Outbound:
        """The way back to a gateway: over the session that it opened."""
        found = self._outbounds.get(spiffe)
        if found is None:
            found = self._outbounds[spiffe] = Outbound(spiffe, lambda: self._from_gateway(spiffe))
        return found

    def follow(self, members: Addresses) -> None:
        """Takes note of who tells where the members of the mesh are reached now."""
        self._members = members

    async def open_source(self, source: executor_pb2.PeerAddress) -> Session:
        """A session with whom a pack's files are fetched from."""
        return await self._dial(Role(source.role), source, TRANSFER, SOURCE_GIVE_UP_S)

    async def open_node(self, name: str, address: str) -> Session:
        """A session with another node that is nobody else's; whoever asks for it closes it.

        Args:
            name: The node.
            address: host:port where it was; the scheduler's word goes first.

        Raises:
            NodeLostError: It is not reached, or is another.
        """
        peer = self._members().get(name) or executor_pb2.PeerAddress(name=name, address=address)
        if not peer.address:
            raise NodeLostError(f"{self._name} was never told where {name} is reached", metadata={"node": name})
        try:
            return await self._dial(Role.EXECUTOR, peer, EXCHANGE, SESSION_GIVE_UP_S, self._members)
        except MeshError as error:
            raise _lost(self._name, name, error) from error

    async def close(self) -> None:
        """Ends every session."""
        for watch in list(self._watches):
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for outbound in self._outbounds.values():
            await outbound.close()
        await asyncio.gather(*(session.close() for session in [*self._sessions.values(), *self._accepted.values()]))
        await self.acceptor.close()

    async def _session(self, name: str) -> Session:
        held = self._sessions.get(name)
        if held is None or held.closed:
            address = self._addresses.get(name)
            if address is None:
                raise NodeLostError(f"{self._name} was never told where {name} is reached", metadata={"node": name})
            try:
                held = await self._dial(Role.EXECUTOR, address, EXCHANGE, SESSION_GIVE_UP_S)
            except MeshError as error:
                raise _lost(self._name, name, error) from error
            self._sessions[name] = held
            watch = asyncio.create_task(self._watch(held, name), name=f"session to {name}")
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        return held

    async def _watch(self, session: Session, peer: str) -> None:
        """Says that a peer is lost when its session is: what was under way to it is lost too."""
        error: MeshError = NodeLostError(f"{peer} ended its session")
        try:
            async for _ in session:
                pass  # refusals of work that was not due: the generations are over already
            await session.close()  # the peer is on its way out and waits for our end of the session
        except MeshError as caught:
            error = caught
        self._channels.renew(Role.EXECUTOR, peer)
        self._log.warning("session_lost", peer=peer, detail=error.message)
        self._peer_lost(peer, _lost(self._name, peer, error))

    async def _from_gateway(self, spiffe: str) -> Session:
        try:
            async with asyncio.timeout(GATEWAY_SESSION_WAIT_S):
                while spiffe not in self._accepted:
                    self._accepted_changed.clear()
                    await self._accepted_changed.wait()
        except TimeoutError:
            raise NodeLostError(f"{spiffe} has no session with {self._name}") from None
        return self._accepted[spiffe]

    async def _dial(
        self,
        role: Role,
        peer: executor_pb2.PeerAddress,
        method: str,
        give_up_after_s: float,
        addresses: Addresses | None = None,
    ) -> Session:
        def open_wire() -> StreamCall:
            # Each attempt goes to where the peer is said to be by then.
            known = self._addresses if addresses is None else addresses()
            now = known.get(peer.name, peer) if role is Role.EXECUTOR else peer
            return self._channels.exchange(role, peer.name, now.address, method, via=now.via)()

        return await dial(
            open_wire,
            self._identities,
            receiver_role=role,
            receiver_name=peer.name,
            give_up_after_s=give_up_after_s,
            egress=None if self._egress is None else self._egress.towards(peer.name),
        )

    async def _serve(self, session: Session) -> None:
        spiffe = session.peer.spiffe
        before = self._accepted.get(spiffe)
        self._accepted[spiffe] = session
        self._accepted_changed.set()
        if before is not None and session.peer.role == Role.GATEWAY:
            # A gateway opens another session only when it has lost the last one, or started anew: what waits to leave
            # on that one would wait until its time to come back is over.
            before.fail(NodeLostError(f"{spiffe} has opened another session"))
            self.to_gateway(spiffe).renew()
        try:
            async for received in session:
                await self._dispatch(received, session)
        except MeshError as error:
            self._log.warning("session_ended", peer=spiffe, reason=error.reason, detail=error.message)
        finally:
            if self._accepted.get(spiffe) is session:
                del self._accepted[spiffe]


def _lost(node: str, peer: str, error: MeshError) -> NodeLostError:
    return NodeLostError(f"{node} lost {peer}: {error.message}", metadata={"node": peer})
