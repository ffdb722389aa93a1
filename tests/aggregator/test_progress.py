"""Who gets further is waited for, and nobody else."""

from __future__ import annotations

from services.aggregator.progress import LIVES_MAX, STEP_MAX_S, Progress


class Watch:
    """A node's progress with a clock that is set, and how often it got further."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.times = 0
        self.progress = Progress(self._moved, clock=lambda: self.now_s)

    def _moved(self) -> None:
        self.times += 1

    def moved(self) -> bool:
        """Whether it got further since this was asked last."""
        times, self.times = self.times, 0
        return times > 0


def test_a_node_that_gets_further_is_waited_for() -> None:
    """Weights that it has, steps that it trained and spans that came are progress, said again they are none."""
    watch = Watch()
    for reached in ({"weights": 1}, {"weights": 2}, {"step": 1}, {"step": 7}, {"spans": 1}):
        watch.now_s += 1
        watch.progress.reached(**reached)
        assert watch.moved() and watch.progress.still_s == 0
    for reached in ({"weights": 2}, {"weights": 1}, {"step": 7}, {"step": 3}, {"spans": 1}):
        watch.now_s += 1
        watch.progress.reached(**reached)
        assert not watch.moved()
    assert watch.progress.still_s == 5


def test_a_long_step_is_believed_for_a_while() -> None:
    """A node that says it works on the same step is waited for, up to a bound; with the next step anew."""
    watch = Watch()
    watch.progress.connected()
    for step in (0, 1):
        watch.progress.works(step)
        for _ in range(9):
            watch.now_s += STEP_MAX_S / 10
            watch.moved()
            watch.progress.works(step)
            assert watch.moved()
        watch.now_s += STEP_MAX_S / 10
        watch.progress.works(step)
        assert not watch.moved()


def test_a_node_that_dies_of_its_work_is_not_waited_for_for_ever() -> None:
    """It comes back, trains to the same step and dies again: that counts a few times only."""
    watch = Watch()
    for life in range(1, LIVES_MAX + 20):
        watch.progress.connected()
        for step in range(5):
            watch.progress.works(step)
        # Its first life got further than the node ever was, and is one of the lives that count.
        assert watch.moved() == (life <= LIVES_MAX)


def test_a_link_that_breaks_often_is_no_reason_to_give_up() -> None:
    """A node that gets a little further in each of many contacts is waited for all the time."""
    watch = Watch()
    for contact in range(50):
        watch.progress.connected()
        watch.progress.reached(spans=contact + 1)
        assert watch.moved()
        watch.progress.reached(spans=contact + 1)
        assert not watch.moved()


def test_a_new_order_begins_anew() -> None:
    """After it, the first step is progress again, also for a node that had died often."""
    watch = Watch()
    for _ in range(LIVES_MAX + 5):
        watch.progress.connected()
        watch.progress.works(3)
    watch.moved()
    watch.progress.begin()
    watch.progress.works(1)
    assert watch.moved()
