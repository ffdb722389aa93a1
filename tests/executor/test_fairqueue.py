"""The fair queue in virtual time, beside a fluid server that divides every instant, and the bounds of its paper.

The fluid server here (generalised processor sharing) is written from its definition: rates over time, in fractions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import CapacityError, InvalidInputError
from services.executor import fairqueue
from services.executor.fairqueue import CEILING_WINDOW_NS, FIRST_WINDOW_NS, FairQueue, Share

MS = 1_000_000
ROUNDING_NS = 1e-3

Step = tuple[str, int, int]
"""Slice, when it comes, how long it takes; nanoseconds."""


@dataclass(frozen=True)
class Served:
    """One step as it was served."""

    name: str
    came_ns: int
    began_ns: int
    ended_ns: int


def serve(
    shares: Mapping[str, Share],
    steps: Sequence[Step],
    until_ns: int | None = None,
    later: tuple[int, Mapping[str, Share]] | None = None,
) -> list[Served]:
    """What one server does that asks the queue whenever it is free; `later` rules come after a time."""
    queue: FairQueue[Step] = FairQueue()
    queue.set_rules(shares, 0)
    coming = deque(sorted(steps, key=lambda step: step[1]))
    served: list[Served] = []
    now = 0

    def arrive(to_ns: int) -> None:
        while coming and coming[0][1] <= to_ns:
            step = coming.popleft()
            queue.put(step, step[0], step[1])

    while (coming or queue) and (until_ns is None or now < until_ns):
        arrive(now)
        if later is not None and now >= later[0]:
            queue.set_rules(later[1], now)
            later = None
        entry = queue.take(now)
        if entry is None:
            times = [coming[0][1]] if coming else []
            ready = queue.next_ns(now)
            now = min(times if ready is None else [*times, ready])
            continue
        name, came, length = entry.item
        arrive(now + length)
        served.append(Served(name, came, now, now + length))
        now += length
        queue.ended(entry, length, now)
    return served


def fluid(weights: Mapping[str, int], totals: Mapping[str, int], at_ns: int) -> tuple[dict[str, Fraction], set[str]]:
    """What each has got of a server that divides every instant by weight, and who still wants something."""
    got = {name: Fraction(0) for name in totals}
    now = Fraction(0)
    while now < at_ns and (busy := [name for name in totals if got[name] < totals[name]]):
        whole = sum(weights[name] for name in busy)
        rates = {name: Fraction(weights[name], whole) for name in busy}
        step = min(Fraction(at_ns) - now, *((totals[name] - got[name]) / rates[name] for name in busy))
        for name in busy:
            got[name] += rates[name] * step
        now += step
    return got, {name for name in totals if got[name] < totals[name]}


def work(served: Sequence[Served], name: str, start_ns: int, stop_ns: int) -> int:
    """The time that a slice had between two times."""
    return sum(
        max(0, min(step.ended_ns, stop_ns) - max(step.began_ns, start_ns)) for step in served if step.name == name
    )


def busy_times(served: Sequence[Served], name: str) -> list[tuple[int, int]]:
    """The times during which a slice always had a step waiting or being served."""
    times: list[tuple[int, int]] = []
    for step in sorted((step for step in served if step.name == name), key=lambda step: step.came_ns):
        if times and step.came_ns <= times[-1][1]:
            times[-1] = times[-1][0], max(times[-1][1], step.ended_ns)
        else:
            times.append((step.came_ns, step.ended_ns))
    return times


def longest(steps: Sequence[Step], name: str) -> int:
    """The longest step of a slice."""
    return max((length for other, _, length in steps if other == name), default=0)


def shares_of(weights: Mapping[str, int]) -> dict[str, Share]:
    """Guarantees in proportion to weights, of all that there is."""
    whole = sum(weights.values())
    return {name: Share(guaranteed=weight / whole) for name, weight in weights.items()}


WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20), min_size=2, max_size=5)
LENGTHS = st.lists(st.integers(1, 30 * MS), min_size=1, max_size=12)


@given(weights=WEIGHTS, data=st.data())
def test_nobody_is_behind_or_ahead_of_the_fluid_server_by_more_than_the_bound(
    weights: dict[str, int], data: st.DataObject
) -> None:
    """All begin together: after every step each slice is at most one own step ahead of its fluid service, and behind it
    by no more than its share of one step of each."""
    lengths = {name: data.draw(LENGTHS, label=name) for name in weights}
    steps = [(name, 0, length) for name, ones in lengths.items() for length in ones]
    totals = {name: sum(ones) for name, ones in lengths.items()}
    served = serve(shares_of(weights), steps)
    assert sorted((step.name, step.ended_ns - step.began_ns) for step in served) == sorted(
        (name, length) for name, _, length in steps
    )
    all_longest = sum(max(ones) for ones in lengths.values())
    for step in served:
        due, busy = fluid(weights, totals, step.ended_ns)
        whole = sum(weights[name] for name in busy)
        for name in weights:
            got = work(served, name, 0, step.ended_ns)
            assert got - due[name] <= max(lengths[name]) + ROUNDING_NS
            behind = weights[name] / whole * all_longest if busy else 0
            assert due[name] - got <= behind + ROUNDING_NS


ARRIVALS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(0, 200 * MS), st.integers(1, 20 * MS)),
    min_size=1,
    max_size=30,
)


@given(steps=ARRIVALS, parts=st.lists(st.integers(1, 30), min_size=3, max_size=3))
def test_two_slices_that_both_wait_get_the_same_per_weight(steps: list[Step], parts: list[int]) -> None:
    """Theorem 1 of Goyal, Vin and Cheng: while two slices have steps all the time, what they get per weight differs by
    at most one step of each per weight, over any such time."""
    shares = {name: Share(guaranteed=part / 100) for name, part in zip("abc", parts, strict=True)}
    weights = {**{name: share.guaranteed for name, share in shares.items()}, "": 1 - sum(parts) / 100}
    served = serve(shares, steps)
    ends = sorted({0, *(step.ended_ns for step in served)})
    for one, other in combinations(weights, 2):
        bound = longest(steps, one) / weights[one] + longest(steps, other) / weights[other]
        for one_from, one_to in busy_times(served, one):
            for other_from, other_to in busy_times(served, other):
                low, high = max(one_from, other_from), min(one_to, other_to)
                times = [low, *(end for end in ends if low < end <= high)]
                for start, stop in combinations(times, 2):
                    apart = work(served, one, start, stop) / weights[one]
                    apart -= work(served, other, start, stop) / weights[other]
                    assert abs(apart) <= bound + ROUNDING_NS


@given(steps=ARRIVALS, parts=st.lists(st.integers(1, 30), min_size=3, max_size=3))
def test_a_slice_gets_what_it_is_guaranteed_whatever_others_do(steps: list[Step], parts: list[int]) -> None:
    """Theorem 2 of the same: over any time in which a slice has steps, it gets its guarantee less its part of one step
    of each and one step of its own; and the server is never idle while a step waits."""
    shares = {name: Share(guaranteed=part / 100) for name, part in zip("abc", parts, strict=True)}
    served = serve(shares, steps)
    all_longest = sum(longest(steps, name) for name in ("a", "b", "c", ""))
    for name, share in shares.items():
        for low, high in busy_times(served, name):
            times = [low, *(step.ended_ns for step in served if low < step.ended_ns <= high)]
            for start, stop in combinations(times, 2):
                least = share.guaranteed * (stop - start - all_longest) - longest(steps, name)
                assert work(served, name, start, stop) >= least - ROUNDING_NS
    for before, step in pairwise(served):
        waited = min(other.came_ns for other in served if other.began_ns >= step.began_ns)
        assert step.began_ns == max(before.ended_ns, waited)


@given(
    ceiling=st.floats(0.01, 0.9),
    lengths=st.lists(st.integers(1, 40 * MS), min_size=1, max_size=40),
    others=st.lists(st.integers(1, 40 * MS), max_size=10),
)
def test_a_ceiling_holds_over_any_time(ceiling: float, lengths: list[int], others: list[int]) -> None:
    """Between any two ends of steps, a slice has at most its ceiling of the time, its window of it and one step."""
    steps = [("a", 0, length) for length in lengths] + [("", 0, length) for length in others]
    served = serve({"a": Share(ceiling=ceiling)}, steps)
    assert len(served) == len(steps)
    times = [0, *(step.began_ns for step in served), *(step.ended_ns for step in served)]
    for start, stop in combinations(sorted(set(times)), 2):
        most = ceiling * (stop - start + CEILING_WINDOW_NS) + max(lengths)
        assert work(served, "a", start, stop) <= most + ROUNDING_NS


@pytest.mark.parametrize("length", [MS // 10, MS, 7 * MS, 100 * MS])
def test_a_ceiling_is_reached(length: int) -> None:
    """Alone and with work all the time, a slice has its ceiling and not less, however long its steps are: 30 % over ten
    seconds, within 1 % and a step."""
    span = 10_000 * MS
    served = serve({"a": Share(ceiling=0.3)}, [("a", 0, length)] * (span // length // 2), until_ns=span)
    assert work(served, "a", 0, span) == pytest.approx(0.3 * span, abs=0.003 * span + length)


def test_what_is_dedicated_is_not_lent() -> None:
    """Others never have what is dedicated to an idle slice, and together with it nothing of the server is lost."""
    shares = {"a": Share(guaranteed=0.4, dedicated=0.4)}
    alone = serve(shares, [("", 0, MS)] * 4000, until_ns=3_000 * MS)
    got = work(alone, "", 0, 3_000 * MS)
    assert 0.6 * 3_000 * MS * 0.99 <= got <= 0.6 * (3_000 * MS + CEILING_WINDOW_NS) + MS
    both = serve(shares, [(name, 0, MS) for name in ("", "a") for _ in range(4000)], until_ns=3_000 * MS)
    assert work(both, "a", 0, 3_000 * MS) == pytest.approx(0.4 * 3_000 * MS, rel=0.02)
    assert work(both, "", 0, 3_000 * MS) == pytest.approx(0.6 * 3_000 * MS, rel=0.02)
    owner = serve(shares, [("a", 0, MS)] * 1000)
    assert owner[-1].ended_ns == 1000 * MS


def test_who_goes_first_waits_for_one_step() -> None:
    """Among slices that saturate the server, a step of a slice that goes first begins when the running one ends."""
    shares = {"now": Share(guaranteed=0.3, first=True), "a": Share(guaranteed=0.5)}
    steps = [(name, 0, 7 * MS) for name in ("a", "") for _ in range(100)]
    steps += [("now", 3 * MS + 10 * MS * index, 2 * MS) for index in range(100)]
    served = serve(shares, steps)
    first = [step for step in served if step.name == "now"]
    assert len(first) == 100
    for step in first:
        assert step.began_ns - step.came_ns <= 7 * MS


def test_who_goes_first_starves_nobody() -> None:
    """A slice that goes first and never ends has its share and one window of it; the others have the rest."""
    shares = {"now": Share(guaranteed=0.3, first=True), "a": Share(guaranteed=0.5)}
    steps = [(name, 0, MS) for name in ("now", "a", "") for _ in range(6000)]
    served = serve(shares, steps, until_ns=6_000 * MS)
    assert work(served, "now", 0, 6_000 * MS) <= 0.3 * (6_000 * MS + FIRST_WINDOW_NS) + 2 * MS
    assert work(served, "a", 0, 6_000 * MS) >= 0.5 * (6_000 * MS - 0.3 * FIRST_WINDOW_NS / 0.7) - 4 * MS
    assert work(served, "", 0, 6_000 * MS) >= 0.2 * (6_000 * MS - 0.3 * FIRST_WINDOW_NS / 0.7) - 4 * MS


def test_nothing_idle_is_kept_from_a_slice_without_ceiling() -> None:
    """A slice with a small guarantee has the whole server while it is alone."""
    served = serve({"a": Share(guaranteed=0.01), "b": Share(guaranteed=0.9)}, [("a", 0, MS)] * 100)
    assert served[-1].ended_ns == 100 * MS


def test_who_was_idle_does_not_catch_up() -> None:
    """A slice that comes back after a long time shares from then on, by weight."""
    shares = {"a": Share(guaranteed=0.5), "b": Share(guaranteed=0.25)}
    steps = [("a", 0, MS)] * 1000 + [("b", 400 * MS, MS)] * 300
    served = serve(shares, steps, until_ns=700 * MS)
    assert work(served, "b", 400 * MS, 490 * MS) == pytest.approx(30 * MS, abs=4 * MS)


def test_who_comes_after_one_that_went_first_waits_no_longer_for_it() -> None:
    """A slice that went first for a while puts nobody behind who comes later: two others share as ever."""
    shares = {"a": Share(guaranteed=0.3), "b": Share(guaranteed=0.3), "now": Share(guaranteed=0.3, first=True)}
    steps = [("now", 0, MS)] * 200 + [("a", 0, MS)] * 1000 + [("b", 100 * MS, MS)] * 1000
    served = serve(shares, steps, until_ns=400 * MS)
    assert work(served, "now", 0, 200 * MS) == 200 * MS
    assert work(served, "b", 200 * MS, 300 * MS) == pytest.approx(50 * MS, abs=4 * MS)


def test_a_slice_that_was_held_back_does_not_catch_up_at_the_expense_of_others() -> None:
    """Once its ceiling is lifted, a slice gets its weight's part, not what it missed while it was held back."""
    before = {"a": Share(guaranteed=0.1, ceiling=0.1), "b": Share(guaranteed=0.1)}
    after = {"a": Share(guaranteed=0.45), "b": Share(guaranteed=0.45)}
    steps = [(name, 0, MS) for name in ("a", "b") for _ in range(3000)]
    served = serve(before, steps, until_ns=2_000 * MS, later=(1_000 * MS, after))
    assert work(served, "b", 0, 1_000 * MS) == pytest.approx(900 * MS, rel=0.02)
    assert work(served, "b", 1_000 * MS, 1_100 * MS) == pytest.approx(50 * MS, abs=5 * MS)


def test_a_slice_that_is_held_back_does_not_hold_the_others_time_back() -> None:
    """While one slice is at its ceiling, a slice that comes new shares with those that were there, by weight."""
    shares = {"a": Share(guaranteed=0.1, ceiling=0.1), "b": Share(guaranteed=0.1), "c": Share(guaranteed=0.1)}
    steps = [(name, 0, MS) for name in ("a", "b") for _ in range(3000)] + [("c", 1_000 * MS, MS)] * 1000
    served = serve(shares, steps, until_ns=1_200 * MS)
    assert work(served, "c", 1_000 * MS, 1_100 * MS) == pytest.approx(45 * MS, abs=5 * MS)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["a", "b", "c", "", None])),
        st.tuples(st.just("serve"), st.integers(1, 30 * MS)),
        st.tuples(st.just("rules"), st.sets(st.sampled_from("abc"))),
    ),
    max_size=60,
)


@given(operations=OPERATIONS, ceiling=st.sampled_from([0.05, 0.5, 1.0]))
def test_a_change_of_rules_loses_nothing_and_turns_nothing_around(
    operations: list[tuple[str, object]], ceiling: float
) -> None:
    """Whatever is put, served and ruled: each item comes out once, and those of one slice in their order."""
    queue: FairQueue[tuple[str | None, int]] = FairQueue()
    now, number = 0, 0
    out: list[tuple[str | None, int]] = []

    def one(length: int) -> None:
        nonlocal now
        while (entry := queue.take(now)) is None:
            ready = queue.next_ns(now)
            if ready is None:
                return
            assert ready > now
            now = ready
        out.append(entry.item)
        now += length
        queue.ended(entry, length, now)

    for what, value in operations:
        if what == "put":
            queue.put((value, number), value, now)  # type: ignore[arg-type]
            number += 1
        elif what == "serve":
            one(value)  # type: ignore[arg-type]
        else:
            names = sorted(value)  # type: ignore[call-overload]
            queue.set_rules({name: Share(0.2, 0.1 if ceiling > 0.1 else 0.0, max(0.2, ceiling)) for name in names}, now)
    while queue:
        one(MS)
    assert sorted(number for _, number in out) == list(range(number))
    for name in ("a", "b", "c", "", None):
        mine = [number for other, number in out if other == name]
        assert mine == sorted(mine)


def test_without_rules_first_come_is_first_served() -> None:
    """Slices mean nothing where no rules are."""
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.put(number, ["a", "b", "", None][number % 4], 0)
    order = []
    while (entry := queue.take(0)) is not None:
        order.append(entry.item)
        queue.ended(entry, MS, 0)
    assert order == list(range(100))


def test_it_says_what_held_a_step_back_and_for_how_long() -> None:
    """A step that came while its slice was at its ceiling says so, and for how long it waited for that alone."""
    queue: FairQueue[str] = FairQueue()
    queue.set_rules({"a": Share(ceiling=0.5)}, 0)
    queue.put("long", "a", 0)
    entry = queue.take(0)
    assert entry is not None
    queue.ended(entry, 110 * MS, 110 * MS)
    # 10 ms of the window and 55 ms while it ran are spent: 45 ms of debt, paid at half the time.
    queue.put("late", "a", 110 * MS)
    assert queue.take(110 * MS) is None
    ready = queue.next_ns(110 * MS)
    assert ready == (110 + 90) * MS
    entry = queue.take(ready)
    assert entry is not None
    assert entry.held_ns == 90 * MS
    assert entry.held_by == "slice a ceiling 50%"


@pytest.mark.parametrize(
    "share",
    [
        Share(guaranteed=-0.1),
        Share(guaranteed=float("nan")),
        Share(guaranteed=1.1),
        Share(guaranteed=0.2, dedicated=0.3),
        Share(guaranteed=0.6, ceiling=0.5),
        Share(ceiling=float("inf")),
        Share(guaranteed=0.7),
    ],
)
def test_wrong_shares_are_refused_and_change_nothing(share: Share) -> None:
    """Shares that are no parts, contradict each other or are more than there is leave the rules as they were."""
    queue: FairQueue[int] = FairQueue()
    queue.set_rules({"a": Share(guaranteed=0.5)}, 0)
    queue.put(1, "a", 0)
    with pytest.raises(InvalidInputError):
        queue.set_rules({"a": Share(guaranteed=0.5), "b": share}, 0)
    assert len(queue) == 1
    assert queue.ruled


def test_it_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many steps are refused; those that wait are served all the same."""
    monkeypatch.setattr(fairqueue, "WAITING_MAX", 3)
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.put(number, "", 0)
    with pytest.raises(CapacityError):
        queue.put(3, "", 0)
    assert list(queue) == [0, 1, 2]
    assert queue.take(0) is not None
    queue.put(3, "", 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 20), st.booleans())
def test_owners_take_turns_however_many_steps_one_of_them_has(many: list[int], own: int, ruled: bool) -> None:
    """One owner has all its steps waiting, another always one: beside what runs, one step at the most comes between two
    of its own, until the two have had the same time; with and without rules for others."""
    queue: FairQueue[tuple[int, int]] = FairQueue()
    if ruled:
        queue.set_rules({"others": Share(guaranteed=0.5)}, 0)
    for took in many:
        queue.put((1, took), "", 0, owner=1)
    queue.put((2, own), "", 0, owner=2)
    had, now, orders = {1: 0, 2: 0}, 0, {1: [], 2: []}
    while queue:
        entry = queue.take(now)
        assert entry is not None
        who, took = entry.item
        if who == 1:
            # It was not ahead of the other one, who has waited.
            assert had[1] <= had[2] or not any(item[0] == 2 for item in queue)
        else:
            assert had[2] <= had[1] or not any(item[0] == 1 for item in queue)
        now += took
        had[who] += took
        orders[who].append(took)
        queue.ended(entry, took, now)
        if who == 2 and had[1] < sum(many):
            queue.put((2, own), "", now, owner=2)
    assert orders[1] == many
