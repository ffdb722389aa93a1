"""Epsilon against dp-accounting's values, the analytic Gaussian mechanism and what composition must not depend on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from orbitmesh.errors import InvalidInputError
from services.privacy.accountant import epsilon, noise_for
from services.privacy.events import Release

REFERENCE: list[dict[str, Any]] = json.loads(Path(__file__).with_name("reference_values.json").read_text())


def analytic(noise: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, for sensitivity 1: epsilon of one Gaussian release."""

    def excess(eps: float) -> float:
        upper = norm.cdf(0.5 / noise - eps * noise)
        return float(upper - math.exp(eps + norm.logcdf(-0.5 / noise - eps * noise)) - delta)

    return float(brentq(excess, 0, 40 / noise + 1 / noise**2, xtol=1e-13))


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: f"{row['kinds']}@{row['delta']:g}")
def test_epsilon_is_not_below_dp_accounting_and_at_most_a_percent_above(row: dict[str, Any]) -> None:
    """Over the grid of the committed values the answer lies between dp-accounting's and 1 % more."""
    ours = epsilon([Release(*kind) for kind in row["kinds"]], row["delta"])
    assert row["epsilon"] <= ours <= row["epsilon"] * 1.01


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5, 1, 3.7, 25, 200])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_one_release_is_the_analytic_gaussian_mechanism(noise: float, delta: float) -> None:
    """A single release costs what the closed form says, and up to 1 % more."""
    exact = analytic(noise, delta)
    assert exact <= epsilon([Release(noise)], delta) <= exact * 1.01


@pytest.mark.parametrize("count", [2, 30, 400])
def test_releases_without_sampling_add_like_one_of_less_noise(count: int) -> None:
    """`count` Gaussian releases are one whose noise is smaller by the square root of `count`."""
    exact = analytic(4 / math.sqrt(count), 1e-5)
    assert exact <= epsilon([Release(4, 1, count)], 1e-5) <= exact * 1.01


def test_the_order_and_the_grouping_of_releases_do_not_matter() -> None:
    """The same steps in another order, or told one by one, give the same number to the last digit."""
    kinds = [Release(1.1, 0.02, 40), Release(2.5, 1, 3), Release(0.9, 0.01, 7)]
    single = [Release(r.noise_multiplier, r.sample_rate) for r in kinds for _ in range(r.steps)]
    assert epsilon(kinds, 1e-5) == epsilon(kinds[::-1], 1e-5) == epsilon(single, 1e-5)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.05, 100), (6.0, 1.0, 10)])
def test_less_noise_more_steps_a_higher_rate_or_a_smaller_delta_cost_more(
    noise: float, rate: float, steps: int
) -> None:
    """Epsilon grows the way it must in each of its arguments."""
    base = epsilon([Release(noise, rate, steps)], 1e-5)
    assert epsilon([Release(noise * 0.95, rate, steps)], 1e-5) > base
    assert epsilon([Release(noise, rate, steps + 5)], 1e-5) > base
    assert epsilon([Release(noise, rate * 0.9, steps)], 1e-5) < base
    assert epsilon([Release(noise, rate, steps)], 1e-7) > base


@pytest.mark.parametrize(("target", "steps", "rate"), [(2.0, 10, 1.0), (2.0, 1920, 0.064), (0.1, 50, 0.01), (40, 3, 1)])
def test_the_noise_found_keeps_the_target_and_a_little_less_does_not(target: float, steps: int, rate: float) -> None:
    """`noise_for` returns a multiplier within the target that is at most 0.1 % more than needed."""
    noise = noise_for(target, 1e-5, steps, rate)
    assert epsilon([Release(noise, rate, steps)], 1e-5) <= target
    assert epsilon([Release(noise * 0.999, rate, steps)], 1e-5) > target


def test_no_noise_has_no_bound_and_nothing_released_costs_nothing() -> None:
    """Epsilon is infinite without noise, also with sampling, and 0 where no unit was ever in a sum."""
    assert epsilon([Release(0.0)], 1e-5) == math.inf
    assert epsilon([Release(0.0, 0.01), Release(5.0)], 1e-5) == math.inf
    assert epsilon([], 1e-5) == 0
    assert epsilon([Release(0.0, 0.0, 10), Release(1.0, 0.5, 0)], 1e-5) == 0


def test_a_sum_with_hardly_any_noise_leaks_a_sampled_record_unless_delta_covers_the_sampling() -> None:
    """With sampling at 1e-6 delta 1e-5 covers a step almost without noise; at 1e-3 it does not."""
    assert epsilon([Release(0.02, 1e-6)], 1e-5) < 0.01
    assert epsilon([Release(0.02, 1e-3)], 1e-5) > 100


@pytest.mark.parametrize(
    "call",
    [
        lambda: epsilon([Release(1.0)], 0.0),
        lambda: epsilon([Release(1.0)], 1.0),
        lambda: epsilon([Release(1.0)], math.nan),
        lambda: epsilon([Release(1.0)], 1e-17),
        lambda: Release(math.nan),
        lambda: Release(-1.0),
        lambda: Release(1.0, 1.5),
        lambda: Release(1.0, 0.5, -1),
        lambda: noise_for(0.0, 1e-5, 10),
        lambda: noise_for(math.inf, 1e-5, 10),
        lambda: noise_for(1e-9, 1e-9, 10**4),
    ],
)
def test_numbers_out_of_range_are_refused(call: Any) -> None:
    """Each has a typed error, and none an epsilon."""
    with pytest.raises(InvalidInputError):
        call()
