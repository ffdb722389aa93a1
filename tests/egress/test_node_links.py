"""The ways out of a sender on a real event loop: thin links behind one way out, and services that send to nodes."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from orbitmesh.errors import CapacityError, InvalidInputError
from orbitmesh.v1 import slices_pb2
from orbitmesh.wire.egress import Turn
from services.egress import FarEgress, NodeEgress
from services.egress.link import LinkEgress
from services.egress.port import USED
from services.egress.spec import QUEUE_BYTES, QUEUE_FRAMES
from tests.egress.test_links import links_message
from tests.egress.test_rules import node, slice_

GBPS = 0.1
FRAME = 4 << 10
HERE = "node-42"


def told(
    *slices: slices_pb2.Slice, gbps: float = GBPS, **rates: list[tuple[float | None, float]]
) -> slices_pb2.WatchSlicesResponse:
    message = links_message(**rates)
    message.nodes.append(node(gbps=gbps))
    message.slices.extend(slices)
    return message


def urgent(name: str, gbps: float) -> slices_pb2.Slice:
    found = slice_(name, gbps)
    found.profile.snssai.sst = 2
    return found


async def turn(egress: LinkEgress, name: str, size: int = FRAME) -> Turn:
    asked = egress.ask(name, size)
    if isinstance(asked, Turn):
        return asked
    try:
        return await asked
    except asyncio.CancelledError:
        if not asked.cancelled():  # the turn came as it was given up
            egress.give_back(asked.result())
        raise


async def test_a_link_has_the_parts_of_the_node_at_its_own_rate_and_frame_size() -> None:
    """Ten times thinner: a tenth of the guarantee, frames as short as that link needs; a link that is as fast as the
    node, is closed or is not known has no port of its own."""
    egress = NodeEgress(HERE)
    thin, closed, fast, unknown = (egress.towards(name) for name in ("thin", "closed", "fast", "unknown"))
    egress.take(told(slice_("a", GBPS / 2), thin=[(None, GBPS / 10)], closed=[(None, 0)], fast=[(None, GBPS)]))
    spec = thin.link.spec
    assert spec is not None and egress.spec is not None
    assert spec.rate_bps == pytest.approx(GBPS * 1e8 * USED)
    assert spec.rule("a").guarantee_bps == pytest.approx(egress.spec.rule("a").guarantee_bps / 10)
    assert thin.frame_bytes("a") == spec.frame_bytes(spec.rule("a")) < egress.frame_bytes("a")
    assert [each.link.spec for each in (closed, fast, unknown)] == [None, None, None]
    assert fast.frame_bytes("a") == egress.frame_bytes("a")
    late = egress.towards("thin")  # whoever asks later gets the same
    assert late is thin


async def test_without_slices_a_thin_link_holds_nothing_back() -> None:
    """While no slice has bandwidth on the node, frames pass at once, whatever is known of links."""
    egress = NodeEgress(HERE)
    egress.take(told(thin=[(None, 0.000001)]))
    way = egress.towards("thin")
    assert all(isinstance(way.ask("any", 1 << 20), Turn) for _ in range(100))
    assert way.frame_bytes("any") == 1 << 20


async def test_frames_on_a_thin_link_leave_at_its_rate_and_in_order() -> None:
    """They take as long as the link needs for them, though the way out is ten times as fast, where others go by
    meanwhile; each is counted once."""
    egress = NodeEgress(HERE)
    egress.take(told(slice_("a", GBPS / 2), thin=[(None, GBPS / 10)]))
    thin, other = egress.towards("thin"), egress.towards("other")
    order: list[int] = []

    async def send(number: int) -> Turn:
        found = await turn(thin, "a")
        order.append(number)
        return found

    began = time.monotonic()
    waits = [asyncio.create_task(send(number)) for number in range(20)]
    for _ in range(10):
        await turn(other, "a")
    assert len(order) < 20  # others do not wait for the thin link
    turns = await asyncio.gather(*waits)
    assert time.monotonic() - began >= 19 * FRAME * 8 / (GBPS * 1e8) - 0.02
    assert order == list(range(20))
    assert {each.why for each in turns[1:]} == {"link busy"}
    traffic = egress.traffic["a"]
    assert (traffic.frames, traffic.sent_bytes, traffic.offered_bytes) == (30, 30 * FRAME, 30 * FRAME)
    assert sum(traffic.wait_buckets) == 30
    longest_us = max(each.waited_ns for each in turns) // 1000
    counted = max(index for index, count in enumerate(traffic.wait_buckets) if count)
    assert abs(counted - longest_us.bit_length()) <= 1


async def test_who_is_urgent_goes_first_on_the_link() -> None:
    """A message of an urgent slice that comes last leaves before all bulk but what is on the link."""
    egress = NodeEgress(HERE)
    egress.take(told(slice_("bulk", GBPS / 2), urgent("now", GBPS / 10), thin=[(None, GBPS / 50)]))
    thin = egress.towards("thin")
    order: list[str] = []

    async def send(name: str, size: int) -> None:
        await turn(thin, name, size)
        order.append(name)

    bulk = [asyncio.create_task(send("bulk", FRAME)) for _ in range(10)]
    await asyncio.sleep(0)
    before = len(order)
    await asyncio.gather(asyncio.create_task(send("now", 200)), *bulk)
    assert order.index("now") <= before + 1
    assert before < 8


async def test_a_link_that_changes_or_closes_loses_nothing() -> None:
    """At the edge of a window what waits goes on, at the other rate or freely, in its order; then the way has no port;
    and the next window brings it back by itself."""
    egress = NodeEgress(HERE)
    thin = egress.towards("thin")
    now_s = time.time()
    rates: list[tuple[float | None, float]] = [(None, GBPS / 100), (now_s + 0.1, 0.0), (now_s + 0.4, GBPS / 20)]
    egress.take(told(slice_("a", GBPS / 2), thin=rates))
    order: list[int] = []

    async def send(number: int) -> None:
        await turn(thin, "a", 1000)
        order.append(number)

    await asyncio.gather(*(asyncio.create_task(send(number)) for number in range(40)))
    assert order == list(range(40))
    async with asyncio.timeout(60):
        while thin.link.spec is not None and time.time() < now_s + 0.39:  # noqa: ASYNC110 - a timer of its own
            await asyncio.sleep(0.01)
        while thin.link.spec is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert time.time() >= now_s + 0.39
    assert thin.link.spec.rate_bps == pytest.approx(GBPS * 1e9 / 20 * USED)
    egress.close()


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_gives_up_gives_back_both_places(seed: int) -> None:
    """Frames that are cancelled anywhere on their way, or not sent after all, leave link and way out to others: all
    that remains is sent in its order, and the account of bytes holds."""
    rng = random.Random(seed)
    egress = NodeEgress(HERE)
    egress.take(
        told(
            slice_("a", GBPS / 2), slice_("b", GBPS / 20),
            one=[(None, GBPS * 0.7)], two=[(None, GBPS * 0.6)], three=[(None, GBPS * 0.9)],
        )
    )  # fmt: skip
    order: dict[tuple[str, str], list[int]] = {}
    sent = 0

    async def send(link: str, name: str, number: int, size: int, kept: bool) -> None:
        nonlocal sent
        way = egress.towards(link)
        found = await turn(way, name, size)
        if kept:
            order.setdefault((link, name), []).append(number)
            sent += size
        else:
            way.give_back(found)

    tasks = []
    for number in range(400):
        where = rng.choice(("one", "two", "three", "none")), rng.choice(("a", "b", "")), number
        tasks.append(asyncio.create_task(send(*where, rng.choice((100, 5000, 20_000)), rng.random() < 0.8)))
        if rng.random() < 0.2:
            rng.choice(tasks).cancel()
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.005)
        if rng.random() < 0.02:
            egress.take(told(slice_("a", GBPS / rng.randint(2, 4)), one=[(None, GBPS * rng.uniform(0.3, 1.2))]))
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert sum(each.sent_bytes for each in egress.traffic.values()) == sent
    assert sum(each.offered_bytes for each in egress.traffic.values()) == sent
    # Nothing is held for ever: the next frame of each has its turn.
    async with asyncio.timeout(60):
        for link in ("one", "two", "three", "none"):
            for name in ("a", "b", ""):
                await turn(egress.towards(link), name)


async def test_a_frame_between_link_and_way_out_is_given_back_on_both_and_not_refused_for_others() -> None:
    """One that has had its turn on the link waits for the way out, though more than fits of its slice waits there for
    others; given up then, it leaves the link idle, and whoever comes next has its turn."""
    egress = NodeEgress(HERE)
    egress.take(told(slice_("a", GBPS / 2), thin=[(None, GBPS / 2)]))
    thin, other = egress.towards("thin"), egress.towards("other")
    waiting = [other.ask("a", QUEUE_BYTES // 4) for _ in range(5)]
    with pytest.raises(CapacityError):
        other.ask("a", QUEUE_BYTES // 4)
    port = thin.link.port
    assert port is not None
    for _ in range(3):
        asked = thin.ask("a", 30_000)
        assert isinstance(asked, asyncio.Future)
        assert not port.queued and not port.idle  # its turn on the link has come
        asked.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert port.idle
    for each in waiting:
        if isinstance(each, asyncio.Future):
            each.cancel()
    async with asyncio.timeout(60):
        await turn(thin, "a")
    egress.close()


async def test_what_is_written_again_counts_on_the_link_and_on_the_way_out() -> None:
    """After a cut, what goes on the link without a turn keeps it: the next frame there waits for it, and one to another
    peer only as long as the way out needs for it."""
    egress = NodeEgress(HERE)
    egress.take(told(slice_("a", GBPS / 2), thin=[(None, GBPS / 10)]))
    thin, other = egress.towards("thin"), egress.towards("other")
    thin.occupy(100_000)
    late, soon = await asyncio.gather(turn(thin, "a"), turn(other, "a"))
    assert late.waited_ns >= 100_000 * 8e9 / (GBPS * 1e8) - 1e6
    assert 100_000 * 8e9 / (GBPS * 1e9) - 1e6 <= soon.waited_ns < late.waited_ns
    assert (late.why, soon.why) == ("link busy", "link busy")


async def test_a_flood_on_a_thin_link_is_refused_there_and_others_go_on() -> None:
    """Past the bound of its slice on that link a frame fails with SLICE_FULL, and counts as dropped; the same slice to
    other peers goes on."""
    egress = NodeEgress(HERE)
    egress.take(told(slice_("a", GBPS / 2), thin=[(None, 0.00001)]))
    thin = egress.towards("thin")
    waiting = [thin.ask("a", 100) for _ in range(QUEUE_FRAMES + 1)]
    with pytest.raises(CapacityError, match="'a'") as refused:
        for _ in range(3):
            thin.ask("a", 100)
    assert refused.value.reason == "SLICE_FULL"
    assert isinstance(egress.towards("other").ask("a", 100), Turn)
    assert egress.traffic["a"].dropped_bytes == 100
    for each in waiting:
        if isinstance(each, asyncio.Future):
            each.cancel()
    await asyncio.sleep(0.01)
    egress.close()


async def test_a_service_sends_to_each_node_by_the_rules_and_rate_there() -> None:
    """One port for each node, with the parts of the slices on it, at the rate of its bandwidth or of the link to it,
    whichever is less; a node on which no slice has bandwidth has none; bad words change nothing."""
    egress = FarEgress()
    message = told(slice_("a", GBPS / 2), slice_("b", GBPS, at="far"), thin=[(None, GBPS)], far=[(None, GBPS / 10)])
    message.nodes.extend([node("far", gbps=GBPS * 2), node("free", gbps=GBPS)])
    ways = {name: egress.towards(name) for name in (HERE, "far", "free", "stranger")}
    egress.take(message)
    specs = {name: way.spec for name, way in ways.items()}
    assert specs["free"] is None and specs["stranger"] is None
    here, far = specs[HERE], specs["far"]
    assert here is not None and far is not None
    assert here.rate_bps == pytest.approx(GBPS * 1e9 * USED)
    assert far.rate_bps == pytest.approx(GBPS * 1e8 * USED)
    assert far.rule("b").guarantee_bps == pytest.approx(far.rate_bps / 2)
    assert far.rule("a").guarantee_bps == far.rule("").guarantee_bps  # nothing is reserved for it there
    await asyncio.gather(*(_sent(ways["far"].ask("b", 1000)) for _ in range(3)), _sent(ways[HERE].ask("a", 500)))
    assert {name: each.sent_bytes for name, each in egress.traffic.items() if name} == {"a": 500, "b": 3000}
    with pytest.raises(InvalidInputError):
        egress.take(told(slice_("a", float("nan"))))
    assert {name: way.spec for name, way in ways.items()} == specs
    egress.close()


async def _sent(asked: Turn | asyncio.Future[Turn]) -> Turn:
    return asked if isinstance(asked, Turn) else await asked
