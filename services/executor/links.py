"""What a node knows of its links: round trip and rate as it measured them itself, and the codec that follows."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from orbitmesh.v1 import scheduler_pb2, wire_pb2
from orbitmesh.wire.codecs import CODECS, CodecId
from orbitmesh.wire.policy import CodecPolicy
from orbitmesh.wire.tensors import DType
from services.executor.onward import ChooseCodec

RTT_PROBES = 5
"""How many round trips one measurement takes; the median counts."""
RATE_PROBE_BYTES = 512 << 10
"""Bytes of the probe that measures the rate."""
RATE_MAX_BPS = 100e9
"""A link whose probe took no measurable time is said to have this rate, in bits per second."""
ANSWERS_KEPT = 1024
"""How many choices of codec are remembered per stage."""
UNKNOWN_RATE_BPS = 100e6
"""The rate that is assumed for a link that was not measured yet, in bits per second."""


@dataclass
class LinkState:
    """One directed link, from this node to a peer."""

    rtt_s: float = 0.0
    """Median round-trip time in seconds."""
    rate_bps: float = 0.0
    """Rate towards the peer in bits per second."""
    up: bool = False
    """False while probes fail."""
    measured_s: float = float("-inf")
    """When it was last tried, monotonic, in seconds."""
    measured_at_ns: int = 0
    """The same on the wall clock, in nanoseconds since 1970."""


class LinkTable:
    """The links of one node. Pure but for the event that wakes the prober."""

    def __init__(self) -> None:
        self._links: dict[str, LinkState] = {}
        self._woken = asyncio.Event()
        self._policy = CodecPolicy()

    def wake(self) -> None:
        """There is a new peer: measure now."""
        self._woken.set()

    async def wait(self, *, timeout_s: float) -> None:
        """Waits until woken or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def due(self, peers: list[str], now_s: float, interval_s: float) -> Iterator[str]:
        """The peers whose link was never measured, is down, or was measured long ago."""
        for peer in peers:
            link = self._links.get(peer)
            pause_s = interval_s if link is not None and link.up else interval_s / 5
            if link is None or now_s - link.measured_s >= pause_s:
                yield peer

    def measured(self, peer: str, round_trips_s: list[float], long_s: float) -> None:
        """Takes a measurement in: small round trips, and one that carried `RATE_PROBE_BYTES` towards the peer."""
        rtt_s = statistics.median(round_trips_s)
        extra_s = long_s - rtt_s
        rate_bps = RATE_PROBE_BYTES * 8 / extra_s if extra_s > 1e-6 else RATE_MAX_BPS
        self._links[peer] = LinkState(rtt_s, min(rate_bps, RATE_MAX_BPS), True, time.monotonic(), time.time_ns())

    def failed(self, peer: str) -> bool:
        """Notes that a peer could not be reached; True when that is news."""
        link = self._links.setdefault(peer, LinkState(up=True))
        was_up, link.up, link.measured_s = link.up, False, time.monotonic()
        return was_up

    def messages(self, peers: set[str]) -> Iterator[scheduler_pb2.LinkMeasure]:
        """The links to the named peers as the scheduler wants them."""
        for peer, link in self._links.items():
            if peer in peers:
                message = scheduler_pb2.LinkMeasure(
                    peer=peer, rtt_ns=int(link.rtt_s * 1e9), rate_bps=link.rate_bps, up=link.up
                )
                message.measured_at.FromNanoseconds(link.measured_at_ns)
                yield message

    def rate_bps(self, peer: str) -> float:
        """The rate towards a peer."""
        link = self._links.get(peer)
        return link.rate_bps if link is not None and link.rate_bps > 0 else UNKNOWN_RATE_BPS

    def chooser(self, codec: int) -> ChooseCodec:
        """Chooses the codec of hidden states: the one asked for, else the lossless one that a link carries best."""
        # Every decode step asks the same question; the answer holds until the link is measured anew.
        answers: dict[tuple[int, int, float], int] = {}

        def choose(node: str, dtype: int, raw_bytes: int) -> int:
            if codec != wire_pb2.CODEC_UNSPECIFIED:
                return codec if DType(dtype) in CODECS[CodecId(codec)].dtypes else wire_pb2.CODEC_RAW
            question = (dtype, raw_bytes, self.rate_bps(node))
            if question not in answers:
                if len(answers) >= ANSWERS_KEPT:
                    answers.clear()
                answers[question] = int(self._policy.choose(DType(dtype), question[2], raw_bytes))
            return answers[question]

        return choose
