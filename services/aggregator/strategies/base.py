"""The interface of strategies.

A strategy says what it needs of a round. From secure aggregation only sums come out, so that a strategy which needs
each update cannot be used with it.

    sum      the weighted mean of the updates
    buffer   the same over the first so many that arrive, each weighted by how late it is
    each     every update by itself, a span of all of them at a time

Everything is float32 and is done span by span: a strategy holds its own state and one span more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.aggregator.strategies.options import Option
from services.updates.spans import Floats, spans

Matrix: TypeAlias = npt.NDArray[np.float32]


class Need(Enum):
    """What a strategy has to be given of a round."""

    SUM = "sum"
    """A `Mean`."""
    BUFFER = "buffer"
    """A `Mean` over `buffer_size` updates, whatever round each began in."""
    EACH = "each"
    """An `Each`."""


@dataclass(frozen=True)
class Mean:
    """The updates of a round, summed."""

    delta: Floats
    """Sum of weight times update, over the sum of weights; shape (d,)."""
    weight: float
    """Sum of the weights, as `Strategy.weight` gives them."""
    count: int
    """Updates in it."""


@dataclass(frozen=True)
class Each:
    """The updates of a round, one by one."""

    count: int
    """Updates, n."""
    read: Callable[[], Iterator[Matrix]]
    """Begins anew at each call: for each span of the vector in order, the updates' values, float32 of shape
    (n, values of the span), the updates always in the same order."""


@dataclass(frozen=True)
class State:
    """What a strategy keeps between rounds."""

    arrays: Mapping[str, Floats] = field(default_factory=dict)
    """Vectors of shape (d,)."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Counts."""


class Strategy(ABC):
    """One way to go from a round's weights and updates to the next weights.

    Args:
        options: Values of `OPTIONS` by name, checked by `parse`; what is left out has its default.
    """

    name: ClassVar[str]
    """What users call it."""
    needs: ClassVar[Need]
    """What `aggregate` is given."""
    OPTIONS: ClassVar[Mapping[str, Option]]
    """Its options."""
    STATE: ClassVar[tuple[str, ...]] = ()
    """The vectors that it keeps."""

    def __init__(self, options: Mapping[str, float]) -> None:
        self.options = {name: options.get(name, option.default) for name, option in self.OPTIONS.items()}
        self._arrays: dict[str, Floats] = {}
        self._rounds = 0

    def configure(self, round_index: int) -> dict[str, object]:
        """Fields of the nodes' local plan that this strategy sets in a round; none unless it says so."""
        return {}

    def weight(self, examples: int, staleness: int = 0) -> float:
        """What an update counts in the mean.

        Args:
            examples: Examples that its node trained on.
            staleness: Rounds that ended since its node took the weights.
        """
        return float(examples)

    @property
    def buffer_size(self) -> int | None:
        """Updates after which a round ends, for a strategy that needs a buffer."""
        return None

    def aggregate(self, weights: Floats, contributions: Mean | Each, *, out: Floats | None = None) -> Floats:
        """The next weights, and the state that goes with them.

        Where this raises, the state is as before; what `out` holds is then not to be used.

        Args:
            weights: The round's weights, shape (d,); not changed unless `out` is the same array.
            contributions: What `needs` says.
            out: Where to put the result, shape (d,), a mean's own vector, too; a new array where left out.

        Raises:
            InvalidInputError: too few updates (FAILED_PRECONDITION), a NaN or an infinity (NOT_FINITE), or a form that
                this strategy does not take.
        """
        if not isinstance(contributions, Each if self.needs is Need.EACH else Mean):
            given = type(contributions).__name__
            raise InvalidInputError(
                f"the strategy {self.name!r} needs {self.needs.value!r} and was given a {given}: what needs each "
                "update cannot be used where only sums come out"
            )
        if contributions.count < 1:
            raise too_few(self.name, contributions.count, 1, "")
        for name, array in self._arrays.items():
            if array.shape != weights.shape:
                raise InvalidInputError(f"{name} of {self.name!r} has shape {array.shape}, the weights {weights.shape}")
        if isinstance(contributions, Mean):
            _check_mean(contributions, weights)
        result = np.empty_like(weights) if out is None else out
        self._prepare(weights, contributions)
        self._combine(weights, contributions, result)
        self._rounds += 1
        return result

    def _prepare(self, weights: Floats, contributions: Mean | Each) -> None:
        """Whatever may raise, before anything changes."""
        for name in self.STATE:
            if name not in self._arrays:
                self._arrays[name] = np.full(weights.shape, self._initial(name), np.float32)

    def _initial(self, name: str) -> float:
        """What a vector of the state begins with."""
        return 0.0

    @abstractmethod
    def _combine(self, weights: Floats, contributions: Any, out: Floats) -> None:
        """Write the next weights into `out`, which may be `weights` or a mean's vector."""

    def state(self) -> State:
        """What `restore` takes in another process to go on with the same bits; the vectors are not copied."""
        return State(dict(self._arrays), {"rounds": self._rounds})

    def restore(self, state: State) -> None:
        """Go on from a state of the same strategy.

        Raises:
            IntegrityError: it is of another strategy.
        """
        rounds = state.values.get("rounds", -1)
        complete = set(state.arrays) == (set(self.STATE) if rounds else set())
        if rounds < 0 or not complete or any(one.dtype != np.float32 or one.ndim != 1 for one in state.arrays.values()):
            raise IntegrityError(
                f"this is no state of the strategy {self.name!r}: it has {sorted(state.arrays)} and "
                f"{dict(state.values)}, expected {sorted(self.STATE)} and the number of rounds"
            )
        self._arrays = {name: array.copy() for name, array in state.arrays.items()}
        self._rounds = rounds


def span_slices(weights: Floats) -> Iterator[slice]:
    """Where each span of a vector lies, in order."""
    for _, where in spans(weights.size):
        yield where


def too_few(name: str, count: int, least: int, why: str) -> InvalidInputError:
    """The error for a round with fewer updates than a strategy can work with."""
    return InvalidInputError(
        f"{name!r} was given {count} updates and needs {least} or more{why}: use a larger cohort, or another strategy",
        reason="FAILED_PRECONDITION",
        metadata={"count": count, "least": least},
    )


def not_finite(name: str) -> InvalidInputError:
    """The error for a NaN or an infinity."""
    return InvalidInputError(
        f"{name!r} was given an update with NaN or infinity: leave out the node that sent it", reason="NOT_FINITE"
    )


def _check_mean(mean: Mean, weights: Floats) -> None:
    if mean.delta.shape != weights.shape or mean.delta.dtype != np.float32:
        raise InvalidInputError(
            f"the mean of the updates has shape {mean.delta.shape} and type {mean.delta.dtype}, expected "
            f"{weights.shape} and float32"
        )
    if not (np.isfinite(mean.weight) and mean.weight > 0):
        raise InvalidInputError(f"the weights of the updates sum to {mean.weight}; expected a finite sum above 0")
    if not all(np.isfinite(mean.delta[where]).all() for where in span_slices(weights)):
        raise not_finite("a mean")
