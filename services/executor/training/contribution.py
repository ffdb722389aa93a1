"""A contribution on a node's disk: whole and durable before its first byte is sent, and the same bytes on every try.

    file = span* | facts as JSON | SHA-256 of the facts | u32 length of the facts | b"OMCN"

The facts stand last because they hold the digest of the spans. A file gets its name when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from orbitmesh.durable import put_in_place
from orbitmesh.errors import IntegrityError

MAGIC = b"OMCN"
UNPUBLISHED = ".new"
"""What a name ends in until the contribution counts."""
FACTS_BYTES = 64 << 20
"""The longest facts that are believed, in bytes: a size of some digits for each of 2**20 spans."""
_TAIL = struct.Struct(">32sI4s")
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What is known of a contribution beside its spans."""

    round_index: int
    """Its round."""
    weights: str
    """SHA-256 of the weights that it began from, in hexadecimal; empty for a run's first weights."""
    scheme: str
    """How its spans are encoded; empty where they are masked words or weights."""
    examples: int
    """Examples that it was computed from."""
    loss: float | None = None
    """Mean training loss; None where it would give something away."""
    steps: int = 0
    """Optimiser steps that were done."""
    train_s: float = 0.0
    """Seconds of training."""
    figures: dict[str, float] = field(default_factory=dict)
    """What the weights that it began from are worth, where that was asked."""
    sums_context: str = ""
    """What names the round to the masks, in hexadecimal; empty without secure sums."""
    release: str = ""
    """What the node released, as JSON; empty without privacy of records."""
    with_residual: bool = False
    """Whether what its encoding left out is in the run's residual."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each span."""
    sha256: str = ""
    """Of all spans in order, in hexadecimal."""
    summed: list[dict[str, Any]] = field(default_factory=list)
    """Of a sum with contributions of others: the fields of each one's SummedContribution."""

    def tail(self) -> bytes:
        """What stands behind the spans in a file."""
        text = json.dumps(asdict(self)).encode()
        return text + _TAIL.pack(hashlib.sha256(text).digest(), len(text), MAGIC)


def opened(path: Path) -> ContributionFile | None:
    """A contribution, whole and checked; None where there is none. A damaged one is removed: it is made again."""
    try:
        return ContributionFile(path)
    except FileNotFoundError:
        return None
    except IntegrityError:
        path.unlink(missing_ok=True)
        return None


class ContributionWriter:
    """Writes a contribution; nothing is under its name before `publish`. Blocks.

    Args:
        path: Its name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(path.name + UNPUBLISHED)
        self._digest = hashlib.sha256()
        self._sizes: list[int] = []
        self._beside.unlink(missing_ok=True)
        descriptor = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def add(self, span: bytes) -> None:
        """The next span."""
        self._file.write(span)
        self._digest.update(span)
        self._sizes.append(len(span))

    def finish(self, facts: Facts) -> None:
        """The end of it; durable on return, under no name yet."""
        self._file.write(replace(facts, sizes=self._sizes, sha256=self._digest.hexdigest()).tail())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Gives it its name; durable on return."""
        put_in_place(self._beside, self._path)

    def abandon(self) -> None:
        """Removes what was written; does nothing after `publish`."""
        self._file.close()
        self._beside.unlink(missing_ok=True)


class ContributionFile:
    """A contribution that was published, its every byte as it was written. Blocks.

    Args:
        path: Its name.

    Raises:
        FileNotFoundError: There is none.
        IntegrityError: It was damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.facts = self._read_facts(file, size)
            file.seek(0)
            left, digest = sum(self.facts.sizes), hashlib.sha256()
            while left and (data := file.read(min(left, _READ_BYTES))):
                digest.update(data)
                left -= len(data)
        if digest.hexdigest() != self.facts.sha256:
            raise self._damaged("its digest is another")
        self._offsets = [0]
        for span in self.facts.sizes:
            self._offsets.append(self._offsets[-1] + span)

    @property
    def spans(self) -> int:
        """How many spans there are."""
        return len(self.facts.sizes)

    @property
    def size_bytes(self) -> int:
        """The size of all spans."""
        return self._offsets[-1]

    def span(self, index: int) -> bytes:
        """One span.

        Raises:
            IntegrityError: The file has become shorter.
        """
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            data = file.read(self.facts.sizes[index])
        if len(data) != self.facts.sizes[index]:
            raise self._damaged("it ends early")
        return data

    def _read_facts(self, file: BinaryIO, size: int) -> Facts:
        if size < _TAIL.size:
            raise self._damaged("it is too short")
        file.seek(size - _TAIL.size)
        digest, length, magic = _TAIL.unpack(file.read(_TAIL.size))
        if magic != MAGIC or length > min(FACTS_BYTES, size - _TAIL.size):
            raise self._damaged("it does not end as one")
        file.seek(size - _TAIL.size - length)
        text = file.read(length)
        if hashlib.sha256(text).digest() != digest:
            raise self._damaged("its facts are others")
        try:
            facts = Facts(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise self._damaged(f"its facts are none: {error}") from None
        if sum(facts.sizes) != size - _TAIL.size - length:
            raise self._damaged("its spans have not the length that it says")
        return facts

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(f"the contribution {self.path.name} was damaged after it was written: {what}")
