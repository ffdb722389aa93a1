"""Several processes of one service over one database: one leads, the others stand by, and one of them follows.

A service over a SQLite file leads at once. Over PostgreSQL it stands by until it has the lease: health says
NOT_SERVING of its service, and every call to it is refused with the reason NOT_LEADER and the leader's address. What
it then does is what a service that was started anew does. Who loses the lease ends: nothing that it holds in memory
is known to be true any more, and whatever started it starts it again, to stand by.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orbitmesh.errors import MeshError
from orbitmesh.trust import IdentitySource
from services.runtime.admin import NO_SIDE_PORTS, SidePorts
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from services.runtime.store import Database, Lease
from services.runtime.store.lease import not_leader

RENEW_S = 1.0
"""How often the lease is renewed, in seconds: a third of the time that it lasts."""
LOOK_S = 0.25
"""How often a standby looks whether the lease has run out, in seconds."""
FREE_PORT_S = 5.0
"""How long a port that this process has just given back may take to be free, in seconds."""
LEASE = "leader"

Result = TypeVar("Result")


class Turn:
    """This process's turn to lead.

    Args:
        listen: host:port to listen on.
        lease: What it holds; None where nobody else can have it.
        log: Where to say what happens.
    """

    def __init__(self, listen: str, lease: Lease | None, log: EventLog) -> None:
        self.listen = listen
        self._lease = lease
        self._log = log
        self._leader = ""
        # Of its own: the renewal may not wait behind the work of others.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lease")

    def refusal(self) -> MeshError | None:
        """Why no call is answered at this moment; None while this process leads."""
        return None if self._lease is None or self._lease.valid else not_leader(self._leader)

    async def come(self) -> None:
        """Waits until this process leads."""
        if self._lease is None:
            return
        said = ""
        while True:
            try:
                found = await self._run(self._lease.take)
            except MeshError as error:
                self._log.warning("lease_out_of_reach", detail=error.message)
                await asyncio.sleep(RENEW_S)
                continue
            self._leader = found.holder
            if found.held:
                self._log.info("leads", lease=self._lease.holder, epoch=self._lease.epoch)
                return
            if found.holder != said:
                said = found.holder
                self._log.info("stands_by", leader=said)
            await asyncio.sleep(LOOK_S)

    async def keep(self) -> None:
        """Holds the lease, as long as this runs.

        Raises:
            TransportError: `NOT_LEADER`: another process has it.
        """
        while self._lease is not None:
            await asyncio.sleep(RENEW_S)
            try:
                found = await self._run(self._lease.renew)
            except MeshError as error:
                # It is still ours until another takes it; no call is answered and nothing is written meanwhile.
                self._log.warning("lease_not_renewed", detail=error.message)
                continue
            if not found.held:
                self._leader = found.holder
                self._log.error("lease_lost", leader=found.holder)
                raise not_leader(found.holder)

    async def end(self) -> None:
        """Lets another lead at once."""
        if self._lease is not None:
            with contextlib.suppress(MeshError):
                await self._run(self._lease.release)
            await self._run(self._lease.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def wait_for_turn(
    database: Database,
    identities: IdentitySource,
    listen: str,
    services: Sequence[str],
    side: SidePorts = NO_SIDE_PORTS,
) -> Turn | None:
    """Stands by until this process leads.

    Args:
        database: What the leader writes to; from then on every transaction on it is fenced.
        identities: Who we are.
        listen: host:port where the service listens.
        services: Full names of the services that only the leader answers.
        side: Where it listens besides.

    Returns:
        The turn; None where the process was asked to stop before it came.

    Raises:
        TransportError: The address cannot be listened on.
    """
    if not database.location.shared:
        return Turn(listen, None, EventLog(identities.current().title))
    host = ServiceHost(identities, listen=listen, side=side)
    for service in services:
        host.add_closed(service)
    turn: Turn | None = None
    # Before the lease has a holder's name there is no port, and before the port nobody can ask.
    host.closed = lambda: not_leader("") if turn is None else turn.refusal()
    port = await host.start()
    name = f"{listen.rpartition(':')[0]}:{port}"
    lease = Lease(database, LEASE, _reachable(name))
    database.fenced_by(lease.fence)
    turn = Turn(name, lease, host.log)
    host.log.info("listening", address=name, standby=True)
    async with asyncio.TaskGroup() as tasks:
        coming = tasks.create_task(turn.come())
        serving = tasks.create_task(host.run_until_stopped())
        await asyncio.wait((coming, serving), return_when=asyncio.FIRST_COMPLETED)
        led = coming.done()
        coming.cancel()
        host.request_stop()
        await asyncio.wait((serving,))
    if not led:
        await turn.end()
        return None
    for given_back in filter(None, (name, side.probe, side.ops)):
        await _free(given_back)
    return turn


async def in_turn(
    database: Database,
    identities: IdentitySource,
    listen: str,
    services: Sequence[str],
    side: SidePorts,
    lead: Callable[[Turn], Awaitable[None]],
) -> None:
    """Stands by until this process leads, has it do so, and lets another follow; arguments as of `wait_for_turn`.

    Args:
        lead: What the leader does until it is asked to stop; it closes the database. Where the turn never comes, that
            is closed here.
    """
    turn = await wait_for_turn(database, identities, listen, services, side)
    if turn is None:
        await asyncio.to_thread(database.close)
        return
    try:
        await lead(turn)
    finally:
        await turn.end()


def _reachable(address: str) -> str:
    """An address that others can use, where this process listens on every one of its machine."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]", "") else address  # noqa: S104 - compared


async def _free(address: str) -> None:
    host, _, port = address.rpartition(":")
    give_up_s = asyncio.get_running_loop().time() + FREE_PORT_S
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while asyncio.get_running_loop().time() < give_up_s:
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
            probe.listen()
            return
        await asyncio.sleep(0.01)
