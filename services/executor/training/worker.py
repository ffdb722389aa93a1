"""What of a run happens on the training thread, with the errors that a task's own code may raise turned into ours.

The modules that import torch are imported by the first job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from orbitmesh.errors import MeshError
from orbitmesh.trust import Identity
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.executor.training.files import RunFiles
from services.executor.training.forgotten import Forgotten
from services.executor.training.refusals import TASK_ERRORS, typed
from services.executor.training.secrets import RunSecrets
from services.executor.training.terms import hides_records
from services.executor.training.thread import TrainingThread
from services.runtime.logs import EventLog
from services.training.turns import Turns, by_turns

if TYPE_CHECKING:
    from services.executor.training.bench import Bench
    from services.executor.training.shop import Shop

T = TypeVar("T")
Reach = Callable[[str, str], Awaitable[Session]]
"""Opens a session with the node of a name; host:port says where it was, for where nobody here knows better."""


TurnsOf = Callable[[str, Callable[[], bool]], Turns]


@dataclass(frozen=True)
class Surroundings:
    """What all runs of a node share."""

    node: str
    """The node's name."""
    identity: Callable[[], Identity]
    """Who it is now."""
    thread: TrainingThread
    """Where training runs."""
    device: str
    """Where torch computes."""
    log: EventLog
    """Where to say what happened."""
    forgotten: Forgotten
    """Runs that it must not join again."""
    reach: Reach
    """How another node is reached."""
    turns: TurnsOf
    """Turns of the training thread, in the slice of that name and until it is said that nobody wants the work."""


@dataclass(frozen=True)
class Reports:
    """Who is told of a job; called on the training thread."""

    progress: Callable[[int, int, float | None], None]
    """Steps done, steps in all, loss."""
    evaluated: Callable[[dict[str, float]], None]
    """What the weights are worth."""


@dataclass(frozen=True)
class Found:
    """What a node finds when it is asked to take part."""

    examples: int
    """Its examples."""
    values: int
    """Values of the model."""
    layout_sha256: bytes
    """Names and shapes of its tensors."""
    initial_sha256: bytes
    """The weights that it begins with."""


class Worker:
    """A run's work; its methods are for the training thread.

    Args:
        run: The run.
        files: Its directory.
        around: What all runs of the node share.
    """

    def __init__(self, run: str, files: RunFiles, around: Surroundings) -> None:
        self._run = run
        self._files = files
        self._around = around
        self.secrets: RunSecrets | None = None
        """The run's; None where it has none, or they were not opened yet."""
        self._shop: Shop | None = None

    def look(self, work: training_pb2.TrainingWork) -> Found:
        """The task and the node's part of its data."""
        return self._guarded("the task was looked at", lambda: self._look(work))

    def do(
        self,
        kind: int,
        round_index: int,
        work: training_pb2.TrainingWork,
        stopped: Callable[[], bool],
        reports: Reports,
    ) -> None:
        """Follows an order to initialise, to train or to evaluate.

        Raises:
            MeshError: Whatever came of it.
        """
        self._guarded(
            f"round {round_index} of {self._run} was worked on",
            lambda: self._do(kind, round_index, work, stopped, reports),
        )

    def withdraw(self, round_index: int, work: training_pb2.TrainingWork) -> None:
        """Takes back the contribution of a round, which did not count."""
        self._guarded(f"round {round_index} of {self._run} was taken back", lambda: self._withdraw(round_index, work))

    def _look(self, work: training_pb2.TrainingWork) -> Found:
        from services.executor.training.shop import Shop, digest

        shop = self._shop = Shop(work, self._around.device)
        if hides_records(work.spec):
            shop.refuse_mixing()
        return Found(len(shop.shard), shop.values, shop.layout.digest, digest(shop.initial()))

    def _do(
        self,
        kind: int,
        round_index: int,
        work: training_pb2.TrainingWork,
        stopped: Callable[[], bool],
        reports: Reports,
    ) -> None:
        with by_turns(self._around.turns(work.spec.slice, stopped)):
            self._in_turn(kind, round_index, work, stopped, reports)

    def _in_turn(
        self,
        kind: int,
        round_index: int,
        work: training_pb2.TrainingWork,
        stopped: Callable[[], bool],
        reports: Reports,
    ) -> None:
        from services.executor.training import job

        bench = self._bench(work, stopped)
        if kind == training_pb2.TRAINING_KIND_INITIALISE:
            job.initialise(bench, round_index)
        elif kind == training_pb2.TRAINING_KIND_EVALUATE:
            job.evaluate(bench, work, reports)
        else:
            job.train(bench, work, round_index, reports)

    def _withdraw(self, round_index: int, work: training_pb2.TrainingWork) -> None:
        from services.executor.training.making import withdraw

        withdraw(self._bench(work, lambda: False), round_index)

    def _bench(self, work: training_pb2.TrainingWork, stopped: Callable[[], bool]) -> Bench:
        from services.executor.training.bench import Bench
        from services.executor.training.shop import Shop

        if self._shop is None:
            self._shop = Shop(work, self._around.device)
        around = self._around
        return Bench(
            self._shop, self._files, self._run, around.node, self.secrets, stopped, around.thread.breathe, around.log
        )

    def _guarded(self, what: str, job: Callable[[], T]) -> T:
        try:
            return job()
        except MeshError:
            raise
        except TASK_ERRORS as error:
            self._around.log.error("training_failed", error=error, run=self._run)
            raise typed(error, what) from error
