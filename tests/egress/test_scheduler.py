"""Who gets what of a link, in virtual time, against a fluid model and plain arithmetic."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import CapacityError, InvalidInputError
from services.egress import Port, PortSpec, SliceRule, Ticket
from services.egress.lanes import Cause
from services.egress.scheduler import CATCH_UP_NS
from services.egress.spec import QUEUE_BYTES, QUEUE_FRAMES
from tests.egress.virtual_link import FRAME, SECOND, Greedy, World, fluid_shares

RATE = 10e6
FRAME_NS = round(FRAME * 8e9 / RATE)
MS = 1_000_000
NAMES = ("a", "b", "c", "d", "e")


@st.composite
def specs(draw: st.DrawFn, *, dedicated: bool = True, ceilings: bool = True) -> PortSpec:
    """Links with up to five slices beside the default one."""
    parts = draw(st.lists(st.integers(1, 40), min_size=2, max_size=len(NAMES)))
    used = draw(st.sampled_from((0.3, 0.7, 1.0)))
    slices: dict[str, SliceRule] = {}
    for name, part in zip(NAMES, parts, strict=False):
        guarantee = part / sum(parts) * used * RATE
        kept = draw(st.sampled_from((0.0, 0.5, 1.0))) * guarantee if dedicated else 0.0
        above = draw(st.sampled_from((None, 1.0, 1.5, 3.0))) if ceilings else None
        ceiling = None if above is None else max(guarantee * above, 1e5)
        slices[name] = SliceRule(guarantee, kept, ceiling)
    return PortSpec(RATE, slices)


@settings(deadline=None, max_examples=25)
@given(spec=specs(), data=st.data())
def test_every_slice_gets_what_a_fluid_link_would_give_it(spec: PortSpec, data: st.DataObject) -> None:
    """Whichever slices have traffic without end: over seconds each has its share of a fluid model, to a few frames."""
    busy = data.draw(st.sets(st.sampled_from(("", *spec.slices)), min_size=1))
    world = World(spec)
    for name in busy:
        world.greedy(Greedy(name, min(spec.frame_bytes(spec.rule(name)), 8 << 10)))
    world.run(6 * SECOND)
    shares = fluid_shares(spec, busy)
    for name in busy:
        bps = world.bytes_of(name, SECOND, 6 * SECOND) * 8 / 5
        assert bps == pytest.approx(shares[name], rel=0.02, abs=4 * FRAME * 8 / 5), name


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1 << 32), ceiling=st.sampled_from((1e6, 4e6)), longest_ms=st.sampled_from((10, 20, 30)))
def test_a_ceiling_is_caught_up_after_stalls_and_never_passed(seed: int, ceiling: float, longest_ms: int) -> None:
    """A process that now and then does not run for up to 30 ms: what it did not send it catches up, so that over
    seconds nothing is missing; no second has more than 2 % over the ceiling for it; and a second lacks no more than the
    stall that it ends with, and a frame or two."""
    rng = random.Random(seed)
    stalls, at = [], 0
    while at < 12 * SECOND:
        at += round(rng.expovariate(1 / 0.5) * SECOND)
        stalls.append((at, at + rng.randrange(1, longest_ms * MS)))
        at = stalls[-1][1] + 50 * MS
    spec = PortSpec(RATE, {"a": SliceRule(ceiling, 0, ceiling)})
    frame = spec.frame_bytes(spec.rule("a"))
    world = World(spec, stalls)
    world.greedy(Greedy("a", frame))
    world.run(12 * SECOND)
    least, most = world.windows("a", SECOND, 12 * SECOND)
    assert most * 8 <= ceiling * 1.02
    assert least * 8 >= ceiling * (1 - longest_ms / 1000) - 2 * frame * 8
    assert world.bytes_of("a", SECOND, 12 * SECOND) * 8 / 11 == pytest.approx(ceiling, rel=0.005)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1 << 32), ceiling=st.sampled_from((0.5e6, 1e6, 4e6, 7.5e6)), alone=st.booleans())
def test_a_ceiling_holds_in_every_second(seed: int, ceiling: float, alone: bool) -> None:
    """Whatever others send, no slice has more than 2 % over its ceiling in any second. One that is guaranteed it has
    it: within 2 % in any second where the link is its own, within four long frames of others where it is not."""
    spec = PortSpec(RATE, {"a": SliceRule(ceiling, 0, ceiling), "b": SliceRule(1e6), "u": SliceRule(5e5, 0, 1e6, True)})
    rng = random.Random(seed)
    world = World(spec)
    world.greedy(Greedy("a", spec.frame_bytes(spec.rule("a"))))
    if not alone:
        start = 0
        while start < 6 * SECOND:
            stop = start + rng.randrange(10 * MS, 900 * MS)
            world.greedy(Greedy(rng.choice(("b", "")), rng.choice((500, FRAME)), start, stop))
            start = stop + rng.randrange(0, 300 * MS)
        world.messages("u", 200, range(0, 6 * SECOND, 7 * MS))
    world.run(6 * SECOND)
    least, most = world.windows("a", SECOND, 6 * SECOND)
    frame = spec.frame_bytes(spec.rule("a"))
    tolerance = max(0.02 * ceiling, 2 * frame * 8)  # a kilobyte is more than 2 % of the thinnest ones
    assert most * 8 <= ceiling + tolerance
    assert least * 8 >= ceiling - tolerance - (0 if alone else ceiling * 4 * FRAME_NS / SECOND)
    total = world.bytes_of("a", SECOND, 6 * SECOND) * 8 / 5
    assert total == pytest.approx(ceiling, abs=0.01 * ceiling + frame * 8 / 5)  # a frame lies across an edge


@settings(deadline=None, max_examples=15)
@given(spec=specs(dedicated=False, ceilings=False), seed=st.integers(0, 1 << 32))
def test_a_guarantee_is_kept_whatever_others_do(spec: PortSpec, seed: int) -> None:
    """A slice with traffic without end has its guarantee in every second, less a few frames, under any load."""
    rng = random.Random(seed)
    world = World(spec)
    world.greedy(Greedy("a"))
    for name in ("", *list(spec.slices)[1:]):
        start = 0
        while start < 5 * SECOND:
            stop = start + rng.randrange(MS, 1500 * MS)
            world.greedy(Greedy(name, rng.choice((300, 4096, FRAME)), start, stop))
            start = stop + rng.randrange(0, 500 * MS)
    world.run(5 * SECOND)
    least, _ = world.windows("a", SECOND, 5 * SECOND)
    assert least * 8 >= spec.rule("a").guarantee_bps - (len(spec.slices) + 2) * FRAME * 8


def test_a_flood_of_an_urgent_slice_leaves_others_their_guarantee() -> None:
    """An urgent slice that sends without end gets what nobody is guaranteed, up to its ceiling, and no more."""
    spec = PortSpec(RATE, {"u": SliceRule(1e6, 0, 9e6, urgent=True), "a": SliceRule(6e6)})
    world = World(spec)
    world.greedy(Greedy("u"), Greedy("a"))
    world.run(4 * SECOND)
    assert world.bytes_of("a", SECOND, 4 * SECOND) * 8 / 3 == pytest.approx(6e6, rel=0.02)
    assert world.bytes_of("u", SECOND, 4 * SECOND) * 8 / 3 == pytest.approx(4e6, rel=0.02)


@pytest.mark.parametrize("rest", ["", "a"])
def test_idle_bandwidth_is_lent_and_comes_back_at_once(rest: str) -> None:
    """What a slice does not use is lent whole; its first frame waits for the one on the link and no longer, and from
    then on it has its guarantee."""
    spec = PortSpec(RATE, {"a": SliceRule(3e6), "b": SliceRule(6e6)})
    world = World(spec)
    world.greedy(Greedy(rest), Greedy("b", FRAME, 2 * SECOND + 1 * MS, 4 * SECOND))
    world.run(6 * SECOND)
    assert world.bytes_of(rest, SECOND, 2 * SECOND) * 8 >= 0.99 * RATE
    own = [each for each in world.sent if each.name == "b"]
    assert own[0].began_ns - own[0].offered_ns <= FRAME_NS
    for count, each in enumerate(own[:60]):
        due_ns = own[0].offered_ns + FRAME_NS + (count - 1) * FRAME * 8e9 / 6e6
        assert each.began_ns <= due_ns + 2 * FRAME_NS
    assert world.bytes_of(rest, 4 * SECOND + 100 * MS, 5 * SECOND + 100 * MS) * 8 >= 0.99 * RATE


def test_what_is_dedicated_is_never_lent() -> None:
    """Others leave the dedicated part of an idle slice alone, and take the rest of its guarantee."""
    spec = PortSpec(RATE, {"a": SliceRule(6e6, dedicated_bps=4e6), "b": SliceRule(1e6)})
    world = World(spec)
    world.greedy(Greedy("b"), Greedy(""))
    world.run(5 * SECOND)
    both = world.bytes_of("b", SECOND, 5 * SECOND) + world.bytes_of("", SECOND, 5 * SECOND)
    assert both * 8 / 4 == pytest.approx(6e6, rel=0.01)


@settings(deadline=None, max_examples=25)
@given(
    weights=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    sizes=st.lists(st.tuples(st.integers(64, FRAME), st.integers(64, FRAME)), min_size=200, max_size=300),
)
def test_borrowers_are_served_within_the_bound_of_deficit_round_robin(
    weights: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    """In any interval in which two slices borrow, what they sent per weight differs by less than one quantum per weight
    and the largest frame of each (Shreedhar and Varghese, 1995, lemma 2 and theorem 3)."""
    guarantees = [weight / 1e3 * RATE for weight in weights]
    spec = PortSpec(RATE, dict(zip("ab", map(SliceRule, guarantees), strict=True)))
    port = Port(spec, 0)
    for one, two in sizes:
        port.offer("a", one, 0)
        port.offer("b", two, 0)
    now_ns, runs = 0, [(0.0, 0.0)]
    largest, weight = [0, 0], [max(each, 0.01 * RATE) for each in guarantees]
    while all(port.queued_by_slice[name] for name in "ab"):
        found = port.next(now_ns)
        if isinstance(found, Ticket):
            which = "ab".index(found.lane.name)
            largest[which] = max(largest[which], found.size)
            if not found.within:
                runs.append(tuple(sent + (found.size if at == which else 0) for at, sent in enumerate(runs[-1])))  # type: ignore[arg-type]
        else:
            assert found is not None
            now_ns = found
    ahead = [one / weight[0] - two / weight[1] for one, two in runs]
    quantum = spec.frame_bytes(SliceRule()) / max(*weight, 0.01 * RATE)
    bound = quantum + largest[0] / weight[0] + largest[1] / weight[1]
    assert max(ahead) - min(ahead) <= bound * (1 + 1e-9)


def test_an_urgent_frame_waits_for_one_frame_at_most() -> None:
    """While three slices send without end, no message of an urgent one waits longer than for the frame on the link."""
    spec = PortSpec(RATE, {"u": SliceRule(5e5, 0, 2e6, urgent=True), "a": SliceRule(5e6), "b": SliceRule(4e6)})
    world = World(spec)
    rng = random.Random(3)
    world.greedy(Greedy("a"), Greedy("b"), Greedy(""))
    world.messages("u", 200, (rng.randrange(10 * SECOND) for _ in range(500)))
    world.run(11 * SECOND)
    waits = [each.began_ns - each.offered_ns for each in world.sent if each.name == "u"]
    assert len(waits) == 500
    # Two messages that come during the same frame go one after the other.
    assert max(waits) <= FRAME_NS + 3 * 200 * 8e9 / RATE
    assert sorted(waits)[len(waits) // 2] <= FRAME_NS


def test_the_default_slice_has_its_guarantee_and_what_is_idle() -> None:
    """Traffic without a slice is not shut out by slices that send without end, and gets no more than is left."""
    spec = PortSpec(RATE, {"": SliceRule(5e5), "a": SliceRule(6e6), "b": SliceRule(3.5e6)})
    world = World(spec)
    world.greedy(Greedy("nobody knows it"), Greedy("a"), Greedy("b"))
    world.run(5 * SECOND)
    assert world.bytes_of("nobody knows it", SECOND, 5 * SECOND) * 8 / 4 == pytest.approx(5e5, abs=2 * FRAME * 8 / 4)


@settings(deadline=None, max_examples=25)
@given(spec=specs(dedicated=False, ceilings=False), seed=st.integers(0, 1 << 32))
def test_the_link_is_never_idle_while_a_frame_waits(spec: PortSpec, seed: int) -> None:
    """Without ceilings and dedicated parts a frame begins the moment at which it is there and the link is free."""
    rng = random.Random(seed)
    world = World(spec)
    for name in ("", *spec.slices):
        for _ in range(60):
            world.messages(name, rng.randrange(40, FRAME), [rng.randrange(SECOND // 2)])
    world.run(60 * SECOND)
    assert len(world.sent) == 60 * (len(spec.slices) + 1)
    free_ns = 0.0
    for each in world.sent:
        waiting = min(other.offered_ns for other in world.sent if other.began_ns >= each.began_ns)
        assert each.began_ns <= max(free_ns, waiting) + 2
        free_ns = max(free_ns, each.began_ns) + each.size * 8e9 / RATE
    for name in ("", *spec.slices):
        order = [each.offered_ns for each in world.sent if each.name == name]
        assert order == sorted(order)


@settings(deadline=None, max_examples=25)
@given(before=specs(), after=specs(), seed=st.integers(0, 1 << 32))
def test_rules_that_change_lose_no_frame(before: PortSpec, after: PortSpec, seed: int) -> None:
    """Slices come, go and change while frames wait: each frame goes once, in the order of its slice; the account of
    bytes holds; and the new shares are there at once."""
    rng = random.Random(seed)
    world = World(before)
    tickets: list[Ticket] = []

    def offer(name: str, size: int) -> None:
        ticket = world.offer(name, size)
        assert ticket is not None
        tickets.append(ticket)

    for name in ("", *NAMES):
        for _ in range(20):
            world.at(rng.randrange(SECOND // 2), lambda name=name: offer(name, rng.randrange(40, FRAME)))  # type: ignore[misc]
    for moment in (SECOND // 4, SECOND // 3, SECOND // 2):
        spec = after if moment != SECOND // 3 else before
        world.at(moment, lambda spec=spec: world.port.change(spec, world.now_ns))  # type: ignore[misc]
    world.run(600 * SECOND)
    assert world.port.queued == 0
    assert len(world.sent) == len(tickets) == 20 * (len(NAMES) + 1)
    totals = world.port.traffic.values()
    assert sum(each.offered_bytes for each in totals) == sum(each.sent_bytes for each in totals)
    assert sum(each.sent_bytes for each in totals) == sum(each.size for each in world.sent)
    for name in ("", *NAMES):
        order = [each.offered_ns for each in world.sent if each.name == name]
        assert order == sorted(order)


@pytest.mark.parametrize(("old", "new"), [(2e6, 8e6), (8e6, 1e6)])
def test_a_ceiling_that_changes_holds_from_then_on(old: float, new: float) -> None:
    """In the second after a change of its ceiling a slice has the new one, to 2 % and one frame."""
    world = World(PortSpec(RATE, {"a": SliceRule(0, 0, old)}))
    world.greedy(Greedy("a", 1 << 12), Greedy(""))
    world.at(2 * SECOND, lambda: world.port.change(PortSpec(RATE, {"a": SliceRule(new, 0, new)}), world.now_ns))
    world.run(4 * SECOND)
    assert world.bytes_of("a", 2 * SECOND, 3 * SECOND) * 8 == pytest.approx(new, rel=0.02, abs=FRAME * 8)


def test_a_full_queue_refuses_and_others_are_not_hurt() -> None:
    """A slice that offers more than may wait gets a typed error, counted as dropped; others are served as ever."""
    world = World(PortSpec(RATE, {"a": SliceRule(5e6), "b": SliceRule(5e6)}))
    while True:
        try:
            world.port.offer("a", FRAME, 0)
        except CapacityError as error:
            assert error.reason == "SLICE_FULL"
            assert error.metadata["slice"] == "a"
            break
    traffic = world.port.traffic["a"]
    queued = world.port.queued_by_slice["a"]
    assert queued == min(QUEUE_FRAMES, QUEUE_BYTES // FRAME)
    assert traffic.dropped_bytes == FRAME
    assert traffic.offered_bytes == traffic.sent_bytes + traffic.dropped_bytes + queued * FRAME
    ticket = world.port.offer("b", FRAME, 0)
    moment, gone = 0, None
    while gone is not ticket:
        found = world.port.next(moment)
        moment, gone = (found, None) if isinstance(found, int) else (moment, found)
    assert moment <= FRAME_NS + 1


def test_waits_are_counted_in_buckets_of_powers_of_two() -> None:
    """Bucket i has the waits of less than 2^i microseconds and at least half of that; what is too long is counted."""
    spec = PortSpec(RATE, {"a": SliceRule(5e6, latency_s=0.030)})
    world = World(spec)
    world.messages("a", 5000, [0] * 20)
    world.run(SECOND)
    waits = [each.began_ns - each.offered_ns for each in world.sent]
    expected = Counter(0 if wait < 1000 else math.floor(math.log2(wait // 1000)) + 1 for wait in waits)
    traffic = world.port.traffic["a"]
    assert {at: count for at, count in enumerate(traffic.wait_buckets) if count} == dict(expected)
    assert traffic.violations == sum(wait > 30 * MS for wait in waits) > 0
    assert traffic.frames == 20


def test_a_place_that_is_given_back_is_as_if_never_asked_for() -> None:
    """A frame that is withdrawn, before or after its turn, leaves the order, the meters and the bytes to the others."""
    spec = PortSpec(RATE, {"a": SliceRule(1e6, 0, 1e6)})
    plain, other = Port(spec, 0), Port(spec, 0)
    turns: list[list[tuple[int, int]]] = []
    for port, withdrawn in ((plain, False), (other, True)):
        for size in (4096, 2048, 1024):
            port.offer("a", size, 0)
            if withdrawn:
                port.withdraw(port.offer("a", 3000, 0), 0)
        moment, found = 0, []
        if withdrawn:
            first = port.next(0)
            assert isinstance(first, Ticket)
            port.withdraw(first, 0)
            port.offer("a", 4096, 0)
            found_sizes = [2048, 1024, 4096]
        while (gone := port.next(moment)) is not None:
            if isinstance(gone, Ticket):
                found.append((gone.size, moment))
            else:
                moment = gone
        if withdrawn:
            assert [size for size, _ in found] == found_sizes
            assert found[0][1] == 0
        turns.append(found)
        assert port.traffic["a"].offered_bytes == port.traffic["a"].sent_bytes == 4096 + 2048 + 1024
    assert all(later > earlier for earlier, later in pairwise(at for _, at in turns[0]))


def test_what_goes_without_a_turn_keeps_the_link() -> None:
    """After something was put on the link without a turn, the next frame goes once that has had its time there."""
    port = Port(PortSpec(RATE), 0)
    port.occupy(100_000, 0)
    port.occupy(25_000, 5 * MS)
    port.offer("", 500, 6 * MS)
    assert port.next(6 * MS) == 125_000 * 8e9 / RATE
    assert isinstance(port.next(100 * MS), Ticket)


def test_a_frame_that_begins_late_keeps_the_link_for_its_time() -> None:
    """Where a sender comes to send a long while after its turn, the next frame does not follow it at once."""
    port = Port(PortSpec(RATE), 0)
    for _ in range(3):
        port.offer("", FRAME, 0)
    first = port.next(0)
    assert isinstance(first, Ticket)
    port.begin(first, 1 * MS)  # as wake-ups are: nothing is lost
    assert port.next(1 * MS) == math.ceil(FRAME * 8e9 / RATE)
    port.begin(first, 50 * MS)
    found = port.next(50 * MS)
    assert isinstance(found, int)
    assert found >= 50 * MS + FRAME_NS - CATCH_UP_NS
    assert isinstance(port.next(found), Ticket)


def test_a_frame_says_what_it_waited_for() -> None:
    """The cause is what took most of the wait: the ceiling of its slice, an urgent frame, or the link."""
    spec = PortSpec(RATE, {"a": SliceRule(0, 0, 1e6), "u": SliceRule(9e6, urgent=True)})
    causes: dict[str, list[Cause | None]] = {}
    for others in ("", "u", None):
        port = Port(spec, 0)
        if others is not None:
            for _ in range(6):
                port.offer(others, FRAME, 0)
        for _ in range(1 if others is not None else 5):
            port.offer("a", 4096, 0)
        moment = 0
        while (gone := port.next(moment)) is not None:
            if isinstance(gone, Ticket):
                if gone.lane.name == "a":
                    causes.setdefault(str(others), []).append(gone.cause)
            else:
                moment = gone
    assert causes["None"] == [None] + [Cause.CEILING] * 4 or causes["None"][-1] is Cause.CEILING
    assert causes["u"] == [Cause.URGENT]
    assert causes[""][0] in (Cause.LINK, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SliceRule(float("nan")),
        lambda: SliceRule(-1.0),
        lambda: SliceRule(1e6, 2e6),
        lambda: SliceRule(2e6, 0, 1e6),
        lambda: SliceRule(0, 0, 0.0),
        lambda: SliceRule(float("inf")),
        lambda: PortSpec(0.0),
        lambda: PortSpec(float("nan")),
        lambda: PortSpec(1e6, {"a": SliceRule(6e5), "b": SliceRule(5e5)}),
        lambda: PortSpec(1e6, {str(at): SliceRule() for at in range(500)}),
        lambda: Port(PortSpec(1e6), 0).offer("", 0, 0),
        lambda: Port(PortSpec(1e6), 0).offer("", -5, 0),
    ],
)
def test_rules_that_cannot_be_are_refused(make: object) -> None:
    """Numbers that are none, sums above the link and frames without a size get a typed error."""
    with pytest.raises(InvalidInputError):
        make()  # type: ignore[operator]


def test_a_link_that_is_dedicated_whole_shuts_nobody_out() -> None:
    """Where all of a link is dedicated the default slice gets 1 % while the owners are idle, and they lose nothing."""
    world = World(PortSpec(RATE, {"a": SliceRule(RATE, RATE)}))
    world.greedy(Greedy("", 4096), Greedy("a", FRAME, 5 * SECOND))
    world.run(9 * SECOND)
    assert world.bytes_of("", SECOND, 5 * SECOND) * 8 / 4 == pytest.approx(RATE / 100, rel=0.1)
    assert world.bytes_of("a", 5 * SECOND, 9 * SECOND) * 8 / 4 >= 0.99 * RATE
