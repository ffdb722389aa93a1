"""Running a simulation with many seeds, and saying how to run the one that failed again.

`ORBITMESH_SEEDS=10000` changes how many seeds each simulation runs with; `ORBITMESH_SEED=17` runs that one alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

SEEDS = 250
"""How many seeds a simulation runs with where nothing else is said."""


class SimulationError(AssertionError):
    """A seed failed; the message says which and how to run it again. The cause is the failure itself."""


def chosen_seeds(count: int = SEEDS) -> Iterable[int]:
    """The seeds to run: what the environment says, else `count` of them from 0."""
    one = os.environ.get("ORBITMESH_SEED")
    if one:
        return (int(one),)
    return range(int(os.environ.get("ORBITMESH_SEEDS") or count))


def run_seeds(scenario: Callable[[int], object], seeds: int = SEEDS) -> int:
    """Runs `scenario(seed)` for every seed; gives how many ran.

    Raises:
        SimulationError: For the first seed that fails.
    """
    count = 0
    for seed in chosen_seeds(seeds):
        try:
            scenario(seed)
        except Exception as error:
            test = os.environ.get("PYTEST_CURRENT_TEST", "tests/simulation").split(" ")[0]
            message = f"SEED={seed}: {error!r}\nreproduce: ORBITMESH_SEED={seed} pytest '{test}'"
            sys.stdout.write(f"\n{message}\n")
            raise SimulationError(message) from error
        count += 1
    return count
