"""How exact the link emulator is: added error on round trips, and error of the rate.

    python bench/links.py [--json] [--seconds 1.0] [--trips 200] [--rounds 5]

Three real processes: this one, the emulator, and an echo and sink server. Cases run interleaved, `--rounds`
times. A round trip's error is its time minus twice the latency minus the median time on bare loopback in the
same round. A rate is bytes received between the first and the last read of the measured window, over the time
between those reads. `--json` writes `bench/results/links.json` and prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python")]

from services.links import LinksProcess, RelaySpec, Shape  # noqa: E402 - the paths come first

RESULTS = ROOT / "bench" / "results" / "links.json"
LATENCIES_MS = (0.0, 5.0, 20.0, 100.0)
RATES_BPS = (1e6, 1e7, 1e8, 1e9)
ECHO_BYTES = 64
SETTLE_S = 0.2
"""What is received before a rate is measured: the link fills up."""
READ_BYTES = 256 * 1024


def _serve() -> None:
    """Echo on one port and send without end on another, until stdin closes."""
    ports = []
    for handle in (_echo, _flood):
        listener = socket.create_server(("127.0.0.1", 0))
        ports.append(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, handle), daemon=True).start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


def _accept(listener: socket.socket, handle: object) -> None:
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=handle, args=(sock,), daemon=True).start()  # type: ignore[arg-type]


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(READ_BYTES):
        sock.sendall(data)


def _flood(sock: socket.socket) -> None:
    block = bytes(READ_BYTES)
    try:
        while True:
            sock.sendall(block)
    except OSError:
        sock.close()


def _round_trips_ms(address: str, trips: int) -> list[float]:
    host, port = address.rsplit(":", 1)
    times = []
    with socket.create_connection((host, int(port))) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for trip in range(trips + 3):
            start_s = time.perf_counter()
            sock.sendall(bytes(ECHO_BYTES))
            left = ECHO_BYTES
            while left:
                left -= len(sock.recv(left))
            if trip >= 3:  # the first ones open the connection behind the link
                times.append((time.perf_counter() - start_s) * 1000)
    return times


def _rate_bps(address: str, seconds: float) -> float:
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        buffer = bytearray(READ_BYTES)
        warm_until_s = time.perf_counter() + SETTLE_S
        start_s = 0.0
        while start_s < warm_until_s:
            sock.recv_into(buffer)
            start_s = time.perf_counter()
        received = 0
        while (now_s := time.perf_counter()) < start_s + seconds:
            received += sock.recv_into(buffer)
            now_s = time.perf_counter()
    return received * 8 / (now_s - start_s)


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def _measure(arguments: argparse.Namespace) -> dict[str, object]:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin and server.stdout
    echo_port, flood_port = json.loads(await server.stdout.readline())
    errors: dict[float, list[float]] = {latency: [] for latency in LATENCIES_MS}
    rates: dict[float, list[float]] = {rate: [] for rate in RATES_BPS}
    cpu_s: dict[float, float] = dict.fromkeys(RATES_BPS, 0.0)
    bare: list[float] = []
    async with await LinksProcess.start() as links:
        emulator = psutil.Process(links.pid)
        late = {ms: await links.add(_spec(f"late-{ms}", echo_port, Shape(ms))) for ms in LATENCIES_MS}
        thin = {bps: await links.add(_spec(f"thin-{bps}", flood_port, Shape(1.0, bps))) for bps in RATES_BPS}
        for _ in range(arguments.rounds):
            alone = await asyncio.to_thread(_round_trips_ms, f"127.0.0.1:{echo_port}", arguments.trips)
            bare += alone
            base_ms = statistics.median(alone)
            for ms, address in late.items():
                trips = await asyncio.to_thread(_round_trips_ms, address, arguments.trips)
                errors[ms] += [trip - 2 * ms - base_ms for trip in trips]
            for bps, address in thin.items():
                before = emulator.cpu_times()
                rates[bps].append(await asyncio.to_thread(_rate_bps, address, arguments.seconds))
                after = emulator.cpu_times()
                cpu_s[bps] += after.user + after.system - before.user - before.system
    server.stdin.close()
    await server.wait()
    measured_s = arguments.rounds * (arguments.seconds + SETTLE_S)
    return {
        "bare_round_trip_ms": {"median": statistics.median(bare), "p99": _percentile(bare, 0.99)},
        "round_trip_error_ms": [
            {
                "latency_ms": ms,
                "median": statistics.median(found),
                "p99": _percentile(found, 0.99),
                "max": max(found),
                "min": min(found),
                "trips": len(found),
            }
            for ms, found in errors.items()
        ],
        "rate_error": [
            {
                "rate_bps": bps,
                "median_bps": statistics.median(found),
                "min_bps": min(found),
                "max_bps": max(found),
                "median_error_percent": (statistics.median(found) / bps - 1) * 100,
                "worst_error_percent": max(abs(rate / bps - 1) for rate in found) * 100,
                "emulator_cpu_share": cpu_s[bps] / measured_s,
            }
            for bps, found in rates.items()
        ],
    }


def _spec(name: str, port: int, shape: Shape) -> RelaySpec:
    return RelaySpec(name, f"127.0.0.1:{port}", forward=shape, reverse=shape)


def _machine() -> dict[str, object]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, and write the results with `--json`."""
    parser = argparse.ArgumentParser(description="How exact the link emulator is.")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one rate measurement")
    parser.add_argument("--trips", type=int, default=200, help="round trips per latency and round")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, in turns")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve()
        return
    machine = _machine()
    results = asyncio.run(_measure(arguments))
    command = shlex.join(["python", "bench/links.py", *sys.argv[1:]])
    report = {"bench": "links", "command": command, "machine": machine, **results}
    if arguments.json:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
