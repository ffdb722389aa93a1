"""What links carry, by time: as the contact plan says where it knows a pair, as was declared where it does not. Pure.

What leaves a node is one number; a link from it may be thinner, and windows come and go. Senders are told some windows
ahead: one that is out of contact changes over at their edges by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping

from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.v1 import slices_pb2

RATES_MAX = 16
"""How many changes of one link are told at once."""
CLOSED = 0.0
"""The rate of a link that is closed."""

Declared = Mapping[tuple[str, str], float]
"""Gbit/s from one member of the mesh to another."""


class Links:
    """The links of a mesh.

    Args:
        plan: The contact plan; None: none.
        clock: The mesh's clock.
        places: Where members stand that the plan does not know by their own names.
        declared: What links carry of which the plan says nothing.
    """

    def __init__(
        self, plan: ContactPlan | None, clock: MeshClock, places: Mapping[str, str], declared: Declared
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._places = places
        self._declared = declared

    def of(self, sender: str, members: Collection[str], mesh_s: float | None = None) -> list[slices_pb2.SliceLink]:
        """The links from one member to others of which something is known, by name.

        Args:
            sender: Who sends.
            members: To whom; those with a place of their own, and those to whom a rate is declared, are added.
            mesh_s: The mesh time; None: now.
        """
        now_s = self._clock.now_s() if mesh_s is None else mesh_s
        named = {target for source, target in self._declared if source == sender}
        found = []
        for target in sorted({*members, *self._places, *named} - {sender}):
            rates = self._planned(sender, target, now_s)
            declared = self._declared.get((sender, target))
            if not rates and declared is not None:
                rates = [slices_pb2.SliceLinkRate(gbps=declared)]
            if rates:
                found.append(slices_pb2.SliceLink(to=target, rates=rates))
        return found

    def _planned(self, sender: str, target: str, now_s: float) -> list[slices_pb2.SliceLinkRate]:
        """The rates of the windows from now on; none where the plan says nothing of the two, or has ended."""
        plan = self._plan
        if plan is None or now_s >= plan.end_s:
            return []
        windows = plan.between(self._places.get(sender, sender), self._places.get(target, target))
        if not windows:
            return []
        # What the link carries from each moment on, the last word for a moment being the right one.
        changes: dict[float, float] = {}
        for contact in windows[bisect_right(windows, now_s, key=lambda each: each.end_s) :]:
            if len(changes) > RATES_MAX:
                break
            changes[contact.carries_from_s] = contact.rate_bps / 1e9
            if not (contact.truncated_end and contact.end_s >= plan.end_s):
                changes[contact.end_s] = CLOSED
        begun = [rate for since_s, rate in changes.items() if since_s <= now_s]
        rates = [slices_pb2.SliceLinkRate(gbps=begun[-1] if begun else CLOSED)]
        for since_s, gbps in changes.items():
            if since_s > now_s and len(rates) < RATES_MAX:
                told = slices_pb2.SliceLinkRate(gbps=gbps)
                told.since.FromMilliseconds(round(self._clock.wall_s(since_s) * 1e3))
                rates.append(told)
        return rates
