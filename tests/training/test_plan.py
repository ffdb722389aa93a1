"""The plan of a node's part of a round."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from orbitmesh.errors import InvalidInputError
from services.training.plan import LocalPlan, parse_plan


def test_a_plan_survives_json() -> None:
    """A plan written as JSON and read again is the same plan."""
    for plan in (LocalPlan(epochs=3), LocalPlan(steps=50, optimiser="adamw", lr=1e-3, dtype="bf16", seed=2**62)):
        assert parse_plan(json.loads(json.dumps(asdict(plan)))) == plan


def test_steps_and_epochs_take_each_others_place() -> None:
    """A strategy that asks for steps overrides epochs, and the other way round; the rest stays."""
    plan = LocalPlan(epochs=3, lr=0.2)
    assert plan.with_overrides({"steps": 10}) == LocalPlan(steps=10, lr=0.2)
    assert plan.with_overrides({"steps": 10}).with_overrides({"epochs": 1}) == LocalPlan(epochs=1, lr=0.2)
    assert plan.with_overrides({"prox_mu": 1}).prox_mu == 1.0
    assert plan.with_overrides({}) == plan


def test_total_steps_count_the_short_last_batch() -> None:
    """Three passes over 100 examples in batches of 32 are twelve steps."""
    assert LocalPlan(epochs=3).total_steps(100) == 12
    assert LocalPlan(steps=5).total_steps(100) == 5


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "epochs"),
        ({"epochs": 1, "steps": 1}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 1, "lr": float("nan")}, "lr"),
        ({"steps": 1, "lr": "0.1"}, "lr"),
        ({"steps": 1, "momentum": 1.0}, "momentum"),
        ({"steps": 1, "batch_size": 0}, "batch_size"),
        ({"steps": 1, "optimiser": "lion"}, "sgd, adamw"),
        ({"steps": 1, "dtype": "int8"}, "fp32, bf16, fp16"),
        ({"steps": 1, "prox_mu": -1.0}, "prox_mu"),
        ({"steps": 1, "seed": -1}, "seed"),
        ({"steps": 1, "keep_optimiser": 1}, "keep_optimiser"),
        ({"steps": 1, "lr": None}, "lr"),
        ({"steps": 1, "rate": 1}, "rate"),
    ],
)
def test_a_plan_out_of_range_names_the_field(settings: dict[str, object], word: str) -> None:
    """Every bad setting is a typed error with the field's name in it."""
    with pytest.raises(InvalidInputError, match=word):
        parse_plan(settings)
