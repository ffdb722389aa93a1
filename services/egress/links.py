"""What the links of a sender carry, by time, as the slices' service tells it. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2

LINKS_MAX = 1024
"""Of how many links rates are known."""
RATES_MAX = 16
"""How many changes of one link are known ahead."""

_ALREADY = -math.inf


@dataclass(frozen=True)
class LinkRates:
    """Rates of links, each from a moment on; times in nanoseconds of one monotonic clock."""

    rates: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """By peer: from when on, and bits per second; 0 where the link is closed. In order of time."""

    @classmethod
    def told(cls, response: slices_pb2.WatchSlicesResponse, now_ns: int, wall_ns: int) -> LinkRates:
        """The rates of an answer.

        Args:
            response: As `WatchSlices` tells of them.
            now_ns: The monotonic time.
            wall_ns: The real time, in nanoseconds since 1970.

        Raises:
            InvalidInputError: A rate is none, times are in no order, or they are too many.
        """
        if len(response.links) > LINKS_MAX or any(len(link.rates) > RATES_MAX for link in response.links):
            raise InvalidInputError(
                f"more than {LINKS_MAX} links or {RATES_MAX} rates of one were told", reason="LIMIT_EXCEEDED"
            )
        found: dict[str, tuple[tuple[float, float], ...]] = {}
        for link in response.links:
            rates: list[tuple[float, float]] = []
            for each in link.rates:
                if not 0 <= each.gbps < math.inf:
                    raise InvalidInputError(f"the link to {link.to[:63]!r} carries {each.gbps} Gbit/s; expected from 0")
                since_ns = now_ns + each.since.ToNanoseconds() - wall_ns if each.HasField("since") else _ALREADY
                if rates and since_ns <= rates[-1][0]:
                    raise InvalidInputError(f"the rates of the link to {link.to[:63]!r} are in no order of time")
                rates.append((since_ns, each.gbps * 1e9))
            found[link.to] = tuple(rates)
        return cls(found)

    def rate_bps(self, peer: str, now_ns: int) -> float | None:
        """What a link carries now; None where that is not known, or it is closed."""
        rates = self.rates.get(peer, ())
        at = bisect_right([since_ns for since_ns, _ in rates], now_ns)
        return (rates[at - 1][1] or None) if at else None

    def next_ns(self, now_ns: int) -> float | None:
        """When the next link changes; None where none does."""
        coming = (since_ns for rates in self.rates.values() for since_ns, _ in rates if since_ns > now_ns)
        return min(coming, default=None)
