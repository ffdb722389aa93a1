"""What a node keeps of a run: a directory that only its user can look into.

STATE/training/RUN/
    joined                      the order with which the node took part, and what it found then
    SHA256.part SHA256.weights  the weights of the last order
    initialise-R.contribution   the weights that the run begins with
    train-R.contribution        the contribution of a round, until the aggregator has it
    train-R.told                its last span has left or is about to: it may count
    train-R.decoded             what a masked contribution stands for
    train-R.from-NODE           the masked contribution of a node of the group, whole; NODE.part while it comes
    train-R.sum                 this node's contribution and theirs, added up
    secrets                     sealed: masks, noise, what was released
    residual                    what encodings left out
    train-R.checkpoint          where the training of a round is
    train-R.optimiser           how it ended, for momenta that go on
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from orbitmesh.durable import write_durably
from orbitmesh.errors import IntegrityError
from orbitmesh.v1 import training_pb2
from services.executor.training.contribution import UNPUBLISHED, ContributionFile, opened
from services.executor.training.weights import WeightsFile

FORMAT = 1
INITIALISE = "initialise"
TRAIN = "train"


@dataclass(frozen=True)
class Joined:
    """How a node takes part."""

    aggregator: str
    """Who may order: the SPIFFE name."""
    work: bytes
    """The order, a TrainingWork."""
    examples: int
    """Examples of the node."""
    values: int
    """Values of the model."""
    layout_sha256: str
    """Names and shapes of its tensors, in hexadecimal."""
    initial_sha256: str
    """The weights that the model begins with, in hexadecimal."""

    @property
    def spec(self) -> training_pb2.TrainingSpec:
        """The run as it was joined."""
        return training_pb2.TrainingWork.FromString(self.work).spec


class RunFiles:
    """The files of one run. Blocks.

    Args:
        directory: The run's own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.residual = directory / "residual"
        self.secrets = directory / "secrets"

    def make(self) -> None:
        """Makes the directory."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def keep_joined(self, joined: Joined) -> None:
        """Writes down that the node takes part; durable on return."""
        self.make()
        text = asdict(joined) | {"format": FORMAT, "work": base64.b64encode(joined.work).decode()}
        write_durably(self.directory / "joined", json.dumps(text).encode())

    def joined(self) -> Joined | None:
        """How the node takes part; None where it does not.

        Raises:
            IntegrityError: What was written down does not make sense.
        """
        path = self.directory / "joined"
        if not path.exists():
            return None
        try:
            text = json.loads(path.read_bytes())
            if text.pop("format") != FORMAT:
                raise ValueError("another version wrote it")
            joined = Joined(**text | {"work": base64.b64decode(text["work"])})
            training_pb2.TrainingWork.FromString(joined.work)
        except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
            raise IntegrityError(
                f"what this node wrote down about the run {self.directory.name} is damaged ({error}): end the run "
                "here and join it again"
            ) from None
        return joined

    def weights(self, values: int, sha256: bytes) -> WeightsFile:
        """The weights of an order."""
        return WeightsFile(self.directory, values, sha256)

    def contribution_path(self, kind: str, round_index: int) -> Path:
        """Where a contribution is."""
        return self.directory / f"{kind}-{round_index}.contribution"

    def contribution(self, kind: str, round_index: int) -> ContributionFile | None:
        """A contribution, whole and checked; None where there is none. A damaged one is removed: it is made again."""
        return opened(self.contribution_path(kind, round_index))

    def adopt_unpublished(self, round_index: int) -> None:
        """Gives contributions of other rounds that a crash kept from their names these names, if they are whole.

        What they left out may be in the residual already, so they have to be given back as if nothing was sent of them.
        """
        for path in self.directory.glob(f"{TRAIN}-*.contribution{UNPUBLISHED}"):
            named = path.with_name(path.name.removesuffix(UNPUBLISHED))
            if named == self.contribution_path(TRAIN, round_index) or named.exists():
                continue
            try:
                ContributionFile(path)
            except IntegrityError:
                path.unlink()
                continue
            path.replace(named)

    def rounds_contributed(self) -> list[int]:
        """The rounds whose contributions are here, in order."""
        return self._rounds("contribution")

    def decoded(self, round_index: int) -> Path:
        """What a masked contribution stands for, float32."""
        return self.directory / f"{TRAIN}-{round_index}.decoded"

    def tell(self, round_index: int) -> None:
        """The contribution of a round may count from now on; durable on return."""
        write_durably(self._told(round_index), b"")

    def is_told(self, round_index: int) -> bool:
        """Whether the contribution of a round may count."""
        return self._told(round_index).exists()

    def drop_contribution(self, kind: str, round_index: int) -> None:
        """Removes a contribution."""
        self.contribution_path(kind, round_index).unlink(missing_ok=True)
        if kind == TRAIN:
            self._told(round_index).unlink(missing_ok=True)
            self.decoded(round_index).unlink(missing_ok=True)
            self._drop_collected(round_index)

    def collected(self, round_index: int, node: str) -> Path:
        """The contribution of another node of the group."""
        return self.directory / f"{TRAIN}-{round_index}.from-{node}"

    def summed(self, round_index: int) -> Path:
        """This node's contribution with those of others, added up."""
        return self.directory / f"{TRAIN}-{round_index}.sum"

    def _drop_collected(self, round_index: int | str) -> None:
        for pattern in ("from-*", "sum", f"sum{UNPUBLISHED}"):
            for path in self.directory.glob(f"{TRAIN}-{round_index}.{pattern}"):
                path.unlink(missing_ok=True)

    def drop_initial(self) -> None:
        """Removes the weights that the run begins with."""
        for path in self.directory.glob(f"{INITIALISE}-*.contribution"):
            path.unlink(missing_ok=True)

    def checkpoint(self, round_index: int) -> Path:
        """Where the training of a round is."""
        return self.directory / f"{TRAIN}-{round_index}.checkpoint"

    def optimiser(self, round_index: int) -> Path:
        """How the training of a round ended."""
        return self.directory / f"{TRAIN}-{round_index}.optimiser"

    def optimiser_before(self, round_index: int) -> Path | None:
        """How the last training before a round ended."""
        before = [each for each in self._rounds("optimiser") if each < round_index]
        return self.optimiser(before[-1]) if before else None

    def go_on_from_optimiser(self, round_index: int) -> None:
        """Has a training that had ended, and whose contribution is not here, go on from its end."""
        if self.optimiser(round_index).exists():
            self.optimiser(round_index).replace(self.checkpoint(round_index))

    def begin_round(self, round_index: int) -> None:
        """Removes what only the rounds before the last one needed."""
        for each in self._rounds("checkpoint"):
            if each != round_index:
                self.checkpoint(each).unlink(missing_ok=True)
        for each in self._rounds("optimiser")[:-2]:
            self.optimiser(each).unlink(missing_ok=True)
        for path in self.directory.glob(f"{TRAIN}-*.from-*"):
            other = path.name.removeprefix(f"{TRAIN}-").partition(".")[0]
            if other != str(round_index):
                self._drop_collected(other)

    def _told(self, round_index: int) -> Path:
        return self.directory / f"{TRAIN}-{round_index}.told"

    def _rounds(self, kind: str) -> list[int]:
        names = (path.name.removesuffix(f".{kind}") for path in self.directory.glob(f"{TRAIN}-*.{kind}"))
        numbers = (name.removeprefix(f"{TRAIN}-") for name in names)
        return sorted(int(number) for number in numbers if number.isdecimal())
