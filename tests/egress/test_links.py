"""Thin links behind one way out, in virtual time, against a fluid model and plain arithmetic; and what is told of
links."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.egress import PortSpec, SliceRule
from services.egress.links import LINKS_MAX, RATES_MAX, LinkRates
from services.egress.spec import FRAME_S
from tests.egress.virtual_link import SECOND, fluid_shares
from tests.egress.virtual_node import OUT, Left, Node, Sender

MS = 1_000_000
FAST = 1e9
THIN = 10e6
PARTS = {"": (0.1, None, False), "urllc": (0.05, None, True), "embb": (0.5, None, False), "capped": (0.1, 0.4, False)}


def spec_of(rate_bps: float, parts: dict[str, tuple[float, float | None, bool]] | None = None) -> PortSpec:
    """The same parts of any link."""
    return PortSpec(
        rate_bps,
        {
            name: SliceRule(part * rate_bps, 0, None if most is None else most * rate_bps, urgent)
            for name, (part, most, urgent) in (PARTS if parts is None else parts).items()
        },
    )


def frame(*specs: PortSpec, name: str = "embb") -> int:
    return min(spec.frame_bytes(spec.rule(name)) for spec in specs)


def test_an_urgent_frame_waits_for_one_frame_of_the_link_and_one_of_the_way_out() -> None:
    """Bulk fills a thin link and all of the way out to others: an urgent message to the thin link's peer begins on that
    after at most one frame of either, which is 13.6 ms each."""
    out, thin = spec_of(FAST), spec_of(THIN)
    node = Node(out, {"sat": thin})
    large, small = frame(out), frame(out, thin)
    node.greedy(Sender("sat", "embb", small), Sender("sat", "", small), Sender(OUT, "embb", large))
    rng = random.Random(1)
    moments, at = [], 0
    while (at := at + rng.randrange(20 * MS, 60 * MS)) < 4 * SECOND:
        moments.append(at)
    node.messages("sat", "urllc", 300, moments)
    node.run(4 * SECOND)
    waits = [began_ns - each.offered_ns for each, began_ns in node.begun("sat", THIN) if each.name == "urllc"]
    assert len(waits) == len(moments)
    assert max(waits) <= 2 * FRAME_S * 1e9 + MS
    # Neither is idle meanwhile.
    assert node.bytes_of("sat", None, SECOND, 4 * SECOND) * 8 / 3 >= 0.99 * THIN
    assert node.bytes_of(None, None, SECOND, 4 * SECOND) * 8 / 3 >= 0.99 * FAST


@settings(deadline=None, max_examples=15)
@given(
    busy=st.sets(st.sampled_from(("", "embb", "capped")), min_size=1),
    elsewhere=st.sets(st.sampled_from(("", "urllc", "embb", "capped"))),
)
def test_on_a_thin_link_each_slice_gets_what_a_fluid_link_would_give_it(busy: set[str], elsewhere: set[str]) -> None:
    """Alone at the way out, over seconds each has its share of the link. Whatever is sent elsewhere at the same time,
    each has at least its guarantee on the link, and others use what it leaves there."""
    out, thin = spec_of(FAST), spec_of(THIN)
    node = Node(out, {"sat": thin})
    node.greedy(*(Sender("sat", name, frame(out, thin, name=name)) for name in busy))
    node.greedy(*(Sender(OUT, name, frame(out, name=name)) for name in elsewhere))
    node.run(4 * SECOND)
    frames_bps = 4 * 17_000 * 8 / 3
    shares = fluid_shares(thin, busy)
    for name, share in shares.items():
        bps = node.bytes_of("sat", name, SECOND, 4 * SECOND) * 8 / 3
        assert bps >= 0.97 * thin.rule(name).guarantee_bps - frames_bps, name
        if not elsewhere:
            assert bps == pytest.approx(share, rel=0.03, abs=frames_bps), name
    if not busy & elsewhere:
        assert node.bytes_of("sat", None, SECOND, 4 * SECOND) * 8 / 3 >= 0.95 * sum(shares.values()) - frames_bps


@settings(deadline=None, max_examples=6)
@given(count=st.integers(3, 6), busy=st.sets(st.sampled_from(("", "embb", "capped")), min_size=2))
def test_links_that_carry_more_than_the_way_out_share_that_as_a_fluid_one(count: int, busy: set[str]) -> None:
    """Several links, each thinner than the way out and all together wider: all of it is used, each slice has what a
    fluid way out would give it, links of the same traffic get about the same, and on no link frames pile up."""
    total, rate = 30e6, 14e6
    out = spec_of(total)
    links = {f"sat-{number}": spec_of(rate) for number in range(count)}
    node = Node(out, links)
    for name in busy:
        size = frame(out, *links.values(), name=name)
        node.greedy(*(Sender(link, name, size) for link in links))
    node.run(5 * SECOND)
    seconds = 4

    def bps(link: str | None, name: str | None) -> float:
        return node.bytes_of(link, name, SECOND, 5 * SECOND) * 8 / seconds

    shares = fluid_shares(out, busy)
    assert bps(None, None) == pytest.approx(sum(shares.values()), rel=0.02)
    for name, share in shares.items():
        assert bps(None, name) == pytest.approx(share, rel=0.05, abs=20 * 17_000 * 8 / seconds), name
    each = [bps(link, None) for link in links]
    assert max(each) <= 1.25 * min(each)
    # One frame of each slice at most has had its turn on the link and not on the way out.
    largest = max(one.size for one in node.left)
    for link in links:
        assert node.below_ns(link, rate) <= len(busy) * largest * 8e9 / rate + 5 * MS


def test_a_slice_that_waits_for_the_way_out_keeps_no_other_from_its_link() -> None:
    """A slice without a guarantee gets nothing of a way out that is guaranteed whole and used: its frame, which has had
    its turn on the link, waits; one with a guarantee goes on over the same link as if it were not there."""
    parts: dict[str, tuple[float, float | None, bool]] = {"poor": (0, None, False), "rich": (0.3, None, False)}
    out = PortSpec(100e6, {**spec_of(100e6, parts).slices, "rest": SliceRule(70e6)})
    node = Node(out, {"sat": spec_of(20e6, parts)})
    size = 8 << 10
    node.greedy(Sender("sat", "poor", size), Sender(OUT, "rest", size), Sender(OUT, "rich", size))
    node.greedy(Sender("sat", "rich", size, from_ns=SECOND))
    node.run(4 * SECOND)
    assert node.bytes_of(None, "poor", SECOND, 4 * SECOND) * 8 / 3 <= 0.02 * 100e6
    assert node.bytes_of("sat", "rich", SECOND, 4 * SECOND) * 8 / 3 >= 0.9 * 15e6


@pytest.mark.parametrize("seed", range(4))
def test_a_ceiling_holds_on_a_link_and_each_frame_goes_once_and_in_order(seed: int) -> None:
    """Random traffic on links and way out, with rules that change: what was offered leaves once, in the order of its
    slice and link, and a slice with a ceiling has no more than that, to 2 % and a frame, in any second."""
    rng = random.Random(seed)
    out, thin = spec_of(50e6), spec_of(20e6)
    node = Node(out, {"a": thin, "b": spec_of(5e6)})
    offered: dict[tuple[str, str], list[int]] = {}
    size = frame(out, thin, name="capped")
    node.greedy(Sender("a", "capped", size))

    def offer(link: str, name: str) -> None:
        offered.setdefault((link, name), []).append(node.now_ns)
        node.offer(link, name, rng.choice((200, 3000, 16_000)))

    for _ in range(1500):
        where = rng.choice(("a", "b", OUT)), rng.choice(("urllc", "embb", ""))
        node.at(rng.randrange(4 * SECOND), lambda where=where: offer(*where))
    for at_ns in range(SECOND // 2, 4 * SECOND, SECOND // 3):
        rate = rng.choice((3e6, 5e6, 8e6))
        node.at(at_ns, lambda rate=rate: node.links["b"].change(spec_of(rate), node.now_ns))
    node.run(20 * SECOND)
    left: dict[tuple[str, str], list[int]] = {}
    for each in node.left:
        if each.name != "capped":
            left.setdefault((each.link, each.name), []).append(each.offered_ns)
    assert left == {where: sorted(moments) for where, moments in offered.items()}
    capped = [each for each in node.left if each.name == "capped"]
    ceiling = 0.4 * 20e6
    assert len(capped) * size * 8 / 20 >= 0.97 * ceiling
    most = max(_within_a_second(capped, each.left_ns) for each in capped)
    assert most * 8 <= ceiling * 1.02 + size * 8


def _within_a_second(sent: list[Left], from_ns: int) -> int:
    return sum(each.size for each in sent if from_ns <= each.left_ns < from_ns + SECOND)


def links_message(**rates: list[tuple[float | None, float]]) -> slices_pb2.WatchSlicesResponse:
    """Rates of links in Gbit/s, each from a real time on in seconds."""
    message = slices_pb2.WatchSlicesResponse()
    for name, changes in rates.items():
        link = message.links.add(to=name)
        for since_s, gbps in changes:
            rate = link.rates.add(gbps=gbps)
            if since_s is not None:
                rate.since.FromNanoseconds(round(since_s * 1e9))
    return message


def test_rates_change_when_they_are_said_to() -> None:
    """Times are real ones; a closed link and one of which nothing is said have no rate."""
    told = links_message(sat=[(None, 0.01), (1005.0, 0.0), (1010.0, 0.02)], late=[(1007.0, 1.0)])
    rates = LinkRates.told(told, now_ns=50 * SECOND, wall_ns=1000 * SECOND)
    found = [rates.rate_bps("sat", at * SECOND) for at in (50, 54, 55, 59, 60, 999)]
    assert found == [10e6, 10e6, None, None, 20e6, 20e6]
    assert [rates.rate_bps("late", at * SECOND) for at in (50, 57)] == [None, 1e9]
    assert rates.rate_bps("nobody", 50 * SECOND) is None
    assert [rates.next_ns(at * SECOND) for at in (50, 55, 57, 60)] == [55 * SECOND, 57 * SECOND, 60 * SECOND, None]


@pytest.mark.parametrize(
    "told",
    [
        links_message(sat=[(None, float("nan"))]),
        links_message(sat=[(None, -1.0)]),
        links_message(sat=[(None, float("inf"))]),
        links_message(sat=[(5.0, 1.0), (5.0, 2.0)]),
        links_message(sat=[(5.0, 1.0), (None, 2.0)]),
        links_message(sat=[(float(at), 1.0) for at in range(1, RATES_MAX + 2)]),
        links_message(**{f"sat-{number}": [(None, 1.0)] for number in range(LINKS_MAX + 1)}),
    ],
)
def test_rates_that_are_none_are_refused(told: slices_pb2.WatchSlicesResponse) -> None:
    """No number, no order of time, or more than is kept: a typed error."""
    with pytest.raises(InvalidInputError):
        LinkRates.told(told, 0, 0)
