"""Error feedback: what an encoding left out is added to the next round's update, so that nothing is lost, only late.

    corrected = delta + residual            what is encoded
    residual' = corrected - decoded         what the other end will not see      (Karimireddy et al. 2019)

The residual outlives the process, in one file per run. A round may be computed again after a crash, and feedback must
not be applied twice, so the file holds the residual before its round and after it: the round that the file is of begins
from the one before, every later round from the one after. A contribution that never counted (its round was called off)
is given back: then nothing of it was sent, and all of it is residual.

    file = magic | version u8 | state u8 | round u64 | size u64 | layout digest | before f32[size] | after f32[size]
           | SHA-256 of all that

It is replaced whole: written beside itself, flushed to the disk, renamed. Whatever a crash leaves is the old file or
the new one, and a name ending in `.new` that the next round overwrites. It says as much about a node's data as the
node's update does: it is closed to other users, and never leaves the node.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np

from orbitmesh.durable import put_in_place
from orbitmesh.errors import IntegrityError, InvalidInputError
from services.updates.layout import Layout
from services.updates.spans import SPAN_VALUES, Floats, spans

MAGIC = b"OMRS"
VERSION = 1
PRIVATE_MODE = 0o600
"""Permission bits of the file."""
_HEADER = struct.Struct("<4sBBQQ32s")
_DIGEST_BYTES = 32
_VALUE_BYTES = 4
_CHUNK_BYTES = SPAN_VALUES * _VALUE_BYTES
_Piece = Callable[[slice], Floats]


class _State(IntEnum):
    """What became of the contribution of the file's round."""

    SENT = 0
    """It counts, or may yet: the other end has what was decoded."""
    GIVEN_BACK = 1
    """It does not count: what was decoded is part of the residual after it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the header of a file says."""

    round_index: int
    """The round between the two residuals."""
    state: _State
    """What became of its contribution."""


class Residual:
    """The residual of one node in one run.

    Only what is asked for is in memory; of writing, a span.

    Args:
        path: The file; the run's alone. There is none before the first round: the residual is zero.
        layout: The layout of the run's model.

    Raises:
        IntegrityError: The file was damaged (RESIDUAL_DAMAGED).
        InvalidInputError: The file is of another model (LAYOUT_MISMATCH).
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._kept = self._verified() if path.exists() else None

    @property
    def round_index(self) -> int | None:
        """The last round that was committed; None before the first."""
        return self._kept.round_index if self._kept is not None else None

    def carried(self, round_index: int) -> Floats:
        """What is to be added to the delta of a round, float32 of shape (d,); the same when the round is repeated.

        Raises:
            InvalidInputError: A later round was committed already (STALE_ROUND).
        """
        kept = self._not_before(round_index)
        if kept is None:
            return np.zeros(self._layout.size, np.float32)
        offset = self._offset(is_after=round_index > kept.round_index)
        return np.fromfile(self.path, "<f4", self._layout.size, offset=offset).astype(np.float32, copy=False)

    def commit(self, round_index: int, corrected: Floats, decoded: Floats) -> None:
        """Keeps what an encoding left out, durably, before its first byte is sent.

        Committing the same round again replaces what it left, and not what it began from.

        Args:
            round_index: The round.
            corrected: Delta plus `carried(round_index)`, float32 of shape (d,).
            decoded: What the other end will see of it, float32 of shape (d,).

        Raises:
            InvalidInputError: A later round was committed already (STALE_ROUND), or a vector has another shape or what
                is left is not finite.
        """
        kept = self._not_before(round_index)
        self._layout.check(corrected)
        self._layout.check(decoded)
        before = None if kept is None else self._offset(is_after=round_index > kept.round_index)
        self._write(_Kept(round_index, _State.SENT), before, lambda at: corrected[at] - decoded[at])

    def give_back(self, round_index: int, decoded: Floats) -> None:
        """Takes back a contribution that did not count; a second time, it does nothing.

        Args:
            round_index: Its round, the last that was committed.
            decoded: What the other end would have seen of it, float32 of shape (d,).

        Raises:
            InvalidInputError: Another round was committed last (STALE_ROUND), or the vector has another shape.
        """
        kept = self._kept
        if kept is None or kept.round_index != round_index:
            last = "none" if kept is None else f"round {kept.round_index}"
            raise InvalidInputError(
                f"the contribution of round {round_index} cannot be given back: {last} was committed last",
                reason="STALE_ROUND",
            )
        self._layout.check(decoded)
        if kept.state is _State.GIVEN_BACK:
            return
        with self.path.open("rb") as old:

            def returned(at: slice) -> Floats:
                old.seek(self._offset(is_after=True) + _VALUE_BYTES * at.start)
                return np.frombuffer(old.read(_VALUE_BYTES * (at.stop - at.start)), "<f4") + decoded[at]

            self._write(replace(kept, state=_State.GIVEN_BACK), self._offset(is_after=False), returned)

    def _not_before(self, round_index: int) -> _Kept | None:
        if round_index < 0 or (self._kept is not None and round_index < self._kept.round_index):
            raise InvalidInputError(
                f"round {round_index} was asked of a residual that is at round {self.round_index}; rounds only go on",
                reason="STALE_ROUND",
            )
        return self._kept

    def _offset(self, *, is_after: bool) -> int:
        return _HEADER.size + _VALUE_BYTES * self._layout.size * is_after

    def _write(self, kept: _Kept, before: int | None, after: _Piece) -> None:
        """Replaces the file. `before`: where the old file has the residual before the round; None where it is zero."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staging = self.path.with_name(f"{self.path.name}.new")
        staging.unlink(missing_ok=True)
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                self._write_content(file, kept, before, after)
            put_in_place(staging, self.path)
        finally:
            # Once it has its name the file is the new one, also where flushing the directory failed.
            if not staging.exists():
                self._kept = kept
            staging.unlink(missing_ok=True)

    def _write_content(self, file: BinaryIO, kept: _Kept, before: int | None, after: _Piece) -> None:
        digest = hashlib.sha256()

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        size = self._layout.size
        put(_HEADER.pack(MAGIC, VERSION, kept.state, kept.round_index, size, self._layout.digest))
        if before is None:
            for _, where in spans(size):
                put(bytes(_VALUE_BYTES * (where.stop - where.start)))
        else:
            with self.path.open("rb") as source:
                source.seek(before)
                for _, where in spans(size):
                    put(source.read(_VALUE_BYTES * (where.stop - where.start)))
        for _, where in spans(size):
            with np.errstate(over="ignore"):
                piece = after(where)
            if not bool(np.isfinite(piece).all()):
                raise InvalidInputError(
                    "what an encoding left out is too large for float32: the residual is kept as it was",
                    reason="NOT_FINITE",
                )
            put(piece.astype("<f4", copy=False).tobytes())
        file.write(digest.digest())

    def _verified(self) -> _Kept:
        """The header of a file whose every byte is as it was written."""
        size = self._layout.size
        with self.path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or header[: len(MAGIC) + 1] != MAGIC + bytes((VERSION,)):
                raise self._damaged("it does not begin as one")
            _, _, state, round_index, stated, layout_digest = _HEADER.unpack(header)
            digest = hashlib.sha256(header)
            left = os.fstat(file.fileno()).st_size - _HEADER.size - _DIGEST_BYTES
            if left != 2 * _VALUE_BYTES * stated:
                raise self._damaged(f"it has not the length that {stated} values have")
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise self._damaged("it ends early")
                digest.update(chunk)
                left -= len(chunk)
            if file.read(_DIGEST_BYTES) != digest.digest():
                raise self._damaged("its digest is another")
        if layout_digest != self._layout.digest or stated != size:
            raise InvalidInputError(
                f"the residual {self.path.name} is of another model, of {stated} values where this one has {size}; "
                "remove it to begin from zero",
                reason="LAYOUT_MISMATCH",
            )
        return _Kept(round_index, _State(state))

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the residual {self.path.name} was damaged after it was written: {what}; remove it to begin from zero, "
            "which loses what was not sent yet",
            reason="RESIDUAL_DAMAGED",
        )
