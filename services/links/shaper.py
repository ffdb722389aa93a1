"""When bytes leave a link: pure arithmetic over times that the caller passes in; no clock, no socket, no
thread.

One `Pipe` is one direction of one link, shared by all connections on it. A chunk of bytes waits until the
chunks before it are on their way, takes `size / rate` to be put on the link (serialisation), and then travels
for the latency plus a draw of the jitter (propagation). What enters first leaves first, whatever the jitter
says.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from orbitmesh.errors import InvalidInputError

QUANTUM_S = 0.001
"""A chunk is as much as the link carries in this many seconds ..."""
MIN_QUANTUM_BYTES = 512
"""... but at least this, so that a thin link does not cost a wake-up per few bytes ..."""
MAX_QUANTUM_BYTES = 256 * 1024
"""... and at most this."""
BACKLOG_S = 0.002
"""Bytes are taken from senders while the link has less than this many seconds of work: the rest waits in the
sender's socket, where backpressure can be felt."""
CATCH_UP_S = 0.05
"""A wake-up that comes late by up to this many seconds costs no rate: bytes that were already waiting are
booked to the moment at which they could have started."""
BUFFER_BYTES = 512 * 1024
"""What one connection may hold in one direction beyond rate x (latency + jitter)."""
UNLIMITED_WINDOW_BYTES = 16 * 1024 * 1024
"""What one connection may hold in one direction where the rate is unlimited (so 20 ms of latency allow ~6
Gbit/s)."""
MAX_IN_FLIGHT_BYTES = 256 * 1024 * 1024
"""The largest rate x (latency + jitter) that a shape may ask for, since all of it is held in memory."""
MIN_RATE_BPS = 1_000.0
"""The slowest link, bit/s; a slower one is a cut or a pause."""
MAX_DELAY_MS = 3_600_000.0
"""The longest latency and the largest jitter, milliseconds."""

MEBIBYTE = 1 << 20
"""Bytes that `Shape.corrupt_per_mib` counts in."""

SHAPE_FIELDS = ("latency_ms", "rate_bps", "jitter_ms", "corrupt_per_mib", "seed")
"""The names of a shape's fields, as JSON has them."""


@dataclass(frozen=True)
class Shape:
    """What one direction of a link is like."""

    latency_ms: float = 0.0
    """Propagation from one end to the other, milliseconds; no byte is ever earlier than this."""
    rate_bps: float | None = None
    """Bits per second that enter the link; None: as fast as this machine goes."""
    jitter_ms: float = 0.0
    """The most that is added to the latency, milliseconds; each chunk draws evenly from 0 to this."""
    seed: int = 0
    """The seed of jitter and damage: the same seed and chunks give the same delays, and the same bytes of the stream
    are hit."""
    corrupt_per_mib: float = 0.0
    """How many bytes of each mebibyte arrive with one bit flipped, on average; 0 to `MEBIBYTE`."""

    def __post_init__(self) -> None:
        _check_number("latency_ms", self.latency_ms, 0.0, MAX_DELAY_MS)
        _check_number("jitter_ms", self.jitter_ms, 0.0, MAX_DELAY_MS)
        _check_number("corrupt_per_mib", self.corrupt_per_mib, 0.0, MEBIBYTE)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidInputError(f"seed is {self.seed!r}; expected a whole number")
        if self.rate_bps is not None:
            _check_number("rate_bps", self.rate_bps, MIN_RATE_BPS, 1e12)
            in_flight = self.in_flight_bytes
            if in_flight > MAX_IN_FLIGHT_BYTES:
                raise InvalidInputError(
                    f"rate_bps x (latency_ms + jitter_ms) holds {in_flight} bytes in memory; at most "
                    f"{MAX_IN_FLIGHT_BYTES} are allowed: lower one of them",
                    reason="LIMIT_EXCEEDED",
                )

    @property
    def in_flight_bytes(self) -> int:
        """The bytes that are on the link at once when it is full; 0 where the rate is unlimited."""
        if self.rate_bps is None:
            return 0
        return math.ceil(self.rate_bps / 8 * (self.latency_ms + self.jitter_ms) / 1000)

    @classmethod
    def parse(cls, fields: Mapping[str, object], base: Shape | None = None) -> Shape:
        """A shape from JSON fields over `base`.

        Raises:
            InvalidInputError: a field is unknown, of the wrong type, or out of range.
        """
        unknown = sorted(set(fields) - set(SHAPE_FIELDS))
        if unknown:
            raise InvalidInputError(f"unknown field {unknown[0]!r}; a shape has {', '.join(SHAPE_FIELDS)}")
        base = base or cls()
        values: dict[str, Any] = {name: fields.get(name, getattr(base, name)) for name in SHAPE_FIELDS}
        return cls(**values)  # which checks the types


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is not a finite number from `low` to `high`."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise InvalidInputError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}")


class Course(Protocol):
    """Latency and rate of a direction as they change with time, in place of the shape's own."""

    def latency_s(self, at_s: float) -> float:
        """The propagation of what enters the link at `at_s`, in seconds."""

    def rate_bps(self, at_s: float) -> float:
        """Bits per second that enter the link at `at_s`; above 0."""


class Medium:
    """What the rate of a direction is spent on: one beam, one cable. Several pipes may share one, and take turns.

    Args:
        shared: True where more than one pipe may use it.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.busy_until_s = -math.inf
        self._waiting: dict[object, None] = {}  # in the order in which they get their turn

    def first_waiting(self) -> object | None:
        """Whose turn it is; None where nobody waits."""
        return next(iter(self._waiting), None)

    def join(self, user: object) -> None:
        """Wait for a turn, behind those that wait already."""
        self._waiting.setdefault(user)

    def leave(self, user: object) -> None:
        """Have had the turn, or want none."""
        self._waiting.pop(user, None)


class Pipe:
    """One direction of one link: says when bytes that enter it come out.

    Args:
        shape: What the direction is like; `reshape` changes it.
        label: Mixed into the seed, so that the two directions of a link draw different jitter.
        medium: What its rate is spent on; one of its own where left out.
    """

    def __init__(self, shape: Shape, label: str = "", medium: Medium | None = None) -> None:
        self.medium = medium or Medium()
        self._label = label
        self._shape = shape
        self._course: Course | None = None
        self._jitter = self._source_of("jitter")
        self._damage = self._source_of("damage")
        self._intact_bytes = self._draw_intact_bytes()
        self._last_due_s = -math.inf

    @property
    def shape(self) -> Shape:
        """What the direction is like now."""
        return self._shape

    @property
    def quantum_bytes(self) -> int:
        """The most that one chunk may hold."""
        rate = self._shape.rate_bps
        if rate is None:
            return MAX_QUANTUM_BYTES
        return min(max(int(rate / 8 * QUANTUM_S), MIN_QUANTUM_BYTES), MAX_QUANTUM_BYTES)

    @property
    def window_bytes(self) -> int:
        """The most that one connection may hold between its sender and its receiver."""
        if self._shape.rate_bps is None:
            return UNLIMITED_WINDOW_BYTES
        return self._shape.in_flight_bytes + BUFFER_BYTES

    @property
    def takes_more_at_s(self) -> float:
        """The time from which another chunk may be taken from a sender; minus infinity for an idle link."""
        return self.medium.busy_until_s - BACKLOG_S

    def admit(self, size_bytes: int, waiting_since_s: float, now_s: float) -> float:
        """Put a chunk on the link and say when its last byte comes out at the other end, in seconds.

        Args:
            size_bytes: The chunk's size; 0 for a mark (an end, a reset) that travels behind the bytes before
                it. waiting_since_s: When the bytes became ready to be taken; trusted up to `CATCH_UP_S` into
                the past. now_s: The time now.
        """
        start_s = max(self.medium.busy_until_s, waiting_since_s, now_s - CATCH_UP_S)
        shape, course = self._shape, self._course
        rate_bps = shape.rate_bps if course is None else course.rate_bps(start_s)
        if rate_bps is not None:
            start_s += size_bytes * 8 / rate_bps
        self.medium.busy_until_s = start_s
        delay_s = shape.latency_ms / 1000 if course is None else course.latency_s(start_s)
        if shape.jitter_ms:
            delay_s += self._jitter.uniform(0.0, shape.jitter_ms) / 1000
        self._last_due_s = max(self._last_due_s, start_s + delay_s)
        return self._last_due_s

    def damage(self, data: bytes) -> tuple[bytes, int]:
        """The bytes as they arrive, and how many of them differ.

        Which bytes of the stream are hit does not depend on how it is cut into chunks: the gaps between them are
        drawn, geometrically distributed, so that intact chunks cost a subtraction.
        """
        if self._intact_bytes >= len(data):
            self._intact_bytes -= len(data)
            return data, 0
        damaged, at, hits = bytearray(data), 0, 0
        while (at := at + int(self._intact_bytes)) < len(data):
            damaged[at] ^= 1 << self._damage.randrange(8)
            hits += 1
            at += 1
            self._intact_bytes = self._draw_intact_bytes()
        self._intact_bytes = at - len(data)
        return bytes(damaged), hits

    def reshape(self, shape: Shape, course: Course | None = None) -> None:
        """Change what the direction is like; bytes already on the link keep their times, and order is kept.

        Args:
            shape: What it is like from now on.
            course: Where given, latency and rate are asked from it for each chunk as it enters the link; the
                shape's own then only say how much may be on the link at once.
        """
        before = self._shape
        self._shape, self._course = shape, course
        if shape.seed != before.seed:
            self._jitter, self._damage = self._source_of("jitter"), self._source_of("damage")
        if shape.seed != before.seed or shape.corrupt_per_mib != before.corrupt_per_mib:
            self._intact_bytes = self._draw_intact_bytes()

    def shift(self, pause_s: float) -> None:
        """Let the link have stood still for `pause_s`: all that was under way is that much later."""
        if not self.medium.shared:  # others may have used it meanwhile; what it was busy with is 2 ms at most
            self.medium.busy_until_s += pause_s
        self._last_due_s += pause_s

    def _draw_intact_bytes(self) -> float:
        """How many bytes pass before the next one that is hit; infinity where none is."""
        share = self._shape.corrupt_per_mib / MEBIBYTE
        if share <= 0:
            return math.inf
        if share >= 1:
            return 0
        return math.floor(math.log(1.0 - self._damage.random()) / math.log1p(-share))

    def _source_of(self, what: str) -> Random:
        name = f"{self._shape.seed}/{self._label}/{what}"
        return Random(name)  # noqa: S311 - emulated noise must repeat, not surprise
