"""What a node keeps of a run and nobody else may learn: its state in secure sums, the seed of its noise, what it has
released.

It is one sealed file that is replaced whole before anything that follows from it leaves the node. A node that has lost
it takes no further part: a second set of masks, or fresh noise on the same update, would reveal what the first hid.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbitmesh.durable import put_in_place
from orbitmesh.errors import InvalidInputError, SealError
from orbitmesh.trust import Identity
from orbitmesh.v1 import training_pb2
from services.executor.training.terms import budget, is_private, is_secure
from services.journal.sealed_file import SealedReader, SealedWriter
from services.privacy.events import RoundEvent
from services.privacy.keystream import SEED_BYTES
from services.privacy.ledger import Ledger
from services.securesum import SumNode

FORMAT = 1
PURPOSE = b"training-secrets/"
_SEED = b"orbitmesh/v1/training-noise/"


class RunSecrets:
    """The secrets of one run. Safe to use from several threads.

    Args:
        path: Their file.
        identity: Who we are now.
        run: The run.
        sums: The node in its secure sums; None where it has none.
        seed: What its noise follows from, 32 bytes.
        ledger: What it has released; None where nothing is promised.
        released: From a round to what was released in it, in the order of that.
        promised: From a round to the survivors that its noise was sized for.
    """

    def __init__(
        self,
        path: Path,
        identity: Callable[[], Identity],
        run: str,
        sums: SumNode | None,
        seed: bytes,
        ledger: Ledger | None,
        released: dict[int, list[str]] | None = None,
        promised: dict[int, int] | None = None,
    ) -> None:
        self.sums = sums
        self.ledger = ledger
        self._path = path
        self._identity = identity
        self._run = run
        self._seed = seed
        self._released = released or {}
        self._promised = promised or {}
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls, path: Path, identity: Callable[[], Identity], run: str, spec: training_pb2.TrainingSpec
    ) -> RunSecrets:
        """New secrets for a run; durable on return. There must never have been others."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sums = SumNode.create(identity().name, run, secrets.token_bytes) if is_secure(spec) else None
        ledger = Ledger(budget(spec)) if is_private(spec) else None
        made = cls(path, identity, run, sums, secrets.token_bytes(SEED_BYTES), ledger)
        with made.changing():
            return made

    @classmethod
    def load(cls, path: Path, identity: Callable[[], Identity], run: str) -> RunSecrets:
        """The secrets as they were stored last.

        Raises:
            InvalidInputError: They are lost, or were changed: the node can take no further part.
        """
        try:
            (record,) = SealedReader(path, identity(), PURPOSE + run.encode())
            state = json.loads(record)
            if state["format"] != FORMAT:
                raise ValueError("another version wrote them")
            return cls(
                path,
                identity,
                run,
                None if state["sums"] is None else SumNode.from_state(state["sums"]),
                b64decode(state["seed"]),
                None if state["ledger"] is None else Ledger.from_json(state["ledger"]),
                {int(index): list(each) for index, each in state["released"].items()},
                {int(index): int(each) for index, each in state["promised"].items()},
            )
        except (FileNotFoundError, SealError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"this node has lost its secrets of the run {run} ({type(error).__name__}), and must not make others "
                "in their place, which would reveal what the first ones hid: leave it out, or set the run up anew "
                "under another name",
                reason="FAILED_PRECONDITION",
            ) from None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else uses the secrets meanwhile; what was changed is durable afterwards."""
        with self._lock:
            yield
            self._store()

    def round_seed(self, purpose: str, round_index: int, binding: bytes = b"") -> bytes:
        """A seed of one round alone, 32 bytes: the same again for the same round, purpose and binding."""
        message = _SEED + purpose.encode() + b"\x00" + round_index.to_bytes(8, "big") + binding
        return hmac.new(self._seed, message, hashlib.sha256).digest()

    def check_release(self, make: Callable[[int], RoundEvent], round_index: int, binding: str) -> RoundEvent:
        """The event of a release that is about to be made.

        Args:
            make: Gives it for the number of releases of the round before it.
            round_index: The round.
            binding: What tells this release from another one of the round.

        Raises:
            InvalidInputError: The promise would be broken by it (`PRIVACY_SPENT`).
        """
        with self._lock:
            before = self._released.get(round_index, [])
            event = make(before.index(binding) if binding in before else len(before))
            if self.ledger is None or binding in before:
                return event
            if self.ledger.would_exceed(event):
                budget = self.ledger.budget
                raise InvalidInputError(
                    f"the promise of epsilon {budget.epsilon:g} would be broken by round {round_index}: "
                    f"{self.ledger.epsilon():.4g} are spent, and it takes {self.ledger.epsilon_with(event):.4g} in "
                    "all; end the run, or ask for more noise from its first round on",
                    reason="PRIVACY_SPENT",
                    metadata={"epsilon": budget.epsilon, "spent": self.ledger.epsilon()},
                )
            return event

    def release(self, make: Callable[[int], RoundEvent], round_index: int, binding: str) -> RoundEvent:
        """Counts a release; durable on return. Arguments and errors are those of `check_release`."""
        with self.changing():
            event = self.check_release(make, round_index, binding)
            of_round = self._released.setdefault(round_index, [])
            if binding not in of_round:
                of_round.append(binding)
                if self.ledger is not None:
                    self.ledger.record(event)
            return event

    def promise(self, round_index: int, survivors: int) -> None:
        """Notes for how many survivors the noise of a round is sized; within `changing`."""
        self._promised[round_index] = survivors

    def promised(self, round_index: int) -> int:
        """For how many survivors the noise of a round is sized; 0 where it has none of this node."""
        return self._promised.get(round_index, 0)

    def retire(self, before_round: int) -> None:
        """Forgets what only rounds before that one needed; within `changing`."""
        if self.sums is not None:
            self.sums.retire(before_round)
        for index in [index for index in self._promised if index < before_round]:
            del self._promised[index]

    def _store(self) -> None:
        state: dict[str, Any] = {
            "format": FORMAT,
            "sums": None if self.sums is None else self.sums.to_state(),
            "seed": b64encode(self._seed).decode(),
            "ledger": None if self.ledger is None else self.ledger.to_json(),
            "released": {str(index): each for index, each in self._released.items()},
            "promised": {str(index): each for index, each in self._promised.items()},
        }
        beside = self._path.with_name(self._path.name + ".new")
        beside.unlink(missing_ok=True)
        with SealedWriter(beside, self._identity(), PURPOSE + self._run.encode()) as file:
            file.append(json.dumps(state).encode(), durable=True)
        put_in_place(beside, self._path)
