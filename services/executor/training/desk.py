"""Where messages of training arrive: whose count, and which run each is of."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from orbitmesh.errors import CapacityError, IntegrityError, MeshError, PermissionError_, TransportError
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import training_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from services.executor.training.files import Joined, RunFiles
from services.executor.training.forgotten import Forgotten
from services.executor.training.predicting import PREFIX, Predictor
from services.executor.training.refusals import not_joined, refusal
from services.executor.training.run import NodeRun
from services.executor.training.thread import TrainingThread
from services.executor.training.work import RUN_CHARACTERS, check_run, parse_work
from services.executor.training.worker import Reach, Surroundings, TurnsOf
from services.runtime.logs import EventLog

RUNS_MAX = 16
"""Runs that a node has on its disk at most: the oldest that has ended makes room for a new one."""

FORGOTTEN = ".forgotten"
"""The file that says which runs were let go of."""

_JOIN = training_pb2.TRAINING_KIND_JOIN
_END = training_pb2.TRAINING_KIND_END


class TrainingDesk:
    """The training runs of one node. A run is taken up again from its directory when its aggregator speaks of it.

    Args:
        directory: Where runs are kept.
        identities: Who the node is.
        log: Where to say what happened.
        reach: How other nodes are reached.
        turns: When a run of a slice may compute a step.
        device: Where torch computes.
    """

    def __init__(
        self,
        directory: Path,
        identities: IdentitySource,
        log: EventLog,
        reach: Reach,
        turns: TurnsOf,
        *,
        device: str = "cpu",
    ) -> None:
        self._directory = directory
        self._log = log
        self._thread = TrainingThread()
        forgotten = Forgotten(directory / FORGOTTEN)
        self._around = Surroundings(
            identities.current().name, identities.current, self._thread, device, log, forgotten, reach, turns
        )
        self._predictor = Predictor(self._thread, device, log, turns)
        self._runs: dict[str, NodeRun] = {}
        self._leaving: set[str] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, received: Received, session: Session) -> None:
        """Takes a message; whatever is wrong with it is told to the sender."""
        info = received.info.training
        try:
            if info.run.startswith(PREFIX):
                check_sender(session)
                await self._predictor.take(info, received.data, session)
                return
            if session.peer.role == Role.EXECUTOR and info.WhichOneof("what") in ("contribution", "update"):
                await self._run_of_peer(info).uplink.take(info, received.data, session)
                return
            run = self._addressed(info, received.data, session)
        except MeshError as error:
            self._log.warning("training_refused", peer=session.peer.spiffe, reason=error.reason, detail=error.message)
            answer = refusal(info.run[:RUN_CHARACTERS], info.round, error)
            await session.send(wire_pb2.TransferInfo(training=answer))
            return
        if run is not None:
            await run.put(info, received.data, session)

    async def close(self) -> None:
        """Stops all training: it goes on from checkpoints when it is ordered again. Repeating it changes nothing."""
        self._closed = True
        runs, self._runs = list(self._runs.values()), {}
        for farewell in self._farewells:
            farewell.cancel()
        await asyncio.gather(self._predictor.close(), *(run.close() for run in runs))
        await self._thread.close()

    def _addressed(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> NodeRun | None:
        """The run that a message is for; None where it is for none that is here, and nobody waits for an answer.

        Raises:
            MeshError: The sender may not say that, or it has to be told that the run is not here.
        """
        check_sender(session)
        name = check_run(info.run)
        if self._closed:
            raise TransportError("this node is being stopped; ask it again when it is back", reason="DRAINING")
        kind = info.order.kind if info.HasField("order") else None
        run = self._runs.get(name) or self._taken_up(info, kind, data, session)
        if run is not None and kind == _END and run.aggregator == session.peer.spiffe:
            self._leaving.add(name)  # an order to join another run may come before it is gone
        elif kind == _JOIN:
            self._leaving.discard(name)
        return run

    def _taken_up(
        self, info: training_pb2.TrainingInfo, kind: int | None, data: memoryview, session: Session
    ) -> NodeRun | None:
        name, files = info.run, RunFiles(self._directory / info.run)
        joined = _joined(files, kind)
        if joined is None and kind not in (_JOIN, _END):
            if info.WhichOneof("what") in ("order", "sums"):
                raise not_joined(name)
            return None
        if joined is None and kind == _JOIN:
            self._around.forgotten.check(name)
            self._make_room(name, data, session.peer.spiffe)
        if kind == _END and not files.directory.exists():
            return None
        run = self._runs[name] = NodeRun(name, files, joined, self._around, self._over)
        return run

    def _run_of_peer(self, info: training_pb2.TrainingInfo) -> NodeRun:
        """The run that another node speaks of; none is taken up for it.

        Raises:
            InvalidInputError: It is not here, or not yet.
        """
        run = None if self._closed else self._runs.get(check_run(info.run))
        if run is None:
            raise not_joined(info.run)
        return run

    def _make_room(self, name: str, data: memoryview, aggregator: str) -> None:
        """Forgets the run that has rested longest where there is no room for one more.

        Raises:
            CapacityError: All runs that are here go on.
        """
        kept = {path.name for path in self._directory.glob("*") if path.is_dir()} | set(self._runs)
        if len(kept - self._leaving - {name}) < RUNS_MAX:
            return
        ended = longest_ended(self._directory, aggregator, {*parse_work(data).going_on}, self._leaving)
        if ended is None:
            raise CapacityError(
                f"this node takes part in {RUNS_MAX} runs that go on already; wait for one to end, or cancel one",
                metadata={"runs": len(kept), "limit": RUNS_MAX},
            )
        self._log.info("run_forgotten", run=ended, why="there was no room for another one")
        self._leaving.add(ended)
        if ended not in self._runs:
            files = RunFiles(self._directory / ended)
            self._runs[ended] = NodeRun(ended, files, files.joined(), self._around, self._over)
        self._runs[ended].end()

    def _over(self, run: NodeRun) -> None:
        if self._runs.get(run.name) is run:
            del self._runs[run.name]
        self._leaving.discard(run.name)
        farewell = asyncio.create_task(run.farewell(), name=f"last answers of {run.name}")
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)


def check_sender(session: Session) -> None:
    """Lets aggregators pass.

    Raises:
        PermissionError_: The other end has another role.
    """
    if session.peer.role != Role.AGGREGATOR:
        raise PermissionError_(
            f"{session.peer.spiffe} may not train on this node: only an identity of the role "
            f"{Role.AGGREGATOR.value} may",
            metadata={"role": session.peer.role, "identity": session.peer.spiffe},
        )


def longest_ended(directory: Path, aggregator: str, going_on: set[str], leaving: set[str]) -> str | None:
    """The run that an aggregator needs no more and that was worked on longest ago; None where there is none.

    Args:
        directory: Where runs are kept.
        aggregator: Whose runs may be forgotten, by SPIFFE name.
        going_on: Those of its runs that go on; where none is named, nothing is known.
        leaving: Runs that are being let go of.
    """
    if not going_on:
        return None
    ended = []
    for path in directory.glob("*"):
        with suppress(IntegrityError, OSError):
            joined = RunFiles(path).joined()
            if joined is not None and joined.aggregator == aggregator and path.name not in going_on | leaving:
                ended.append((path.stat().st_mtime_ns, path.name))
    return min(ended)[1] if ended else None


def _joined(files: RunFiles, kind: int | None) -> Joined | None:
    try:
        return files.joined()
    except IntegrityError:
        if kind == _END:
            return None  # what is damaged can still be removed
        raise
