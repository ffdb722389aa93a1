"""Links that follow a contact plan: what opens when, how late and thin it is, what an outage does."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.contacts import Contact, ContactPlan, MeshClock
from orbitmesh.errors import InvalidInputError, MeshError
from services.links import LinksProcess, Relay, RelaySpec, Schedule, Shape
from services.links.schedule import RAMP_FROM, ContactCourse, Timeline, windows
from services.links.shaper import Pipe
from tests.links.support import EPOCH_S, both_ways, clock_from, connect, contact, echo, plan_of, serving, until


@asynccontextmanager
async def following(target: str, schedule: Schedule, shape: Shape | None = None) -> AsyncIterator[Relay]:
    spec = RelaySpec("a>b", target, forward=shape or Shape(), reverse=shape or Shape())
    async with await Relay.start(spec) as relay:
        await relay.follow(schedule)
        yield relay


async def opened(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection as soon as one is not refused."""
    while True:
        try:
            return await connect(relay.address)
        except ConnectionRefusedError:
            await asyncio.sleep(0.002)


async def is_open(relay: Relay) -> bool:
    schedule = (await relay.stats()).schedule
    assert schedule is not None
    return schedule.open


edges = st.lists(st.integers(0, 60), min_size=0, max_size=12, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(edges, edges, st.integers(0, 12), st.integers(0, 12))
def test_a_link_is_open_when_both_directions_are(
    one: list[int], other: list[int], acquisition_s: int, other_acquisition_s: int
) -> None:
    """At every moment, asked of the plan itself, direction by direction."""
    contacts = [
        contact(source, target, start_s, end_s, acquisition_s=acquired_s)
        for times, source, target, acquired_s in (
            (one, "a", "b", acquisition_s), (other, "b", "a", other_acquisition_s)
        )
        for start_s, end_s in zip(times[::2], times[1::2], strict=False)
    ]  # fmt: skip
    plan = plan_of(*contacts)
    found = windows(plan, "a", "b")
    for half in range(-1, 123):
        at_s = EPOCH_S + half / 2
        there, back = plan.at("a", "b", at_s), plan.at("b", "a", at_s)
        carries = all(each is not None and at_s >= each.carries_from_s for each in (there, back))
        holding = [window for window in found if window.start_s <= at_s < window.end_s]
        assert len(holding) == carries
        assert all((window.forward, window.reverse) == (there, back) for window in holding)


def test_latency_and_rate_are_those_of_the_plan_when_a_chunk_enters() -> None:
    """100 ms falling to 20 ms over 600 mesh seconds at factor 60: after 5 real seconds 60 ms, as computed by hand."""
    clock = clock_from(factor=60)
    timeline = Timeline(clock)
    course = ContactCourse(contact("a", "b", 0, 600, rate_bps=8e6, latency_s=(0.1, 0.02)), timeline, 0.0)
    pipe = Pipe(Shape())
    pipe.reshape(Shape(100, 8e6), course)
    begin_s = timeline.at_s(EPOCH_S)
    for after_s, latency_s in ((0.0, 0.1), (5.0, 0.06), (7.5, 0.04)):
        now_s = begin_s + after_s
        entered_s = now_s + 1000 * 8 / 8e6
        latency_s -= 0.08 * (entered_s - now_s) / 10  # it has moved on while the chunk was put on the link
        assert pipe.admit(1000, now_s, now_s) == pytest.approx(entered_s + latency_s, abs=1e-6)


def test_a_slow_start_climbs_from_a_share_of_the_rate_to_all_of_it() -> None:
    """From acquisition on, linearly over the ramp, in mesh time."""
    timeline = Timeline(clock_from(factor=10))
    course = ContactCourse(contact("a", "b", 0, 600, rate_bps=1e6, acquisition_s=20), timeline, 100.0)
    for mesh_s, share in ((20, RAMP_FROM), (70, (1 + RAMP_FROM) / 2), (120, 1.0), (500, 1.0)):
        assert course.rate_bps(timeline.at_s(EPOCH_S + mesh_s)) == pytest.approx(1e6 * share, rel=1e-3)


@pytest.mark.parametrize("acquisition_s", [0.0, 200.0])
async def test_a_window_opens_carries_and_closes(acquisition_s: float) -> None:
    """Refused before it carries; then it echoes; when it closes the connection is reset and new ones refused."""
    plan = plan_of(*both_ways(400, 1400, acquisition_s=acquisition_s))
    clock = clock_from(factor=1000)
    async with serving(echo) as target, following(target, Schedule(plan, "a", "b", clock)) as relay:
        with pytest.raises(ConnectionRefusedError):
            await connect(relay.address)
        reader, writer = await opened(relay)
        assert clock.now_s() >= EPOCH_S + 400 + acquisition_s
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        stats = (await relay.stats()).schedule
        assert stats is not None
        assert (stats.window_start_s, stats.window_end_s) == (EPOCH_S + 400 + acquisition_s, EPOCH_S + 1400)
        assert stats.next_change_s == pytest.approx(EPOCH_S + 1400, abs=1e-3)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        assert clock.now_s() >= EPOCH_S + 1400
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await connect(relay.address)
        closed = await relay.stats()
        assert closed.state == "cut"
        assert closed.schedule is not None
        assert (closed.schedule.open, closed.schedule.next_change_s, closed.schedule.windows_left) == (False, None, 0)


async def test_the_link_opens_again_and_the_server_behind_it_never_noticed() -> None:
    """Window after window on the same port: each connection ends with its window, and another one is made."""
    starts = range(0, 1200, 400)
    plan = plan_of(*[each for start_s in starts for each in both_ways(start_s, start_s + 200)], *both_ways(1200, 9e4))
    clock = clock_from(factor=1000)
    served = 0
    async with serving(echo) as target, following(target, Schedule(plan, "a", "b", clock)) as relay:
        while clock.now_s() < EPOCH_S + 1200:
            reader, writer = await opened(relay)
            began = plan.at("a", "b", clock.now_s())
            try:
                writer.write(b"%d" % served)
                assert await reader.readexactly(1) == b"%d" % served
                if clock.now_s() < EPOCH_S + 1200:
                    await reader.readexactly(1)
            except ConnectionResetError:
                assert began is None or clock.now_s() >= began.end_s
            writer.close()
            served += 1
        reader, writer = await opened(relay)
        writer.write(b"last")
        assert await reader.readexactly(4) == b"last"
        writer.close()
        stats = await relay.stats()
        assert stats.schedule is not None
        assert stats.schedule.windows_left == 0
        assert 2 <= stats.accepted <= served + 1


async def test_an_outage_that_holds_keeps_connections_and_every_byte() -> None:
    """What is sent into the outage arrives after it, in order; new connections are refused meanwhile."""
    plan = plan_of(*both_ways(0, 600), *both_ways(1200, 100_000))
    clock = clock_from(factor=1000)
    schedule = Schedule(plan, "a", "b", clock, outage="hold")
    data = random.Random(5).randbytes(200_000)
    async with serving(echo) as target, following(target, schedule) as relay:
        reader, writer = await opened(relay)
        writer.write(b"first")
        assert await reader.readexactly(5) == b"first"

        async def held() -> bool:
            return (await relay.stats()).state == "held"

        await until(held)
        with pytest.raises(ConnectionRefusedError):
            await connect(relay.address)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert clock.now_s() >= EPOCH_S + 1200
        assert (await relay.stats()).accepted == 1
        writer.close()


async def test_windows_that_touch_are_one_to_a_connection() -> None:
    """A rate and a latency that change from one contact to the next break nothing."""
    plan = plan_of(
        *both_ways(0, 200, latency_s=(0.05,)),
        *both_ways(200, 400, rate_bps=1e6),
        *both_ways(400, 100_000, rate_bps=5e7, latency_s=(0.002,)),
    )
    clock = clock_from(factor=1000)
    async with serving(echo) as target, following(target, Schedule(plan, "a", "b", clock)) as relay:
        reader, writer = await connect(relay.address)
        sent = 0
        while clock.now_s() < EPOCH_S + 450:
            writer.write(struct.pack(">I", sent))
            assert struct.unpack(">I", await reader.readexactly(4)) == (sent,)
            sent += 1
        stats = await relay.stats()
        assert (stats.accepted, stats.connections) == (1, 1)
        assert stats.schedule is not None
        assert stats.schedule.forward is not None
        assert stats.schedule.forward.rate_bps == 5e7
        writer.close()


async def test_latency_that_falls_while_a_connection_lives_lets_no_byte_overtake() -> None:
    """From 120 ms to 1 ms in a third of a second, faster than bytes cross the link: all come in order, none early."""
    plan = plan_of(*both_ways(0, 300, latency_s=(0.12, 0.001)), *both_ways(300, 100_000, latency_s=(0.001,)))
    clock = clock_from(factor=1000)
    arrived: asyncio.Queue[tuple[int, float, float]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while True:
            number, sent_s = struct.unpack(">Id", await reader.readexactly(12))
            await arrived.put((number, sent_s, time.monotonic()))

    async with serving(serve) as target:
        schedule = Schedule(plan, "a", "b", clock)
        async with following(target, schedule) as relay:
            line = Timeline(clock)
            _, writer = await connect(relay.address)
            count = 0
            while clock.now_s() < EPOCH_S + 350:
                writer.write(struct.pack(">Id", count, time.monotonic()))
                await writer.drain()
                count += 1
                await asyncio.sleep(0.001)
            seen = [await arrived.get() for _ in range(count)]
            writer.close()
        assert [number for number, _, _ in seen] == list(range(count))
        for _, sent_s, came_s in seen:
            # It enters the link some time between being sent and having come, so no later than where it is shortest.
            entered = plan.at("a", "b", line.mesh_s(came_s))
            assert entered is not None
            assert came_s - sent_s >= entered.latency_at(line.mesh_s(came_s)) - 1e-4
        assert seen[0][2] - seen[0][1] > 0.03, "the first one left when the link was long"


async def test_a_pair_with_one_direction_only_stays_closed_and_says_why() -> None:
    """TCP needs both ways; nodes that never meet and names that the plan does not know are said, too."""
    plan = plan_of(contact("a", "b", 0, 1000), contact("b", "c", 0, 1000), contact("c", "b", 0, 1000))
    for pair, words in ((("a", "b"), "one direction"), (("a", "c"), "never meet"), (("b", "x"), "does not know x")):
        schedule = Schedule(plan, *pair, clock_from())
        assert words in "; ".join(schedule.warnings())
        async with serving(echo) as target, following(target, schedule) as relay:
            with pytest.raises(ConnectionRefusedError):
                await connect(relay.address)
    late = Schedule(plan, "b", "c", clock_from(200_000))
    assert "ended" in "; ".join(late.warnings())


async def test_a_hand_and_the_plan_both_close_a_link() -> None:
    """Cut by hand in a window, it stays cut; restored in an outage, it waits for the window; unfollowed, it is up."""
    plan = plan_of(*both_ways(0, 300), *both_ways(600, 100_000))
    clock = clock_from(factor=1000)
    async with serving(echo) as target, following(target, Schedule(plan, "a", "b", clock)) as relay:
        await relay.cut()
        with pytest.raises(ConnectionRefusedError):
            await connect(relay.address)

        async def closed() -> bool:
            return not await is_open(relay)

        await until(closed)
        await relay.restore()
        if clock.now_s() < EPOCH_S + 600:
            assert (await relay.stats()).state in ("cut", "up")
        _, writer = await opened(relay)
        assert clock.now_s() >= EPOCH_S + 600
        writer.close()
        await relay.follow(Schedule(plan_of(), "a", "b", clock))
        with pytest.raises(ConnectionRefusedError):
            await connect(relay.address)
        await relay.unfollow()
        _, writer = await connect(relay.address)
        writer.close()
        assert (await relay.stats()).schedule is None


async def test_what_the_emulator_cannot_carry_is_refused_by_the_contacts_name() -> None:
    """A rate below its least, and more in flight than it may hold; the relay goes on as it was."""
    async with serving(echo) as target, await Relay.start(RelaySpec("a>b", target)) as relay:
        for how in ({"rate_bps": 10.0}, {"rate_bps": 1e11, "latency_s": (1.0,)}):
            with pytest.raises(InvalidInputError, match="contact a -> b"):
                await relay.follow(Schedule(plan_of(*both_ways(0, 10, **how)), "a", "b", clock_from()))
        for wrong in ({"outage": "drop"}, {"ramp_s": -1.0}, {"ramp_s": float("nan")}, {"source": ""}):
            with pytest.raises(InvalidInputError, match=next(iter(wrong))):
                Schedule(**{"plan": plan_of(), "source": "a", "target": "b", "clock": clock_from(), **wrong})  # type: ignore[arg-type]
        _, writer = await connect(relay.address)
        writer.close()


async def test_the_process_follows_plans_and_refuses_bad_ones(tmp_path: Path) -> None:
    """By path and inline; a plan that is inverted, overlaps, is no JSON or is not there is a typed error each."""
    plan = plan_of(*both_ways(0, 300), *both_ways(300, 600, rate_bps=2e6, acquisition_s=100))
    file = tmp_path / "contacts.json"
    file.write_text(plan.dump())
    good = json.loads(plan.dump())
    inverted = json.loads(plan.dump())
    inverted["contacts"][0]["end_s"] = EPOCH_S - 5
    overlapping = json.loads(plan.dump())
    overlapping["contacts"][2] = {**overlapping["contacts"][0]}
    (tmp_path / "broken.json").write_text("{")
    async with serving(echo) as target, await LinksProcess.start() as links:
        address = await links.add(RelaySpec("a>b", target))
        ask = {"name": "a>b", "source": "a", "target": "b", "factor": 10}
        for bad, reason in (
            ({"plan": inverted}, "CONTACT_PLAN_INVALID"), ({"plan": overlapping}, "CONTACT_PLAN_INVALID"),
            ({"plan": str(tmp_path / "broken.json")}, "CONTACT_PLAN_INVALID"),
            ({"plan": str(tmp_path / "none.json")}, "CONTACT_PLAN_INVALID"),
            ({"plan": good, "factor": 0}, "CONTACT_PLAN_INVALID"), ({"plan": 5}, "INVALID_INPUT"),
            ({}, "INVALID_INPUT"),
            ({"plan": good, "factor": "fast"}, "INVALID_INPUT"), ({"plan": good, "speed": 2}, "INVALID_INPUT"),
            ({"plan": good, "name": "c>d"}, "NOT_FOUND"), ({"plan": good, "outage": "drop"}, "INVALID_INPUT"),
        ):  # fmt: skip
            with pytest.raises(MeshError) as refused:
                await links.request("schedule", **{**ask, **bad})
            assert refused.value.reason == reason, refused.value.message
        _, writer = await connect(address)
        writer.close()
        for given in (file, plan):
            said = await links.schedule("a>b", "a", "b", given, clock_from(350.0, 10), ramp_s=20)
            assert said["warnings"] == []
            assert (said["state"], said["schedule"]["open"]) == ("cut", False), "it acquires"
            assert said["schedule"]["next_change_s"] == pytest.approx(EPOCH_S + 400, abs=1e-3)
        await links.unschedule("a>b")
        assert (await links.stats("a>b"))["schedule"] is None
        _, writer = await connect(address)
        writer.close()


def test_the_schedule_of_a_clock_does_not_move_with_the_wall_clock() -> None:
    """The wall clock is set back by an hour: edges stay where they were on the monotonic clock."""
    wall_s = [1000.0]
    clock = MeshClock(EPOCH_S, 1000.0, 60.0, wall=lambda: wall_s[0])
    before = Timeline(clock)
    wall_s[0] -= 3600.0
    after = Timeline(clock)
    assert after.at_s(EPOCH_S + 600) == pytest.approx(before.at_s(EPOCH_S + 600), abs=1e-3)


def test_a_plan_of_many_contacts_is_followed_by_its_own_pair_only() -> None:
    """Contacts of other pairs open nothing here."""
    others = [contact(f"s{number}", "b", number, number + 10) for number in range(100)]
    assert windows(ContactPlan(EPOCH_S, EPOCH_S + 1000, tuple(others)), "a", "b") == ()
    mixed: list[Contact] = [*others, *both_ways(3, 9)]
    assert [(each.start_s, each.end_s) for each in windows(plan_of(*mixed), "b", "a")] == [(EPOCH_S + 3, EPOCH_S + 9)]
