"""What the sky foretells: a stage handed over before a window closes, and an answer that spans closed windows.

Part of `bench/recovery.py`.

Hand-over: all nodes are in contact; in mid-answer the plan is replaced by one in which every window of a stage's node
closes soon. The scheduler names the standby as the successor, the gateway feeds it and switches; then the plan is put
back. The links stay open throughout: what is measured is the move. Two models, one for each way of feeding: of a stage
of the first, the journal's rows are fewer bytes, of a stage of the second, the cache. A first stage is always fed with
tokens.

Windows: 8 minutes up and a long time down at 60x. A first window that is longer takes the deployment and an answer
that says how many tokens a second the same mesh makes while nothing closes; the answer that is measured begins shortly
before that window closes and spans those after it. What is computed twice is counted in the gateway's spans.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from _recovery_journal import environment
from _recovery_mesh import NAME, PROMPT, GatewayLog, Heard, described, fresh, listen, summary

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint, MeshClock
from orbitmesh.feeding import feed_mode
from orbitmesh.pack import Manifest
from orbitmesh.v1 import executor_pb2

EPOCH_S = 1.7e9
RATE_BPS = 1e8
STAGES = 3
NODES = ("ground-1", "sat-1", "sat-2", "sat-3")
LATENCIES_S = {"loopback": 0.0, "20 ms links": 0.02}
CLOSES_IN_S = 9.0
"""How soon a window closes in the plan that foretells it: within every lead time, and after the move."""
MOVE_AT = 20
"""The token at which the plan is replaced."""
MOVE_TOKENS = 1500
"""The longest answer in which a stage moves."""
MOVE_WAIT_S = 25.0
"""How long a move may take to come, and to be over."""
TOKENS_AFTER = 30
"""Tokens after the switch that still count."""
NEAR_TOKENS = 3
"""How many tokens before and behind the switch are "at the switch"."""
FACTOR = 60.0
UP_S = 480.0
FIRST_UP_S = 2400.0
"""Of the window in which the model is deployed and the reference measured: 40 s at 60x."""
DOWN_S = 600.0
LONG_DOWN_S = 5100.0
BEFORE_CLOSING_S = 3.0
"""How long before the first window closes the answer begins, real seconds."""
REFERENCE_TOKENS = 100
LAST_SHARE = 0.85
"""Of the last window, how much the answer is made to last."""
GOAL_SHARE = 0.95
GOAL_STEPS = 1.0
SPANS = "ORBITMESH_BENCH_SPANS"
PATCH = f"""import os, sys
if "gateway" in sys.orig_argv:
    sys.argv += ["--spans-file", os.environ["{SPANS}"]]
"""

Tell = Callable[[str], None]


def small_llama(directory: Path, layers: int, kv_heads: int) -> str:
    """Saves a Llama of width 256 with random weights from a fixed seed; returns where."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def contacts(nodes: Sequence[str], windows: Sequence[tuple[float, float]], latency_s: float) -> list[Contact]:
    """Every two nodes in contact, both ways, in each window."""
    return [
        Contact(source, target, start_s, end_s, RATE_BPS, (LatencyPoint(start_s, latency_s),))
        for start_s, end_s in windows
        for source, target in permutations(nodes, 2)
    ]


def plan_of(found: Sequence[Contact]) -> ContactPlan:
    """A plan, its contacts in order."""
    ordered = sorted(found, key=lambda each: (each.start_s, each.source, each.target))
    return ContactPlan(EPOCH_S, max(each.end_s for each in found), tuple(ordered))


# Hand-over.


def _open_sky(latency_s: float, sets: str = "", sets_s: float = 0.0) -> ContactPlan:
    """All in contact for a day; one node only until `sets_s`."""
    day_s = 86_400.0
    found = contacts(NODES, [(EPOCH_S, EPOCH_S + day_s)], latency_s)
    return plan_of(
        [
            Contact(each.source, each.target, each.start_s, sets_s, each.rate_bps, each.latency)
            if sets in (each.source, each.target)
            else each
            for each in found
        ]
    )


def _publish(mesh: Mesh, plan: ContactPlan) -> None:
    path = mesh.local.directory / "contacts.json"
    new = path.with_suffix(".new")
    new.write_text(plan.dump())
    new.replace(path)


def hand_over(mesh: Mesh, name: str, stage: int, latency_s: float) -> dict[str, Any]:
    """One move of a stage in mid-answer; returns what it did to the tokens."""
    held = described(mesh, name)
    victim = held.pipeline[stage].name
    planned = held.plan.stages[stage]
    manifest = Manifest.parse(held.manifest)
    mode = feed_mode(manifest, range(planned.layer_start, planned.layer_stop), first=stage == 0)
    fed = "tokens" if stage == 0 else executor_pb2.FeedMode.Name(mode).removeprefix("FEED_MODE_").lower()
    log, scheduler_log = GatewayLog(mesh), GatewayLog(mesh, "scheduler")
    clock = mesh.local.clock()
    moved, seen = threading.Event(), [0]
    began_s = time.monotonic()

    def look() -> None:
        while not moved.is_set() and time.monotonic() < began_s + MOVE_WAIT_S:
            if log.first("stage_moved", "stage_not_moved", stage=stage) is not None:
                moved.set()
            time.sleep(0.1)

    def foretell() -> None:
        _publish(mesh, _open_sky(latency_s, victim, clock.now_s() + CLOSES_IN_S))
        watcher.start()

    def enough(heard: Heard) -> bool:
        seen[0] += moved.is_set()
        return seen[0] > TOKENS_AFTER or time.monotonic() > began_s + MOVE_WAIT_S

    watcher = threading.Thread(target=look)
    heard = listen(mesh, MOVE_TOKENS, blow_at=MOVE_AT, blow=foretell, enough=enough, name=name)
    watcher.join()
    _publish(mesh, _open_sky(latency_s))
    result = {"stage": stage, "node": victim, "fed": fed, "tokens": len(heard.ids), "median_gap_s": heard.median_gap_s}
    line = log.first("stage_moved", stage=stage)
    named = scheduler_log.first("hand_over_planned", stage=stage)
    if line is None or named is None:
        why = log.first("stage_not_moved", stage=stage)
        return {**result, "moved": False, "why": str(why[1].get("detail")) if why is not None else "no move came"}
    return {**result, "moved": True, **_around(heard, int(line[1]["switch_at"]), named[0])}


def _around(heard: Heard, switch_at: int, named_s: float) -> dict[str, Any]:
    """Gaps at the switch, and from the naming of the successor to the end."""
    step_s = heard.median_gap_s
    gaps = list(zip(heard.gaps_s, heard.positions[1:], heard.at_s[1:], strict=True))
    near = [gap for gap, position, _ in gaps if abs(position - switch_at - 1) <= NEAR_TOKENS]
    while_s = [gap for gap, _, at_s in gaps if at_s >= named_s]
    quiet = sorted(gap for gap, _, at_s in gaps if at_s < named_s) or [step_s]
    return {
        "switch_at": switch_at,
        "at_switch_gap_s": max(near),
        "stall_steps": max(near) / step_s - 1,
        "longest_gap_while_fed_s": max(while_s),
        "stall_steps_while_fed": max(while_s) / step_s - 1,
        "stall_steps_before": quiet[-1] / step_s - 1,
    }


def measure_hand_overs(rounds: int, tell: Tell) -> dict[str, Any]:
    """Moves over both kinds of links, with both ways of feeding."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="orbitmesh-bench-") as scratch:
        models = {
            "journal": small_llama(Path(scratch) / "rows", 2 * STAGES, 4),
            "cache": small_llama(Path(scratch) / "cache", STAGES, 1),
        }
        for links, latency_s in LATENCIES_S.items():
            rows = []
            with Mesh.local(
                node_names=NODES, contacts=_open_sky(latency_s), time_factor=1.0, start=EPOCH_S, gateway_at="ground-1"
            ) as mesh:
                for name, model in models.items():
                    for number in range(rounds):
                        nodes = fresh(mesh, model, STAGES, name)
                        # ground-1 stands beside the gateway and never sets; the first stage is fed with tokens.
                        away = [k for k, node in enumerate(nodes) if node != "ground-1" and k > 0]
                        row = hand_over(mesh, name, away[number % len(away)], latency_s)
                        rows.append({"model": name, **row})
                        tell(f"hand-over, {links}, {name}, round {number + 1} of {rounds}: {rows[-1]}")
                    mesh.delete(name)
            found[links] = {**_moves(rows), "rounds": rows}
    return found


def _moves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fed in ("journal", "cache"):
        moved = [row for row in rows if row["fed"] == fed and row["moved"]]
        found[fed] = {"moved": len(moved), "of": sum(row["fed"] == fed for row in rows)}
        for key in ("stall_steps", "stall_steps_while_fed", "stall_steps_before", "at_switch_gap_s", "median_gap_s"):
            if moved:
                found[fed][key] = summary([row[key] for row in moved])
    return found


# Windows.


def _window_plan(latency_s: float, count: int, down_s: float) -> tuple[ContactPlan, list[tuple[float, float]]]:
    """The first, longer window and `count` more; and those windows. A long one at the end lets a late answer finish."""
    start_s = EPOCH_S + FIRST_UP_S + down_s
    later = [(start_s + k * (UP_S + down_s), start_s + k * (UP_S + down_s) + UP_S) for k in range(count)]
    last_s = later[-1][1] + down_s
    found = contacts(NODES, [(EPOCH_S, EPOCH_S + FIRST_UP_S), *later, (last_s, last_s + FIRST_UP_S)], latency_s)
    return plan_of(found), later


def _real(clock: MeshClock, windows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(clock.wall_s(start_s), clock.wall_s(end_s)) for start_s, end_s in windows]


def measure_windows(model: str, count: int, down_s: float, tell: Tell) -> dict[str, Any]:
    """One answer over `count` windows."""
    plan, later = _window_plan(LATENCIES_S["20 ms links"], count, down_s)
    with tempfile.TemporaryDirectory(prefix="orbitmesh-bench-") as scratch:
        (Path(scratch) / "sitecustomize.py").write_text(PATCH)
        spans = Path(scratch) / "spans.jsonl"
        paths = os.pathsep.join(filter(None, [scratch, os.environ.get("PYTHONPATH")]))
        with (
            environment(PYTHONPATH=paths, **{SPANS: str(spans)}),
            Mesh.local(
                node_names=NODES[1:], contacts=plan, time_factor=FACTOR, start=EPOCH_S, gateway_at="ground-1"
            ) as mesh,
        ):
            mesh.deploy(model, name=NAME, stages=STAGES, work_s=1.0)
            clock = mesh.local.clock()
            reference = listen(mesh, REFERENCE_TOKENS)
            rate = (REFERENCE_TOKENS - 1) / (reference.at_s[-1] - reference.at_s[0])
            closing_s = clock.seconds_until(EPOCH_S + FIRST_UP_S)
            if closing_s < BEFORE_CLOSING_S:
                raise SystemExit(f"the first window closes in {closing_s:.1f} s: this machine deploys too slowly")
            time.sleep(closing_s - BEFORE_CLOSING_S)
            up_s = UP_S / FACTOR
            tokens = int(rate * (BEFORE_CLOSING_S + (count - 1 + LAST_SHARE) * up_s))
            tell(f"windows: {rate:.1f} tokens a second in contact; {tokens} tokens over {count} windows")
            heard = listen(mesh, tokens, timeout_s=(count + 1) * (UP_S + down_s) / FACTOR + FIRST_UP_S / FACTOR)
            waited = mesh.explain(heard.trace_id)
            windows = _real(clock, later)
        twice = _computed_twice(spans, heard.trace_id)  # complete when the gateway has ended
    rows = [_used(heard, start_s, end_s, rate) for start_s, end_s in windows]
    return {
        "down_s": down_s / FACTOR,
        "up_s": up_s,
        "tokens_per_second_in_contact": rate,
        "tokens": len(heard.ids),
        "same_beginning": heard.ids[:REFERENCE_TOKENS] == reference.ids[: len(heard.ids)],
        "share_after_set_up": summary([row["share_after_set_up"] for row in rows]),
        "flowing_after_set_up": summary([row["flowing_after_set_up"] for row in rows]),
        "share_of_window": summary([row["share_of_window"] for row in rows]),
        "set_up_s": summary([row["set_up_s"] for row in rows]),
        "waiting_row_s": sum(row.total_s for row in waited.rows if row.what == "waiting for contact"),
        **twice,
        "windows": rows,
    }


def _used(heard: Heard, start_s: float, end_s: float, rate: float) -> dict[str, float]:
    """What a window was used for: tokens against those that the mesh made in as long a time of the first window, and
    the time in which tokens flowed, which is all but what a gap lasts longer than two tokens of that window."""
    until_s = min(end_s, heard.at_s[-1])
    came = [at_s for at_s in heard.at_s if start_s <= at_s <= until_s]
    if len(came) < 2:
        nothing = {"flowing_after_set_up": 0.0, "share_of_window": 0.0, "share_after_set_up": 0.0}
        return {"set_up_s": end_s - start_s, "tokens": len(came), **nothing}
    stood_s = sum(max(0.0, after - before - 2 / rate) for before, after in pairwise([*came, until_s]))
    return {
        "set_up_s": came[0] - start_s,
        "flowing_after_set_up": 1 - stood_s / (until_s - came[0]),
        "tokens": len(came),
        "share_of_window": len(came) / (rate * (until_s - start_s)),
        "share_after_set_up": (len(came) - 1) / (rate * (until_s - came[0])),
    }


def _computed_twice(spans: Path, trace_id: str) -> dict[str, Any]:
    """Steps in the gateway's spans, and positions that one stage computed more than once."""
    steps: Counter[tuple[int, int]] = Counter()
    left_out = 0
    for line in spans.read_text().splitlines():
        span = json.loads(line)
        if span["context"]["trace_id"].removeprefix("0x") != trace_id:
            continue
        attributes = span["attributes"] or {}
        left_out += attributes.get("orbitmesh.spans_left_out", 0)
        if span["name"] == "stage.step":
            steps[attributes["orbitmesh.stage"], attributes["orbitmesh.position"]] += 1
    twice = sorted(place for place, times in steps.items() if times > 1)
    return {
        "steps": sum(steps.values()),
        "decoded_positions_computed_twice": len([place for place in twice if place[1] >= len(PROMPT)]),
        "computed_twice": [list(place) for place in twice][:20],
        "spans_left_out": left_out,
    }


def goals(moves: dict[str, Any] | None, windows: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What was aimed at, against the worst of what was measured."""
    aims: dict[str, dict[str, Any]] = {}
    for links, found in ((links, moves[links]) for links in LATENCIES_S if moves is not None):
        for fed in ("journal", "cache"):
            if "stall_steps" in found[fed]:
                worst = found[fed]["stall_steps"]["median"]  # on loopback any gap of a busy machine is a step
                aims[f"stall at a hand-over by {fed}, {links}, steps"] = {
                    "goal": GOAL_STEPS, "median": worst, "met": worst <= GOAL_STEPS,
                }  # fmt: skip
    if windows is not None:
        worst = windows["share_after_set_up"]["min"]
        aims["tokens of a window after set-up, against the first"] = {
            "goal": GOAL_SHARE, "worst": worst, "met": worst >= GOAL_SHARE,
        }  # fmt: skip
        worst = windows["flowing_after_set_up"]["min"]
        aims["time of a window after set-up in which tokens flow"] = {
            "goal": GOAL_SHARE, "worst": worst, "met": worst >= GOAL_SHARE,
        }  # fmt: skip
        twice = windows["decoded_positions_computed_twice"]
        aims["decoded positions computed twice"] = {"goal": 0, "worst": twice, "met": twice == 0}
    return aims
