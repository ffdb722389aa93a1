"""The strategies by name."""

from __future__ import annotations

from collections.abc import Mapping

from orbitmesh.errors import InvalidInputError
from services.aggregator.strategies.adaptive import FedAdam, FedYogi
from services.aggregator.strategies.base import Strategy
from services.aggregator.strategies.buffered import FedBuff
from services.aggregator.strategies.mean import FedAvg, FedProx
from services.aggregator.strategies.options import check
from services.aggregator.strategies.outer import DiLoCo
from services.aggregator.strategies.robust import Krum, TrimmedMean

STRATEGIES: Mapping[str, type[Strategy]] = {
    kind.name: kind for kind in (FedAvg, FedProx, FedAdam, FedYogi, FedBuff, DiLoCo, TrimmedMean, Krum)
}


def parse(name: str, options: Mapping[str, object] | None = None) -> Strategy:
    """The strategy of that name, without a state.

    Raises:
        InvalidInputError: there is no such strategy (`NOT_FOUND`), or an option is unknown or out of its range.

    >>> parse("fedprox", {"mu": 0.1}).configure(0)
    {'prox_mu': 0.1}
    """
    kind = STRATEGIES.get(name)
    if kind is None:
        raise InvalidInputError(
            f"there is no strategy {name[:64]!r}; there are: {', '.join(STRATEGIES)}",
            reason="NOT_FOUND",
            metadata={"strategies": ",".join(STRATEGIES)},
        )
    return kind(check(name, kind.OPTIONS, options or {}))
