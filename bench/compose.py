"""What the mesh in containers costs: time until all is healthy, memory at rest, sizes of images.

`orbitmesh bench compose -- --rounds N`, with an engine, docker-compose and the images built (`docker-compose build` in
deploy/). Brings the mesh up under a project's name of its own, measures, takes it down with its volumes, and writes
bench/results/compose.json with the command that made it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
RESULT = ROOT / "bench" / "results" / "compose.json"
PROJECT = "orbitmesh-bench"
IMAGES = ("orbitmesh/runtime:0.1.0", "orbitmesh/pki:0.1.0", "orbitmesh/runtime-torch:0.1.0")
REST_S = 30.0
"""How long the mesh is left alone before its memory is read, in seconds."""
GIVE_UP_S = 300.0
"""How long it may take to become healthy, in seconds."""
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def run(*words: str) -> str:
    """The output of a command in deploy/."""
    environment = os.environ | {
        "COMPOSE_PROJECT_NAME": PROJECT, "ORBITMESH_PORT": "27443", "ORBITMESH_NET": "172.31.79",
    }  # fmt: skip
    return subprocess.run(words, cwd=DEPLOY, env=environment, capture_output=True, text=True, check=True).stdout


def states() -> dict[str, str]:
    """Health of each service that has one."""
    ids = run("docker-compose", "ps", "-q").split()
    found = {}
    for facts in json.loads(run("docker", "inspect", *ids)):
        health = facts["State"].get("Health")
        if health is not None:
            found[facts["Config"]["Labels"]["com.docker.compose.service"]] = str(health["Status"])
    return found


def until_healthy() -> tuple[float, dict[str, str]]:
    """Seconds from `up` until every service is healthy, volumes new, images there."""
    began = time.monotonic()
    run("docker-compose", "up", "-d", "--no-build")
    while True:
        found = states()
        if found and set(found.values()) == {"healthy"}:
            return time.monotonic() - began, found
        if time.monotonic() - began > GIVE_UP_S:
            raise SystemExit(f"not healthy after {GIVE_UP_S:g} s: {found}")
        time.sleep(0.2)


def memory() -> dict[str, int]:
    """Memory of each service's container as the engine says it, in bytes."""
    ids = run("docker-compose", "ps", "-q").split()
    names = {
        facts["Id"]: facts["Config"]["Labels"]["com.docker.compose.service"]
        for facts in json.loads(run("docker", "inspect", *ids))
        if facts["State"]["Running"]
    }  # fmt: skip
    said = run("docker", "stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.MemUsage}}", *names)
    found = {}
    for line in said.splitlines():
        match = re.match(r"(\w+) ([\d.]+)(\w+) / ", line)
        if match is None:
            raise SystemExit(f"docker stats says {line!r}")
        found[names[match[1]]] = round(float(match[2]) * UNITS[match[3]])
    return dict(sorted(found.items()))


def one_round() -> dict[str, Any]:
    """One mesh, from nothing to nothing."""
    try:
        seconds, healthy = until_healthy()
        time.sleep(REST_S)
        rest = memory()
    finally:
        run("docker-compose", "down", "-v", "--remove-orphans", "-t", "30")
    return {"healthy_s": round(seconds, 1), "services": len(healthy), "memory_bytes": rest}


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.compose", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="it writes JSON in any case")
    given = parser.parse_args()
    rounds = [one_round() for _ in range(given.rounds)]
    sizes = {image: int(run("docker", "image", "inspect", "-f", "{{.Size}}", image)) for image in IMAGES}
    totals = [sum(each["memory_bytes"].values()) for each in rounds]
    times = [each["healthy_s"] for each in rounds]
    result = {
        "command": " ".join(["python", "-m", "bench.compose", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "load": round(os.getloadavg()[0], 1)},
        "engine": run("docker", "version", "-f", "{{.Server.Version}}").strip(),
        "compose": run("docker-compose", "version", "--short").strip(),
        "images_bytes": sizes,
        "healthy_s": {"median": statistics.median(times), "min": min(times), "max": max(times)},
        "rest_memory_bytes": {"median": statistics.median(totals), "min": min(totals), "max": max(totals)},
        "rounds": rounds,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    short = {key: result[key] for key in ("images_bytes", "healthy_s", "rest_memory_bytes")}
    sys.stdout.write(json.dumps(short) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
