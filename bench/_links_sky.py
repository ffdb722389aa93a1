"""How exactly an emulated link follows a contact plan: its latency while a connection lives, and the edges of windows.

Part of `bench/links.py`. Mesh times are turned into real ones by the clock that the emulator was given, so an error is
the emulator's own, that of the two ends' wake-ups included.
"""

from __future__ import annotations

import math
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint, MeshClock
from services.links import LinksProcess, RelaySpec
from services.links.schedule import Timeline

FACTOR = 60.0
EPOCH_S = 1_700_000_000.0
LEAD_S = 0.3
"""Real seconds between the making of a plan and its first contact."""
PASS_S = 4.0
"""Real seconds of the pass whose latency is followed: 4 minutes of mesh time."""
PASS_LATENCY_S = (0.014, 0.003)
"""One-way latency at the horizon and overhead, such as a station at 550 km to 2,000 km has it, and more."""
PASS_POINTS = 40
WINDOW_S = 0.2
"""Real seconds that each window is open, and closed."""
EDGE_LATENCY_S = 0.001
POLL_S = 0.00005
"""How long is waited between two attempts to connect to a closed link."""
ECHO_BYTES = 64


@dataclass(frozen=True)
class Spread:
    """Errors of one kind."""

    values_ms: Sequence[float]

    def report(self) -> dict[str, float]:
        ordered = sorted(abs(value) for value in self.values_ms)
        return {
            "median": statistics.median(self.values_ms),
            "p99_absolute": ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)],
            "max": max(self.values_ms),
            "min": min(self.values_ms),
            "count": len(self.values_ms),
        }


def _both_ways(start_s: float, end_s: float, points: Sequence[tuple[float, float]]) -> list[Contact]:
    curve = tuple(LatencyPoint(at_s, latency_s) for at_s, latency_s in points)
    return [
        Contact(source, target, start_s, end_s, 1e9, curve) for source, target in (("sat", "site"), ("site", "sat"))
    ]


def _plan(contacts: Sequence[Contact]) -> ContactPlan:
    return ContactPlan(EPOCH_S, max(contact.end_s for contact in contacts) + 1e5, tuple(contacts))


def pass_plan() -> ContactPlan:
    """One pass: the latency falls and rises again along a curve of many points."""
    start_s, length_s = EPOCH_S + LEAD_S * FACTOR, PASS_S * FACTOR
    far, near = PASS_LATENCY_S
    points = []
    for step in range(PASS_POINTS + 1):
        share = step / PASS_POINTS
        points.append((start_s + share * length_s, near + (far - near) * abs(math.cos(math.pi * share))))
    return _plan(_both_ways(start_s, points[-1][0], points))


def window_plan(count: int) -> ContactPlan:
    """Windows, open as long as closed."""
    contacts = []
    for number in range(count):
        start_s = EPOCH_S + (LEAD_S + 2 * WINDOW_S * number) * FACTOR
        end_s = start_s + WINDOW_S * FACTOR
        contacts += _both_ways(start_s, end_s, [(start_s, EDGE_LATENCY_S)])
    return _plan(contacts)


def _dial(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _opened(address: str) -> tuple[socket.socket, float]:
    """A connection as soon as one is accepted, and when that was."""
    while True:
        try:
            return _dial(address), time.monotonic()
        except ConnectionRefusedError:
            time.sleep(POLL_S)


def _trip(sock: socket.socket) -> None:
    sock.sendall(bytes(ECHO_BYTES))
    left = ECHO_BYTES
    while left:
        got = len(sock.recv(left))
        if not got:
            raise ConnectionResetError
        left -= got


def latency_errors_ms(address: str, plan: ContactPlan, clock: MeshClock, base_ms: float) -> list[float]:
    """Round trips all through the pass, each against what the plan says for the moments at which its halves began."""
    line, contact = Timeline(clock), plan.contacts[0]
    sock, _ = _opened(address)
    errors = []
    with sock:
        try:
            while True:
                sent_s = time.monotonic()
                _trip(sock)
                took_ms = (time.monotonic() - sent_s) * 1000
                there_s = contact.latency_at(line.mesh_s(sent_s))
                back_s = contact.latency_at(line.mesh_s(sent_s + there_s))
                errors.append(took_ms - (there_s + back_s) * 1000 - base_ms)
        except ConnectionError:
            return errors[3:]  # the first ones open the connection behind the link


def edge_errors_ms(
    address: str, plan: ContactPlan, clock: MeshClock, base_ms: float
) -> tuple[list[float], list[float], list[float]]:
    """For each window: when a connection was first accepted, when its first byte was back, and when it was reset."""
    line = Timeline(clock)
    opened, passed, closed = [], [], []
    for contact in plan.contacts[::2]:
        start_s, end_s = line.at_s(contact.start_s), line.at_s(contact.end_s)
        sock, accepted_s = _opened(address)
        with sock:
            try:
                _trip(sock)
                back_s = time.monotonic()
                sock.recv(1)
            except ConnectionError:
                reset_s = time.monotonic()
        opened.append((accepted_s - start_s) * 1000)
        passed.append((back_s - start_s - 2 * EDGE_LATENCY_S) * 1000 - base_ms)
        closed.append((reset_s - end_s) * 1000)
    return opened, passed, closed


async def measure_sky(
    links: LinksProcess,
    echo_port: int,
    base_ms: float,
    windows: int,
    in_thread: Callable[..., object],
) -> dict[str, list[float]]:
    """One round: a pass and `windows` windows, each on a relay of its own.

    Args:
        links: The emulator.
        echo_port: Where a server echoes.
        base_ms: The median of bare round trips.
        windows: How many windows open and close.
        in_thread: Awaited with a function and its arguments; runs it before others where the system allows it.
    """
    found: dict[str, list[float]] = {}
    for name, plan, measure in (
        ("following", pass_plan(), latency_errors_ms),
        ("edges", window_plan(windows), edge_errors_ms),
    ):
        address = await links.add(RelaySpec(name, f"127.0.0.1:{echo_port}"))
        clock = MeshClock(EPOCH_S, time.time(), FACTOR)
        await links.schedule(name, "sat", "site", plan, clock)
        result = await in_thread(measure, address, plan, clock, base_ms)  # type: ignore[misc]
        if name == "following":
            found["latency_following_error_ms"] = result
        else:
            names = ("first_connection_error_ms", "first_byte_error_ms", "close_error_ms")
            found.update(zip(names, result, strict=True))
        await links.remove(name)
    return found
