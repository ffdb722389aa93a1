"""How long light takes from one place to another and back, at the best moment of a contact plan.

What a slice is promised has to hold whenever it has contact, and no moment of the plan is better than this: a latency
below it can never be kept. The plan's own latencies are what light takes along a link; a way over several links takes
their sum.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import grpc

from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.contacts_proto import fetch_plan, mesh_time
from orbitmesh.errors import MeshError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Role
from orbitmesh.v1 import constellation_pb2, constellation_pb2_grpc
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.meshclock import read_clock
from services.slices.values import Floors

ASK_INTERVAL_S = 300.0
"""How often the constellation service is asked, in real seconds."""
ASK_AGAIN_S = 5.0
"""How soon it is asked again where it did not answer, in real seconds."""
ASK_DEADLINE_S = 60.0
"""How long one page of its answer may take, in real seconds."""
CLOCK_LOOK_S = 1.0
"""How often it is looked whether the file of the clock was replaced, in seconds."""
PLACES_KEPT = 64
"""Of how many places the ways are kept."""

_Links = dict[str, dict[str, float]]
_OF_CLOCKS = ("origin_mesh_s", "origin_wall_s", "factor")


class Light:
    """One-way latencies of the links of a plan, each at its best moment.

    Args:
        plan: The plan; None knows nothing, and light takes no time.
        places: Where nodes stand that the plan does not know by their own names.
    """

    def __init__(self, plan: ContactPlan | None, places: Mapping[str, str]) -> None:
        self._places = places
        self._known: frozenset[str] = frozenset() if plan is None else plan.nodes
        self._there: _Links = {}
        self._back: _Links = {}
        for contact in plan.contacts if plan is not None else ():
            best_s = min(point.latency_s for point in contact.latency)
            for links, start, end in (
                (self._there, contact.source, contact.target), (self._back, contact.target, contact.source)
            ):  # fmt: skip
                out = links.setdefault(start, {})
                out[end] = min(best_s, out.get(end, math.inf))
        self._from: OrderedDict[str, dict[str, float]] = OrderedDict()

    def floors(self, places: Collection[str], nodes: Collection[str]) -> Floors:
        """By place, then node: there and back in ms; infinity where nothing leads there and back. Nothing is said of
        what the plan does not know.

        Args:
            places: Where traffic comes from.
            nodes: Where it may be served.
        """
        found: dict[str, dict[str, float]] = {}
        for place in places:
            here = self._place(place)
            if here is None:
                continue
            seconds = self._there_and_back(here)
            stands = {node: self._place(node) for node in nodes}
            found[place] = {
                node: seconds.get(there, math.inf) * 1e3 for node, there in stands.items() if there is not None
            }
        return found

    def _place(self, name: str) -> str | None:
        place = self._places.get(name, name)
        return place if place in self._known else None

    def _there_and_back(self, place: str) -> dict[str, float]:
        """Seconds from a place to all that can be reached and from which it is reached, and back."""
        known = self._from.get(place)
        if known is None:
            there, back = _shortest(self._there, place), _shortest(self._back, place)
            known = {name: seconds + back[name] for name, seconds in there.items() if name in back}
            self._from[place] = known
            while len(self._from) > PLACES_KEPT:
                self._from.popitem(last=False)
        return known


def _shortest(links: _Links, start: str) -> dict[str, float]:
    """Seconds from a place to all others (Dijkstra)."""
    found: dict[str, float] = {}
    queue = [(0.0, start)]
    while queue:
        seconds, name = heapq.heappop(queue)
        if name in found:
            continue
        found[name] = seconds
        for target, more in links.get(name, {}).items():
            if target not in found:
                heapq.heappush(queue, (seconds + more, target))
    return found


class LightSource:
    """The newest contact plan and the mesh's clock: from files, from a constellation service, or none.

    Args:
        contacts: File of a plan.
        constellation: host:port of a constellation service.
        constellation_name: Its name in its certificate.
        places: Where nodes stand that the plan does not know by name.
        channels: Our connections.
        log: Where a plan that cannot be had is said.
        clock: File of the mesh's clock; read again when it is replaced. Without one mesh time is the real time.

    Raises:
        InvalidInputError: A file holds no plan, or no clock.
    """

    def __init__(
        self,
        contacts: Path | None,
        constellation: str,
        constellation_name: str,
        places: Mapping[str, str],
        channels: ChannelPool,
        log: EventLog,
        clock: Path | None = None,
    ) -> None:
        self._constellation = constellation
        self._name = constellation_name
        self._places = places
        self._channels = channels
        self._log = log
        self._clock_file = clock
        self.plan = None if contacts is None else ContactPlan.load(contacts)
        self.clock = MeshClock.real() if clock is None else read_clock(clock)
        self.light = Light(self.plan, places)
        self.next_change = asyncio.Event()
        """Set when plan or clock are others; the next one has an event of its own."""

    async def follow(self) -> None:
        """Keeps plan and clock fresh, as long as this runs."""
        while self._clock_file is not None:
            await asyncio.sleep(CLOCK_LOOK_S)
            try:
                fresh_clock = await asyncio.to_thread(read_clock, self._clock_file)
            except MeshError as error:
                self._log.warning("clock_not_read", detail=error.message)
                continue
            self.take(self.plan, fresh_clock)
        while self._constellation:
            fresh = await self._ask()
            await asyncio.sleep(ASK_INTERVAL_S if fresh else ASK_AGAIN_S)

    async def _ask(self) -> bool:
        channel = self._channels.get(Role.CONSTELLATION, self._name, self._constellation)
        try:
            stub = constellation_pb2_grpc.ConstellationServiceStub(channel)
            told_clock = await stub.GetScenario(constellation_pb2.GetScenarioRequest(), timeout=ASK_DEADLINE_S)
            clock = MeshClock(
                mesh_time(told_clock.origin_mesh), mesh_time(told_clock.origin_wall), told_clock.time_factor
            )
            plan = await fetch_plan(channel, timeout_s=ASK_DEADLINE_S)
        except (grpc.RpcError, MeshError) as error:
            told = map_rpc_error(error) if isinstance(error, grpc.RpcError) else error
            self._log.warning("constellation_silent", detail=told.message)
            return False
        self.light = await asyncio.to_thread(Light, plan, self._places)
        self.take(plan, clock)
        return True

    def take(self, plan: ContactPlan | None, clock: MeshClock) -> None:
        """Follows these from now on; says so where they are other than before."""
        same = all(getattr(clock, name) == getattr(self.clock, name) for name in _OF_CLOCKS)
        if plan is self.plan and same:
            return
        self.plan, self.clock = plan, clock
        self.next_change.set()
        self.next_change = asyncio.Event()
