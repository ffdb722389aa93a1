"""The plan as time goes by: kept ahead of the clock, made anew for other spans, told link by link."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orbitmesh.contacts import Contact, ContactPlan, MeshClock
from orbitmesh.errors import InvalidInputError
from services.constellation.planning import plan_contacts
from services.constellation.scenario import HOURS_MAX, Scenario

PLANS_KEPT = 8
"""How many plans of other spans are kept for their next pages."""

RENEW_SHARE = 0.5
"""The plan is made anew when this share of its span has passed."""

LOOK_INTERVAL_S = 60.0
"""The longest sleep between looks at the clock, in real seconds."""

LOOK_BACK_S = 600.0
"""How far into the past a plan begins: links that open just now are still being acquired. Mesh seconds."""

LINK_HOURS = 24.0
"""How far ahead a link is looked at where the time asked for lies outside the plan, in hours."""


@dataclass(frozen=True)
class LinkView:
    """One direction of a link at a time."""

    source: str
    """The sending node."""
    target: str
    """The receiving node."""
    at_s: float
    """Mesh time, in seconds."""
    contact: Contact | None
    """The window that is open, or None."""
    changes_at_s: float | None
    """When that changes next, mesh time; None where the plan knows of no change."""

    @property
    def carries(self) -> bool:
        """True where the link is open and locked."""
        return self.contact is not None and self.at_s >= self.contact.carries_from_s


class Sky:
    """What one constellation service knows.

    Args:
        scenario: What there is.
        clock: What time it is in the mesh.
        hours: How far ahead to plan, in hours of mesh time.
    """

    def __init__(self, scenario: Scenario, clock: MeshClock, hours: float | None = None) -> None:
        self.scenario = scenario
        self.clock = clock
        self._span_s = (scenario.hours if hours is None else hours) * 3600
        self._plan: ContactPlan | None = None
        self._version = 0
        self._others: OrderedDict[str, ContactPlan] = OrderedDict()
        self._planning = asyncio.Lock()
        self.renewed = asyncio.Event()
        """Set when the plan was made anew; each plan has an event of its own."""

    @property
    def plan(self) -> ContactPlan:
        """The plan that holds now.

        Raises:
            InvalidInputError: It is not made yet.
        """
        if self._plan is None:
            raise InvalidInputError("there is no plan yet; try again", reason="FAILED_PRECONDITION")
        return self._plan

    async def renew(self) -> None:
        """Plan from now on."""
        now_s = self.clock.now_s()
        async with self._planning:
            plan = await asyncio.to_thread(
                plan_contacts, self.scenario, now_s - LOOK_BACK_S, now_s + self._span_s
            )
        self._plan = plan
        self._version += 1
        before, self.renewed = self.renewed, asyncio.Event()
        before.set()

    async def keep(self) -> None:
        """Plan anew whenever half of the plan has passed; runs until cancelled."""
        while True:
            due_s = self.clock.seconds_until(self.plan.end_s - self._span_s * (1 - RENEW_SHARE))
            if due_s <= 0:
                await self.renew()
            else:
                await asyncio.sleep(min(due_s, LOOK_INTERVAL_S))

    async def plan_for(
        self, start_s: float | None, span_s: float | None, nodes: Sequence[str]
    ) -> tuple[str, ContactPlan]:
        """A plan of a span and a name for it, by which `kept` finds its further pages for a while.

        Raises:
            InvalidInputError: The span is empty or too long, or a node is not known.
        """
        for name in nodes:
            self.scenario.check_node(name)
        if start_s is None and span_s is None:
            plan = self.plan
            key = f"now.{self._version}.{'+'.join(nodes)}"
        else:
            begin_s = self.clock.now_s() if start_s is None else start_s
            length_s = self._span_s if span_s is None else span_s
            if not 0 < length_s <= HOURS_MAX * 3600:
                raise InvalidInputError(f"a span of {length_s} s; expected above 0 and at most {HOURS_MAX:g} hours")
            between = (nodes[0], nodes[1]) if len(nodes) == 2 else None
            key = f"{begin_s!r}.{length_s!r}.{'+'.join(nodes)}"
            if key in self._others:
                return key, self._others[key]
            async with self._planning:
                plan = await asyncio.to_thread(
                    plan_contacts, self.scenario, begin_s, begin_s + length_s, between
                )
        chosen = ContactPlan(plan.start_s, plan.end_s, tuple(only(plan.contacts, nodes)), plan.warnings)
        self._others[key] = chosen
        while len(self._others) > PLANS_KEPT:
            self._others.popitem(last=False)
        return key, chosen

    def kept(self, key: str) -> ContactPlan:
        """A plan whose first page was given out.

        Raises:
            InvalidInputError: It is no longer kept.
        """
        if key not in self._others:
            raise InvalidInputError("the page token is of no plan that is still kept; ask for the first page again")
        self._others.move_to_end(key)
        return self._others[key]

    async def link(self, source: str, target: str, at_s: float | None) -> LinkView:
        """One direction of a link at a mesh time, now where left out.

        Raises:
            InvalidInputError: There is no such node, or both are one.
        """
        self.scenario.check_node(source)
        self.scenario.check_node(target)
        if source == target:
            raise InvalidInputError(f"a link joins two nodes; {source!r} was named twice")
        moment_s = self.clock.now_s() if at_s is None else at_s
        plan = self.plan
        if not plan.start_s <= moment_s < plan.end_s:
            async with self._planning:
                plan = await asyncio.to_thread(
                    plan_contacts, self.scenario, moment_s, moment_s + LINK_HOURS * 3600, (source, target)
                )
        return view(plan, source, target, moment_s)


def only(contacts: Iterable[Contact], nodes: Sequence[str]) -> list[Contact]:
    """The contacts of one node, between two nodes, or all of them.

    Raises:
        InvalidInputError: More than two names are given.
    """
    if len(nodes) > 2:
        raise InvalidInputError(f"{len(nodes)} nodes were named; expected one for all its links or two for theirs")
    chosen = set(nodes)
    return [contact for contact in contacts if chosen <= {contact.source, contact.target}]


def view(plan: ContactPlan, source: str, target: str, at_s: float) -> LinkView:
    """One direction of a link as a plan has it at a time."""
    changes = sorted({edge for contact in plan.between(source, target) for edge in edges(contact)})
    after = bisect_right(changes, at_s)
    return LinkView(
        source, target, at_s, plan.at(source, target, at_s), changes[after] if after < len(changes) else None
    )


def edges(contact: Contact) -> list[float]:
    """When a contact changes something, mesh time; the ends of the plan's span are no changes."""
    found = [] if contact.truncated_start else [contact.start_s]
    if contact.acquisition_s > 0 and not contact.truncated_start:
        found.append(contact.carries_from_s)
    return found if contact.truncated_end else [*found, contact.end_s]
