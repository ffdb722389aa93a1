"""Earliest-arrival routes against an enumeration of every route over every contact."""

from __future__ import annotations

import math
import random

import pytest

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.errors import InvalidInputError
from services.scheduler.routes import Route, Router

PLANS = 4_000
BATCHES = 8

Key = tuple[float, int, float, list[str]]


def contact(source: str, target: str, start_s: float, end_s: float, **how: float) -> Contact:
    points = (LatencyPoint(start_s, how.pop("latency_s", 0.0)),)
    return Contact(source, target, start_s, end_s, how.pop("rate_bps", 8e6), points, **how)  # type: ignore[arg-type]


def random_plan(rng: random.Random) -> ContactPlan:
    """Up to 12 contacts between up to 5 nodes; coarse numbers, so that ties are frequent."""
    names = "abcde"[: rng.randint(2, 5)]
    contacts: list[Contact] = []
    for _ in range(rng.randint(1, 12)):
        source, target = rng.sample(names, 2)
        start_s = float(rng.randint(0, 8))
        end_s = start_s + rng.randint(1, 6)
        if any((c.source, c.target) == (source, target) and c.start_s < end_s and start_s < c.end_s for c in contacts):
            continue
        latency = (LatencyPoint(start_s, rng.choice((0.0, 0.25, 1.0))),)
        if rng.random() < 0.3:
            latency = (*latency, LatencyPoint(end_s, rng.choice((0.25, 0.5, 1.0))))
        rate_bps, acquisition_s = rng.choice((1.0, 2.0, 8.0)) * 8, rng.choice((0.0, 0.0, 0.5, 2.0))
        contacts.append(Contact(source, target, start_s, end_s, rate_bps, latency, acquisition_s=acquisition_s))
    return ContactPlan(0.0, 20.0, tuple(contacts))


def every_route(plan: ContactPlan, source: str, target: str, start_s: float, size: float, stretch: float) -> list[Key]:
    """(arrival, hops, minus end, names) of every route that passes no node twice, straight from the definition."""
    found: list[Key] = []

    def extend(at: str, at_s: float, names: list[str], end_s: float) -> None:
        if at == target:
            found.append((at_s, len(names), -end_s, names))
            return
        for c in plan.contacts:
            if c.source != at or c.target in names or c.target == source:
                continue
            departs_s = max(at_s, c.start_s + c.acquisition_s)
            leaves_s = departs_s + size * 8 / c.rate_bps * stretch
            if departs_s >= c.end_s or leaves_s > c.end_s:
                continue
            extend(c.target, leaves_s + c.latency_at(leaves_s) * stretch, [*names, c.target], min(end_s, c.end_s))

    extend(source, start_s, [], math.inf)
    return found


def check(route: Route, source: str, target: str, start_s: float, size: float, stretch: float) -> None:
    """A route is what it says: connected, in time, inside its windows."""
    at, at_s = source, start_s
    for hop in route.hops:
        c = hop.contact
        assert c.source == at
        assert hop.departs_s >= max(at_s, c.start_s + c.acquisition_s)
        leaves_s = hop.departs_s + size * 8 / c.rate_bps * stretch
        assert leaves_s <= c.end_s
        assert hop.arrives_s == leaves_s + c.latency_at(leaves_s) * stretch
        at, at_s = c.target, hop.arrives_s
    assert (at, at_s) == (target, route.arrives_s)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_routes_equal_an_enumeration_of_every_route(batch: int) -> None:
    """Arrival, number of hops, end and names: all four keys, on thousands of small plans with frequent ties."""
    rng = random.Random(batch)
    reachable = 0
    for _ in range(PLANS // BATCHES):
        plan = random_plan(rng)
        stretch, size, start_s = rng.choice((1.0, 1.0, 2.0)), rng.choice((0, 1, 4)), rng.choice((0.0, 2.5))
        router = Router(plan, stretch)
        source, target = rng.sample(sorted(plan.nodes), 2)
        routes = every_route(plan, source, target, start_s, size, stretch)
        quick, best = (ask(source, target, start_s, size) for ask in (router.earliest, router.best))
        if not routes:
            assert quick is None
            assert best is None
            continue
        reachable += 1
        assert quick is not None
        assert best is not None
        for route in (quick, best):
            check(route, source, target, start_s, size, stretch)
        want = min(routes)
        assert quick.arrives_s == want[0]
        names = [hop.contact.target for hop in best.hops]
        assert (best.arrives_s, len(best.hops), -best.ends_s, names) == want
    assert reachable > PLANS // BATCHES // 5


def test_a_later_window_wins_where_it_is_so_much_faster() -> None:
    """8 MB over 1 Mbit/s from now arrive after 64 s; over 8 Mbit/s from second 10 they arrive at 18."""
    slow = contact("a", "b", 0, 10, rate_bps=1e6)
    fast = contact("a", "b", 10, 100, rate_bps=8e6)
    other = contact("a", "b", 200, 300, rate_bps=1e9)
    route = Router(ContactPlan(0, 300, (slow, fast, other))).earliest("a", "b", 0.0, 8_000_000)
    assert route is not None
    assert (route.hops[0].contact, route.arrives_s) == (fast, 18.0)


def test_a_window_too_short_for_the_message_is_no_way() -> None:
    """No route promises more than its windows carry, acquisition taken off."""
    plan = ContactPlan(0, 100, (contact("a", "b", 0, 10, rate_bps=8e3, acquisition_s=5),))
    router = Router(plan)
    assert router.earliest("a", "b", 0.0, 5_000) is not None
    assert router.earliest("a", "b", 0.0, 5_001) is None
    assert router.earliest("a", "b", 1.0, 5_000) is not None


def test_a_message_that_is_there_already_needs_no_contact() -> None:
    """Source and target are the same node."""
    route = Router(ContactPlan(0, 1, ())).best("a", "a", 0.5)
    assert route == Route((), 0.5)


@pytest.mark.parametrize("stretch", [0.0, -1.0, math.nan, math.inf])
def test_a_clock_that_stands_still_is_refused(stretch: float) -> None:
    """Mesh seconds per real second are above 0 and finite."""
    with pytest.raises(InvalidInputError, match="stretch"):
        Router(ContactPlan(0, 1, ()), stretch)
