"""Tells watchers how the slices are: whole states, the newest alone, no faster than they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager

from orbitmesh.errors import CapacityError
from orbitmesh.trust.names import Role
from orbitmesh.v1 import slices_pb2
from services.slices.access import Caller, visible
from services.slices.amounts import NOTHING
from services.slices.changes import Whole
from services.slices.floors import LightSource
from services.slices.keeper import Keeper
from services.slices.links import Declared, Links
from services.slices.messages import node_message, promise_message, slice_message
from services.slices.traffic import Traffic
from services.slices.values import Slice

WATCHERS_MAX = 512
"""How many may watch at once."""
SOON_S = 0.05
"""How long changes of promises are gathered before they are told, in seconds."""
LINKS_S = 60.0
"""How often those who are told of links are told of windows further ahead, in seconds."""
SENDERS = frozenset({Role.EXECUTOR, Role.GATEWAY, Role.AGGREGATOR})
"""Who is told of links: those that send to nodes."""
CALM_S = 1.0
"""How long changes of counts alone are: what is admitted, what was measured."""


class Teller:
    """Makes the messages that tell of slices; each is made once for all who want it.

    Args:
        keeper: The state.
        light: Plan and clock, for what links carry.
        places: Where members of the mesh stand that the plan does not know by their own names.
        declared: What links carry of which the plan says nothing.
    """

    def __init__(
        self, keeper: Keeper, light: LightSource, places: Mapping[str, str], declared: Declared
    ) -> None:
        self._keeper = keeper
        self._light = light
        self._places = places
        self._declared = declared
        self._made: dict[str, tuple[Slice, Traffic | None, slices_pb2.Slice]] = {}
        self._watchers = 0

    def slice(self, whole: Whole, held: Slice) -> slices_pb2.Slice:
        """One slice; not to be changed."""
        traffic = whole.totals.slices.get(held.name)
        made = self._made.get(held.name)
        if made is None or made[0] is not held or made[1] is not traffic:
            made = (held, traffic, slice_message(whole.book, held, traffic))
            self._made[held.name] = made
            for name in [name for name in self._made if name not in whole.book.slices]:
                del self._made[name]
        return made[2]

    def list(self, caller: Caller, tenant: str) -> slices_pb2.ListSlicesResponse:
        """The slices that a caller may see, and all nodes.

        Raises:
            PermissionError_: It asks for those of another tenant.
        """
        whole = self._keeper.whole
        return slices_pb2.ListSlicesResponse(
            slices=[self.slice(whole, held) for held in visible(caller, whole.book, tenant)],
            nodes=_nodes(whole, whole.book.nodes),
            etag=whole.book.etag,
        )

    def told(self, caller: Caller, node: str) -> slices_pb2.WatchSlicesResponse:
        """What a watcher is told now.

        Args:
            caller: Who watches.
            node: Only what concerns this one, without what was measured; empty tells of all, services without what
                was measured.
        """
        whole = self._keeper.whole
        held = visible(caller, whole.book)
        links: list[slices_pb2.SliceLink] = []
        if caller.role in SENDERS:
            known = Links(self._light.plan, self._light.clock, self._places, self._declared)
            links = known.of(caller.name, whole.book.nodes)
        if not node and caller.role in SENDERS:
            return slices_pb2.WatchSlicesResponse(
                slices=[promise_message(each.promise, whole.book.etag_of(each.promise)) for each in held],
                nodes=_nodes(whole, whole.book.nodes),
                etag=whole.book.etag,
                links=links,
            )
        if not node:
            slices = [self.slice(whole, each) for each in held]
            return slices_pb2.WatchSlicesResponse(
                slices=slices, nodes=_nodes(whole, whole.book.nodes), etag=whole.book.etag
            )
        slices = [slice_message(whole.book, each, None) for each in held if node in each.reserved]
        nodes = _nodes(whole, [node] if node in whole.book.nodes else [])
        return slices_pb2.WatchSlicesResponse(slices=slices, nodes=nodes, etag=whole.book.etag, links=links)

    async def watch(
        self, caller: Caller, node: str, draining: asyncio.Event
    ) -> AsyncIterator[slices_pb2.WatchSlicesResponse]:
        """What there is now, and again whenever that is something else, until the service drains.

        Raises:
            CapacityError: Too many watch already.
        """
        with self._counted():
            said: bytes | None = None
            while not draining.is_set():
                changed, before = self._keeper.next_change, self._keeper.whole
                sky = self._light.next_change
                message = self.told(caller, node)
                now = message.SerializeToString(deterministic=True)
                if now != said:
                    said = now
                    yield message
                if self._keeper.whole is before:
                    await _within(None if self._light.plan is None else LINKS_S, changed, sky, draining)
                if self._keeper.whole is not before:
                    await self._gather(before, draining)

    async def _gather(self, before: Whole, draining: asyncio.Event) -> None:
        """Lets what comes in together be told together: promises soon, counts at leisure."""
        await _within(SOON_S, draining)
        promised = self._keeper.next_promise
        now = self._keeper.whole.book
        if not draining.is_set() and now.version == before.book.version and now.nodes == before.book.nodes:
            await _within(CALM_S - SOON_S, promised, draining)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._watchers >= WATCHERS_MAX:
            raise CapacityError(
                f"{self._watchers} watch the slices already; try again later", metadata={"watchers": self._watchers}
            )
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1


def _nodes(whole: Whole, names: Iterable[str]) -> list[slices_pb2.SliceNode]:
    reserved = whole.book.reserved()
    return [node_message(name, whole.book.nodes[name], reserved.get(name, NOTHING)) for name in sorted(names)]


async def _within(seconds: float | None, *events: asyncio.Event) -> None:
    """Waits for the first of some events, or for so long."""
    waiting = [asyncio.ensure_future(each.wait()) for each in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
