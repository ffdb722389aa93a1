"""Who is asked, round after round."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from orbitmesh.v1 import training_pb2
from services.aggregator.crew import Crew


class Sky:
    """What the scheduler says of contacts."""

    def __init__(self, **away_s: float) -> None:
        self._away_s = away_s

    def away_s(self, name: str) -> float:
        return self._away_s.get(name, 0.0)


def crew(nodes: int, sky: Sky) -> Crew:
    """A crew of which all have joined; nobody is reached in these tests."""
    names = [f"n{index}" for index in range(nodes)]
    made = Crew(dict.fromkeys(names), sky)  # type: ignore[arg-type]
    made.joined = {name: training_pb2.Joined(examples=1) for name in names}
    return made


@pytest.mark.parametrize(("nodes", "count"), [(n, k) for n in range(1, 9) for k in range(1, n + 1)])
def test_all_are_asked_equally_often(nodes: int, count: int) -> None:
    """After any number of rounds nobody was asked more than once more than anybody else."""
    asked, made = Counter[str](), crew(nodes, Sky())
    for index in range(30):
        cohort = made.choose(count, index)
        assert len(set(cohort)) == count
        asked.update(cohort)
        counts = [asked[name] for name in made.links]
        assert max(counts) - min(counts) <= 1, counts


def test_a_crew_that_is_told_of_earlier_rounds_goes_on_as_if_it_had_been_there() -> None:
    """The choice follows from the rounds that are written down, so that a restart changes nothing."""
    whole = crew(5, Sky())
    cohorts = [whole.choose(2, index) for index in range(20)]
    assert set(cohorts) <= set(combinations([f"n{index}" for index in range(5)], 2))
    for restart in range(20):
        again = crew(5, Sky())
        for index in range(restart):
            again.asked(cohorts[index], index)
        assert [again.choose(2, index) for index in range(restart, 20)] == cohorts[restart:]


def test_contact_comes_before_turns() -> None:
    """Whoever is in contact, or will be first, is asked; turns are taken among equals."""
    made = crew(4, Sky(n0=60.0, n1=5.0))
    assert [made.choose(2, index) for index in range(3)] == [("n2", "n3")] * 3
    assert made.choose(3, 3) == ("n1", "n2", "n3")
