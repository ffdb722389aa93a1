"""DiLoCo: many AdamW steps at each node, and SGD with Nesterov momentum over their mean at the server.

Douillard et al., 2023 (arXiv 2311.08105), algorithm 1. The outer gradient is the mean update with its sign turned, so
that with b for the momentum and m for its factor

    b <- m b - D
    w <- w - outer_lr (m b - D)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from services.aggregator.strategies.base import Mean, Need, Strategy, span_slices
from services.aggregator.strategies.options import BELOW_ONE, RATE_MAX, Option
from services.updates.spans import Floats

INNER_STEPS_MAX = 1_000_000


class DiLoCo(Strategy):
    """Low-communication training; every update counts the same."""

    name = "diloco"
    needs = Need.SUM
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "inner_steps": Option(50, 1, INNER_STEPS_MAX, "H, optimiser steps of a node in a round.", whole=True),
        "outer_lr": Option(0.7, 1e-12, RATE_MAX, "Learning rate of the server's SGD."),
        "outer_momentum": Option(0.9, 0.0, BELOW_ONE, "Nesterov momentum of the server's SGD."),
    }
    STATE = ("momentum",)

    def configure(self, round_index: int) -> dict[str, object]:
        """H steps of AdamW whose momenta go on from round to round."""
        return {"steps": int(self.options["inner_steps"]), "optimiser": "adamw", "keep_optimiser": True}

    def weight(self, examples: int, staleness: int = 0) -> float:
        """One: all nodes take the same number of steps."""
        return 1.0

    def _combine(self, weights: Floats, contributions: Mean, out: Floats) -> None:
        rate, factor, momentum = self.options["outer_lr"], self.options["outer_momentum"], self._arrays["momentum"]
        for where in span_slices(weights):
            delta = contributions.delta[where]
            momentum[where] = factor * momentum[where] - delta
            out[where] = weights[where] - rate * (factor * momentum[where] - delta)
