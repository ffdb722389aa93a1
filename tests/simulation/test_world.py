"""The simulation itself: that it does what its users rely on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from tests.simulation.loop import VirtualTimeLoop, simulate
from tests.simulation.network import SESSION, Faults, Network
from tests.simulation.world import SimulationError, StandstillError, World, run_seeds

BAD = Faults(drop=0.1, duplicate=0.1, reorder=0.2, corrupt=0.05)


def _ping_pong(seed: int, faults: Faults = BAD, events: int = 2000) -> tuple[list[tuple[str, bytes]], Network]:
    """Two endpoints that send each other numbers for a while."""
    world = World(seed)
    network = Network(world, faults)
    seen: list[tuple[str, bytes]] = []
    ends = {name: network.add(name, lambda source, message: seen.append((source, message))) for name in "ab"}
    for number in range(events // 2):
        for name, other in (("a", "b"), ("b", "a")):
            ends[name].after(world.random.uniform(0, 10), ends[name].send, other, number.to_bytes(4, "big"))
    world.run()
    return seen, network


def test_a_seed_is_the_same_run_each_time() -> None:
    """The same seed gives the same messages in the same order, another one others; faults do happen."""
    first, network = _ping_pong(1)
    assert first == _ping_pong(1)[0]
    assert first != _ping_pong(2)[0]
    counts = network.counts
    assert min(counts.dropped, counts.duplicated, counts.corrupted) > 20
    numbers = [message for source, message in first if source == "a"]
    assert numbers != sorted(numbers)


def test_a_holding_way_loses_nothing_but_with_an_end() -> None:
    """Through partitions a session-like way brings everything once, in order; a kill and a loss take what was held."""
    world = World(3)
    network = Network(world, SESSION)
    seen: list[int] = []
    lost: list[float] = []
    sender = network.add("a", lambda *_: None)
    network.add("b", lambda _, number: seen.append(number))
    network.watch("a", "b", lambda: lost.append(world.now_s), 1.0)
    for number in range(100):
        sender.after(number * 0.01, sender.send, "b", number)
    world.at(0.3, network.partition, "a", "b", 0.4)
    world.run(5.0)
    assert seen == list(range(100))
    assert not lost
    sender.send("b", 100)
    network.kill("b")
    network.restart("b", lambda _, number: seen.append(number))
    world.run(7.0)
    assert seen == list(range(100))
    assert lost == [6.0]
    network.partition("a", "b", one_way=True)
    sender.send("b", 101)
    world.run(10.0)
    assert lost == [6.0, 8.0]
    network.heal("a", "b")
    world.run()
    assert seen == list(range(100))


def test_a_session_keeps_its_order_through_partitions_shorter_than_its_delays() -> None:
    """What was under way when a way closed comes before what was sent while it was closed."""
    for seed in range(50):
        world = World(seed)
        network = Network(world, replace(SESSION, delay_s=(0.01, 0.1)))
        seen: list[int] = []
        network.add("b", lambda _, message, seen=seen: seen.append(message))
        sender = network.add("a", lambda *_: None)
        for number in range(200):
            world.at(0.005 * number, sender.send, "b", number)
        for cut in range(20):
            world.at(0.05 * cut, network.partition, "a", "b", world.random.uniform(0.001, 0.1))
        world.run()
        assert seen == list(range(200))


def test_dead_and_paused_endpoints_do_nothing() -> None:
    """A killed endpoint's timers are gone, a paused one's are late."""
    world = World(4)
    network = Network(world)
    ticks: list[tuple[str, float]] = []
    for name in ("dead", "late"):
        endpoint = network.add(name, lambda *_: None)
        endpoint.every(1.0, lambda name=name: ticks.append((name, world.now_s)))  # type: ignore[misc]
    world.at(1.5, network.kill, "dead")
    world.at(1.5, network.pause, "late", 2.0)
    world.run(4.0)
    assert ticks == [("dead", 1.0), ("late", 1.0), ("late", 3.5)]
    with pytest.raises(StandstillError, match="did not happen within"):
        world.until(lambda: False, 1.0)


def test_a_failing_seed_names_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message of a failure holds the seed and the command that runs it again; that command runs it alone."""
    monkeypatch.delenv("ORBITMESH_SEED", raising=False)
    monkeypatch.setenv("ORBITMESH_SEEDS", "20")
    ran: list[int] = []

    def scenario(seed: int) -> None:
        ran.append(seed)
        assert seed != 7

    with pytest.raises(SimulationError, match=r"ORBITMESH_SEED=7 pytest '.*test_a_failing_seed_names_itself'"):
        run_seeds(scenario, 3000)
    assert ran == list(range(8))
    assert "SEED=7" in capsys.readouterr().out
    monkeypatch.setenv("ORBITMESH_SEED", "11")
    assert run_seeds(scenario) == 1
    assert ran[-1] == 11


def test_virtual_time_jumps_and_every_clock_follows() -> None:
    """A day passes at once; `time.monotonic` shows the loop's time inside and the machine's again afterwards."""

    async def day() -> tuple[float, int, float]:
        await asyncio.sleep(86_400 * 1.5)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return time.monotonic(), time.monotonic_ns(), loop.time()

    before = time.monotonic()
    monotonic, nanoseconds, loop_time = simulate(day())
    assert monotonic == loop_time == pytest.approx(129_600)
    assert nanoseconds == pytest.approx(129_600e9)
    assert before <= time.monotonic() < before + 1000


def test_a_deadlock_is_an_error_and_not_a_wait() -> None:
    """Where everything waits and no timer runs, the simulation says so; so it does for failures nobody looked at."""

    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    async def careless() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(StandstillError):
        simulate(stuck())
    with pytest.raises(AssertionError, match="nobody saw"):
        simulate(careless())
