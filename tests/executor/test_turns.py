"""Another thread that computes in turn with the engine's steps: real threads, and nothing runs at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from services.executor import engine as module
from services.executor.engine import SHORT_STEP_NS, Ran, StepEngine
from services.executor.fairqueue import Share

SHORT = SHORT_STEP_NS - 1
WAIT_S = 60.0
TRAINING, TOKENS = "bulk", "cam"


@pytest.fixture
async def engine() -> AsyncIterator[StepEngine]:
    """An engine on this test's loop."""
    made = StepEngine()
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def other() -> AsyncIterator[Callable[[Callable[[], None]], asyncio.Future[None]]]:
    """Runs something on a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda job: asyncio.get_running_loop().run_in_executor(pool, job)


class Alone:
    """Notes who computes, and fails where two do at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.order: list[str] = []
        self.spent: dict[str, float] = {}

    def work(self, name: str, takes_s: float) -> None:
        """Computes for so long."""
        with self.computing(name):
            time.sleep(takes_s)

    @contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """Computes as long as the block runs."""
        assert self._lock.acquire(blocking=False), f"{name} began beside {self.order[-1]}"
        begun = time.monotonic()
        self.order.append(name)
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun
        self._lock.release()


def step(engine: StepEngine, work: Callable[[], None], slice_name: str, expected_ns: int | None) -> asyncio.Future[Ran]:
    """One step of the engine."""
    future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
    engine.submit(work, future.set_result, expected_ns=expected_ns, slice_name=slice_name)
    return future


def rules(training: Share, tokens: Share) -> dict[str, Share]:
    return {TRAINING: training, TOKENS: tokens}


@pytest.mark.parametrize("expected_ns", [SHORT, None], ids=["short", "long"])
async def test_steps_and_turns_never_run_at_once_and_none_is_lost(
    engine: StepEngine, other: Callable[[Callable[[], None]], asyncio.Future[None]], expected_ns: int | None
) -> None:
    """Four hundred steps beside six hundred turns, while the rules change and the thread rests now and then."""
    alone, shares = Alone(), rules(Share(0.3), Share(0.5, first=True))
    engine.set_rules(shares)

    def train() -> None:
        turns = engine.turns(TRAINING, lambda: False)
        for number in range(600):
            turns.take()
            alone.work("turn", 0.0002)
            if number % 7 == 0:
                turns.rest()
        turns.rest()

    training = other(train)
    for number in range(400):
        wait = step(engine, lambda: alone.work("step", 0.0001), TOKENS, expected_ns)
        if number % 40 == 0:
            engine.set_rules(shares if number % 80 else {TRAINING: Share(0.1, ceiling=0.9)})
        ran = await asyncio.wait_for(wait, WAIT_S)
        assert ran.error is None
        if number % 11 == 0:
            await asyncio.sleep(0.001)
    await asyncio.wait_for(training, WAIT_S)
    assert (alone.order.count("turn"), alone.order.count("step")) == (600, 400)


@pytest.mark.parametrize("expected_ns", [SHORT, None], ids=["short", "long"])
@pytest.mark.parametrize("slice_name", [TRAINING, ""], ids=["in a slice", "in none"])
async def test_an_urgent_step_waits_for_one_turn_and_no_longer(
    engine: StepEngine,
    other: Callable[[Callable[[], None]], asyncio.Future[None]],
    slice_name: str,
    expected_ns: int | None,
) -> None:
    """Whoever trains goes on at once after each step; between two of them is the urgent one."""
    alone, stop = Alone(), threading.Event()
    engine.set_rules(rules(Share(0.3), Share(0.5, first=True)))

    def train() -> None:
        turns = engine.turns(slice_name, stop.is_set)
        while not stop.is_set():
            turns.take()
            alone.work("turn", 0.005)
        turns.rest()

    training = other(train)
    for _ in range(20):
        await asyncio.sleep(0.012)
        asked = len(alone.order)
        await asyncio.wait_for(step(engine, lambda: alone.work("urgent", 0.0), TOKENS, expected_ns), WAIT_S)
        # One that ran, and one that had its turn before the step was there, at the most.
        assert alone.order[asked:].index("urgent") <= 1
    stop.set()
    await asyncio.wait_for(training, WAIT_S)


async def test_turns_are_charged_to_their_slice(
    engine: StepEngine, other: Callable[[Callable[[], None]], asyncio.Future[None]]
) -> None:
    """With a quarter and three quarters, and both with something to compute all the time, it is divided so; though one
    turn takes three times as long as one step."""
    alone, stop = Alone(), threading.Event()
    engine.set_rules(rules(Share(0.25), Share(0.75)))
    before = alone.spent

    def train() -> None:
        turns = engine.turns(TRAINING, stop.is_set)
        while not stop.is_set():
            turns.take()
            alone.work("turn", 0.006)
        turns.rest()

    async def tokens() -> None:
        while not stop.is_set():
            await step(engine, lambda: alone.work("step", 0.002), TOKENS, None)

    training = other(train)
    busy = [asyncio.ensure_future(tokens()) for _ in range(4)]
    await asyncio.sleep(1.5)
    share = before["turn"] / sum(before.values())
    stop.set()
    await asyncio.wait_for(asyncio.gather(training, *busy), WAIT_S)
    assert share == pytest.approx(0.25, abs=0.04)


async def test_a_ceiling_holds_for_a_thread_that_computes_alone(
    engine: StepEngine, other: Callable[[Callable[[], None]], asyncio.Future[None]]
) -> None:
    """A tenth, though nobody else wants anything; who is told to stop meanwhile does not wait for the next turn."""
    alone, stop = Alone(), threading.Event()
    engine.set_rules(rules(Share(0.05, ceiling=0.1), Share(0.5)))

    def train() -> None:
        turns = engine.turns(TRAINING, stop.is_set)
        begun = time.monotonic()
        for _ in range(10):
            turns.take()
            alone.work("turn", 0.01)
        turns.rest()
        # The last one is paid for later.
        assert alone.spent["turn"] / (time.monotonic() - begun) < 0.13
        turns.take()
        alone.work("long", 1.0)
        stop.set()
        asked = time.monotonic()
        turns.take()
        turns.rest()
        assert time.monotonic() - asked < 5.0  # it is paid for in ten seconds

    await asyncio.wait_for(other(train), WAIT_S)
    # Whoever has given up is no longer in the way of others.
    ran = await asyncio.wait_for(step(engine, lambda: None, TRAINING, None), WAIT_S)
    assert ran.held_by == "slice bulk ceiling 10%"


async def test_a_turn_without_end_does_not_stop_the_node(
    engine: StepEngine,
    other: Callable[[Callable[[], None]], asyncio.Future[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task's own code may hang: after a while steps go on beside it; what it takes next is a turn like any."""
    monkeypatch.setattr(module, "TURN_MAX_NS", 50_000_000)
    engine.set_rules(rules(Share(0.3), Share(0.5)))
    hung, go = threading.Event(), threading.Event()

    def train() -> None:
        turns = engine.turns(TRAINING, lambda: False)
        turns.take()
        hung.set()
        assert go.wait(WAIT_S)
        turns.take()
        turns.rest()

    training = other(train)
    assert await asyncio.to_thread(hung.wait, WAIT_S)
    for expected_ns in (SHORT, None):
        ran = await asyncio.wait_for(step(engine, lambda: None, TOKENS, expected_ns), WAIT_S)
        assert ran.error is None
    go.set()
    await asyncio.wait_for(training, WAIT_S)


async def test_without_rules_nobody_waits(
    engine: StepEngine, other: Callable[[Callable[[], None]], asyncio.Future[None]]
) -> None:
    """Training computes beside the steps, as it did before there were slices; also once the rules are gone."""
    turns, go = engine.turns("", lambda: False), threading.Event()
    for shares in ({}, rules(Share(0.3), Share(0.5))):
        engine.set_rules(shares)
        begun = threading.Event()

        def hold(begun: threading.Event = begun) -> None:
            begun.set()
            assert go.wait(WAIT_S)

        running = step(engine, hold, TOKENS, None)
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        waits = other(turns.take)
        if shares:
            await asyncio.sleep(0.05)
            assert not waits.done()
            engine.set_rules({})
            go.set()
        await asyncio.wait_for(waits, WAIT_S)
        await asyncio.wait_for(other(turns.rest), WAIT_S)
        go.set()
        await asyncio.wait_for(running, WAIT_S)
        go.clear()


async def test_closing_wakes_whoever_waits_for_a_turn(
    other: Callable[[Callable[[], None]], asyncio.Future[None]]
) -> None:
    """It computes on without one; the process is on its way out."""
    engine, go, begun = StepEngine(), threading.Event(), threading.Event()
    engine.set_rules(rules(Share(0.3), Share(0.5)))

    def hold() -> None:
        begun.set()
        assert go.wait(WAIT_S)

    engine.submit(hold, lambda ran: None, slice_name=TOKENS)
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    waits = other(engine.turns(TRAINING, lambda: False).take)
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
    await asyncio.wait_for(waits, WAIT_S)
    go.set()
    await asyncio.wait_for(closing, WAIT_S)
