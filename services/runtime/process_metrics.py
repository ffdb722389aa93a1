"""What every process of the mesh measures: itself, its calls, and what its sessions carry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import psutil

from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import SessionStats
from orbitmesh.wire.session import carried, open_sessions
from services.runtime.drain import InFlight
from services.runtime.metrics import Labels, Metrics


def offer_process(metrics: Metrics, in_flight: InFlight, valid_until: Callable[[], datetime]) -> None:
    """Adds it to the figures of a process.

    Args:
        metrics: Its figures.
        in_flight: The calls that it answers.
        valid_until: When its identity ends.
    """

    def left() -> Iterable[tuple[float, Labels]]:
        return [((valid_until() - datetime.now(UTC)).total_seconds(), {})]

    process = psutil.Process(os.getpid())
    metrics.gauge("process.memory", "By", "Memory of the process.", lambda: [(process.memory_info().rss, {})])
    metrics.total("process.cpu", "s", "Processor time of the process.", lambda: [(sum(process.cpu_times()[:2]), {})])
    metrics.gauge("calls.in_flight", "{call}", "Calls being answered.", lambda: [(in_flight.count, {})])
    metrics.gauge("identity.left", "s", "How long the identity is still valid.", left)
    metrics.gauge("sessions", "{session}", "Sessions, by whether a connection carries them.", _sessions)
    for name, unit, what, of in _CARRIED:
        metrics.total(f"session.{name}", unit, what, _by_peer(of))
    metrics.total("transfer.raw", "By", "Bytes of transfers before their codec, by peer and codec.", _coded(0))
    metrics.total("transfer.coded", "By", "Bytes of transfers after their codec, by peer and codec.", _coded(1))


_CARRIED: tuple[tuple[str, str, str, Callable[[SessionStats], float]], ...] = (
    ("sent", "By", "Sealed bytes sent, by peer.", lambda stats: stats.sent_bytes),
    ("received", "By", "Sealed bytes received, by peer.", lambda stats: stats.received_bytes),
    ("resent", "By", "Sealed bytes sent again after cuts, by peer.", lambda stats: stats.resent_bytes),
    ("resumes", "{resume}", "How often sessions were taken up again, by peer.", lambda stats: stats.resumes),
    ("credit_wait", "s", "How long transfers waited for credit, by peer.", lambda stats: stats.credit_ns / 1e9),
    ("turn_wait", "s", "How long frames waited for their turn, by peer.", lambda stats: stats.turn_ns / 1e9),
)


def _sessions() -> Iterable[tuple[float, Labels]]:
    attached = sum(session.attached for session in open_sessions())
    return [(attached, {"state": "attached"}), (len(open_sessions()) - attached, {"state": "cut"})]


def _by_peer(of: Callable[[SessionStats], float]) -> Callable[[], Iterable[tuple[float, Labels]]]:
    return lambda: [(of(stats), {"peer": peer}) for peer, stats in carried().items()]


def _coded(which: int) -> Callable[[], Iterable[tuple[float, Labels]]]:
    return lambda: [
        (pair[which], {"peer": peer, "codec": _name(codec)})
        for peer, stats in carried().items()
        for codec, pair in stats.coded.items()
    ]


def _name(codec: int) -> str:
    name: str = wire_pb2.Codec.Name(wire_pb2.Codec.ValueType(codec))
    return name.removeprefix("CODEC_").lower()
