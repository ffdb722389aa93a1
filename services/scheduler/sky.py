"""The contact plan that the scheduler plans with: read from a file or asked of the constellation service, kept fresh.

Nothing here decides anything: `SkySource` knows the newest plan and the mesh's clock, and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.contacts_proto import fetch_plan, mesh_time, stamp
from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import constellation_pb2, constellation_pb2_grpc, scheduler_pb2
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.meshclock import read_clock
from services.scheduler.placement import plan_links
from services.scheduler.registry import NodeRecord
from services.scheduler.windows import Sky

FILES_LOOK_S = 1.0
"""How often it is looked whether the files of plan and clock were replaced, in seconds."""
ASK_INTERVAL_S = 300.0
"""How often the constellation service is asked, in real seconds."""
ASK_AGAIN_S = 5.0
"""How soon it is asked again where it did not answer, in real seconds."""
ASK_DEADLINE_S = 60.0
"""How long one answer may take, in real seconds."""
AHEAD_S = 6 * 3600.0
"""How far ahead it is asked, in mesh seconds; further where the clock is fast, so that it outlasts a few askings."""
RETURN_S = 5.0
"""How long after the opening of its contact a node is waited for before its stage goes to another, in real seconds."""


@dataclass(frozen=True)
class SkySettings:
    """Where the scheduler has its contact plan from; with neither file nor service it plans without one."""

    contacts: Path | None = None
    """File of a contact plan; read again when it is replaced."""
    clock: Path | None = None
    """File of the mesh's clock: origin_mesh_s, origin_wall_s, factor; without one mesh time is the real time."""
    constellation: str = ""
    """host:port of a constellation service, which has plan and clock."""
    constellation_name: str = "constellation"
    """Its name in its certificate."""
    places: tuple[str, ...] = ()
    """Where services stand that are no nodes of the plan, each `gateway=ground-1`."""


class SkySource:
    """The newest contact plan, the mesh's clock, and where services stand.

    Args:
        settings: Where they come from.
        identities: Who we are, for the constellation service.
        log: Where a plan that cannot be had is said.

    Raises:
        InvalidInputError: A file holds no plan or no clock, or both a file and a service were given.
    """

    def __init__(self, settings: SkySettings, identities: IdentitySource, log: EventLog) -> None:
        if settings.contacts is not None and settings.constellation:
            raise InvalidInputError("contacts and constellation were both given; give one: the plan has one source")
        self._settings = settings
        self._log = log
        self._channels = ChannelPool(identities, {})
        self.plan: ContactPlan | None = None
        self.clock = MeshClock.real()
        self.places = _places(settings.places)
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._read_files()

    def place(self, service: str) -> str | None:
        """Where a service stands, in the plan's names; None where the plan does not know."""
        name = self.places.get(service, service)
        return name if self.plan is not None and name in self.plan.nodes else None

    def view(self, records: Iterable[NodeRecord]) -> Sky | None:
        """The windows from now on with what members measured; None without a plan that speaks for now."""
        plan, clock = self.plan, self.clock
        if plan is None or clock.now_s() >= plan.end_s:
            return None
        members = list(records)
        return Sky(plan, clock.now_s(), clock.factor, plan_links(members), self._down(plan, members))

    def _down(self, plan: ContactPlan, records: list[NodeRecord]) -> frozenset[tuple[str, str]]:
        """Links whose probes failed although their window was open then."""
        found = set()
        for record in records:
            for link in record.measures.links:
                contact = plan.at(record.name, link.peer, self.clock.now_s())
                if link.up or contact is None:
                    continue
                measured_s = self._mesh_s(link.measured_at.ToNanoseconds() / 1e9)
                if measured_s >= contact.carries_from_s:
                    found.add((record.name, link.peer))
        return frozenset(found)

    def _mesh_s(self, wall_s: float) -> float:
        return self.clock.now_s() - max(0.0, time.time() - wall_s) * self.clock.factor

    def describe(self, message: scheduler_pb2.Node) -> None:
        """Says of a node whether it is in contact with the scheduler's place, and when it will be."""
        plan, here = self.plan, self.place("scheduler")
        if plan is None or here is None or message.name not in plan.nodes or message.name == here:
            return
        now_s = self.clock.now_s()
        message.in_contact = all(_carries(plan, *pair, now_s) for pair in ((here, message.name), (message.name, here)))
        opens_s = None if message.in_contact else self.next_contact_s(message.name)
        if opens_s is not None:
            message.next_contact.CopyFrom(stamp(opens_s))
            message.next_contact_in_s = self.clock.seconds_until(opens_s)
        carried = self.contact_bytes(message.name)
        if carried is not None:
            message.contact_bytes = carried

    def contact_bytes(self, node: str) -> int | None:
        """Bytes that what is left of a node's contact with the scheduler's place carries, or its next one where that is
        more; None where there is neither."""
        plan, here = self.plan, self.place("scheduler")
        if plan is None or here is None:
            return None
        now_s = self.clock.now_s()
        coming = [contact for contact in plan.between(node, here) if contact.end_s > now_s][:2]
        # Rates stay real where mesh time runs faster.
        carried = [
            contact.rate_bps / 8 * max(0.0, contact.end_s - max(now_s, contact.carries_from_s)) / self.clock.factor
            for contact in coming
        ]
        return int(max(carried)) if carried else None

    def next_contact_s(self, node: str) -> float | None:
        """When the next window from a node to the scheduler's place carries, mesh time; None where there is none."""
        plan, here = self.plan, self.place("scheduler")
        if plan is None or here is None:
            return None
        now_s = self.clock.now_s()
        later = (contact.carries_from_s for contact in plan.between(node, here) if contact.end_s > now_s)
        return next((opens_s for opens_s in later if opens_s > now_s), None)

    def absence(self, node: str) -> str:
        """In words, why a node that does not answer may be fine: it is out of contact as planned; else nothing."""
        message = scheduler_pb2.Node(name=node)
        self.describe(message)
        if not message.HasField("in_contact") or message.in_contact:
            return ""
        if not message.HasField("next_contact_in_s"):
            return "out of contact, and the contact plan knows of no next one"
        return f"out of contact as planned, for {message.next_contact_in_s:.0f} s more"

    def just_back(self, node: str) -> bool:
        """Whether a node's contact opened so lately, as planned, that it may be about to answer again."""
        plan, here = self.plan, self.place("scheduler")
        if plan is None or here is None:
            return False
        now_s = self.clock.now_s()
        contact = plan.at(node, here, now_s)
        return contact is not None and now_s - contact.carries_from_s < RETURN_S * self.clock.factor

    async def follow(self) -> None:
        """Keeps the plan fresh for as long as the scheduler lives."""
        while self._settings.contacts is not None:
            await asyncio.sleep(FILES_LOOK_S)
            try:
                await asyncio.to_thread(self._read_files)
            except MeshError as error:
                self._log.warning("contacts_not_read", detail=error.message)
        while self._settings.constellation:
            fresh = await self._ask()
            await asyncio.sleep(ASK_INTERVAL_S if fresh else ASK_AGAIN_S)

    async def close(self) -> None:
        """Closes the connection to the constellation service."""
        await self._channels.close()

    def _read_files(self) -> None:
        for path in (self._settings.contacts, self._settings.clock):
            if path is None or not self._replaced(path):
                continue
            if path == self._settings.contacts:
                self.plan = ContactPlan.load(path)
                self._log.info("contacts_read", contacts=len(self.plan.contacts), warnings=len(self.plan.warnings))
            else:
                self.clock = read_clock(path)

    def _replaced(self, path: Path) -> bool:
        try:
            status = path.stat()
        except OSError as error:
            raise InvalidInputError(f"{path}: cannot be read: {error.strerror}; give the file's own path") from None
        mark = (status.st_mtime_ns, status.st_size)
        if self._stamps.get(path) == mark:
            return False
        self._stamps[path] = mark
        return True

    async def _ask(self) -> bool:
        channel = self._channels.get(
            Role.CONSTELLATION, self._settings.constellation_name, self._settings.constellation
        )
        stub = constellation_pb2_grpc.ConstellationServiceStub(channel)
        try:
            told = await stub.GetScenario(constellation_pb2.GetScenarioRequest(), timeout=ASK_DEADLINE_S)
            clock = MeshClock(mesh_time(told.origin_mesh), mesh_time(told.origin_wall), told.time_factor)
            span_s = max(AHEAD_S, 4 * ASK_INTERVAL_S * clock.factor)
            plan = await fetch_plan(channel, start_s=clock.now_s(), span_s=span_s)
        except (grpc.RpcError, MeshError) as error:
            detail = map_rpc_error(error).message if isinstance(error, grpc.RpcError) else error.message
            self._log.warning("constellation_silent", detail=detail)
            return False
        self.clock, self.plan = clock, plan
        self._log.info("contacts_asked", contacts=len(plan.contacts), warnings=len(plan.warnings))
        return True


def _carries(plan: ContactPlan, source: str, target: str, at_s: float) -> bool:
    contact = plan.at(source, target, at_s)
    return contact is not None and at_s >= contact.carries_from_s


def _places(entries: tuple[str, ...]) -> dict[str, str]:
    table = {}
    for entry in entries:
        service, equals, node = entry.partition("=")
        if not service or not equals or not node:
            raise InvalidInputError(f"places takes service=node, not {entry!r}")
        table[service] = node
    return table
