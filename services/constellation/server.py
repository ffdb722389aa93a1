"""The constellation on the wire."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np

from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.contacts_proto import contact_to_proto, mesh_time, stamp
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import MESSAGE_BYTES
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import constellation_pb2, constellation_pb2_grpc
from services.constellation import frames
from services.constellation.scenario import load_scenario
from services.constellation.settings import ConstellationSettings, clock_of
from services.constellation.sky import LinkView, Sky, edges, only, view
from services.runtime.admin import SidePorts
from services.runtime.metrics import Telemetry
from services.runtime.server import ServiceHost

SERVICE = "orbitmesh.v1.ConstellationService"

PAGE_SIZE = 1_000
"""Contacts or nodes of a page where the caller does not say."""

PAGE_SIZE_MAX = 10_000
"""The most that a caller may ask for."""

PAGE_BYTES = MESSAGE_BYTES // 2
"""The most bytes of contacts in one page."""

LINKS_PER_MESSAGE = 500
"""The most links in one message of a watch."""

WATCH_INTERVAL_S = 5.0
"""The longest sleep of a watch between looks at the clock and the drain, in real seconds."""

_STATES = constellation_pb2.SkyLinkState


class ConstellationServicer(constellation_pb2_grpc.ConstellationServiceServicer):
    """Answers `ConstellationService`; what it means is in `sky`."""

    def __init__(self, sky: Sky, draining: asyncio.Event) -> None:
        self._sky = sky
        self._draining = draining

    async def GetScenario(  # noqa: N802
        self, request: constellation_pb2.GetScenarioRequest, context: Any
    ) -> constellation_pb2.GetScenarioResponse:
        """Says what the scenario is and how its clock runs."""
        scenario, clock, plan = self._sky.scenario, self._sky.clock, self._sky.plan
        return constellation_pb2.GetScenarioResponse(
            name=scenario.name,
            starts_at=stamp(scenario.start_s),
            now=stamp(clock.now_s()),
            origin_mesh=stamp(clock.origin_mesh_s),
            origin_wall=stamp(clock.origin_wall_s),
            time_factor=clock.factor,
            plan_starts_at=stamp(plan.start_s),
            plan_ends_at=stamp(plan.end_s),
            contacts=len(plan.contacts),
            warnings=plan.warnings,
        )

    async def ListSkyNodes(  # noqa: N802
        self, request: constellation_pb2.ListSkyNodesRequest, context: Any
    ) -> constellation_pb2.ListSkyNodesResponse:
        """Lists the nodes and where they are."""
        at_s = mesh_time(request.at) if request.HasField("at") else self._sky.clock.now_s()
        names = self._sky.scenario.names
        begin, size = _offset(request.page_token, len(names)), _page_size(request.page_size)
        chosen = names[begin : begin + size]
        more = str(begin + size) if begin + size < len(names) else ""
        return constellation_pb2.ListSkyNodesResponse(
            nodes=[self._node(name, at_s) for name in chosen], next_page_token=more
        )

    async def GetContactPlan(  # noqa: N802
        self, request: constellation_pb2.GetContactPlanRequest, context: Any
    ) -> constellation_pb2.GetContactPlanResponse:
        """Gets a page of a plan."""
        if request.page_token:
            key, _, place = request.page_token.rpartition("@")
            plan = self._sky.kept(key)
            begin = _offset(place, len(plan.contacts))
        else:
            start_s = mesh_time(request.starts_at) if request.HasField("starts_at") else None
            span_s = request.span.ToNanoseconds() / 1e9 if request.HasField("span") else None
            key, plan = await self._sky.plan_for(start_s, span_s, list(request.nodes))
            begin = 0
        page = _page(plan, begin, _page_size(request.page_size))
        end = begin + len(page)
        answer = constellation_pb2.SkyContactPlan(
            start_s=plan.start_s, end_s=plan.end_s, contacts=page, warnings=plan.warnings
        )
        more = f"{key}@{end}" if end < len(plan.contacts) else ""
        return constellation_pb2.GetContactPlanResponse(plan=answer, next_page_token=more)

    async def GetLink(  # noqa: N802
        self, request: constellation_pb2.GetLinkRequest, context: Any
    ) -> constellation_pb2.GetLinkResponse:
        """Gets one link at a time."""
        at_s = mesh_time(request.at) if request.HasField("at") else None
        found = await self._sky.link(request.source, request.target, at_s)
        return constellation_pb2.GetLinkResponse(link=self._link(found))

    async def WatchLinks(  # noqa: N802
        self, request: constellation_pb2.WatchLinksRequest, context: Any
    ) -> AsyncIterator[constellation_pb2.WatchLinksResponse]:
        """Tells what is open, then each change as the clock reaches it."""
        nodes = list(request.nodes)
        for name in nodes:
            self._sky.scenario.check_node(name)
        told_s = self._sky.clock.now_s()
        plan, renewed = self._sky.plan, self._sky.renewed
        changes = _Changes(only(plan.contacts, nodes))
        here = [view(plan, each.source, each.target, told_s) for each in only(plan.open_at(told_s), nodes)]
        for message in self._messages(told_s, here, initial=True):
            yield message
        while not self._draining.is_set():
            await self._sleep_until(changes.after(told_s), renewed)
            if renewed.is_set():
                plan, renewed = self._sky.plan, self._sky.renewed
                changes = _Changes(only(plan.contacts, nodes))
            now_s = self._sky.clock.now_s()
            changed = [view(plan, *pair, now_s) for pair in changes.between(told_s, now_s)]
            told_s = now_s
            if changed:
                for message in self._messages(now_s, changed, initial=False):
                    yield message

    async def _sleep_until(self, change_s: float | None, renewed: asyncio.Event) -> None:
        wait_s = WATCH_INTERVAL_S
        if change_s is not None:
            wait_s = min(wait_s, max(0.0, self._sky.clock.seconds_until(change_s)))
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._draining, renewed)]
        try:
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    def _messages(
        self, at_s: float, links: Sequence[LinkView], *, initial: bool
    ) -> Iterable[constellation_pb2.WatchLinksResponse]:
        """The links in messages of bounded size; an initial answer has at least one, empty where all is closed."""
        for begin in range(0, max(len(links), 1), LINKS_PER_MESSAGE):
            some = [self._link(each) for each in links[begin : begin + LINKS_PER_MESSAGE]]
            yield constellation_pb2.WatchLinksResponse(at=stamp(at_s), links=some, initial=initial)

    def _link(self, found: LinkView) -> constellation_pb2.SkyLink:
        message = constellation_pb2.SkyLink(
            source=found.source, target=found.target, at=stamp(found.at_s), state=_STATES.SKY_LINK_STATE_DOWN
        )
        if found.contact is not None:
            up = found.carries
            message.state = _STATES.SKY_LINK_STATE_UP if up else _STATES.SKY_LINK_STATE_ACQUIRING
            message.latency_s = found.contact.latency_at(found.at_s)
            message.rate_bps = found.contact.rate_bps
            message.contact.CopyFrom(_without_curve(found.contact))
        if found.changes_at_s is not None:
            message.changes_at.CopyFrom(stamp(found.changes_at_s))
            message.changes_in_s = self._sky.clock.seconds_until(found.changes_at_s)
        return message

    def _node(self, name: str, at_s: float) -> constellation_pb2.SkyNode:
        scenario = self._sky.scenario
        node = constellation_pb2.SkyNode(name=name, kind=scenario.kind(name))
        site = scenario.sites.get(name)
        if site is not None:
            node.latitude_deg, node.longitude_deg = site.latitude_deg, site.longitude_deg
            node.altitude_m = site.altitude_m
            return node
        moment = np.array([at_s])
        error, place_km, speed_km_s = scenario.satellites[name].satrec.sgp4_array(*frames.julian(moment))
        if error[0]:
            node.lost = True
            return node
        place, _ = frames.teme_to_ecef(moment, place_km * 1000, speed_km_s * 1000)
        latitude, longitude, altitude = frames.ecef_to_geodetic(place[0])
        node.latitude_deg, node.longitude_deg, node.altitude_m = float(latitude), float(longitude), float(altitude)
        return node


class _Changes:
    """When the links of some contacts change, in order."""

    def __init__(self, contacts: Iterable[Contact]) -> None:
        found = sorted((edge, contact.source, contact.target) for contact in contacts for edge in edges(contact))
        self._times = [each[0] for each in found]
        self._pairs = [(each[1], each[2]) for each in found]

    def after(self, at_s: float) -> float | None:
        """The first change after a time."""
        index = bisect_right(self._times, at_s)
        return self._times[index] if index < len(self._times) else None

    def between(self, after_s: float, until_s: float) -> list[tuple[str, str]]:
        """The links that change within a span, each once."""
        begin, end = bisect_right(self._times, after_s), bisect_right(self._times, until_s)
        return list(dict.fromkeys(self._pairs[begin:end]))


def _without_curve(contact: Contact) -> constellation_pb2.SkyContact:
    """A day's curve of a laser has hundreds of points; who wants it asks for the plan."""
    message = contact_to_proto(contact)
    del message.latency[:]
    return message


def _page(plan: ContactPlan, begin: int, size: int) -> list[constellation_pb2.SkyContact]:
    """Contacts from `begin`, as many as the caller wants and a message holds, at least one where there is one."""
    page: list[constellation_pb2.SkyContact] = []
    room = PAGE_BYTES
    for contact in plan.contacts[begin : begin + size]:
        message = contact_to_proto(contact)
        room -= message.ByteSize()
        if page and room < 0:
            break
        page.append(message)
    return page


def _page_size(asked: int) -> int:
    if asked > PAGE_SIZE_MAX:
        raise InvalidInputError(f"page_size is {asked}; expected at most {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE


def _offset(token: str, count: int) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or not 0 < int(token[:9]) < count:
        raise InvalidInputError(f"the page token {token[:40]!r} is not one that this service gave; ask without one")
    return int(token[:9])


async def run(settings: ConstellationSettings) -> None:
    """Runs a constellation service until it is asked to stop."""
    scenario = load_scenario(settings.scenario)
    sky = Sky(scenario, clock_of(settings, scenario), settings.hours)
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        IdentitySource(settings.identity), listen=settings.listen, telemetry=told, side=SidePorts.of(settings),
        faults=settings.allow_faults,
    )  # fmt: skip
    await sky.renew()
    host.add(
        SERVICE,
        constellation_pb2_grpc.add_ConstellationServiceServicer_to_server,
        ConstellationServicer(sky, host.draining),
    )
    for warning in sky.plan.warnings:
        host.log.warning("scenario", message=warning)
    port = await host.start()
    host.log.info("listening", address=f"{settings.listen.rpartition(':')[0]}:{port}")
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(sky.keep())
        await host.run_until_stopped()
        keeping.cancel()
