"""Draws follow transformers' own filters, and depend on seed and position alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from orbitmesh.errors import InvalidInputError
from services.executor.sampling import nucleus, sample, uniform

LOGITS = torch.randn(40, generator=torch.Generator().manual_seed(5)) * 2


def _theirs(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The probabilities after transformers' temperature and top-p, in float64."""
    scores = TemperatureLogitsWarper(temperature)(None, logits.double().unsqueeze(0))
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores[0], -1)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_one_transformers_keeps(temperature: float, top_p: float) -> None:
    """The same tokens are kept with the same probabilities, at sharp and at flat settings."""
    ids, probabilities = nucleus(LOGITS, temperature=temperature, top_p=top_p)
    expected = _theirs(LOGITS, temperature, top_p)
    assert sorted(ids.tolist()) == torch.nonzero(expected).flatten().tolist()
    assert torch.allclose(probabilities / probabilities.sum(), expected[ids], rtol=1e-9)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (2.0, 0.6)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """A chi-square test of 20,000 draws over seeds and positions against transformers' probabilities."""
    draws = 20_000
    counts = torch.zeros(40, dtype=torch.float64)
    for number in range(draws):
        token = sample(LOGITS, temperature=temperature, top_p=top_p, seed=number % 97, position=number // 97)
        counts[token] += 1
    expected = _theirs(LOGITS, temperature, top_p) * draws
    assert counts[expected == 0].sum() == 0
    # Rare tokens are pooled: the test wants a handful expected in every cell.
    rare = (expected > 0) & (expected < 10)
    cells = [(float(counts[i]), float(expected[i])) for i in range(40) if expected[i] >= 10]
    if float(expected[rare].sum()) >= 10:
        cells.append((float(counts[rare].sum()), float(expected[rare].sum())))
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    # The 99.99 % point of chi-square, by Wilson and Hilferty's approximation.
    freedom = len(cells) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@given(seed=st.integers(0, (1 << 64) - 1), position=st.integers(0, 1 << 40))
def test_seed_and_position_alone_decide(seed: int, position: int) -> None:
    """The same seed and position give the same number and token; the next position another number."""
    number = uniform(seed, position)
    assert 0 <= number < 1
    assert number == uniform(seed, position)
    assert number != uniform(seed, position + 1)
    tokens = {sample(LOGITS, temperature=1, top_p=0.9, seed=seed, position=position) for _ in range(3)}
    assert len(tokens) == 1


def test_the_numbers_never_change_between_releases() -> None:
    """Answers can be drawn again years later: these values are part of the contract."""
    assert uniform(0, 0) == 0.2501521379111892
    assert uniform(42, 7) == 0.6031945548779047


def test_greedy_breaks_ties_as_transformers_does() -> None:
    """Among equal maxima the token is torch's argmax over a batch of one, which `generate` takes."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randint(0, 4, (1 + seed * 7,), generator=generator).float()
        expected = int(torch.argmax(logits[None, :], dim=-1)[0])
        assert sample(logits, temperature=0, top_p=1, seed=0, position=0) == expected


def test_equal_probabilities_are_ordered_by_token_id() -> None:
    """A uniform distribution is walked from id 0 up, so that the order is the same on every machine."""
    ids, _ = nucleus(torch.zeros(100), temperature=1, top_p=0.25)
    assert ids.tolist() == list(range(25))


def test_a_top_p_that_keeps_one_token_is_greedy() -> None:
    """The most likely token is kept even where it alone exceeds top_p."""
    for position in range(50):
        assert sample(LOGITS, temperature=1, top_p=1e-9, seed=1, position=position) == int(LOGITS.argmax())


def test_masked_tokens_are_never_drawn() -> None:
    """A logit of -infinity is allowed and means never."""
    logits = torch.full((10,), -math.inf)
    logits[[2, 5]] = 0.0
    drawn = {sample(logits, temperature=5, top_p=1, seed=3, position=position) for position in range(60)}
    assert drawn == {2, 5}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    """One NaN or +infinity anywhere is an error, not a token."""
    logits = LOGITS.clone()
    logits[17] = bad
    with pytest.raises(InvalidInputError) as caught:
        sample(logits, temperature=temperature, top_p=0.9, seed=0, position=4)
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 1 << 64},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    """Each setting has a range that the error names."""
    settings = {"temperature": 1.0, "top_p": 0.9, "seed": 0, "position": 0} | setting
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        sample(LOGITS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "logits", [torch.zeros(0), torch.zeros((1, 4)), torch.zeros(4, dtype=torch.int64)], ids=str
)
def test_logits_of_another_shape_or_dtype_are_refused(logits: torch.Tensor) -> None:
    """One row of floats is what a token is drawn from."""
    with pytest.raises(InvalidInputError) as caught:
        sample(logits, temperature=1, top_p=0.9, seed=0, position=0)
    assert caught.value.reason == "DTYPE_MISMATCH"
