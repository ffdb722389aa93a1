"""From a plan under the sky to what is said of it: a message, sentences, and the relays of a pipeline. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.contacts_proto import stamp
from orbitmesh.pack import Manifest
from orbitmesh.v1 import scheduler_pb2
from services.scheduler.routes import Router
from services.scheduler.sky_plan import SkyChoice
from services.scheduler.sky_walk import HandOverStep, Scene, Work
from services.scheduler.windows import Way

WORK_S_DEFAULT = 60.0
"""For how long the links must last where the request does not say, in real seconds."""
WORK_TOKENS_DEFAULT = 256
"""How many tokens the work is where the request does not say."""
PIECES_MAX = 64
"""In how many pieces, each within one window, a stage's files are thought to come."""
WARNINGS_MAX = 8
"""The most warnings of the contact plan that are passed on."""


def work_of(work_s: float, work_tokens: int) -> Work:
    """How much there is to do, with the defaults where the request says nothing."""
    return Work(work_tokens or WORK_TOKENS_DEFAULT, work_s or WORK_S_DEFAULT)


def ready_times(
    plan: ContactPlan, stretch: float, now_s: float, home: str, sizes_bytes: Mapping[str, int]
) -> dict[str, float]:
    """When each node can have the files of a stage, mesh time in seconds; `inf` where they never reach it.

    The files leave the gateway's place now and may wait at relays; what is too large for any one window comes in
    equal pieces, one after another.
    """
    router = Router(plan, stretch)
    found = {}
    for node, size_bytes in sizes_bytes.items():
        if node not in plan.nodes or node == home:
            continue
        found[node] = _ready_s(router, home, node, now_s, size_bytes)
    return found


def _ready_s(router: Router, home: str, node: str, now_s: float, size_bytes: int) -> float:
    pieces = 1
    while pieces <= PIECES_MAX:
        at_s = now_s
        for _ in range(pieces):
            route = router.earliest(home, node, at_s, size_bytes / pieces)
            if route is None:
                break
            at_s = route.arrives_s
        else:
            return at_s
        pieces *= 2
    return math.inf


def stage_share_bytes(manifest: Manifest, stages: int, memory_bytes: int) -> int:
    """What of a model's files a node is thought to need: its share of them, and no more than it has room for."""
    whole = sum(entry.size_bytes for entry in manifest.files)
    return min(whole // max(1, stages), memory_bytes)


def fill(message: scheduler_pb2.Plan, choice: SkyChoice, scene: Scene) -> None:
    """Adds to a plan's message what the sky has to do with it, and says it in sentences.

    Args:
        message: The plan; changed in place.
        choice: What was chosen.
        scene: What it was chosen from.
    """
    now_s, stretch, sky = scene.sky.now_s, scene.sky.stretch, message.sky
    message.proven_optimal = choice.proven
    sky.starts_at.CopyFrom(stamp(choice.start_s))
    sky.finishes_at.CopyFrom(stamp(choice.finish_s))
    sky.starts_in_s = (choice.start_s - now_s) / stretch
    sky.finishes_in_s = (choice.finish_s - now_s) / stretch
    for source, target, way in choice.ways:
        _add_way(sky, source, target, way, now_s, stretch)
    for step in choice.hand_overs:
        _add_hand_over(sky, step, now_s, stretch)
    if choice.runner_up is not None:
        other = sky.runner_up
        other.nodes.extend(choice.runner_up.split[0])
        other.reason = choice.reason
        if math.isfinite(choice.runner_up_finish_s):
            other.finishes_at.CopyFrom(stamp(choice.runner_up_finish_s))
            other.finishes_in_s = (choice.runner_up_finish_s - now_s) / stretch
    sky.warnings.extend(_warnings(choice, scene))
    sentences = list(_sentences(choice, scene))
    kept = list(message.reasons)
    del message.reasons[:]
    message.reasons.extend([*sentences, *(f"warning: {said}" for said in sky.warnings), *kept])


def _add_way(
    sky: scheduler_pb2.SkyPlan, source: str, target: str, way: Way, now_s: float, stretch: float
) -> None:
    entry = sky.ways.add(**{"from": source, "to": target}, via=way.via, latency_s=way.link.latency_s)
    if math.isfinite(way.closes_s):
        entry.closes_in_s = (way.closes_s - now_s) / stretch
    for hop in way.hops:
        if hop.contact is None:
            continue
        window = entry.windows.add(**{"from": hop.source, "to": hop.target})
        window.opens_at.CopyFrom(stamp(hop.contact.start_s))
        window.closes_at.CopyFrom(stamp(hop.contact.end_s))
        window.truncated_end = hop.contact.truncated_end
        if hop.contact.max_elevation_deg is not None:
            window.max_elevation_deg = hop.contact.max_elevation_deg


def _add_hand_over(sky: scheduler_pb2.SkyPlan, step: HandOverStep, now_s: float, stretch: float) -> None:
    entry = sky.hand_overs.add(stage_index=step.stage_index, **{"from": step.source, "to": step.target})
    entry.at.CopyFrom(stamp(step.at_s))
    entry.in_s = (step.at_s - now_s) / stretch


def _warnings(choice: SkyChoice, scene: Scene) -> list[str]:
    stretch, plan, found = scene.sky.stretch, scene.sky.plan, []
    closes_s = min((way.closes_s for _, _, way in choice.ways), default=math.inf)
    if choice.waits and choice.waiting_s == 0 and math.isfinite(closes_s):
        found.append(
            f"nothing lasts for {scene.work.least_s:.0f} s: the tokens are done, but ways of this pipeline close in "
            f"{(closes_s - scene.sky.now_s) / stretch:.0f} s and no node takes over"
        )
    elif choice.waits:
        found.append(
            f"nothing lasts: no pipeline has all of its ways until the work is done; this one waits for contact "
            f"{choice.waits} time(s), {choice.waiting_s / stretch:.0f} s in all"
        )
    end_s = max(choice.finish_s, choice.start_s + scene.work.least_s * stretch)
    if end_s > plan.end_s:
        found.append(
            f"the contact plan ends at {_clock(plan.end_s)}, before the work does: links that are open then are taken "
            "to stay open"
        )
    return [*found, *plan.warnings[:WARNINGS_MAX]]


def _sentences(choice: SkyChoice, scene: Scene) -> Iterable[str]:
    now_s, stretch = scene.sky.now_s, scene.sky.stretch
    starts_s, finishes_s = (choice.start_s - now_s) / stretch, (choice.finish_s - now_s) / stretch
    begins = "starts at once" if starts_s <= 0 else f"starts in {starts_s:.1f} s, at {_clock(choice.start_s)}"
    yield f"by the contact plan it {begins} and finishes {scene.work.tokens} tokens in {finishes_s:.1f} s"
    for source, target, way in choice.ways:
        yield f"{source} -> {target}{_over(way)}: {_describe(way, now_s, stretch)}"
    for step in choice.hand_overs:
        in_s = (step.at_s - now_s) / stretch
        yield f"stage {step.stage_index} is handed over from {step.source} to {step.target} in {in_s:.1f} s"
    if choice.reroutes:
        yield f"{choice.reroutes} time(s) a way closes and another between the same nodes is taken"
    if choice.runner_up is not None:
        nodes = ", ".join(choice.runner_up.split[0])
        if math.isfinite(choice.runner_up_finish_s):
            when = f"would finish in {(choice.runner_up_finish_s - now_s) / stretch:.1f} s"
        else:
            when = "would never finish"
        yield f"the runner-up under this sky ({nodes}) {when}: {choice.reason}"


def _over(way: Way) -> str:
    return f" via {', '.join(way.via)}" if way.via else ""


def _describe(way: Way, now_s: float, stretch: float) -> str:
    contacts = [hop.contact for hop in way.hops if hop.contact is not None]
    if not contacts:
        return "a link that is not of the contact plan, taken to last"
    windows = ", ".join(window_text(contact) for contact in contacts)
    if not math.isfinite(way.closes_s):
        return f"{windows}; open beyond the plan's end"
    return f"{windows}; closes in {(way.closes_s - now_s) / stretch:.1f} s"


def window_text(contact: Contact) -> str:
    """A window in words: when, and how high the satellite rises where one end is a site."""
    high = "" if contact.max_elevation_deg is None else f", at most {contact.max_elevation_deg:.1f} deg high"
    return f"window {_clock(contact.start_s)} to {_clock(contact.end_s)}{high}"


def _clock(mesh_s: float) -> str:
    return datetime.fromtimestamp(mesh_s, UTC).strftime("%H:%M:%S")
