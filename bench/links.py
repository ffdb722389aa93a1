"""How exact the link emulator is: round trips, rates, and what a gRPC stream gets out of it.

    python bench/links.py [--json] [--seconds 1.0] [--trips 100] [--rounds 5] [--windows 10]

Three real processes: this one, the emulator, and a server. Cases run interleaved, `--rounds` times.

- A round trip's error is its time minus twice the latency minus the median of round trips on bare loopback in
  the same round. The two ends ask for real-time priority, so that work of others on the machine
  delays the measurement little; `--ordinary` leaves that out (the emulator asks for it either way).
- A rate is the bytes received between the first and the last read of the measured window, over that time.
- The gRPC case streams messages of 1 MiB over TLS through 20 ms and 100 Mbit/s each way.
- A pass of a satellite at 60x: each round trip against what the contact plan says for the moments at which its two
  halves began. Windows at 60x: when the first connection was accepted, when the first byte was back, and when the
  connection was reset, against the plan. Errors are real milliseconds.

It ends with the goals and whether they were met: round trip median 0.5 ms and p99 2 ms, rates within 2 %.

`--json` writes `bench/results/links.json` too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import grpc
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python"), str(ROOT / "bench")]

from _links_sky import FACTOR, Spread, measure_sky  # noqa: E402 - the paths come first

from services.links import LinksProcess, RelaySpec, Shape  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "links.json"
LATENCIES_MS = (0.0, 5.0, 20.0, 100.0)
RATES_BPS = (1e6, 1e7, 1e8, 1e9)
ECHO_BYTES = 64
SETTLE_S = 0.2
"""What is received before a rate is measured: the link fills up."""
READ_BYTES = 256 * 1024
GRPC_SHAPE = Shape(latency_ms=20.0, rate_bps=1e8)
GRPC_MESSAGE_BYTES = 1 << 20
GRPC_METHOD = "/bench/Flood"
HOST_NAME = "localhost"
GOAL_MEDIAN_MS = 0.5
GOAL_P99_MS = 2.0
GOAL_RATE_PERCENT = 2.0
ORDINARY = "--ordinary"

T = TypeVar("T")


def _serve() -> None:
    """Echo on one port and send without end on another, until stdin closes."""
    ports = []
    for handle in (_echo, _flood):
        listener = socket.create_server(("127.0.0.1", 0))
        ports.append(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, handle), daemon=True).start()
    key, certificate = _self_signed()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    method = grpc.unary_stream_rpc_method_handler(_flood_messages)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Flood": method}),))
    ports.append(server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)])))
    server.start()
    print(json.dumps({"ports": ports, "certificate": certificate.decode()}), flush=True)
    sys.stdin.read()
    server.stop(None).wait()


def _self_signed() -> tuple[bytes, bytes]:
    """A key and a certificate for this run, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST_NAME)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST_NAME)]), critical=False)
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return private, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _flood_messages(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    message = bytes(GRPC_MESSAGE_BYTES)
    while context.is_active():
        yield message


def _grpc_bps(address: str, certificate: bytes, seconds: float) -> float:
    options = [("grpc.ssl_target_name_override", HOST_NAME), ("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options) as channel:
        call = channel.unary_stream(GRPC_METHOD)(b"", timeout=seconds + 60)
        warm_until_s = time.perf_counter() + 1.0  # gRPC's flow control finds the link's size
        start_s, received = 0.0, 0
        for message in call:
            now_s = time.perf_counter()
            if now_s < warm_until_s:
                start_s = now_s
                continue
            received += len(message)
            if now_s > start_s + 2 * seconds:
                break
        call.cancel()
    return received * 8 / (now_s - start_s)


def _accept(listener: socket.socket, handle: object) -> None:
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=handle, args=(sock,), daemon=True).start()  # type: ignore[arg-type]


def _prefer(ordinary: bool) -> bool:
    """Put this thread before others where the system allows it; whether it did."""
    with contextlib.suppress(OSError):
        if not ordinary:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    return os.sched_getscheduler(0) == os.SCHED_RR


def _echo(sock: socket.socket) -> None:
    _prefer(ORDINARY in sys.argv)
    with sock, contextlib.suppress(ConnectionError):  # a window that closes resets it
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


async def _in_thread(measure: Callable[..., T], *arguments: object) -> T:
    """Run in a thread that ends, and with it its priority."""

    def preferred() -> T:
        _prefer(ORDINARY in sys.argv)
        return measure(*arguments)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, preferred)


async def _measure(arguments: argparse.Namespace) -> dict[str, object]:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        *([ORDINARY] if arguments.ordinary else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin and server.stdout
    ready = json.loads(await server.stdout.readline())
    echo_port, flood_port, grpc_port = ready["ports"]
    certificate = ready["certificate"].encode()
    errors: dict[float, list[float]] = {latency: [] for latency in LATENCIES_MS}
    rates: dict[float, list[float]] = {rate: [] for rate in RATES_BPS}
    cpu_s: dict[float, float] = dict.fromkeys(RATES_BPS, 0.0)
    bare: list[float] = []
    streams: list[float] = []
    sky: dict[str, list[float]] = {}
    async with await LinksProcess.start() as links:
        emulator = psutil.Process(links.pid)
        late = {ms: await links.add(_spec(f"late-{ms}", echo_port, Shape(ms))) for ms in LATENCIES_MS}
        thin = {bps: await links.add(_spec(f"thin-{bps}", flood_port, Shape(1.0, bps))) for bps in RATES_BPS}
        far = await links.add(_spec("far", grpc_port, GRPC_SHAPE))
        for _ in range(arguments.rounds):
            alone = await _in_thread(_round_trips_ms, f"127.0.0.1:{echo_port}", arguments.trips)
            bare += alone
            base_ms = statistics.median(alone)
            for ms, address in late.items():
                trips = await _in_thread(_round_trips_ms, address, arguments.trips)
                errors[ms] += [trip - 2 * ms - base_ms for trip in trips]
            for bps, address in thin.items():
                before = emulator.cpu_times()
                rates[bps].append(await asyncio.to_thread(_rate_bps, address, arguments.seconds))
                after = emulator.cpu_times()
                cpu_s[bps] += after.user + after.system - before.user - before.system
            streams.append(await asyncio.to_thread(_grpc_bps, far, certificate, arguments.seconds))
            found = await measure_sky(links, echo_port, base_ms, arguments.windows, _in_thread)
            for name, values in found.items():
                sky.setdefault(name, []).extend(values)
    server.stdin.close()
    await server.wait()
    medians = [statistics.median(found) for found in errors.values()]
    tails = [_percentile(found, 0.99) for found in errors.values()]
    rate_percent = max(abs(rate / bps - 1) for bps, found in rates.items() for rate in found) * 100
    measured_s = arguments.rounds * (arguments.seconds + SETTLE_S)
    return {
        "goals": {
            "round_trip_median_ms": {
                "goal": GOAL_MEDIAN_MS,
                "worst": max(medians),
                "met": max(medians) <= GOAL_MEDIAN_MS,
            },
            "round_trip_p99_ms": {"goal": GOAL_P99_MS, "worst": max(tails), "met": max(tails) <= GOAL_P99_MS},
            "rate_percent": {
                "goal": GOAL_RATE_PERCENT,
                "worst": rate_percent,
                "met": rate_percent <= GOAL_RATE_PERCENT,
            },
        },
        "contact_plan": {"factor": FACTOR, **{name: Spread(values).report() for name, values in sky.items()}},
        "bare_round_trip_ms": {"median": statistics.median(bare), "p99": _percentile(bare, 0.99)},
        "grpc_tls_stream": {
            "latency_ms": GRPC_SHAPE.latency_ms,
            "rate_bps": GRPC_SHAPE.rate_bps,
            "median_bps": statistics.median(streams),
            "min_bps": min(streams),
            "max_bps": max(streams),
        },
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


def _may_prefer(ordinary: bool) -> bool:
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_prefer, ordinary).result()


def _machine(ordinary: bool) -> dict[str, object]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load_before": os.getloadavg()[0],
        "ends_have_realtime_priority": _may_prefer(ordinary),
    }


def main() -> None:
    """Measure, print, and write the results with `--json`."""
    parser = argparse.ArgumentParser(description="How exact the link emulator is.")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one rate measurement")
    parser.add_argument("--trips", type=int, default=100, help="round trips per latency and round")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, in turns")
    parser.add_argument("--windows", type=int, default=10, help="windows that open and close in each round")
    parser.add_argument(ORDINARY, action="store_true", help="do not ask for real-time priority")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve()
        return
    machine = _machine(arguments.ordinary)
    results = asyncio.run(_measure(arguments))
    command = shlex.join(["python", "bench/links.py", *sys.argv[1:]])
    report = {"bench": "links", "command": command, "machine": machine, **results}
    if arguments.json:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
