"""What the strategies compute, compared with torch's optimisers, scipy, and formulas written out anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.aggregator.strategies import STRATEGIES, Each, Mean, Need, State, Strategy, parse
from services.updates.spans import SPAN_VALUES, spans

SIZE = SPAN_VALUES + 1_000
"""Two spans, the last one short."""


def vectors(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def each(deltas: np.ndarray) -> Each:
    """The updates span by span, as they come from disk."""

    def read() -> Iterator[np.ndarray]:
        for _, where in spans(deltas.shape[1]):
            yield np.ascontiguousarray(deltas[:, where])

    return Each(len(deltas), read)


def mean(deltas: np.ndarray, weights: list[float] | None = None) -> Mean:
    """Their weighted mean, worked out in float64."""
    parts = np.ones(len(deltas)) if weights is None else np.array(weights)
    summed = (deltas.astype(np.float64) * parts[:, None]).sum(axis=0) / parts.sum()
    return Mean(summed.astype(np.float32), float(parts.sum()), len(deltas))


def contributions(strategy: Strategy, deltas: np.ndarray) -> Mean | Each:
    return each(deltas) if strategy.needs is Need.EACH else mean(deltas)


def close(ours: np.ndarray, other: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(ours, other, rtol=tolerance, atol=tolerance)


def test_fedavg_is_the_mean_weighted_by_examples() -> None:
    """FedAvg adds the mean update weighted by examples; FedProx does the same and tells the nodes their penalty."""
    deltas, start, examples = vectors(3), vectors(1, seed=9)[0], [10, 500, 90]
    average, prox = parse("fedavg"), parse("fedprox", {"mu": 0.3})
    expected = start + np.average(deltas.astype(np.float64), axis=0, weights=examples)
    given = mean(deltas, [average.weight(one) for one in examples])
    close(average.aggregate(start, given), expected)
    close(prox.aggregate(start, given), expected)
    assert average.configure(0) == {}
    assert prox.configure(5) == {"prox_mu": 0.3}


def test_diloco_outer_step_is_torchs_sgd_with_nesterov_momentum() -> None:
    """Over several rounds, the weights are those of torch.optim.SGD on the mean updates with their sign turned."""
    strategy = parse("diloco", {"outer_lr": 0.7, "outer_momentum": 0.9, "inner_steps": 50})
    assert strategy.configure(0) == {"steps": 50, "optimiser": "adamw", "keep_optimiser": True}
    weights = vectors(1, seed=1)[0]
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimiser = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for round_index in range(5):
        given = mean(vectors(4, seed=round_index))
        parameter.grad = -torch.from_numpy(given.delta)
        optimiser.step()
        weights = strategy.aggregate(weights, given)
        close(weights, parameter.detach().numpy())


def test_diloco_with_one_step_and_no_momentum_is_plain_averaging() -> None:
    """With momentum 0 and a rate of 1 the outer step adds the mean update."""
    start, deltas = vectors(1, seed=1)[0], vectors(4)
    strategy = parse("diloco", {"inner_steps": 1, "outer_lr": 1.0, "outer_momentum": 0.0})
    close(strategy.aggregate(start, mean(deltas)), start + deltas.mean(axis=0))


def adam(gradients: list[np.ndarray], start: np.ndarray, variance_rule: Callable[..., np.ndarray]) -> np.ndarray:
    """Algorithm 2 of Reddi et al. in float64, value by value."""
    weights, first, second = start.astype(np.float64), np.zeros(start.shape), np.full(start.shape, 0.05**2)
    for delta in gradients:
        wide = delta.astype(np.float64)
        first = 0.8 * first + 0.2 * wide
        second = variance_rule(second, wide)
        weights = weights + 0.3 * first / (np.sqrt(second) + 0.05)
    return weights


OPTIONS = {"server_lr": 0.3, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.05}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fedadam", lambda second, delta: 0.95 * second + 0.05 * delta**2),
        ("fedyogi", lambda second, delta: second - 0.05 * delta**2 * np.sign(second - delta**2)),
    ],
)
def test_adaptive_strategies_are_the_papers_formula(name: str, rule: Callable[..., np.ndarray]) -> None:
    """FedAdam and FedYogi agree over several rounds with the algorithm written out in float64."""
    strategy, weights = parse(name, OPTIONS), vectors(1, seed=1)[0]
    means = [mean(vectors(4, seed=seed)) for seed in range(6)]
    expected = adam([one.delta for one in means], weights, rule)
    for one in means:
        weights = strategy.aggregate(weights, one)
    close(weights, expected, 2e-5)


def test_fedadam_is_torchs_adam_without_its_corrections() -> None:
    """torch.optim.Adam, its step count set so high that the bias corrections are one, moves the weights alike."""
    strategy, weights = parse("fedadam", OPTIONS | {"beta_2": 0.95}), vectors(1, seed=1)[0]
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimiser = torch.optim.Adam([parameter], lr=0.3, betas=(0.8, 0.95), eps=0.05)
    optimiser.state[parameter] = {
        "step": torch.tensor(1e6),
        "exp_avg": torch.zeros(SIZE),
        "exp_avg_sq": torch.full((SIZE,), 0.05**2),
    }
    for seed in range(5):
        given = mean(vectors(4, seed=seed))
        parameter.grad = -torch.from_numpy(given.delta)
        optimiser.step()
        weights = strategy.aggregate(weights, given)
        close(weights, parameter.detach().numpy(), 1e-5)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(3, 20), trim=st.floats(0.0, 0.45), seed=st.integers(0, 1000))
def test_trimmed_mean_is_scipys(count: int, trim: float, seed: int) -> None:
    """For any cohort and share that leaves something out, each value is scipy's trimmed mean."""
    deltas, start = vectors(count, 300, seed), vectors(1, 300, seed + 1)[0]
    if trim > 0 and int(trim * count) == 0:
        trim = 1 / count + 1e-9
    strategy = parse("trimmed_mean", {"trim": trim})
    close(strategy.aggregate(start, each(deltas)), start + stats.trim_mean(deltas.astype(np.float64), trim, axis=0))


def brute_krum(deltas: np.ndarray, bad: int, select: int) -> np.ndarray:
    """Krum by its definition, pair by pair in float64."""
    wide, scores = deltas.astype(np.float64), []
    for one in range(len(wide)):
        distances = sorted(float(((wide[one] - wide[two]) ** 2).sum()) for two in range(len(wide)) if two != one)
        scores.append(sum(distances[: len(wide) - bad - 2]))
    return wide[np.argsort(scores, kind="stable")[:select]].mean(axis=0)


@settings(max_examples=40, deadline=None)
@given(bad=st.integers(0, 3), more=st.integers(0, 6), select=st.integers(1, 5), seed=st.integers(0, 1000))
def test_krum_is_brute_force(bad: int, more: int, select: int, seed: int) -> None:
    """For any number of nodes, of bad ones and of selected ones, over several spans with a large common part."""
    count = 2 * bad + 3 + more
    select = min(select, count - bad)
    deltas = vectors(count, 400, seed) + 100 * vectors(1, 400, seed + 1)
    deltas *= np.random.default_rng(seed).uniform(0.5, 2, (count, 1)).astype(np.float32)
    start = np.zeros(400, np.float32)
    strategy = parse("krum", {"byzantine": bad, "select": select})
    close(strategy.aggregate(start, each(deltas)), brute_krum(deltas, bad, select), 1e-5)


def test_krum_adds_distances_over_all_spans() -> None:
    """Updates that differ only in the second span are told apart by it."""
    deltas = np.repeat(vectors(1), 7, axis=0)
    deltas[:, SPAN_VALUES:] += np.arange(7, dtype=np.float32)[:, None] ** 2
    start = np.zeros(SIZE, np.float32)
    close(parse("krum").aggregate(start, each(deltas)), brute_krum(deltas, 1, 1))


@pytest.mark.parametrize(("name", "options"), [("trimmed_mean", {}), ("krum", {}), ("krum", {"select": 5})])
def test_a_node_of_a_thousand_times_the_norm_moves_nothing(name: str, options: dict[str, float]) -> None:
    """With one such node among eight, the result is within the spread of the others; FedAvg's is thrown far off."""
    deltas, start = vectors(8, seed=3), np.zeros(SIZE, np.float32)
    honest = deltas.mean(axis=0)
    spread = float(np.linalg.norm(deltas - honest, axis=1).max())
    for bad in (1000 * vectors(1, seed=4)[0], -1000 * deltas[2]):
        attacked = deltas.copy()
        attacked[5] = bad
        ours = parse(name, options).aggregate(start, each(attacked))
        plain = parse("fedavg").aggregate(start, mean(attacked))
        assert np.linalg.norm(ours - honest) <= spread < np.linalg.norm(plain - honest) / 50


def test_fedbuff_weighs_by_staleness_and_divides_by_the_buffer() -> None:
    """The step is 1/K times the sum of updates over sqrt(1 + staleness): all late ones make a smaller step."""
    strategy = parse("fedbuff", {"buffer_size": 3, "server_lr": 0.5})
    assert (strategy.needs, strategy.buffer_size) == (Need.BUFFER, 3)
    deltas, start, staleness = vectors(3), vectors(1, seed=7)[0], [0, 3, 15]
    weights = [strategy.weight(1000, one) for one in staleness]
    assert weights == [1.0, 0.5, 0.25]
    expected = start + 0.5 * (deltas[0] + deltas[1] / 2 + deltas[2] / 4) / 3
    close(strategy.aggregate(start, mean(deltas, weights)), expected)
    with pytest.raises(InvalidInputError, match="max_staleness") as caught:
        strategy.weight(1, 101)
    assert caught.value.reason == "FAILED_PRECONDITION"


def same(one: State, other: State) -> bool:
    return (
        one.values == other.values
        and set(one.arrays) == set(other.arrays)
        and all(np.array_equal(array, other.arrays[key]) for key, array in one.arrays.items())
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restored_strategy_goes_on_bit_for_bit(name: str) -> None:
    """Restored in a new object after some rounds, it gives the same bits as if it had gone on."""
    through, weights = parse(name), vectors(1, seed=8)[0]
    for round_index in range(6):
        again = parse(name)
        again.restore(through.state())
        deltas = vectors(6, seed=round_index)
        resumed = again.aggregate(weights, contributions(again, deltas))
        weights = through.aggregate(weights, contributions(through, deltas))
        assert np.array_equal(resumed, weights)
        assert same(again.state(), through.state())


@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_are_left_alone_or_replaced_in_place(name: str) -> None:
    """Without `out` the given weights do not change; with `out` the same array holds the same result."""
    start, deltas = vectors(1, seed=8)[0], vectors(6)
    kept, strategy = start.copy(), parse(name)
    result = strategy.aggregate(start, contributions(strategy, deltas))
    assert np.array_equal(start, kept)
    assert result.dtype == np.float32
    other = parse(name)
    assert other.aggregate(start, contributions(other, deltas), out=start) is start
    assert np.array_equal(start, result)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    """A NaN or an infinity anywhere is a typed error, and the strategy's state is as before it."""
    strategy, start = parse(name), vectors(1)[0]
    strategy.aggregate(start, contributions(strategy, vectors(6)))
    before = copy.deepcopy(strategy.state())
    deltas = vectors(6, seed=2)
    deltas[4, SIZE - 1] = bad
    with pytest.raises(InvalidInputError) as caught:
        strategy.aggregate(start, contributions(strategy, deltas))
    assert caught.value.reason == "NOT_FINITE"
    assert same(strategy.state(), before)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("trimmed_mean", {}, 2), ("trimmed_mean", {"trim": 0.45}, 2), ("krum", {}, 4), ("krum", {"byzantine": 3}, 8),
     ("krum", {"select": 6}, 6)],
)  # fmt: skip
def test_a_cohort_too_small_for_the_promise_is_refused(name: str, options: dict[str, float], count: int) -> None:
    """Where so few updates came that bad ones could not be told, nothing is aggregated and the number is named."""
    with pytest.raises(InvalidInputError, match="or more") as caught:
        parse(name, options).aggregate(vectors(1)[0], each(vectors(count)))
    assert caught.value.reason == "FAILED_PRECONDITION"
    least = int(caught.value.metadata["least"])
    parse(name, options).aggregate(vectors(1)[0], each(vectors(least)))


def test_what_does_not_fit_is_refused() -> None:
    """Sums where each update is needed, other shapes, too many spans, no updates and no weight are typed errors."""
    start, deltas = vectors(1)[0], vectors(6)
    cases: list[tuple[str, Mean | Each]] = [
        ("krum", mean(deltas)),
        ("fedavg", each(deltas)),
        ("fedavg", mean(deltas[:, :-1])),
        ("fedavg", Mean(deltas[0], 0.0, 1)),
        ("fedavg", Mean(deltas[0], float("nan"), 1)),
        ("fedavg", Mean(deltas[0], 1.0, 0)),
        ("fedavg", Mean(deltas[0].astype(np.float64), 1.0, 1)),
        ("krum", each(deltas[:, :-1])),
        ("krum", each(vectors(6, 2 * SPAN_VALUES + 1))),
        ("trimmed_mean", each(deltas[:, :SPAN_VALUES])),
        ("trimmed_mean", Each(0, lambda: iter(()))),
    ]
    for name, wrong in cases:
        with pytest.raises(InvalidInputError):
            parse(name).aggregate(start, wrong)


def test_a_state_of_another_strategy_or_model_is_refused() -> None:
    """Restoring what another strategy kept is an integrity error; a state of another model's size is refused in use."""
    diloco = parse("diloco")
    diloco.aggregate(vectors(1)[0], mean(vectors(3)))
    for state in (diloco.state(), State(), State({}, {"rounds": 3}), State({}, {"rounds": -1})):
        with pytest.raises(IntegrityError):
            parse("fedadam").restore(state)
    again = parse("diloco")
    again.restore(diloco.state())
    with pytest.raises(InvalidInputError, match="momentum"):
        again.aggregate(vectors(1, 10)[0], mean(vectors(3, 10)))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("sgd", {}, "fedavg, fedprox, fedadam, fedyogi, fedbuff, diloco, trimmed_mean, krum"),
        ("fedavg", {"lr": 1.0}, "server_lr"),
        ("fedavg", {"server_lr": 0}, "server_lr"),
        ("fedavg", {"server_lr": float("nan")}, "server_lr"),
        ("fedavg", {"server_lr": "1"}, "server_lr"),
        ("fedavg", {"server_lr": True}, "server_lr"),
        ("fedprox", {"mu": -1}, "mu"),
        ("fedadam", {"beta_1": 1.0}, "beta_1"),
        ("fedyogi", {"tau": 0.0}, "tau"),
        ("diloco", {"inner_steps": 0}, "inner_steps"),
        ("diloco", {"inner_steps": 2.5}, "whole"),
        ("diloco", {"inner_steps": float("inf")}, "inner_steps"),
        ("fedbuff", {"buffer_size": 0}, "buffer_size"),
        ("trimmed_mean", {"trim": 0.5}, "trim"),
        ("krum", {"byzantine": -1}, "byzantine"),
    ],
)
def test_a_bad_name_or_option_is_named(name: str, options: dict[str, object], word: str) -> None:
    """Unknown names list the known ones; values out of range name the option and its range."""
    with pytest.raises(InvalidInputError, match=word):
        parse(name, options)


def test_options_are_filled_with_defaults() -> None:
    """What is left out has its default, and a default is within its own range."""
    for kind in STRATEGIES.values():
        assert all(one.low <= one.default <= one.high for one in kind.OPTIONS.values())
        assert (
            parse(kind.name, {name: one.default for name, one in kind.OPTIONS.items()}).options
            == parse(kind.name).options
        )


@pytest.mark.parametrize("name", [name for name, kind in STRATEGIES.items() if kind.needs is not Need.EACH])
def test_the_next_weights_may_take_the_place_of_the_mean(name: str) -> None:
    """The mean lies where the next weights go, so that no third vector is needed: the weights are the same bits."""
    apart, in_place = parse(name), parse(name)
    weights = vectors(1, seed=3)[0]
    for seed in range(3):
        given = mean(vectors(6, seed=seed))
        expected = apart.aggregate(weights, given)
        result = in_place.aggregate(weights, given, out=given.delta)
        assert result is given.delta and result.tobytes() == expected.tobytes()
        weights = expected
