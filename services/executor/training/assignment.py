"""What a run works on: one order, how far it is, and its job on the training thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from orbitmesh.errors import MeshError
from orbitmesh.v1 import training_pb2
from services.executor.training.terms import has_secrets
from services.executor.training.thread import TrainingThread
from services.executor.training.weights import WeightsFile
from services.executor.training.worker import Reports, Worker

PROGRESS_S = 1.0
"""Seconds between two reports of progress, at least: over a thin link they may be as large as what was learnt."""


class Assignment:
    """An order that is being followed.

    Args:
        kind: What is to be done.
        round_index: The round.
        work: What the node has to know for it.
        changed: Told on the event loop when `progress` or `figures` has become another.
    """

    def __init__(
        self,
        kind: int,
        round_index: int,
        work: training_pb2.TrainingWork,
        changed: Callable[[Assignment, training_pb2.TrainingInfo], None],
    ) -> None:
        self.kind = kind
        self.round_index = round_index
        self.work = work
        self.weights: WeightsFile | None = None
        self.tries = 0
        """How often the weights were not what their digest says."""
        self.gap_at = -1
        """Where a missing span was last pointed out."""
        self.progress: training_pb2.TrainingProgress | None = None
        self.told_s = time.monotonic()
        self.figures: dict[str, float] = {}
        self._changed = changed
        self._stop = threading.Event()
        self._future: Future[None] | None = None

    def is_for(self, kind: int, round_index: int, work: training_pb2.TrainingWork) -> bool:
        """Whether an order asks for the same."""
        same = (self.kind, self.round_index) == (kind, round_index)
        return same and self.sha256 == bytes(work.weights.sha256)

    @property
    def sha256(self) -> bytes:
        """The weights that it is about; empty where there are none."""
        return bytes(self.work.weights.sha256)

    @property
    def running(self) -> bool:
        """Whether its job waits, runs, or has ended unnoticed."""
        return self._future is not None

    def stop(self) -> None:
        """Ends the job at its next step."""
        self._stop.set()
        if self._future is not None:
            self._future.cancel()

    def start(self, worker: Worker, thread: TrainingThread) -> None:
        """Puts its job on the training thread.

        Raises:
            TransportError: `DRAINING`, the process is on its way out.
        """
        loop, last = asyncio.get_running_loop(), 0.0

        def on_loop(told: Callable[[], None]) -> None:
            try:
                loop.call_soon_threadsafe(told)
            except RuntimeError:  # the loop is closed: the process is on its way out
                self._stop.set()

        def progress(step: int, steps: int, loss: float | None) -> None:
            nonlocal last
            now = time.monotonic()
            if not step or now - last >= PROGRESS_S:
                last = now
                on_loop(lambda: self._progressed(step, steps, loss))

        reports = Reports(progress, lambda figures: on_loop(lambda: self._measured(figures)))
        work = self.work
        self._future = thread.submit(lambda: worker.do(self.kind, self.round_index, work, self._stop.is_set, reports))

    async def ended(self) -> MeshError | None:
        """Waits for the end of its job; gives the error with which it ended."""
        future = self._future
        if future is None:
            return None
        try:
            await asyncio.wrap_future(future)
        except MeshError as error:
            return error
        except asyncio.CancelledError:
            if not future.cancelled():
                raise
        return None

    def noticed(self) -> None:
        """The end of its job was noticed: it may be started again."""
        self._future = None

    def evaluated(self) -> training_pb2.Evaluation:
        """What its weights are worth, as a message."""
        return training_pb2.Evaluation(sha256=self.sha256, figures=self.figures)

    def _progressed(self, step: int, steps: int, loss: float | None) -> None:
        said = None if has_secrets(self.work.spec) else loss
        self.progress = training_pb2.TrainingProgress(step=step, steps=steps, loss=said)
        self.told_s = time.monotonic()
        self._changed(self, training_pb2.TrainingInfo(progress=self.progress))

    def _measured(self, figures: dict[str, float]) -> None:
        self.figures = figures
        self._changed(self, training_pb2.TrainingInfo(evaluated=self.evaluated()))
