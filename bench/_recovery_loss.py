"""Losses that nobody foresaw: a node killed or gone silent in mid-answer, the gateway killed, the scheduler killed.

Part of `bench/recovery.py`. The bound of a stall with a warm standby is detection + two round trips between gateway and
nodes + one prefill chunk of the length that is computed again, all three measured in the same round: detection from the
blow to the gateway's log line, round trips by the gateway's own calls, the chunk on the stage that took over.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

from _recovery_mesh import (
    NOTICED,
    PROMPT,
    GatewayLog,
    described,
    fresh,
    listen,
    round_trips_s,
    row_s,
    summary,
)

from orbitmesh import Link, Mesh

STAGES = 3
TOKENS = 64
LONG_TOKENS = 120
"""Tokens of the answers in which a service is killed: 20 ms links make them last for as long as its restart."""
BLOW_BETWEEN = (8, 48)
"""The tokens at which a node is killed are drawn from here."""
LINKS = {"loopback": None, "20 ms links": Link(latency_ms=20, rate_mbps=100)}
BOUND_ROUND_TRIPS = 2
GOAL_DETECTION_S = 1.0
CHUNK_RUNS = 3

Tell = Callable[[str], None]


def blow_at_node(
    mesh: Mesh, model: str, stage: int, token: int, number: int, expected: Sequence[int], how: str
) -> dict[str, Any]:
    """One round: a stage's node is struck in mid-answer, and started anew afterwards.

    Args:
        mesh: Where.
        model: What is deployed.
        stage: The stage whose node it is.
        token: The token after which it is struck.
        number: A signal: SIGKILL, or SIGSTOP for a node that is there and says nothing.
        expected: The tokens of an undisturbed answer.
        how: The signal's name.
    """
    victim = fresh(mesh, model, STAGES)[stage]
    pid = mesh.local.processes()[victim].pid
    log = GatewayLog(mesh)
    heard = listen(mesh, TOKENS, blow_at=token, blow=lambda: os.kill(pid, number))
    noticed = log.first(*NOTICED, node=victim)
    successor = described(mesh).pipeline[stage].name
    known = [*PROMPT, *heard.ids[: token + 1]]
    chunks, round_trips = [], round_trips_s(mesh, heard.trace_id)
    for _ in range(CHUNK_RUNS):
        again = listen(mesh, 1, prompt=known)
        chunks.append(row_s(mesh, again.trace_id, "compute", successor))
        for node, trip_s in round_trips_s(mesh, again.trace_id).items():
            round_trips[node] = min(trip_s, round_trips.get(node, trip_s))
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    mesh.local.restart(victim)
    gap_s = heard.longest_gap_s(heard.blow_s)
    detection_s = max(0.0, noticed[0] - heard.blow_s) if noticed is not None else None
    bound_s = (detection_s or 0.0) + BOUND_ROUND_TRIPS * max(round_trips.values()) + statistics.median(chunks)
    return {
        "signal": how,
        "stage": stage,
        "token": token,
        "node": victim,
        "successor": successor,
        "same_tokens": heard.ids == list(expected),
        "detection_s": detection_s,
        "noticed_by": noticed[1]["event"] if noticed is not None else None,
        "detect_row_s": row_s(mesh, heard.trace_id, "detect"),
        "recover_row_s": row_s(mesh, heard.trace_id, "recover"),
        "longest_gap_s": gap_s,
        "median_gap_s": heard.median_gap_s,
        "stall_s": gap_s - heard.median_gap_s,
        "round_trip_s": max(round_trips.values()),
        "chunk_s": statistics.median(chunks),
        "bound_s": bound_s,
        "over_bound_s": gap_s - heard.median_gap_s - bound_s,
    }


def gateway_killed(mesh: Mesh, expected: Sequence[int], token: int) -> dict[str, Any]:
    """One round: the gateway is killed in mid-answer and started again; the client's stream goes on by itself."""
    log = GatewayLog(mesh)
    again = threading.Thread(target=mesh.local.restart, args=("gateway",))
    heard = listen(mesh, LONG_TOKENS, blow_at=token, blow=again.start)
    again.join()
    listening = log.first("listening")
    if listening is None:
        raise SystemExit("the gateway did not listen again")
    after = [at_s for at_s in heard.at_s if at_s > listening[0]]
    return {
        "same_tokens": heard.ids == list(expected),
        "down_s": listening[0] - heard.blow_s,
        "next_token_after_listening_s": after[0] - listening[0] if after else None,
        "longest_gap_s": heard.longest_gap_s(heard.blow_s),
        "median_gap_s": heard.median_gap_s,
    }


def scheduler_killed(mesh: Mesh, expected: Sequence[int], token: int) -> dict[str, Any]:
    """One round: the scheduler is killed in mid-answer and started again; set against an undisturbed answer."""
    quiet = listen(mesh, LONG_TOKENS)
    again = threading.Thread(target=mesh.local.restart, args=("scheduler",))
    heard = listen(mesh, LONG_TOKENS, blow_at=token, blow=again.start)
    again.join()
    return {
        "same_tokens": heard.ids == list(expected),
        "longest_gap_s": heard.longest_gap_s(heard.blow_s),
        "median_gap_s": heard.median_gap_s,
        "undisturbed_longest_gap_s": max(quiet.gaps_s),
        "added_s": heard.longest_gap_s(heard.blow_s) - max(quiet.gaps_s),
    }


def measure(model: str, rounds: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Every round of losses, over both kinds of links."""
    found: dict[str, Any] = {}
    for links, link in LINKS.items():
        rng = random.Random(seed)
        with Mesh.local(nodes=STAGES + 1, link=link) as mesh:
            fresh(mesh, model, STAGES)
            expected = listen(mesh, LONG_TOKENS).ids
            nodes = []
            for number in range(rounds):
                blows = [("SIGKILL", stage) for stage in range(STAGES)] + [("SIGSTOP", number % STAGES)]
                for how, stage in blows:
                    token = rng.randrange(*BLOW_BETWEEN)
                    row = blow_at_node(mesh, model, stage, token, signal.Signals[how], expected[:TOKENS], how)
                    nodes.append(row)
                    tell(
                        f"{links}, round {number + 1} of {rounds}: {how} of stage {stage} at token {token}: "
                        f"noticed after {(row['detection_s'] or 0) * 1e3:.0f} ms, stall {row['stall_s'] * 1e3:.0f} ms, "
                        f"bound {row['bound_s'] * 1e3:.0f} ms"
                    )
            found[links] = {"nodes": nodes}
            if link is not None:
                found["services"] = _services(mesh, model, expected, rounds, rng, tell)
    return {**{links: {**_summaries(found[links]["nodes"]), **found[links]} for links in LINKS}, **_rest(found)}


def _services(
    mesh: Mesh, model: str, expected: Sequence[int], rounds: int, rng: random.Random, tell: Tell
) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"gateway killed": [], "scheduler killed": []}
    for number in range(rounds):
        for name, strike in (("gateway killed", gateway_killed), ("scheduler killed", scheduler_killed)):
            fresh(mesh, model, STAGES)
            rows[name].append(strike(mesh, expected, rng.randrange(10, 20)))
            tell(f"round {number + 1} of {rounds}: {name}: {rows[name][-1]}")
    return rows


def _summaries(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = (
        "detection_s", "detect_row_s", "recover_row_s", "longest_gap_s", "median_gap_s", "stall_s", "round_trip_s",
        "chunk_s", "bound_s", "over_bound_s",
    )  # fmt: skip
    return {
        how: {
            **{
                key: summary([row[key] for row in rows if row["signal"] == how and row[key] is not None])
                for key in keys
            },
            "within_bound": sum(row["over_bound_s"] <= 0 for row in rows if row["signal"] == how),
            "same_tokens": sum(row["same_tokens"] for row in rows if row["signal"] == how),
            "of": sum(row["signal"] == how for row in rows),
        }
        for how in ("SIGKILL", "SIGSTOP")
    }


def _rest(found: dict[str, Any]) -> dict[str, Any]:
    services = found["services"]
    gateway, scheduler = services["gateway killed"], services["scheduler killed"]
    return {
        "gateway killed": {
            "down_s": summary([row["down_s"] for row in gateway]),
            "next_token_after_listening_s": summary([row["next_token_after_listening_s"] for row in gateway]),
            "same_tokens": sum(row["same_tokens"] for row in gateway),
            "of": len(gateway),
            "rounds": gateway,
        },
        "scheduler killed": {
            "longest_gap_s": summary([row["longest_gap_s"] for row in scheduler]),
            "undisturbed_longest_gap_s": summary([row["undisturbed_longest_gap_s"] for row in scheduler]),
            "added_s": summary([row["added_s"] for row in scheduler]),
            "same_tokens": sum(row["same_tokens"] for row in scheduler),
            "of": len(scheduler),
            "rounds": scheduler,
        },
    }


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at, against the worst of what was measured."""
    aims: dict[str, dict[str, Any]] = {}
    for links in LINKS:
        worst_s = max(found[links][how]["detection_s"]["max"] for how in ("SIGKILL", "SIGSTOP"))
        over_s = found[links]["SIGKILL"]["over_bound_s"]["max"]
        aims[f"detection, {links}, s"] = {
            "goal": GOAL_DETECTION_S,
            "worst": worst_s,
            "met": worst_s <= GOAL_DETECTION_S,
        }
        aims[f"stall above its bound, {links}, s"] = {"goal": 0.0, "worst": over_s, "met": over_s <= 0}
    return aims
