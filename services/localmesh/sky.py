"""The contact plan over a local mesh: its files, its clock, and what it says of each pair.

A mesh is brought up before its mesh time begins: the links of all pairs that have contacts are open and like the first
of them, so that every node joins. Then it is launched: at that moment the clock stands at the start, and every relay
follows the plan. So a test finds the same sky however long its processes took to start.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.errors import InvalidInputError
from services.links import RelaySpec, Shape
from services.links.schedule import Window, shape_in, windows
from services.localmesh.topology import MeshSpec, Way, ways

CONTACTS_FILE = "contacts.json"
"""The plan, in the mesh's folder."""
CLOCK_FILE = "clock.json"
"""Origin and factor of the mesh's clock, in the mesh's folder; replaced once, when the mesh is launched."""
BEFORE_LAUNCH_S = 3600.0
"""How far ahead of now the clock's origin lies while the mesh is brought up, in real seconds: before any contact."""
LAUNCH_S = 1.2
"""How long before the launch its clock is written, in real seconds: services look at the file every second."""


class Sky:
    """What a local mesh knows of its contact plan.

    Args:
        spec: The mesh, with a sky.
        directory: The mesh's folder; the plan and a clock that has not begun are written into it.

    Raises:
        InvalidInputError: The plan cannot be read, the start is outside it, it has contacts that cannot be emulated,
            or no node of the mesh ever meets the place of the gateway.
    """

    def __init__(self, spec: MeshSpec, directory: Path) -> None:
        if spec.sky is None:
            raise InvalidInputError("this mesh has no contact plan")
        self._spec = spec
        self._asked = spec.sky
        self._directory = directory
        self.plan = ContactPlan.load(spec.sky.contacts)
        self.start_s = self.plan.start_s if spec.sky.start_s is None else spec.sky.start_s
        if not self.plan.start_s <= self.start_s < self.plan.end_s:
            raise InvalidInputError(
                f"the mesh is to start at mesh time {self.start_s:.3f} s, and the plan speaks for "
                f"{self.plan.start_s:.3f} s to {self.plan.end_s:.3f} s; give a start within it"
            )
        self.ways = ways(spec, self.plan)
        self.warnings = (*self.plan.warnings, *self._check())
        self.clock = MeshClock(self.start_s, time.time() + BEFORE_LAUNCH_S, self._asked.factor)
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / CONTACTS_FILE, self.plan.dump())
        self._write_clock()

    @property
    def contacts_file(self) -> Path:
        """The plan as the mesh follows it."""
        return self._directory / CONTACTS_FILE

    @property
    def clock_file(self) -> Path:
        """The clock's origin and factor."""
        return self._directory / CLOCK_FILE

    def prepare(self) -> float:
        """Let mesh time begin soon, and write down when; how many real seconds it is until then."""
        self.clock = MeshClock(self.start_s, time.time() + LAUNCH_S, self._asked.factor)
        self._write_clock()
        return self.clock.seconds_until(self.start_s)

    def relay(self, way: Way, target: str) -> RelaySpec:
        """What a relay is like before the launch: as in the first contact of its pair."""
        first = self._windows(way.source, way.target)[0]
        here, there = self._spec.place(way.source), self._spec.place(way.target)
        return RelaySpec(
            way.name,
            target,
            forward=_constant(first, True),
            reverse=_constant(first, False),
            # All services of two places share the contact between them.
            forward_medium=f"{here}>{there}",
            reverse_medium=f"{there}>{here}",
        )

    def at_clock(self) -> dict[str, Any]:
        """The mesh time, and how it is told."""
        clock = self.clock
        return {
            "mesh_s": clock.now_s(),
            "origin_mesh_s": clock.origin_mesh_s,
            "origin_wall_s": clock.origin_wall_s,
            "factor": clock.factor,
            "plan_start_s": self.plan.start_s,
            "plan_end_s": self.plan.end_s,
        }

    def contact(self, a: str, b: str) -> dict[str, Any]:
        """Where two services, or places of the plan, stand to each other now."""
        here, there = self._spec.place(a), self._spec.place(b)
        unknown = sorted({here, there} - self.plan.nodes - set(self._spec.all_names))
        if unknown:
            known = ", ".join(sorted(self.plan.nodes | set(self._spec.all_names)))
            raise InvalidInputError(f"there is no {unknown[0]!r} in the mesh or its plan; there are: {known}")
        now_s = self.clock.now_s()
        found = self._windows(a, b)
        after = bisect_right(found, now_s, key=lambda window: window.start_s)
        current = found[after - 1] if after and now_s < found[after - 1].end_s else None
        following = found[after] if after < len(found) else None
        edge_s = current.end_s if current else following.start_s if following else None
        planned = here in self.plan.nodes or there in self.plan.nodes
        return {
            "source": here,
            "target": there,
            "mesh_s": now_s,
            "planned": planned and here != there,
            "open": current is not None or here == there or not planned,
            "window": None if current is None else _told(current, now_s),
            "next": None if following is None else _told(following, following.start_s),
            "next_change_s": edge_s,
            "next_change_in_s": None if edge_s is None else (edge_s - now_s) / self.clock.factor,
        }

    def _windows(self, a: str, b: str) -> tuple[Window, ...]:
        return windows(self.plan, self._spec.place(a), self._spec.place(b))

    def _check(self) -> list[str]:
        """What is wrong with the pairs of this mesh, as warnings; as an error where nothing could ever work."""
        home, names = self._spec.gateway_at, self._spec.node_names
        places = {home, *names}
        for contact in self.plan.contacts:
            if contact.source in places and contact.target in places:
                shape_in(contact, Shape())
        if not self.plan.nodes & places:
            raise InvalidInputError(
                f"the contact plan knows none of this mesh's nodes ({', '.join(names)}); it has: "
                f"{', '.join(sorted(self.plan.nodes)) or 'no contact at all'}; give node_names as the plan has them"
            )
        cut_off = [way.source for way in self.ways if way.target == "gateway" and way.kind == "never"]
        if cut_off and len(cut_off) == len([name for name in names if name != home]):
            raise InvalidInputError(
                f"no node of this mesh ({', '.join(names)}) ever meets {home}, where the gateway is; put the gateway "
                "at a site that they see (gateway_at), or give another plan"
            )
        return [f"{name} never meets {home}, where gateway and scheduler are: it cannot join" for name in cut_off]

    def _write_clock(self) -> None:
        clock = self.clock
        record = {
            "origin_mesh_s": clock.origin_mesh_s, "origin_wall_s": clock.origin_wall_s, "factor": clock.factor
        }  # fmt: skip
        _replace(self.clock_file, json.dumps(record) + "\n")


def _constant(window: Window, forward: bool) -> Shape:
    """The shape of a direction at the beginning of a window."""
    contact = window.forward if forward else window.reverse
    return Shape(latency_ms=contact.latency_at(window.start_s) * 1000, rate_bps=contact.rate_bps)


def _told(window: Window, at_s: float) -> dict[str, Any]:
    return {
        "start_s": window.start_s,
        "end_s": window.end_s,
        "kind": window.forward.kind,
        "latency_ms": window.forward.latency_at(at_s) * 1000,
        "rate_bps": window.forward.rate_bps,
        "reverse_latency_ms": window.reverse.latency_at(at_s) * 1000,
        "reverse_rate_bps": window.reverse.rate_bps,
        "max_elevation_deg": window.forward.max_elevation_deg,
    }


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)  # noqa: PTH105 - Path.replace is the same, and this says that it is atomic
