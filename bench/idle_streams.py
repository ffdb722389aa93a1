"""What a client that opens a thousand streams and reads none of them does to another client's token times.

    python bench/idle_streams.py [--json] [--rounds 5] [--streams 1000]

A real local mesh: gateway, scheduler, two executors in a pipeline of two stages. The other client (the victim) asks for
one answer after the other and notes how long each token and each whole call took. In between, a process of its own
with an identity of its own opens the streams in one go, sends each its request, and reads nothing. The rounds are
interleaved: alone, beside streams that watch (nothing is computed for them), alone, beside prompts that nobody reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import grpc  # noqa: E402 - the paths come first
import grpc.aio  # noqa: E402
from generate import machine  # noqa: E402

from orbitmesh import Mesh  # noqa: E402
from orbitmesh.rpc import map_rpc_error, open_channel  # noqa: E402
from orbitmesh.trust import Role, issue, load_identity  # noqa: E402
from orbitmesh.v1 import gateway_pb2, slices_pb2  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "idle_streams.json"
PROMPT = "The with statement is used to"
TOKENS = 24
CALLS = 12
GOAL = 2.0
METHODS = {
    "watching": ("/orbitmesh.v1.SlicesService/WatchSlices", slices_pb2.WatchSlicesRequest()),
    "generating": (
        "/orbitmesh.v1.GatewayService/Generate",
        gateway_pb2.GenerateRequest(deployment="idle", text=PROMPT, max_new_tokens=32, ignore_end=True),
    ),
}


async def attack(address: str, identity: Path, kind: str, streams: int) -> None:
    """Opens the streams, says how it went, and holds them until its input ends."""
    method, request = METHODS[kind]
    outcomes: Counter[str] = Counter()
    async with open_channel(address, load_identity(identity), Role.GATEWAY, "gateway") as channel:
        calls = [channel.stream_stream(method)() for _ in range(streams)]
        sent = [asyncio.ensure_future(_send(call, request.SerializeToString())) for call in calls]
        await asyncio.sleep(0.5)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        for call in calls:
            if not call.done():
                outcomes["open"] += 1
                call.cancel()
            elif await call.code() is grpc.StatusCode.OK:
                outcomes["answered"] += 1
            else:
                begins, ends = await call.initial_metadata(), await call.trailing_metadata()
                error = grpc.aio.AioRpcError(await call.code(), begins, ends, await call.details())
                outcomes[map_rpc_error(error).reason] += 1
        for each in sent:
            each.cancel()
        sys.stdout.write(json.dumps(outcomes) + "\n")


async def _send(call: Any, request: bytes) -> None:
    try:
        await call.write(request)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        pass  # refused: its code says so


class Attackers:
    """The process that holds the streams."""

    def __init__(self, mesh: Mesh, identity: Path, kind: str, streams: int) -> None:
        command = [sys.executable, __file__, "--attack", kind, mesh.local.gateway, str(identity), str(streams)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "open\n"

    def end(self) -> dict[str, int]:
        """Lets go; gives what became of the streams."""
        out, _ = self._process.communicate("\n")
        found: dict[str, int] = json.loads(out)
        return found


def victim(mesh: Mesh) -> dict[str, float]:
    """Token and call times of one answer after the other, in milliseconds."""
    gaps, calls = [], []
    for _ in range(CALLS):
        began = at = time.perf_counter()
        for _token in mesh.generate("idle", PROMPT, max_new_tokens=TOKENS, ignore_end=True):
            now = time.perf_counter()
            gaps.append(1e3 * (now - at))
            at = now
        calls.append(1e3 * (time.perf_counter() - began))
    gaps.sort()
    return {
        "token_p50_ms": gaps[len(gaps) // 2], "token_p99_ms": gaps[int(len(gaps) * 0.99)], "call_max_ms": max(calls),
    }  # fmt: skip


def measure(rounds: int, streams: int) -> dict[str, Any]:
    """The rounds."""
    rows: dict[str, list[dict[str, float]]] = {"alone": [], **{kind: [] for kind in METHODS}}
    became: dict[str, Counter[str]] = {kind: Counter() for kind in METHODS}
    with Mesh.local(nodes=2) as mesh:
        mesh.deploy(ROOT / "models" / "pydoc", name="idle", stages=2)
        identity = mesh.local.directory / "attacker"
        issue(mesh.local.directory / "ca", Role.CLIENT, "attacker", identity)
        victim(mesh)
        for _ in range(rounds):
            for kind in METHODS:
                rows["alone"].append(victim(mesh))
                attackers = Attackers(mesh, identity, kind, streams)
                rows[kind].append(victim(mesh))
                became[kind].update(attackers.end())
                print(kind, rows["alone"][-1], rows[kind][-1], dict(became[kind]), file=sys.stderr, flush=True)
    figures = {
        case: {name: statistics.median(each[name] for each in of) for name in of[0]} for case, of in rows.items()
    }
    ratios = {
        kind: {
            name: {"median": figures[kind][name] / figures["alone"][name]}
            | {"worst": max(each[name] for each in rows[kind]) / figures["alone"][name]}
            for name in figures["alone"]
        }
        for kind in METHODS
    }
    return {
        "streams": streams, "rounds": rounds, "figures": figures, "over_alone": ratios, "streams_became": became,
        "goal": {"what": "token p99 beside the streams over alone", "at_most": GOAL},
        "met": {kind: ratios[kind]["token_p99_ms"]["median"] <= GOAL for kind in METHODS},
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind")
    parser.add_argument("--streams", type=int, default=1000, help="streams that nobody reads")
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        kind, address, identity, streams = given.attack
        asyncio.run(attack(address, Path(identity), kind, int(streams)))
        return
    on = machine()
    found = measure(given.rounds, given.streams)
    command = f"python bench/idle_streams.py --rounds {given.rounds} --streams {given.streams} --json"
    found = {"command": command, "machine": on, **found}
    if given.json:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
