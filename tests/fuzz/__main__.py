"""`make fuzz`: a million changed frames and many thousand calls of every method, against real processes.

    python -m tests.fuzz --frames 1000000 --calls 250 --json

It ends with an error where a changed frame was taken, a refusal had no name, a log has a traceback, a process ended or
its memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.fuzz.frames import Tally, fuzz
from tests.fuzz.place import Place, place
from tests.fuzz.recording import make_recording
from tests.fuzz.rpcs import Outcomes, calling, defects_in, fuzz_rpcs, memory_of, runs
from tests.fuzz.sessions import SessionTally, attack_session, of_sessions, talk_nonsense

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "fuzz.json"
RECORDINGS = 4
PER_FRAME = 200
SESSIONS = 60
GROWTH_BYTES = 16 << 20
"""How much more a process may hold after twice as many calls than after once as many."""


def frames(directory: Path, wanted: int, seed: int) -> dict[str, object]:
    """Changed frames to receivers of recorded sessions, in this process; memory after half of them and after all."""
    recordings = [make_recording(directory / str(n), n) for n in range(RECORDINGS)]
    rng, tally, began = random.Random(seed), Tally(), time.monotonic()
    process, half = psutil.Process(), 0
    while tally.frames < wanted:
        if not half and tally.frames >= wanted // 2:
            half = process.memory_info().rss
        one, *others = rng.sample(recordings, RECORDINGS)
        fuzz(one, tuple(others), rng.getrandbits(64), PER_FRAME, tally)
    grown = process.memory_info().rss - half if half else 0
    assert grown < GROWTH_BYTES, f"the second half of the frames took {grown} bytes of memory"
    return {
        "changed": tally.frames, "accepted": 0, "crashes": 0, "refused": dict(tally.refused.most_common()),
        "same_frame_in_another_spelling": tally.respelled, "made_an_acknowledgement": tally.control,
        "by_change": _merged(tally.changes), "took_s": round(time.monotonic() - began, 1),
        "memory_grown_in_second_half_bytes": grown,
    }  # fmt: skip


def _merged(changes: Counter[str]) -> dict[str, int]:
    out: Counter[str] = Counter()
    for name, count in changes.items():
        out[name.partition(",")[0]] += count
    return dict(out.most_common())


def sessions(whole: Place, wanted: int, seed: int) -> dict[str, object]:
    """Changed frames and nonsense into the sessions of real processes, over mTLS."""
    tally, rng, began = SessionTally(), random.Random(seed), time.monotonic()
    methods = of_sessions(whole.methods())

    async def attack() -> None:
        async with calling(whole.identities, Outcomes()) as caller:
            for _ in range(wanted):
                for method in methods:
                    one = rng.getrandbits(64)
                    await attack_session(caller, method, whole.identities[method.role], one, tally)
                    await talk_nonsense(caller, method, whole.identities[method.role], one, tally)

    asyncio.run(attack())
    return {
        "methods": sorted({f"{method.title} as {method.role.value}" for method in methods}),
        "changed": tally.refused.total(), "accepted": 0, "refused": dict(tally.refused.most_common()),
        "same_frame_in_another_spelling": tally.respelled, "transfers_of_nonsense": dict(tally.nonsense.most_common()),
        "took_s": round(time.monotonic() - began, 1),
    }  # fmt: skip


def calls(whole: Place, each: int, seed: int) -> dict[str, object]:
    """Every method of every process, three times `each` times; memory after each third."""
    methods, outcomes, began = whole.methods(), Outcomes(), time.monotonic()
    memory: list[dict[str, int]] = []
    for third in range(3):
        asyncio.run(fuzz_rpcs(methods, whole.identities, each, seed + third, outcomes))
        memory.append({server.name: memory_of(server) for server in whole.servers})
    assert outcomes.wrong == [], "\n".join(outcomes.wrong[:20])
    grown = {name: memory[2][name] - memory[1][name] for name in memory[0]}
    assert max(grown.values()) < GROWTH_BYTES, f"memory grew in the last third of the calls: {grown}"
    return {
        "methods": len(methods), "calls": outcomes.calls.total(),
        "calls_of_each_at_least": min(outcomes.calls.values()),
        "outcomes": dict(outcomes.outcomes.most_common()), "unknown_or_internal": 0,
        "memory_bytes_after_each_third": {name: [each[name] for each in memory] for name in memory[0]},
        "took_s": round(time.monotonic() - began, 1),
    }  # fmt: skip


def check(whole: Place) -> None:
    """Every process is there, and no log tells of a defect."""
    for server in whole.servers:
        assert runs(server), f"{server.name} is gone"
        found = defects_in(server.log)
        assert not found, f"{server.name}: {found[:3]}"


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="changed frames to receivers")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="sessions with each process, over mTLS")
    parser.add_argument("--calls", type=int, default=100, help="a third of the calls of every method")
    parser.add_argument("--seed", type=int, default=None, help="of all of it; drawn where left out")
    parser.add_argument("--json", action="store_true", help="write bench/results/fuzz.json")
    given = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if given.seed is None else given.seed
    found: dict[str, object] = {
        "command": f"python -m tests.fuzz --frames {given.frames} --sessions {given.sessions} --calls {given.calls} "
        f"--seed {seed} --json",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
    }
    sys.stdout.write(f"seed {seed}\n")
    with tempfile.TemporaryDirectory(prefix="orbitmesh-fuzz-") as base:
        directory = Path(base)
        found["frames"] = frames(directory / "recordings", given.frames, seed)
        sys.stdout.write(json.dumps(found["frames"]) + "\n")
        with place(directory / "mesh") as whole:
            found["sessions"] = sessions(whole, given.sessions, seed)
            sys.stdout.write(json.dumps(found["sessions"]) + "\n")
            found["calls"] = calls(whole, given.calls, seed)
            sys.stdout.write(json.dumps(found["calls"]) + "\n")
            check(whole)
    if given.json:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
