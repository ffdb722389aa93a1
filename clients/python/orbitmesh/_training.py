"""The handle on a run of federated training: how it is, what it has learnt, and how it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orbitmesh import _predicting, _training_proto, _weights
from orbitmesh._connection import Connection
from orbitmesh._requests import checked_timeout, whole
from orbitmesh._streams import told_again
from orbitmesh.errors import CancelledError_, DeadlineError, InvalidInputError
from orbitmesh.rpc import keep_status
from orbitmesh.training_results import Ledger, SavedWeights, TrainingRound, TrainingStatus
from orbitmesh.v1 import aggregator_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PATIENCE_S = 120.0
"""How long a cut watch is asked for again before its loss is an error, in seconds; the run itself goes on meanwhile."""
WEIGHTS_DEADLINE_S = 3600.0
"""How long getting a run's weights may take where the caller names no time, in seconds."""

ROUNDS_REMEMBERED = 64
"""A round that lies further back than so many does not change any more."""

T = TypeVar("T")


class AsyncTraining:
    """A run of federated training. It goes on in the mesh whether or not anybody looks: a handle may be dropped, and
    had again with `training(name)`.

    Example:
        >>> training = await mesh.train("run", task="digits", rounds=20, nodes=["sat-1", "sat-2", "sat-3"])
        >>> async for update in training.watch():
        ...     print(update.rounds_done, update.state)
        >>> weights = await training.weights()
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    @property
    def name(self) -> str:
        """What the run is called.

        Example:
            >>> training.name
            'run'
        """
        return self._name

    async def status(self, *, timeout: float | None = None) -> TrainingStatus:
        """How the run is, with all its rounds.

        Raises:
            InvalidInputError: `NOT_FOUND`, there is no such run any more.

        Example:
            >>> (await training.status()).rounds_done
            12
        """
        stubs = await self._connection.ready()
        whole_run = aggregator_pb2.Run(more_rounds=True)
        while whole_run.more_rounds:
            # A message takes so many rounds: the rest is asked for, and the last page says how the run is.
            first = whole_run.rounds[-1].index + 1 if whole_run.rounds else 0
            request = aggregator_pb2.GetRunRequest(name=self._name, from_round=first)
            page = (await self._connection.call(stubs.aggregator.GetRun, request, timeout)).run
            rounds = [*whole_run.rounds, *page.rounds]
            whole_run.CopyFrom(page)
            del whole_run.rounds[:]
            whole_run.rounds.extend(rounds)
        return _training_proto.status(whole_run)

    def watch(self, from_round: int = 0) -> AsyncIterator[TrainingStatus]:
        """How the run is now, and again whenever that changes, until it has ended.

        `rounds` of an update are those that are new or have changed since the one before. A gateway or an aggregator
        that is started anew is asked again; only when neither has answered for 120 s the loop ends with an error.
        Leaving the loop leaves the run as it is.

        Args:
            from_round: Rounds with a lower index are not told.

        Raises:
            InvalidInputError: there is no such run any more.
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> async for update in training.watch():
            ...     for each in update.rounds:
            ...         print(each.index, each.figures.get("accuracy"), each.up_bytes)
        """
        return self._watch(from_round)

    async def wait(self, *, timeout: float | None = None) -> TrainingStatus:
        """Waits until the run is done, and returns how it ended, with all its rounds.

        Args:
            timeout: How long to wait, in seconds; None waits as long as the run takes.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it failed: the message says why.
            CancelledError_: it was cancelled.
            DeadlineError: it had not ended in that time; it goes on.
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> (await training.wait()).rounds[-1].figures["accuracy"]
            0.94
        """
        seconds = None if timeout is None else checked_timeout(timeout)
        try:
            async with asyncio.timeout(seconds) as bound:
                return await self._until_ended()
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineError(f"the run {self._name!r} did not end within {seconds:g} s; it goes on") from None

    async def cancel(self, *, timeout: float | None = None) -> TrainingStatus:
        """Ends the run before its last round; its weights stay. Repeating it changes nothing.

        Example:
            >>> (await training.cancel()).state
            'cancelled'
        """
        stubs = await self._connection.ready()
        request = aggregator_pb2.CancelRunRequest(name=self._name)
        return _training_proto.status((await self._connection.call(stubs.aggregator.CancelRun, request, timeout)).run)

    async def resume(self, rounds: int | None = None, *, timeout: float | None = None) -> TrainingStatus:
        """Lets a run that was cancelled or has failed go on from its last whole round.

        Args:
            rounds: How many rounds there are to be in all; None leaves it as it was.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: it cannot go on; the message says why.

        Example:
            >>> (await training.resume(rounds=40)).state
            'running'
        """
        total = 0 if rounds is None else whole(rounds, "rounds", 1, _training_proto.ROUNDS_MAX)
        stubs = await self._connection.ready()
        request = aggregator_pb2.ResumeRunRequest(name=self._name, rounds=total)
        return _training_proto.status((await self._connection.call(stubs.aggregator.ResumeRun, request, timeout)).run)

    async def delete(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """Removes the run, which has ended: its weights, and what its nodes keep of it. Its name is free again.

        Returns:
            The nodes that could not be told, which keep what they have.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it goes on: cancel it first.

        Example:
            >>> await training.delete()
            ()
        """
        stubs = await self._connection.ready()
        request = aggregator_pb2.DeleteRunRequest(name=self._name)
        return tuple((await self._connection.call(stubs.aggregator.DeleteRun, request, timeout, once=True)).not_told)

    async def predict(self, inputs: npt.ArrayLike, *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """What the run's model says of inputs, computed by a node with the weights of the moment. Needs numpy.

        Args:
            inputs: As the task takes them, an example in each row: for `mnist5k` pictures of (n, 28, 28), 0 to 255.
            timeout: How long it may take, in seconds.

        Returns:
            Float32, a row for each example: for a classification the probability of each class.

        Raises:
            InvalidInputError: the task cannot take such inputs, or says nothing of single ones.
            NodeLostError: no node could be asked.

        Example:
            >>> (await training.predict(pictures)).argmax(axis=1)
            array([7, 2, 1])
        """
        stubs = await self._connection.ready()
        request = aggregator_pb2.PredictRequest(name=self._name, inputs=_predicting.inputs(inputs))
        return _predicting.outputs(await self._connection.call(stubs.aggregator.Predict, request, timeout))

    async def ledger(self, *, timeout: float | None = None) -> Ledger:
        """What the run's promise of privacy has cost so far, round by round.

        Example:
            >>> (await training.ledger()).epsilon
            1.7
        """
        stubs = await self._connection.ready()
        request = aggregator_pb2.GetLedgerRequest(name=self._name)
        return _training_proto.ledger(await self._connection.call(stubs.aggregator.GetLedger, request, timeout))

    async def weights(self, *, timeout: float = WEIGHTS_DEADLINE_S) -> npt.NDArray[np.float32]:
        """The weights after the last whole round: one vector, the model's floating tensors one after another in the
        order of its `state_dict`. Their SHA-256 was compared. Needs numpy.

        Args:
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or they are larger than 8 GiB.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> (await training.weights()).shape
            (4810,)
        """
        return await self._fetched(timeout, _weights.in_memory)

    async def save_weights(self, path: str | Path, *, timeout: float = WEIGHTS_DEADLINE_S) -> SavedWeights:
        """Writes the weights after the last whole round to a file that `numpy.load` reads, however large they are. The
        file is there whole, its SHA-256 compared, or not at all.

        Args:
            path: The file; one that is there is replaced.
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or the file cannot be written.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> (await training.save_weights("run.npy")).values
            4810
        """

        async def save(open_stream: _weights.Open, name: str, address: str | None) -> SavedWeights:
            return await _weights.to_file(open_stream, name, address, Path(path))

        return await self._fetched(timeout, save)

    async def _fetched(self, timeout: float, take: Callable[[_weights.Open, str, str | None], Awaitable[T]]) -> T:
        seconds = checked_timeout(timeout)
        deadline_s = asyncio.get_running_loop().time() + seconds

        async def open_stream() -> Any:
            stubs = await self._connection.ready()
            left_s = max(deadline_s - asyncio.get_running_loop().time(), 0.001)
            return stubs.aggregator.GetWeights(aggregator_pb2.GetWeightsRequest(name=self._name), timeout=left_s)

        stubs = await self._connection.ready()
        try:
            async with asyncio.timeout(seconds) as bound:
                return await take(open_stream, self._name, stubs.address)
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineError(f"the weights of {self._name!r} did not come within {seconds:g} s") from None

    async def _until_ended(self) -> TrainingStatus:
        async for update in self._watch(_training_proto.UINT32_MAX):
            if update.state == "cancelled":
                raise CancelledError_(f"the run {self._name!r} was cancelled after {update.rounds_done} rounds")
            if update.state == "failed":
                why = update.why or "no reason was given"
                raise InvalidInputError(
                    f"the run {self._name!r} failed after {update.rounds_done} rounds: {why}; mend that, then `resume`",
                    reason="FAILED_PRECONDITION",
                    metadata={"run": self._name, "rounds_done": update.rounds_done},
                )
        return await self.status()

    async def _watch(self, from_round: int) -> AsyncGenerator[TrainingStatus, None]:
        told = _Told(whole(from_round, "from_round", 0, _training_proto.UINT32_MAX))

        async def open_stream() -> tuple[Any, str]:
            stubs = await self._connection.ready()
            request = aggregator_pb2.WatchRunRequest(name=self._name, from_round=told.ask_from)
            return keep_status(stubs.aggregator.WatchRun(request)), stubs.address

        ended = f"the mesh stopped telling of {self._name!r} before it had ended"
        async with contextlib.aclosing(told_again(open_stream, PATIENCE_S, ended)) as messages:
            async for message in messages:
                update = told.update(message.run)
                yield update
                if update.ended:
                    return


class _Told:
    """What a watcher knows already, so that a stream that was asked for again leaves nothing out and repeats nothing.

    A round that is done may still change: what its weights are worth is measured later.
    """

    def __init__(self, from_round: int) -> None:
        self._from_round = from_round
        self._rounds: dict[int, TrainingRound] = {}

    @property
    def ask_from(self) -> int:
        """The first round that is to be told where the stream begins anew."""
        return max(self._from_round, max(self._rounds, default=0) - ROUNDS_REMEMBERED + 1)

    def update(self, message: aggregator_pb2.Run) -> TrainingStatus:
        """The message as a value, without the rounds that were told as they are."""
        status = _training_proto.status(message)
        fresh = tuple(
            each for each in status.rounds if each.index >= self._from_round and self._rounds.get(each.index) != each
        )
        self._rounds.update((each.index, each) for each in fresh)
        for index in [index for index in self._rounds if index < self.ask_from]:
            del self._rounds[index]
        return dataclasses.replace(status, rounds=fresh)
