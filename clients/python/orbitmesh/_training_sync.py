"""Training, sync. Made by `python -m orbitmesh._generate_sync`: change `_training.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orbitmesh._loop import LoopThread, end_of, next_of
from orbitmesh._training import WEIGHTS_DEADLINE_S, AsyncTraining
from orbitmesh.training_results import Ledger, SavedWeights, TrainingStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Training:
    """A run of federated training. It goes on in the mesh whether or not anybody looks: a handle may be dropped, and
    had again with `training(name)`.

    Example:
        >>> training = mesh.train("run", task="digits", rounds=20, nodes=["sat-1", "sat-2", "sat-3"])
        >>> for update in training.watch():
        ...     print(update.rounds_done, update.state)
        >>> weights = training.weights()
    """

    def __init__(self, core: AsyncTraining, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def name(self) -> str:
        """What the run is called.

        Example:
            >>> training.name
            'run'
        """
        return self._core.name

    def status(self, *, timeout: float | None = None) -> TrainingStatus:
        """How the run is, with all its rounds.

        Raises:
            InvalidInputError: `NOT_FOUND`, there is no such run any more.

        Example:
            >>> training.status().rounds_done
            12
        """
        return self._loop.run(lambda: self._core.status(timeout=timeout))

    def watch(self, from_round: int = 0) -> Iterator[TrainingStatus]:
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
            >>> for update in training.watch():
            ...     for each in update.rounds:
            ...         print(each.index, each.figures.get("accuracy"), each.up_bytes)
        """
        updates = self._core._watch(from_round)
        try:
            while (update := self._loop.run(lambda: next_of(updates))) is not None:
                yield update
        finally:
            # Where the mesh is closed already, the stream went with it.
            if not self._loop.stopped:
                self._loop.run(lambda: end_of(updates))

    def wait(self, *, timeout: float | None = None) -> TrainingStatus:
        """Waits until the run is done, and returns how it ended, with all its rounds.

        Args:
            timeout: How long to wait, in seconds; None waits as long as the run takes.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it failed: the message says why.
            CancelledError_: it was cancelled.
            DeadlineError: it had not ended in that time; it goes on.
            TransportError: the mesh could not be reached for 120 s.

        Example:
            >>> training.wait().rounds[-1].figures["accuracy"]
            0.94
        """
        return self._loop.run(lambda: self._core.wait(timeout=timeout))

    def cancel(self, *, timeout: float | None = None) -> TrainingStatus:
        """Ends the run before its last round; its weights stay. Repeating it changes nothing.

        Example:
            >>> training.cancel().state
            'cancelled'
        """
        return self._loop.run(lambda: self._core.cancel(timeout=timeout))

    def resume(self, rounds: int | None = None, *, timeout: float | None = None) -> TrainingStatus:
        """Lets a run that was cancelled or has failed go on from its last whole round.

        Args:
            rounds: How many rounds there are to be in all; None leaves it as it was.
            timeout: How long the call may take, in seconds.

        Raises:
            InvalidInputError: it cannot go on; the message says why.

        Example:
            >>> training.resume(rounds=40).state
            'running'
        """
        return self._loop.run(lambda: self._core.resume(rounds, timeout=timeout))

    def delete(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """Removes the run, which has ended: its weights, and what its nodes keep of it. Its name is free again.

        Returns:
            The nodes that could not be told, which keep what they have.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, it goes on: cancel it first.

        Example:
            >>> training.delete()
            ()
        """
        return self._loop.run(lambda: self._core.delete(timeout=timeout))

    def predict(self, inputs: npt.ArrayLike, *, timeout: float | None = None) -> npt.NDArray[np.float32]:
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
            >>> training.predict(pictures).argmax(axis=1)
            array([7, 2, 1])
        """
        return self._loop.run(lambda: self._core.predict(inputs, timeout=timeout))

    def ledger(self, *, timeout: float | None = None) -> Ledger:
        """What the run's promise of privacy has cost so far, round by round.

        Example:
            >>> training.ledger().epsilon
            1.7
        """
        return self._loop.run(lambda: self._core.ledger(timeout=timeout))

    def weights(self, *, timeout: float = WEIGHTS_DEADLINE_S) -> npt.NDArray[np.float32]:
        """The weights after the last whole round: one vector, the model's floating tensors one after another in the
        order of its `state_dict`. Their SHA-256 was compared. Needs numpy.

        Args:
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or they are larger than 8 GiB.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> training.weights().shape
            (4810,)
        """
        return self._loop.run(lambda: self._core.weights(timeout=timeout))

    def save_weights(self, path: str | Path, *, timeout: float = WEIGHTS_DEADLINE_S) -> SavedWeights:
        """Writes the weights after the last whole round to a file that `numpy.load` reads, however large they are. The
        file is there whole, its SHA-256 compared, or not at all.

        Args:
            path: The file; one that is there is replaced.
            timeout: How long getting them may take, in seconds.

        Raises:
            InvalidInputError: there are none yet, or the file cannot be written.
            IntegrityError: what came is not what its digest says.

        Example:
            >>> training.save_weights("run.npy").values
            4810
        """
        return self._loop.run(lambda: self._core.save_weights(path, timeout=timeout))
