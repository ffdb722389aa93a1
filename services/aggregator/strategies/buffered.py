"""FedBuff: a round ends with the first K updates, whenever their nodes began, and late ones count less.

Nguyen et al., 2022 (arXiv 2106.06639), with the staleness weight 1 / sqrt(1 + s). The sum is divided by K and not by
the sum of the weights, so that a buffer of late updates takes a smaller step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from orbitmesh.errors import InvalidInputError
from services.aggregator.strategies.base import Mean, Need, Strategy, span_slices
from services.aggregator.strategies.options import SERVER_RATE, Option
from services.updates.spans import Floats

BUFFER_MAX = 100_000
STALENESS_MAX = 1_000_000


class FedBuff(Strategy):
    """Buffered asynchronous averaging."""

    name = "fedbuff"
    needs = Need.BUFFER
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "buffer_size": Option(4, 1, BUFFER_MAX, "K, updates after which a round ends.", whole=True),
        "server_lr": SERVER_RATE,
        "max_staleness": Option(100, 0, STALENESS_MAX, "Rounds after which an update is refused.", whole=True),
    }

    @property
    def buffer_size(self) -> int:
        """K."""
        return int(self.options["buffer_size"])

    def weight(self, examples: int, staleness: int = 0) -> float:
        """1 / sqrt(1 + staleness), from 0 to 1.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, the update is too stale.
        """
        most = int(self.options["max_staleness"])
        if not 0 <= staleness <= most:
            raise InvalidInputError(
                f"this update began {staleness} rounds ago and {self.name!r} takes 0 to {most}: train again from the "
                "current weights, or raise max_staleness",
                reason="FAILED_PRECONDITION",
                metadata={"staleness": staleness, "max_staleness": most},
            )
        return 1 / math.sqrt(1 + staleness)

    def _combine(self, weights: Floats, contributions: Mean, out: Floats) -> None:
        rate = self.options["server_lr"] * contributions.weight / contributions.count
        for where in span_slices(weights):
            out[where] = weights[where] + contributions.delta[where] * rate
