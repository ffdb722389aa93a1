"""Epsilon of composed, Poisson-sampled Gaussian releases: privacy loss distributions, rounded upward.

The privacy loss of a release is ln(P/Q) under P, for the pair of output distributions that two neighbouring data sets
make worst (Zhu, Dong, Wang 2022; Koskela, Jälkö, Honkela 2020):

    a unit removed:  P = (1 - q) N(0, s²) + q N(1, s²)    Q = N(0, s²)
    a unit added:    P = N(0, s²)                         Q = (1 - q) N(0, s²) + q N(1, s²)

Its distribution is put on a grid. The mass of a cell goes to the cell's two ends so that both its P and its Q stay what
they are ("connect the dots", Doroshenko et al. 2022): the outcome dominates the release, hence every bound on it holds
for the release, and the error is of second order in the cell. Releases compose by convolution. Whatever is cut counts
as loss without end, and what the arithmetic may have lost is taken from delta.

Grids are whole multiples of `CELL_MIN`, the interval that dp-accounting uses: a coarser grid dominates a finer one that
contains it, so that the answer is not below dp-accounting's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import InvalidInputError
from services.privacy.events import Release

CELL_MIN = 1e-4
"""The finest grid of losses."""
CELLS_PER_DEVIATION = 20
"""Cells in one standard deviation of a step's loss: the answer is then about 0.05 % too high."""
POINTS_MAX = 1 << 22
"""Points of a composed distribution; a grid that needs more is made coarser, which is still an upper bound."""
TAIL_DEVIATIONS = 9.0
"""Noise beyond so many standard deviations (1e-19 of it) counts as loss without end."""
TAIL_MASS = 1e-15
"""What a composed distribution may have beyond its window; it counts as loss without end."""
MARGIN = 1e-3
"""Relative addition to each answer, above what the same sums lose in other implementations' arithmetic."""
NOISE_PRECISION = 1e-4
"""Relative width at which the search for a noise multiplier ends."""
NOISE_MAX = 1e6
"""The largest noise multiplier that is tried or told apart."""
_PULLS = 2.0 ** np.arange(-16, 6, 0.25)
"""Where the exponent of Chernoff's bound is looked for, times the composed loss's deviation: rare large losses, as of
sampling at a low rate, need the small ones."""
_ROUNDING = 8 * float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss of one step on a grid: `mass[i]` lies at `(first + i) * cell`."""

    first: int
    mass: Floats
    endless: float


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """The least epsilon that this accountant can promise for all releases together, at `delta`.

    Args:
        releases: What happened, in any order: the answer does not depend on it.
        delta: Above 0 and below 1.

    Returns:
        Epsilon, never below the true one; `inf` where a release had no noise, or the noise was too little.

    Raises:
        InvalidInputError: Delta is out of its range, or too small for double precision after so many steps.
    """
    if not 0 < delta < 1:
        raise InvalidInputError(f"delta lies between 0 and 1, not {delta}: well below one over the number of units")
    steps: Counter[tuple[float, float]] = Counter()
    for release in releases:
        if release.steps and release.sample_rate:
            steps[min(release.noise_multiplier, NOISE_MAX), release.sample_rate] += release.steps
    if not steps:
        return 0.0
    if any(noise * TAIL_DEVIATIONS < 1e-3 for noise, _ in steps):
        return math.inf
    # One order for all callers: rounding must not depend on who came first.
    kinds = [(noise, rate, steps[noise, rate]) for noise, rate in sorted(steps)]
    worst = _epsilon_one_way(kinds, delta, added=False)
    if all(rate == 1 for _, rate, _ in kinds):
        return worst * (1 + MARGIN)
    return max(worst, _epsilon_one_way(kinds, delta, added=True)) * (1 + MARGIN)


def noise_for(target_epsilon: float, delta: float, steps: int, sample_rate: float = 1.0) -> float:
    """The least noise multiplier with which `steps` releases stay within `target_epsilon`, to `NOISE_PRECISION`.

    Raises:
        InvalidInputError: A number is out of its range, or no multiplier up to `NOISE_MAX` is enough.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise InvalidInputError(f"a target epsilon is finite and above 0, not {target_epsilon}")

    def spent(noise: float) -> float:
        return epsilon([Release(noise, sample_rate, steps)], delta)

    low, high = 0.0, 1.0
    while spent(high) > target_epsilon:
        low, high = high, high * 2
        if high > NOISE_MAX:
            raise InvalidInputError(
                f"no noise multiplier up to {NOISE_MAX:g} keeps {steps} steps within epsilon {target_epsilon} at delta "
                f"{delta}: ask for fewer steps, a smaller sample rate or a larger epsilon"
            )
    while high - low > NOISE_PRECISION * high and high > NOISE_PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def _epsilon_one_way(kinds: list[tuple[float, float, int]], delta: float, *, added: bool) -> float:
    count = sum(steps for _, _, steps in kinds)
    variance = sum(steps * _loss_variance(noise, rate, added=added) for noise, rate, steps in kinds)
    multiple = max(1, int(math.sqrt(variance / count) / CELLS_PER_DEVIATION / CELL_MIN))
    while True:
        cell = multiple * CELL_MIN
        losses = [(_step_loss(noise, rate, cell, added=added), steps) for noise, rate, steps in kinds]
        first, points = _window(losses, cell)
        if points <= POINTS_MAX:
            return _epsilon_of(*_compose(losses, first, points), cell, delta)
        multiple *= 2


def _loss_variance(noise: float, rate: float, *, added: bool) -> float:
    """About the variance of one step's loss: it only chooses the grid."""
    offsets = np.linspace(-TAIL_DEVIATIONS, TAIL_DEVIATIONS, 1025)
    bell = np.exp(-(offsets**2) / 2)
    if added:
        weights, places = bell, offsets * noise
    else:
        weights = np.concatenate([(1 - rate) * bell, rate * bell])
        places = np.concatenate([offsets * noise, offsets * noise + 1])
    plain = math.log1p(-rate) if rate < 1 else -math.inf
    loss = np.logaddexp(plain, math.log(rate) + (2 * places - 1) / (2 * noise**2))
    mean = float(np.average(loss, weights=weights))
    return float(np.average((loss - mean) ** 2, weights=weights))


def _step_loss(noise: float, rate: float, cell: float, *, added: bool) -> _Loss:
    """One step's loss on the grid; see the module's text for the pair that is compared."""
    below, above = -TAIL_DEVIATIONS * noise, TAIL_DEVIATIONS * noise + (0 if added else 1)
    ends = [_log_ratio(below, noise, rate), _log_ratio(above, noise, rate)]
    low, high = (-ends[1], -ends[0]) if added else (ends[0], ends[1])
    first, last = math.floor(low / cell), math.ceil(high / cell)
    if last - first + 2 > POINTS_MAX:
        return _Loss(first, np.ones(POINTS_MAX + 1), 0.0)
    grid: Floats = np.arange(first, last + 1, dtype=np.float64) * cell
    # Outputs between two neighbouring places have a loss between two neighbouring grid points.
    places = np.clip(_place_of(-grid if added else grid, noise, rate), below, above)
    plain = _between(places / noise, added=added)
    mixed = (1 - rate) * plain + rate * _between((places - 1) / noise, added=added)
    own, other = (plain, mixed) if added else (mixed, plain)
    with np.errstate(divide="ignore"):
        # In logarithms: the ratio alone overflows. Where `other` has underflowed all mass goes up, which is safe.
        scaled = np.exp(np.minimum(np.log(other) + grid[:-1], 0.0))
    upper = np.clip((own - scaled) / -math.expm1(-cell), 0.0, own)
    mass = np.zeros(len(grid))
    mass[:-1] += own - upper
    mass[1:] += upper
    # What the grid does not hold lies beyond the ends of the noise.
    return _Loss(first, mass, max(0.0, 1.0 - math.fsum(mass)))


def _log_ratio(place: float, noise: float, rate: float) -> float:
    exponent = (2 * place - 1) / (2 * noise**2)
    if rate == 1:
        return exponent
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _place_of(loss: Floats, noise: float, rate: float) -> Floats:
    """Where the logarithm of mixed over plain is `loss`; -inf where it is always above."""
    if rate == 1:
        return loss * noise**2 + 0.5
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # ln((e^loss - 1 + q) / q), in the form that neither overflows nor cancels.
        log_excess = np.where(
            loss > 30, loss + np.log1p(-(1 - rate) * np.exp(-loss)), np.log(np.maximum(np.expm1(loss) + rate, 0.0))
        )
    places: Floats = noise**2 * (log_excess - math.log(rate)) + 0.5
    return places


def _between(places: Floats, *, added: bool) -> Floats:
    """Normal mass between neighbouring places; from the nearer tail, so that small masses keep their digits."""
    tails = np.array([0.5 * math.erfc(abs(place) / math.sqrt(2)) for place in places.tolist()])
    low, high = (slice(1, None), slice(None, -1)) if added else (slice(None, -1), slice(1, None))
    one_side = np.abs(tails[low] - tails[high])
    straddling = (places[low] < 0) & (places[high] > 0)
    masses: Floats = np.where(straddling, 1.0 - tails[low] - tails[high], one_side)
    return masses


def _window(losses: list[tuple[_Loss, int]], cell: float) -> tuple[int, int]:
    """First index and number of points outside which the composed loss has at most `TAIL_MASS` on either side."""
    if any(len(loss.mass) > POINTS_MAX for loss, _ in losses):
        return 0, POINTS_MAX + 1
    first = sum(loss.first * steps for loss, steps in losses)
    last = sum((loss.first + len(loss.mass) - 1) * steps for loss, steps in losses)
    centre, variance = 0.0, 0.0
    for loss, steps in losses:
        indices = loss.first + np.arange(len(loss.mass), dtype=np.float64)
        mean = float(np.average(indices, weights=loss.mass))
        centre += steps * mean
        variance += steps * float(np.average((indices - mean) ** 2, weights=loss.mass))
    if variance == 0:
        return first, last - first + 1
    pulls = (_PULLS / math.sqrt(variance)).tolist()
    bounds = [centre + sign * _reach(losses, sign, centre, pulls) for sign in (-1.0, 1.0)]
    low, high = max(first, math.floor(bounds[0])), min(last, math.ceil(bounds[1]))
    return low, high - low + 1


def _reach(losses: list[tuple[_Loss, int]], sign: float, centre: float, pulls: list[float]) -> float:
    """How far from `centre` the composed loss goes on one side, but for `TAIL_MASS` of it: Chernoff's bound."""

    def bound(index: int) -> float:
        pull = pulls[index]
        return (_cumulant(losses, sign * pull) - sign * pull * centre - math.log(TAIL_MASS)) / pull

    # Quasi-convex in the exponent: the cumulant is convex.
    low, high = 0, len(pulls) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(middle) <= bound(middle + 1) else (middle + 1, high)
    return bound(low)


def _cumulant(losses: list[tuple[_Loss, int]], pull: float) -> float:
    total = 0.0
    for loss, steps in losses:
        held = np.flatnonzero(loss.mass)
        exponents = pull * (loss.first + held) + np.log(loss.mass[held])
        peak = float(exponents.max())
        total += steps * (peak + math.log(float(np.exp(exponents - peak).sum())))
    return total


def _compose(losses: list[tuple[_Loss, int]], first: int, points: int) -> tuple[int, Floats, float]:
    """The composed loss in a window of `points` from `first`; what lies above the window is endless."""
    size = 1 << max(points - 1, 1).bit_length()
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    remaining, steps_total, kept = first, 0, 0.0
    for loss, steps in losses:
        # Around its mean the spectrum turns slowly, so that a high power keeps its phase.
        middle = round(float(np.average(np.arange(len(loss.mass)), weights=loss.mass)))
        folded = np.bincount(np.arange(-middle, len(loss.mass) - middle) % size, weights=loss.mass, minlength=size)
        spectrum *= np.fft.rfft(folded) ** steps
        remaining -= (loss.first + middle) * steps
        steps_total += steps
        kept += steps * math.log1p(-min(loss.endless, 0.5))
    mass = np.roll(np.fft.irfft(spectrum, size), -remaining)
    lost = _ROUNDING * (steps_total + size.bit_length()) * float(np.linalg.norm(spectrum))
    return first, np.maximum(mass, 0.0), -math.expm1(kept) + TAIL_MASS + lost


def _epsilon_of(first: int, mass: Floats, endless: float, cell: float, delta: float) -> float:
    """The epsilon at which the composed loss has hockey-stick divergence `delta`."""
    if endless >= delta:
        if endless < 1e-3:
            raise InvalidInputError(
                f"delta {delta} is below what double precision resolves after these steps ({endless:.1e}): "
                "choose a larger delta"
            )
        return math.inf
    indices = np.arange(first, first + len(mass))
    positive = int(np.searchsorted(indices, 1))
    loss, mass = indices[positive:] * cell, mass[positive:]
    if not len(loss) or endless - float(np.dot(mass, np.expm1(-loss))) <= delta:
        return 0.0
    low, high = 0, len(loss) - 1
    while low < high:
        middle = (low + high) // 2
        beyond = endless - float(np.dot(mass[middle:], np.expm1(loss[middle] - loss[middle:])))
        low, high = (low, middle) if beyond <= delta else (middle + 1, high)
    own = float(mass[low:].sum())
    other = float(np.dot(mass[low:], np.exp(loss[low] - loss[low:])))
    return max(0.0, float(loss[low]) + math.log((own + endless - delta) / other))
