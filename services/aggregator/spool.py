"""Contributions on their way in: one sealed file each, which a crash cannot tear and another machine cannot read.

A span is on its way to the disk before the next one is asked for, so a transfer that was cut goes on where it stopped,
also after a restart. A contribution counts once its end is durable; that is when it may be acknowledged. Files live
below `DIRECTORY/RUN/ROUND/NODE.spans`; those of a round are removed when its sum is in the model. Where a node sends a
sum with the contributions of others, who they are is in the file's name: what came of another sum is not gone on with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from orbitmesh.errors import InvalidInputError, SealError
from orbitmesh.trust import Identity
from services.aggregator.rounds import Stored
from services.journal.sealed_file import SealedReader, SealedWriter

PURPOSE = b"contribution"
SPANS_MAX = 1 << 20
"""How many spans one contribution may have: 2**36 values."""
SUM_MARK, DIGITS = "+", 32
"""In the name of a sum's file: what no name of a node has, and digits of the digest of the nodes in it."""
_SPAN = struct.Struct(">cI")
_SPAN_MARK, _END_MARK = b"S", b"E"


class Incoming:
    """One contribution that is being written down. Blocks; one user at a time.

    Args:
        path: Its file.
        identity: Whose key for files protects it.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.spans = 0
        self.size_bytes = 0
        self.stored: Stored | None = None
        reader = SealedReader(path, identity, PURPOSE + path.stem.encode()) if path.exists() else None
        if reader is not None:
            for kind, index, data in _records(reader):
                if kind == _END_MARK:
                    self.stored = Stored(**json.loads(data))
                else:
                    self._count(index, data)
        self._file = SealedWriter(path, identity, PURPOSE + path.stem.encode(), after=reader)

    def add(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Takes the next span; one that is here already is left out.

        Raises:
            InvalidInputError: Where a span before it is missing, or there are too many, or it has ended.
        """
        if index < self.spans:
            return
        if self.stored is not None or index != self.spans or index >= SPANS_MAX:
            raise InvalidInputError(
                f"span {index} of a contribution is not the one that comes next: {self.spans} spans are here"
                + (" and it has ended" if self.stored is not None else ""),
                metadata={"spans": self.spans},
            )
        self._file.append(_SPAN.pack(_SPAN_MARK, index) + bytes(data))
        self._count(index, data)

    def finish(self, spans: int, digest: str, examples: int, others: Mapping[str, int] | None = None) -> Stored:
        """Ends it; durable on return. Once ended it stays as it was.

        Args:
            spans: How many the sender says that there are.
            digest: SHA-256 of all of them in order, hex, by the sender.
            examples: What it was computed from.
            others: Further nodes in it, with their examples; those that it was opened for.

        Raises:
            InvalidInputError: Spans are missing, or what is here is something else than was sent.
        """
        found = Stored(self._digest.hexdigest(), examples, self.size_bytes, others=dict(others or {}))
        if self.stored is not None:
            return self.stored
        if (self.spans, found.digest) != (spans, digest):
            raise InvalidInputError(
                f"a contribution of {spans} spans with digest {digest[:12]} was announced; here are {self.spans} with "
                f"{found.digest[:12]}: it is to be sent anew",
                reason="DIGEST_MISMATCH",
            )
        self._file.append(_SPAN.pack(_END_MARK, self.spans) + json.dumps(asdict(found)).encode(), durable=True)
        self.stored = found
        return found

    def close(self) -> None:
        """Closes the file; what is in it stays."""
        self._file.close()

    def _count(self, index: int, data: bytes | bytearray | memoryview) -> None:
        if index != self.spans:
            raise SealError(f"{self._path.name} has span {index} where {self.spans} should be; remove the file")
        self._digest.update(data)
        self.spans += 1
        self.size_bytes += len(data)


class Spool:
    """The contributions of one run.

    Args:
        directory: Where they lie.
        identity: Who we are now.
    """

    def __init__(self, directory: Path, identity: Callable[[], Identity]) -> None:
        self._directory = directory
        self._identity = identity

    def open(self, round_index: int, node: str, others: Collection[str] = ()) -> Incoming:
        """A contribution to write down, as far as it is here. Blocks.

        Args:
            round_index: The round.
            node: Who sends it.
            others: The further nodes whose contributions are in it.

        Raises:
            SealError: Its file was changed, or is of another key: `drop` it and ask for all of it.
        """
        return Incoming(self._path(round_index, node, others), self._identity())

    def stored(self, round_index: int, node: str) -> Stored | None:
        """What is known of a contribution that is whole and durable; None where it is not. Blocks.

        Raises:
            SealError: Its file was changed, or is of another key.
        """
        for path in self._paths(round_index, node):
            for kind, _, data in _records(SealedReader(path, self._identity(), PURPOSE + path.stem.encode())):
                if kind == _END_MARK:
                    return Stored(**json.loads(data))
        return None

    def drop(self, round_index: int, node: str) -> None:
        """Removes what is here of what a node sends. Blocks."""
        for path in self._paths(round_index, node):
            path.unlink(missing_ok=True)

    def spans(self, round_index: int, node: str, others: Collection[str] = ()) -> Iterator[bytes]:
        """The spans of a contribution in order, one at a time in memory. Blocks.

        Args:
            round_index: The round.
            node: Who sent it.
            others: The further nodes in it.

        Raises:
            SealError: The file was changed.
        """
        path = self._path(round_index, node, others)
        for kind, _, data in _records(SealedReader(path, self._identity(), PURPOSE + path.stem.encode())):
            if kind == _SPAN_MARK:
                yield data

    def clear(self, before_round: int) -> None:
        """Removes the contributions of earlier rounds. Blocks."""
        for path in self._directory.glob("*"):
            if path.name.isdecimal() and int(path.name) < before_round:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, round_index: int, node: str, others: Collection[str]) -> Path:
        among = hashlib.sha256(" ".join(sorted(others)).encode()).hexdigest()[:DIGITS]
        return self._directory / str(round_index) / (f"{node}{SUM_MARK}{among}.spans" if others else f"{node}.spans")

    def _paths(self, round_index: int, node: str) -> list[Path]:
        alone = self._path(round_index, node, ())
        return [path for path in (alone, *sorted(alone.parent.glob(f"{node}{SUM_MARK}*.spans"))) if path.exists()]


def _records(reader: SealedReader) -> Iterator[tuple[bytes, int, bytes]]:
    for record in reader:
        kind, index = _SPAN.unpack_from(record)
        yield kind, index, record[_SPAN.size :]
