"""An act of the demo: links that open and close by a contact plan. An answer waits for contact, and a satellite that is
about to set hands its layers over."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from orbitmesh import Generation, Mesh
from orbitmesh.cli.demo_telling import Pace, RunningText, stall_table
from orbitmesh.cli.generate import figures_of, started
from orbitmesh.cli.output import Output
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.results import Deployment
from orbitmesh.trace.render import format_seconds

STAYING, SETTING, COMING, GROUND = "sat-1", "sat-2", "sat-3", "ground"
"""Two satellites that are better placed, one that is there when another sets, and where gateway and scheduler stand."""
STAGES = 2
FACTOR = 60.0
"""Mesh seconds per real second."""
START_S = 1_772_366_400.0
"""The mesh time at which it begins: 2026-03-01 12:00 UTC."""
SPAN_S = 3600.0
"""How long the plan goes on, in real seconds."""
NEAR_S, FAR_S, DOWN_S = 0.030, 0.035, 0.025
"""One-way latencies: between the two that are better placed, to the third, and to the ground; in seconds. The way over
the ground must not be shorter: it is no node of this mesh and relays nothing."""
RATE_BPS = 100e6
OUTAGE_S = 2.5
"""How long no window is open, in real seconds."""
SETS_AFTER_S = 9.0
"""How long the setting satellite is seen again after the outage, in real seconds; the scheduler moves a stage as much
ahead of a closing."""
AFTERWARDS_S = 1.0
"""How long the answer goes on when it has set, in real seconds."""
TOKENS_MIN, TOKENS_MAX = 48, 480
LOOK_S = 0.25
"""How often the act looks where the stages are, in seconds."""
WORK_S = 1.0
"""What the planner is told of the length of the work, in seconds: the act wants a plan that does not avoid what it
shows."""


@dataclass(frozen=True)
class Sky:
    """When what happens, in real seconds after the mesh is up."""

    closes_s: float
    """All windows close."""
    opens_s: float
    """They open again."""
    sets_s: float
    """One satellite sets for good."""

    def plan(self) -> ContactPlan:
        """The same in mesh time, as a contact plan."""
        staying = ((0.0, self.closes_s), (self.opens_s, SPAN_S))
        setting = ((0.0, self.closes_s), (self.opens_s, self.sets_s))
        found: list[Contact] = []
        for a, b, windows, latency_s in (
            (STAYING, SETTING, setting, NEAR_S),
            (STAYING, COMING, staying, FAR_S),
            (SETTING, COMING, setting, FAR_S),
            (GROUND, STAYING, staying, DOWN_S),
            (GROUND, SETTING, setting, DOWN_S),
            (GROUND, COMING, staying, DOWN_S),
        ):
            found += [
                Contact(source, target, at(start), at(end), RATE_BPS, (LatencyPoint(at(start), latency_s),))
                for source, target in ((a, b), (b, a))
                for start, end in windows
            ]
        found.sort(key=lambda contact: (contact.start_s, contact.source, contact.target))
        return ContactPlan(START_S, at(SPAN_S), tuple(found))


@dataclass(frozen=True)
class Shown:
    """What came of the act."""

    generation: Generation
    """The answer."""
    waits: int
    """How often it waited."""
    handed_over_at_s: float | None
    """When a stage was handed over, in real seconds after the mesh was up; None where none was."""


def at(real_s: float) -> float:
    """The mesh time of a real moment after the mesh is up, in seconds."""
    return START_S + real_s * FACTOR


def minutes(real_s: float) -> str:
    """A length of real time as mesh time, for reading."""
    return f"{real_s * FACTOR / 60:.1f} min"


def sky_after(deploy_s: float) -> Sky:
    """A sky that leaves time to deploy on this machine, where that took `deploy_s` seconds before."""
    closes_s = max(5.0, 1.2 * deploy_s + 2.0)
    return Sky(closes_s, closes_s + OUTAGE_S, closes_s + OUTAGE_S + SETS_AFTER_S)


def show_sky(output: Output, model: Path, prompt: str, deploy_s: float) -> Shown:
    """Deploys on a mesh under a contact plan and asks for as much as shows a wait and a hand-over."""
    sky = sky_after(deploy_s)
    output.say(
        f"now three satellites whose links follow a contact plan at {FACTOR:g}x: after {minutes(sky.closes_s)} all "
        f"windows are closed for {minutes(OUTAGE_S)}, after {minutes(sky.sets_s)} {SETTING} sets",
        style="bold",
    )
    output.document({"event": "sky", "time_factor": FACTOR, "start_s": START_S, "real_s": sky})
    with ExitStack() as stack:
        with output.progress() as tell:
            names = [STAYING, SETTING, COMING]
            mesh = stack.enter_context(
                Mesh.local(
                    node_names=names, gateway_at=GROUND, contacts=sky.plan(), time_factor=FACTOR, on_progress=tell
                )
            )
        with output.progress() as tell:
            deployment = mesh.deploy(model, name="demo", stages=STAGES, work_s=WORK_S, on_progress=tell)
        output.document({"event": "deployed", "deployment": deployment})
        return _Act(output, mesh, deployment, sky, prompt).run()


class _Act:
    """One answer under the sky, with marks where something happens to it."""

    def __init__(self, output: Output, mesh: Mesh, deployment: Deployment, sky: Sky, prompt: str) -> None:
        self._output = output
        self._prompt = prompt
        self._text = RunningText(output, prompt)
        self._mesh = mesh
        self._deployment = deployment
        self._sky = sky
        self._clock = mesh.local.clock()
        self._pace = Pace()
        self._waits = 0
        self._waiting = self._waited = False
        self._nodes = [stage.node for stage in deployment.stages]
        self._looked_s = 0.0
        self._handed_over_at_s: float | None = None
        self._has_set = False

    def run(self) -> Shown:
        generation = self._mesh.generate(
            self._deployment.name,
            prompt=self._prompt,
            max_new_tokens=self._tokens(),
            ignore_end=True,
            on_waiting=self._wait,
        )
        started(self._output, generation)
        for index, token in enumerate(generation):
            self._pace.arrived_s.append(time.monotonic())
            if self._waited:
                self._waited = False
                self._pace.waited.add(index)
                self._text.mark(f"in contact again: on after {format_seconds(self._pace.gap_s(index))}")
            self._text.token(token)
            self._look_around()
        self._text.end()
        self._report(generation)
        return Shown(generation, self._waits, self._handed_over_at_s)

    def _tokens(self) -> int:
        """As many as are produced until the satellite has set."""
        token_s = self._deployment.plan.token_s if self._deployment.plan is not None else 0.05
        running_s = self._sky.sets_s + AFTERWARDS_S - OUTAGE_S - self._now_s()
        return max(TOKENS_MIN, min(TOKENS_MAX, int(running_s / token_s)))

    def _now_s(self) -> float:
        """Real seconds since the mesh was up."""
        return (self._clock.now_s() - START_S) / FACTOR

    def _wait(self, why: str | None) -> None:
        self._output.document({"event": "waiting", "reason": why} if why else {"event": "going_on"})
        begins, self._waiting = bool(why) and not self._waiting, bool(why)
        if begins:
            self._waits += 1
            self._waited = True
            left_s = self._sky.opens_s - self._now_s()
            opens = f", which comes in {format_seconds(left_s)}" if left_s > 0 else ""
            self._text.mark(f"no window is open: waiting for contact{opens}")

    def _look_around(self) -> None:
        now_s = self._now_s()
        if now_s >= self._sky.sets_s and not self._has_set:
            self._has_set = True
            self._output.document({"event": "set", "node": SETTING, "at_s": now_s})
            self._text.mark(f"{SETTING} has set")
        if now_s - self._looked_s < LOOK_S or self._has_set:
            return
        self._looked_s = now_s
        nodes = [stage.node for stage in self._mesh.deployment(self._deployment.name).stages]
        for old, new in zip(self._nodes, nodes, strict=True):
            if old != new:
                self._handed_over_at_s = now_s
                before_s = self._sky.sets_s - now_s
                self._output.document({"event": "handed_over", "from": old, "to": new, "before_set_s": before_s})
                self._text.mark(f"{old} sets in {before_s:.0f} s: {new} has taken over its layers")
        self._nodes = nodes

    def _report(self, generation: Generation) -> None:
        pace = self._pace
        breakdown = self._mesh.explain(generation.trace_id)
        waited_s = sum(pace.gap_s(index) for index in pace.waited)
        self._output.document(
            {
                "event": "under_the_sky",
                "waits": self._waits,
                "waited_s": waited_s,
                "handed_over": self._handed_over_at_s is not None,
                "longest_other_gap_s": pace.longest_s(),
                "median_gap_s": pace.median_s(),
                "breakdown": breakdown,
                **figures_of(generation),
            }
        )
        self._output.view(stall_table(breakdown))
        told = [f"{len(generation.token_ids)} tokens; waited {_times(self._waits)} for contact"]
        if self._handed_over_at_s is not None:
            told.append(
                f"through the hand-over and {SETTING}'s setting, no other token took longer than "
                f"{format_seconds(pace.longest_s())}, where the median is {format_seconds(pace.median_s())}"
            )
        self._output.say("; ".join(told), style="dim")


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")
