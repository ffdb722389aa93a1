"""FedAvg and FedProx: the weighted mean of the updates is added to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from services.aggregator.strategies.base import Mean, Need, Strategy, span_slices
from services.aggregator.strategies.options import SERVER_RATE, Option
from services.updates.spans import Floats


class FedAvg(Strategy):
    """Federated averaging (McMahan et al., 2017, arXiv 1602.05629): updates weighted by examples."""

    name = "fedavg"
    needs = Need.SUM
    OPTIONS: ClassVar[Mapping[str, Option]] = {"server_lr": SERVER_RATE}

    def _combine(self, weights: Floats, contributions: Mean, out: Floats) -> None:
        for where in span_slices(weights):
            out[where] = weights[where] + contributions.delta[where] * self.options["server_lr"]


class FedProx(FedAvg):
    """FedAvg whose nodes are held near the round's weights (Li et al., 2020, arXiv 1812.06127)."""

    name = "fedprox"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **FedAvg.OPTIONS,
        "mu": Option(0.01, 0.0, 1e6, "Weight of half the squared distance to the round's weights in a node's loss."),
    }

    def configure(self, round_index: int) -> dict[str, object]:
        """The nodes' penalty."""
        return {"prox_mu": self.options["mu"]}
