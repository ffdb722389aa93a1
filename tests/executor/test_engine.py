"""The engine with real threads: what runs where, in which order, and what a change of rules does to what waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from itertools import combinations

import pytest

from orbitmesh.errors import CapacityError, InternalError, InvalidInputError
from services.executor.engine import SHORT_STEP_NS, Ran, StepEngine
from services.executor.fairqueue import CEILING_WINDOW_NS, Share

SHORT = SHORT_STEP_NS - 1


@pytest.fixture
async def engine() -> AsyncIterator[StepEngine]:
    """An engine on this test's loop."""
    made = StepEngine()
    yield made
    await asyncio.to_thread(made.close)


class Log:
    """Submits numbered steps and notes the order in which they ran."""

    def __init__(self, engine: StepEngine) -> None:
        self.engine = engine
        self.order: list[tuple[str, int]] = []
        self.threads: list[str] = []
        self.ran: list[tuple[str, Ran]] = []
        self._done: list[asyncio.Future[None]] = []

    def submit(self, name: str, number: int, *, expected_ns: int | None = None, takes_s: float = 0.0) -> None:
        """One step."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.append(future)

        def work() -> None:
            self.order.append((name, number))
            self.threads.append(threading.current_thread().name)
            time.sleep(takes_s)

        def done(ran: Ran) -> None:
            self.ran.append((name, ran))
            future.set_result(None)

        self.engine.submit(work, done, expected_ns=expected_ns, slice_name=name)

    def block(self) -> threading.Event:
        """Keeps the engine busy until the event is set."""
        go, begun = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            go.wait(60)

        self.engine.submit(work, lambda ran: None, slice_name="")
        assert begun.wait(60)
        return go

    async def all(self) -> None:
        """Waits for every step."""
        async with asyncio.timeout(60):
            await asyncio.gather(*self._done)


async def test_short_steps_run_on_the_loop_and_long_ones_on_the_thread(engine: StepEngine) -> None:
    """Without rules nothing has changed: short steps stay on the loop, what is long or follows it goes to the thread,
    all in the order in which it came."""
    log = Log(engine)
    for number in range(3):
        log.submit("a", number, expected_ns=SHORT)
    await log.all()
    assert set(log.threads) == {threading.main_thread().name}
    log.submit("a", 3)
    log.submit("b", 4, expected_ns=SHORT)
    await log.all()
    assert log.threads[3:] == ["steps", "steps"]
    log.submit("a", 5, expected_ns=SHORT)
    await log.all()
    assert log.threads[5] == threading.main_thread().name
    assert [number for _, number in log.order] == list(range(6))
    assert engine.waiting == 0


@pytest.mark.parametrize("ruled", [False, True])
async def test_steps_of_one_slice_keep_their_order(engine: StepEngine, ruled: bool) -> None:
    """A mixture of short and long steps of three slices: each slice's come in the order in which they were submitted,
    every one once, though rules come and go meanwhile."""
    log = Log(engine)
    for number in range(400):
        log.submit("abc"[number % 3], number, expected_ns=SHORT if number % 7 < 4 else None)
        if number % 13 == 0:
            await asyncio.sleep(0)
        if ruled and number % 50 == 0:
            names = "abc"[: number // 50 % 4]
            engine.set_rules({name: Share(guaranteed=0.2, ceiling=0.9, first=name == "b") for name in names})
    await log.all()
    assert sorted(number for _, number in log.order) == list(range(400))
    for name in "abc":
        mine = [number for other, number in log.order if other == name]
        assert mine == sorted(mine)


async def test_who_goes_first_runs_when_the_running_step_ends(engine: StepEngine) -> None:
    """Steps that wait before it do not run before it, short or long; the node's own work does."""
    engine.set_rules({"now": Share(guaranteed=0.3, first=True)})
    log = Log(engine)
    go = log.block()
    for number in range(5):
        log.submit("other", number, expected_ns=SHORT)
    log.submit("now", 5, expected_ns=SHORT)
    own = asyncio.create_task(engine.run(lambda: len(log.order)))
    await asyncio.sleep(0)
    go.set()
    assert await own == 0
    await log.all()
    assert log.order == [("now", 5), *(("other", number) for number in range(5))]


async def test_a_short_step_alone_runs_on_the_loop_with_rules_too(engine: StepEngine) -> None:
    """A step that has nothing to wait for does not pay for the thread because there are rules."""
    engine.set_rules({"now": Share(guaranteed=0.3, first=True)})
    log = Log(engine)
    for number in range(3):
        log.submit("now", number, expected_ns=SHORT)
        await log.all()
    assert set(log.threads) == {threading.main_thread().name}


async def test_between_short_steps_that_wait_the_loop_hears_of_one_that_goes_first(engine: StepEngine) -> None:
    """What needs a few turns of the loop to become a step, as a message does, goes before short steps that wait."""
    engine.set_rules({"now": Share(guaranteed=0.3, first=True)})
    await engine.run(lambda: None)
    log = Log(engine)
    for number in range(5):
        log.submit("other", number, expected_ns=SHORT)
    while not log.order:  # noqa: ASYNC110 - the turns of the loop are what is tested
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    log.submit("now", 5, expected_ns=SHORT)
    await log.all()
    assert log.order == [("other", 0), ("now", 5), *(("other", number) for number in range(1, 5))]
    assert set(log.threads) == {threading.main_thread().name}


@pytest.mark.parametrize("ruled", [False, True])
async def test_who_fails_to_take_what_became_of_a_step_keeps_no_other_from_running(
    engine: StepEngine, ruled: bool
) -> None:
    """An error in what is told of a step is the loop's to report; the steps after it run."""
    if ruled:
        engine.set_rules({"a": Share(guaranteed=0.5)})
        await engine.run(lambda: None)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    log = Log(engine)
    engine.submit(lambda: None, lambda ran: [][1], expected_ns=SHORT, slice_name="a")
    for number in range(3):
        log.submit("a", number, expected_ns=SHORT)
    await log.all()
    assert [type(error) for error in reported] == [IndexError]
    assert [number for _, number in log.order] == [0, 1, 2]


@pytest.mark.parametrize("expected_ns", [SHORT, None])
async def test_a_ceiling_holds_in_real_time(engine: StepEngine, expected_ns: int | None) -> None:
    """By the clock of the steps themselves, a slice never has more than its ceiling, its window of it and one step; and
    those that waited for it say so."""
    ceiling = 0.5
    engine.set_rules({"a": Share(ceiling=ceiling)})
    log = Log(engine)
    for number in range(20):
        log.submit("a", number, expected_ns=expected_ns, takes_s=0.004)
    await log.all()
    spans = [(ran.started_ns, ran.ended_ns) for _, ran in log.ran]
    longest = max(stop - start for start, stop in spans)
    for low, high in combinations(range(len(spans) + 1), 2):
        got = sum(stop - start for start, stop in spans[low:high])
        assert got <= ceiling * (spans[high - 1][1] - spans[low][0] + CEILING_WINDOW_NS) + longest
    assert "slice a ceiling 50%" in {ran.held_by for _, ran in log.ran}
    assert log.ran[-1][1].held_ns > 0


async def test_rules_that_go_away_set_free_what_they_held(engine: StepEngine) -> None:
    """Steps that a very low ceiling holds run at once when it is lifted."""
    engine.set_rules({"a": Share(ceiling=0.001)})
    log = Log(engine)
    for number in range(5):
        log.submit("a", number, expected_ns=SHORT, takes_s=0.05)
    await asyncio.sleep(0.1)
    assert len(log.order) < 5
    engine.set_rules({})
    await log.all()
    assert [number for _, number in log.order] == list(range(5))


async def test_wrong_rules_change_nothing(engine: StepEngine) -> None:
    """Rules that promise more than there is are refused and the engine goes on."""
    with pytest.raises(InvalidInputError):
        engine.set_rules({"a": Share(guaranteed=0.6), "b": Share(guaranteed=0.6)})
    assert await engine.run(lambda: 5) == 5


async def test_errors_reach_whoever_waits(engine: StepEngine) -> None:
    """A step's error of the mesh comes as it is, another one as an internal one; the next step runs."""

    def full() -> None:
        raise CapacityError("full")

    with pytest.raises(CapacityError):
        await engine.run(full)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        await engine.run(lambda: 1 // 0)
    assert await engine.run(lambda: 7) == 7


@pytest.mark.parametrize("ruled", [False, True])
async def test_closing_lets_the_running_step_end_and_runs_no_other(ruled: bool) -> None:
    """What waits when the engine is closed is not run."""
    engine = StepEngine()
    if ruled:
        engine.set_rules({"a": Share(guaranteed=0.5)})
    log = Log(engine)
    go = log.block()
    log.submit("a", 0)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await asyncio.sleep(0.05)
    assert not closing.done()
    go.set()
    await closing
    assert log.order == []
