"""Writes `reference_values.json`: epsilon by dp-accounting's PLD accountant, over a grid of settings.

dp-accounting forces an old `attrs` on what it is installed with, so it runs in an environment of its own:

    python -m venv elsewhere && elsewhere/bin/pip install dp-accounting==0.6.0
    elsewhere/bin/python tests/privacy/reference_values.py
"""

import json
from pathlib import Path

import dp_accounting
from dp_accounting.pld import PLDAccountant

# Each kind: noise multiplier, Poisson sample rate, steps.
SINGLE = [
    (noise, rate, steps)
    for noise, rate, steps in [
        (0.5, 1, 1), (1, 1, 1), (3.73, 1, 1), (20, 1, 1), (6.3, 1, 10), (8.9, 1, 20), (19.9, 1, 100),
        (0.3, 0.01, 5), (0.45, 0.002, 2000), (0.6, 0.01, 100), (0.7, 0.001, 10000), (0.8, 0.064, 100),
        (0.9, 0.5, 10), (1, 0.0001, 100000), (1.1, 0.004267, 14062), (1.1, 0.01, 1000), (1.5, 0.064, 960),
        (2, 0.25, 60), (3, 0.9, 40), (4, 0.064, 1920), (5, 0.064, 470), (10, 0.2, 5000), (20, 0.01, 3000),
        (50, 0.05, 100000), (0.05, 1, 1), (0.98, 0.000118, 886), (0.49, 0.0000533, 2294),
    ]
]  # fmt: skip
MIXED = [
    [(1, 1, 1), (2, 0.05, 300)],
    [(0.8, 0.01, 50), (1.2, 0.02, 400), (3, 1, 2)],
    [(5.1, 1, 7), (4.4, 1, 2), (5.9, 1, 11)],
    [(1.5, 0.064, 48), (1.35, 0.064, 48), (1.62, 0.064, 96)],
    [(0.7, 0.001, 3000), (30, 1, 5)],
]
DELTAS = (1e-5, 1e-8)


def epsilon(kinds, delta):
    """By dp-accounting."""
    accountant = PLDAccountant()
    for noise, rate, steps in kinds:
        event = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(event if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, event), steps)
    return accountant.get_epsilon(delta)


if __name__ == "__main__":
    rows = [
        {"kinds": kinds, "delta": delta, "epsilon": epsilon(kinds, delta)}
        for kinds in [*([kind] for kind in SINGLE), *MIXED]
        for delta in DELTAS
    ]
    text = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_name("reference_values.json").write_text(f"[\n{text}\n]\n")
