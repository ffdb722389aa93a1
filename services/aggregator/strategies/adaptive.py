"""FedAdam and FedYogi: the mean update is a gradient for an adaptive optimiser at the server.

Algorithm 2 of Reddi et al., 2021 (arXiv 2003.00295), with D the mean update of a round and all operations element by
element. As in the paper there is no correction of the bias of the first rounds, and the second moment begins at tau^2.

    m <- beta_1 m + (1 - beta_1) D
    v <- beta_2 v + (1 - beta_2) D^2                 FedAdam
    v <- v - (1 - beta_2) D^2 sign(v - D^2)          FedYogi
    w <- w + server_lr m / (sqrt(v) + tau)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from services.aggregator.strategies.base import Mean, Need, Strategy, span_slices
from services.aggregator.strategies.options import BELOW_ONE, RATE_MAX, Option
from services.updates.spans import Floats


class Adaptive(Strategy):
    """What both have in common."""

    needs = Need.SUM
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "server_lr": Option(0.01, 1e-12, RATE_MAX, "About how far a weight moves in a round."),
        "beta_1": Option(0.9, 0.0, BELOW_ONE, "What is left of the first moment after a round."),
        "beta_2": Option(0.99, 0.0, BELOW_ONE, "What is left of the second moment after a round."),
        "tau": Option(1e-3, 1e-12, RATE_MAX, "Degree of adaptivity: updates far below it move weights in proportion."),
    }
    STATE = ("momentum", "variance")

    def _initial(self, name: str) -> float:
        return self.options["tau"] ** 2 if name == "variance" else 0.0

    @abstractmethod
    def _variance(self, variance: Floats, square: Floats) -> Floats:
        """The next second moment of a span."""

    def _combine(self, weights: Floats, contributions: Mean, out: Floats) -> None:
        beta, rate, tau = self.options["beta_1"], self.options["server_lr"], self.options["tau"]
        momentum, variance = self._arrays["momentum"], self._arrays["variance"]
        for where in span_slices(weights):
            delta = contributions.delta[where]
            momentum[where] = beta * momentum[where] + (1 - beta) * delta
            variance[where] = self._variance(variance[where], delta * delta)
            out[where] = weights[where] + rate * momentum[where] / (np.sqrt(variance[where]) + tau)


class FedAdam(Adaptive):
    """The server takes an Adam step along the mean update."""

    name = "fedadam"

    def _variance(self, variance: Floats, square: Floats) -> Floats:
        beta = self.options["beta_2"]
        return beta * variance + (1 - beta) * square


class FedYogi(Adaptive):
    """As FedAdam, but the second moment falls no faster than it rises."""

    name = "fedyogi"

    def _variance(self, variance: Floats, square: Floats) -> Floats:
        after: Floats = variance - (1 - self.options["beta_2"]) * square * np.sign(variance - square)
        return after
