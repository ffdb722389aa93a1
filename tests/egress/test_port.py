"""A port on a real event loop: turns come in order, at the rate, and whoever gives up gives the place back."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from orbitmesh.errors import CapacityError
from orbitmesh.wire.egress import Turn
from services.egress import EgressPort, PortSpec, SliceRule
from services.egress.port import rate_text

FRAME = 16 << 10


async def test_turns_come_at_the_rate_of_the_link() -> None:
    """Frames that are asked for one after the other leave no faster than the link carries them, by the wall clock."""
    port = EgressPort(PortSpec(100e6))
    began = time.monotonic()
    for _ in range(40):
        await port.turn("", FRAME)
    # The last one has begun and not ended, and one frame may be half a millisecond early.
    assert time.monotonic() - began >= 39 * FRAME * 8 / 100e6 - 0.001
    traffic = port.traffic[""]
    assert (traffic.frames, traffic.sent_bytes, traffic.offered_bytes) == (40, 40 * FRAME, 40 * FRAME)


async def test_an_idle_link_gives_a_turn_without_waiting() -> None:
    """The first frame on an idle link has its turn in the call itself: no future, no wait and no cause."""
    port = EgressPort(PortSpec(10e6))
    turn = port.ask("", FRAME)
    assert isinstance(turn, Turn)
    assert (turn.waited_ns, turn.why) == (0, "")
    assert not isinstance(port.ask("", FRAME), Turn)
    port.close()


async def test_who_is_urgent_overtakes_those_who_wait() -> None:
    """A message of an urgent slice goes after the frame on the link, before all that waited already; each says why."""
    port = EgressPort(PortSpec(10e6, {"urllc": SliceRule(1e6, urgent=True), "embb": SliceRule(8e6)}))
    order: list[tuple[str, int]] = []
    whys: list[str] = []

    async def send(name: str, number: int, size: int) -> None:
        turn = await port.turn(name, size)
        order.append((name, number))
        whys.append(turn.why)

    bulk = [asyncio.create_task(send("embb", number, FRAME)) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(*bulk, asyncio.create_task(send("urllc", 0, 200)))
    assert order == [("embb", 0), ("urllc", 0), *(("embb", number) for number in range(1, 5))]
    assert whys[0] == "" and set(whys[1:]) == {"link busy"}


async def test_a_slice_at_its_ceiling_says_so() -> None:
    """A frame that waits for its slice's ceiling says which one, in words for a trace."""
    port = EgressPort(PortSpec(1e9, {"embb": SliceRule(0, 0, 4e6)}))
    turns = await asyncio.gather(*(port.turn("embb", 4096) for _ in range(4)))
    assert turns[-1].why == "slice ceiling 4 Mbit/s"
    assert turns[-1].waited_ns >= 3 * 4096 * 8e9 / 4e6 - 1e6


async def test_turns_of_a_slice_keep_their_order_across_the_fast_path() -> None:
    """A frame that is asked for between another one's turn and the waking of its sender does not overtake it."""
    port = EgressPort(PortSpec(1e9))
    order: list[int] = []

    async def send(number: int) -> None:
        for step in range(50):
            await port.turn("", 40)
            order.append(number * 1000 + step)
            if step % 7 == number:
                await asyncio.sleep(0)

    asked: list[int] = []
    taken: list[int] = []
    numbers = itertools.count()

    async def one() -> None:
        number = next(numbers)
        asked.append(number)
        await port.turn("", 3000)
        taken.append(number)

    await asyncio.gather(*(send(number) for number in range(3)), *(one() for _ in range(50)))
    assert taken == asked
    for number in range(3):
        assert [each for each in order if each // 1000 == number] == [number * 1000 + step for step in range(50)]


@pytest.mark.parametrize("after_turn", [False, True])
async def test_who_is_cancelled_gives_the_place_back(after_turn: bool) -> None:
    """A call that is cancelled while it waits, or in the moment of its turn, takes nothing from the slice."""
    port = EgressPort(PortSpec(1e6, {"a": SliceRule(0, 0, 0.5e6)}))
    await port.turn("a", 1000)
    waiting = asyncio.create_task(port.turn("a", FRAME))
    await asyncio.sleep(0.05 if after_turn else 0)  # 1000 bytes take 16 ms of the ceiling
    if after_turn:
        assert waiting.done()
        port.give_back(waiting.result())
    else:
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    began = time.monotonic()
    await port.turn("a", 1000)
    assert time.monotonic() - began < FRAME * 8 / 0.5e6  # what the frame would have cost: 262 ms
    assert port.traffic["a"].offered_bytes == port.traffic["a"].sent_bytes == 2000
    assert port.queued == 0


async def test_many_who_come_and_go_leave_nothing_behind() -> None:
    """Hundreds of calls, half of them cancelled at any moment: the others all have their turn and the account holds."""
    port = EgressPort(PortSpec(200e6, {"a": SliceRule(50e6, 0, 100e6), "u": SliceRule(1e6, urgent=True)}))
    tasks = [asyncio.create_task(port.turn(("a", "u", "")[at % 3], 2000)) for at in range(600)]
    for at, task in enumerate(tasks):
        if at % 2:
            task.cancel()
        if at % 50 == 0:
            await asyncio.sleep(0.001)
    turns = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(turn, Turn) for turn in turns) >= 300
    assert port.queued == 0
    for traffic in port.traffic.values():
        assert traffic.offered_bytes == traffic.sent_bytes
    granted = sum(isinstance(turn, Turn) for turn in turns) * 2000
    assert sum(traffic.sent_bytes for traffic in port.traffic.values()) == granted


async def test_rules_that_change_wake_who_may_go_now() -> None:
    """A frame that waits for its ceiling goes at once where the ceiling is raised."""
    port = EgressPort(PortSpec(1e9, {"a": SliceRule(0, 0, 1e3)}))
    await port.turn("a", 4096)
    waiting = asyncio.create_task(port.turn("a", 4096))  # in 32 seconds
    await asyncio.sleep(0.01)
    assert not waiting.done()
    port.change(PortSpec(1e9, {"a": SliceRule(0, 0, 1e8)}))
    async with asyncio.timeout(60):
        await waiting


async def test_a_flood_is_refused_and_the_rest_goes() -> None:
    """Past the bound of a slice's queue a call fails with a typed error; those before it all have their turn."""
    port = EgressPort(PortSpec(20e6, {"a": SliceRule(1e7)}))
    turns = await asyncio.gather(*(port.turn("a", 1000) for _ in range(3000)), return_exceptions=True)
    refused = [turn for turn in turns if isinstance(turn, CapacityError)]
    assert refused and {error.reason for error in refused} == {"SLICE_FULL"}
    assert sum(isinstance(turn, Turn) for turn in turns) + len(refused) == 3000
    assert port.traffic["a"].dropped_bytes == 1000 * len(refused)


def test_rates_for_people() -> None:
    """A rate has the unit that leaves it short."""
    rates = (4e6, 2.5e9, 1500.0, 12.0)
    assert [rate_text(bps) for bps in rates] == ["4 Mbit/s", "2.5 Gbit/s", "1.5 kbit/s", "12 bit/s"]
