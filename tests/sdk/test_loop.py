"""The loop thread under the sync client: an interrupt at any moment ends the work that was handed over, and waits for
its end."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from orbitmesh import CancelledError_
from orbitmesh._loop import LoopThread, end_of, next_of


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


class Work:
    """Waits for ever, and takes a while to clean up."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cleaned = False

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            self.cleaned = True


def interrupting(loop: LoopThread, monkeypatch: pytest.MonkeyPatch, begun: threading.Event | None) -> None:
    """Ctrl-C arrives in the middle of handing over: after the loop was told and, where asked, the work has begun."""
    tell = loop._loop.call_soon_threadsafe

    def told_and_interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        tell(*arguments)
        if begun is not None:
            begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._loop, "call_soon_threadsafe", told_and_interrupted)


def test_an_interrupt_while_work_is_handed_over_waits_for_its_end(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has no future yet, and the work runs already: it is cancelled, and has cleaned up on return."""
    work = Work()
    interrupting(loop, monkeypatch, work.begun)
    with pytest.raises(KeyboardInterrupt):
        loop.run(lambda: work.run())
    assert work.cleaned


def test_work_that_had_not_begun_at_the_interrupt_never_begins(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever comes first on the loop: nothing of it runs afterwards, and the wait for its end is short."""
    for _ in range(50):
        work = Work()
        with monkeypatch.context() as patch:
            interrupting(loop, patch, None)
            with pytest.raises(KeyboardInterrupt):
                loop.run(work.run)
        assert work.cleaned or not work.begun.is_set()


def test_an_interrupted_iteration_can_be_closed(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator is not left running: whoever iterates may end it."""
    begun = threading.Event()

    async def values() -> AsyncIterator[int]:
        begun.set()
        await asyncio.Event().wait()
        yield 1

    generator: Any = values()
    interrupting(loop, monkeypatch, begun)
    with pytest.raises(KeyboardInterrupt):
        loop.run(lambda: next_of(generator))
    loop.run(lambda: end_of(generator))


def test_an_interrupt_before_the_loop_is_told_leaves_nothing_behind(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work never begins, the wait for its end is short, and Python has no coroutine to warn of."""

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    work = Work()
    monkeypatch.setattr(loop._loop, "call_soon_threadsafe", interrupted)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error")
        loop.run(lambda: work.run())
    assert not work.begun.is_set()
    gc.collect()


def test_what_work_gives_or_raises_comes_back(loop: LoopThread) -> None:
    """Its value, its own exception, and a typed error where it was cancelled on the loop."""

    async def give(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    assert loop.run(lambda: give(3)) == 3
    with pytest.raises(ValueError, match="its own"):
        loop.run(lambda: give(ValueError("its own")))
    with pytest.raises(CancelledError_):
        loop.run(lambda: give(asyncio.CancelledError()))
