"""The places of runs in their slices: asked for before a run begins, kept while it goes on, given back when it is over.

A place is written down before it is asked for, and forgotten after it was given back: whenever this process is killed,
the next one knows every place that it may hold, keeps those of runs that go on and gives back the others. One that
nobody renews ends by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from orbitmesh.errors import CancelledError_, InvalidInputError, MeshError, PermissionError_, TransportError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust import Role
from orbitmesh.trust.names import parse_spiffe
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.aggregator.store import Place, RunStore
from services.runtime.behalf import behalf_metadata
from services.runtime.caller import time_left_s
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog

LIFETIME_S = 3600.0
"""For how long a place is asked for at once: so long it is held for an aggregator that does not come back."""
RENEW_S = 600.0
"""How often it is asked for anew while its run goes on, in seconds."""
THROUGH_MAX = 256
"""How many nodes the service takes."""
PAUSE_S = 2.0
"""Between two tries, in seconds, where the service is away or the slice has no room."""
GIVE_BACK_S = 5.0
"""How long whoever asks is not told of the end of a run while its place is not given back."""
UNHEARD = (TransportError, CancelledError_, asyncio.CancelledError)
"""What leaves open whether the service did what it was asked."""


class Places:
    """The places of all runs of an aggregator.

    Args:
        store: Where they are written down.
        channels: Our connections.
        address: host:port of the slices service; empty: this mesh has none.
        name: Its name in its certificate.
        log: Where to say what happened.
    """

    def __init__(self, store: RunStore, channels: ChannelPool, address: str, name: str, log: EventLog) -> None:
        self._store = store
        self._channels = channels
        self._address = address
        self._name = name
        self._log = log
        self._held: dict[str, Place] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def restore(self, going_on: Collection[str]) -> None:
        """Takes up what is written down; places of runs that do not go on are given back.

        Args:
            going_on: The runs that do, as they are called on the wire.
        """
        for place in await asyncio.to_thread(self._store.places):
            # Of several of one run the last counts: whether the others were ever had, nobody has heard.
            before = self._held.pop(place.run, None)
            for gone in (before, place if place.run not in going_on else None):
                if gone is not None:
                    self._give_back(gone)
            if place.run in going_on:
                self._held[place.run] = place

    async def enter(self, run: str, slice_name: str, nodes: Sequence[str], holder: str) -> None:
        """Asks for a place; it is held on return.

        Args:
            run: The run, as it is called on the wire.
            slice_name: Its slice.
            nodes: Its nodes.
            holder: For whom, by SPIFFE identifier.

        Raises:
            PermissionError_: `SLICE_NOT_YOURS`.
            CapacityError: `SLICE_FULL`, with when there is room.
            InvalidInputError: `FAILED_PRECONDITION`, the slice is not active or has nothing on any of the nodes, or
                this mesh has none.
            MeshError: The service cannot be asked: nobody is let in unasked.
        """
        self._stub()
        place = Place(_request_id(run), run, slice_name, holder)
        await asyncio.to_thread(self._store.put_place, place)
        try:
            await self._admit(place, nodes, time_left_s(CONTROL_DEADLINE_S))
        except UNHEARD:
            self._give_back(place)
            raise
        except MeshError:
            await asyncio.to_thread(self._store.drop_place, place.request_id)
            raise
        self._held[run] = place

    def check_resumed(self, run: str, slice_name: str, caller: str) -> None:
        """Lets those pass who may have a run that goes on use more of its slice: for whom it is there, and operators.

        Raises:
            PermissionError_: `SLICE_NOT_YOURS`.
        """
        place = self._held.get(run)
        role, name = parse_spiffe(caller)
        if role is Role.OPERATOR or (place is not None and place.holder == caller):
            return
        raise PermissionError_(
            f"{role}/{name} cannot let a run of somebody else go on in the slice {slice_name!r}; ask whoever began it, "
            "or an operator",
            reason="SLICE_NOT_YOURS",
            metadata={"slice": slice_name, "identity": f"{role}/{name}"},
        )

    async def leave(self, run: str) -> None:
        """A run has ended: its place is given back, now or, where the service is away, later."""
        place = self._held.pop(run, None)
        if place is not None:
            # Longer than that nobody waits for it.
            await asyncio.wait([self._give_back(place)], timeout=GIVE_BACK_S)

    async def hold(self, run: str, nodes: Sequence[str]) -> tuple[str, float]:
        """Keeps the place of a run for longer, or asks for another one where it was lost.

        Returns:
            Why the run has none, empty where it has one or nobody could be asked; and when to ask again, in seconds.
        """
        place = self._held.get(run)
        if place is None:
            return "nobody has let it into its slice: cancel it, and resume it", PAUSE_S
        try:
            await self._renew(place)
            return "", RENEW_S
        except MeshError as error:
            if error.reason != "NOT_FOUND":
                self._log.info("place_not_renewed", run=run, slice=place.slice, detail=error.message)
                # Where nobody can be asked, nobody else is let in either.
                return "" if error.retryable else _waits(error), PAUSE_S
        # What has ended is not to be had again under its name.
        fresh = replace(place, request_id=_request_id(run))
        await asyncio.to_thread(self._store.put_place, fresh, place.request_id)
        self._held[run] = fresh
        try:
            await self._admit(fresh, nodes, CONTROL_DEADLINE_S)
        except MeshError as error:
            return _waits(error), PAUSE_S
        self._log.info("slice_entered_again", run=run, slice=fresh.slice)
        return "", RENEW_S

    async def close(self) -> None:
        """Asks for nothing more; what is written down is taken up by the next start."""
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _give_back(self, place: Place) -> asyncio.Task[None]:
        task = asyncio.create_task(self._withdraw(place), name=f"place of {place.run}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _withdraw(self, place: Place) -> None:
        clock = asyncio.get_running_loop().time
        give_up, told = clock() + LIFETIME_S, False
        while True:
            try:
                with mapped_errors(address=self._address, server="the slices service"):
                    request = slices_pb2.WithdrawRequest(request_id=place.request_id)
                    metadata = behalf_metadata(place.holder)
                    await self._stub().Withdraw(request, timeout=CONTROL_DEADLINE_S, metadata=metadata)
                break
            except MeshError as error:
                if not told:
                    told = True
                    self._log.warning("place_not_given_back", run=place.run, slice=place.slice, detail=error.message)
                if not self._address:
                    return  # whoever is started with an address next does it
                if not error.retryable or clock() > give_up:
                    break  # it ends with its time
            await asyncio.sleep(PAUSE_S)
        await asyncio.to_thread(self._store.drop_place, place.request_id)

    async def _admit(self, place: Place, nodes: Sequence[str], timeout_s: float) -> None:
        # Of a run on more nodes it is not asked whether the slice is on any of them.
        through = nodes if len(nodes) <= THROUGH_MAX else ()
        request = slices_pb2.AdmitRequest(slice=place.slice, request_id=place.request_id, through=through)
        request.lifetime.FromNanoseconds(round(LIFETIME_S * 1e9))
        with mapped_errors(address=self._address, server="the slices service"):
            await self._stub().Admit(request, timeout=timeout_s, metadata=behalf_metadata(place.holder))

    async def _renew(self, place: Place) -> None:
        request = slices_pb2.RenewRequest(request_id=place.request_id)
        request.lifetime.FromNanoseconds(round(LIFETIME_S * 1e9))
        with mapped_errors(address=self._address, server="the slices service"):
            await self._stub().Renew(request, timeout=CONTROL_DEADLINE_S, metadata=behalf_metadata(place.holder))

    def _stub(self) -> slices_pb2_grpc.SlicesServiceStub:
        if not self._address:
            raise InvalidInputError(
                "this aggregator knows no slices service: start one (`python -m services.slices`) and give the "
                "aggregator its address with --slices host:port",
                reason="FAILED_PRECONDITION",
            )
        return slices_pb2_grpc.SlicesServiceStub(self._channels.get(Role.SLICES, self._name, self._address))


class RunPlace:
    """The place of one run; a run without a slice has one that asks nobody.

    Args:
        places: All of them.
        run: The run, as it is called on the wire.
        slice_name: Its slice; empty for none.
        nodes: Its nodes.
        changed: Told when `why` has become another.
    """

    def __init__(
        self, places: Places, run: str, slice_name: str, nodes: Sequence[str], changed: Callable[[], None]
    ) -> None:
        self._places = places
        self._run = run
        self._slice = slice_name
        self._nodes = nodes
        self._changed = changed
        self._looked = asyncio.Event()
        self.why = ""
        """Why the run may not go on; empty while it may."""

    async def settle(self, wait: Callable[[str], Awaitable[None]]) -> None:
        """Waits until the run has its place, or nobody can say that it has none.

        Args:
            wait: Called again and again with why it waits.
        """
        if not self._slice:
            return
        await self._looked.wait()
        while self.why:
            await wait(self.why)

    async def keep(self) -> None:
        """Keeps the place, as long as this runs."""
        while self._slice:
            why, again_s = await self._places.hold(self._run, self._nodes)
            if why != self.why:
                self.why = why
                self._changed()
            self._looked.set()
            await asyncio.sleep(again_s)

    async def leave(self) -> None:
        """The run has ended."""
        if self._slice:
            await self._places.leave(self._run)


def _waits(error: MeshError) -> str:
    return f"waits for its slice: {error.message}"


def _request_id(run: str) -> str:
    return f"run {run} {secrets.token_hex(8)}"
