"""The journal of one generation in one stage: every row that it made for the next stage, sealed, in order.

A stage that takes over is fed from it. It always ends where the stage's cache ends; it begins at position 0 unless its
node ran out of room for journals, in which case it was dropped and begins where that happened.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orbitmesh.errors import InternalError, InvalidInputError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
ENTRY_OVERHEAD_BYTES = 160
"""What an entry takes beside its rows: tag, position, and Python's own bookkeeping."""


class JournalRoom:
    """The bytes that all journals of one node may take together.

    Args:
        limit_bytes: The bound.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Takes room; False where there is not enough."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """Gives room back."""
        self.used_bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    position: int
    rows: int
    sealed: bytes
    number: int


class RowJournal:
    """Rows of one width, sealed with a key that never leaves this object.

    Sealing keeps hidden states, from which a prompt can be told, out of swap files and core dumps in the clear. A
    nonce is the entry's number in 12 bytes: a number is never used twice, also after a roll-back.

    Args:
        row_bytes: Bytes of one row.
        room: What the node has for journals.
        start: The position of the first row to come.
    """

    def __init__(self, row_bytes: int, room: JournalRoom, start: int = 0) -> None:
        if row_bytes < 1:
            raise InvalidInputError(f"a row has at least one byte, not {row_bytes}")
        self.row_bytes = row_bytes
        self.start = self.stop = start
        self._room = room
        self._held_bytes = 0
        self._entries: list[_Entry] = []
        self._positions: list[int] = []
        self._number = 0
        self._cipher = AESGCM(os.urandom(KEY_BYTES))

    @property
    def held_bytes(self) -> int:
        """What the journal takes."""
        return self._held_bytes

    def append(self, position: int, data: bytes | memoryview) -> None:
        """Takes rows in that follow the last one.

        Where the node has no room left, everything so far is dropped and the journal begins behind these rows: a
        stage that takes over is then fed by computing them again.

        Raises:
            InternalError: They do not follow, or are no whole rows.
        """
        rows, rest = divmod(len(data), self.row_bytes)
        if position != self.stop or rest or rows == 0:
            raise InternalError(f"{len(data)} bytes for position {position} do not follow a journal up to {self.stop}")
        self.stop += rows
        size = len(data) + ENTRY_OVERHEAD_BYTES
        if not self._room.take(size):
            self._drop()
            return
        number = self._number
        self._number += 1
        sealed = self._cipher.encrypt(number.to_bytes(NONCE_BYTES, "big"), data, None)
        self._entries.append(_Entry(position, rows, sealed, number))
        self._positions.append(position)
        self._held_bytes += size

    def read(self, start: int, stop: int, chunk_rows: int) -> Iterator[tuple[int, bytes]]:
        """Rows `start` to `stop` - 1 as (position, bytes), at most `chunk_rows` at a time.

        Raises:
            InternalError: The journal does not hold them.
        """
        if not self.start <= start <= stop <= self.stop:
            raise InternalError(f"rows {start} to {stop} were asked of a journal of {self.start} to {self.stop}")
        while start < stop:
            end = min(stop, start + chunk_rows)
            yield start, b"".join(self._pieces(start, end))
            start = end

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        index = bisect_right(self._positions, start) - 1
        while start < end:
            entry = self._entries[index]
            data = self._cipher.decrypt(entry.number.to_bytes(NONCE_BYTES, "big"), entry.sealed, None)
            low, high = start - entry.position, min(entry.rows, end - entry.position)
            yield data[low * self.row_bytes : high * self.row_bytes]
            start = entry.position + high
            index += 1

    def truncate(self, length: int) -> None:
        """Forgets every row from position `length` on."""
        if length >= self.stop:
            return
        if length <= self.start:
            self._drop()
            self.start = self.stop = length
            return
        while self._entries and self._entries[-1].position >= length:
            self._forget_last()
        last = self._entries[-1]
        if last.position + last.rows > length:
            kept = b"".join(self._pieces(last.position, length))
            self._forget_last()
            self.stop = last.position
            self.append(last.position, kept)
        self.stop = length

    def skip(self, position: int) -> None:
        """Begins at `position`, with nothing before it: for what no next stage will ever want."""
        self._drop()
        self.start = self.stop = position

    def close(self) -> None:
        """Gives the room back; nothing is held any more."""
        self._drop()

    def _forget_last(self) -> None:
        entry = self._entries.pop()
        self._positions.pop()
        size = entry.rows * self.row_bytes + ENTRY_OVERHEAD_BYTES
        self._held_bytes -= size
        self._room.give(size)

    def _drop(self) -> None:
        self._room.give(self._held_bytes)
        self._held_bytes = 0
        self._entries.clear()
        self._positions.clear()
        self.start = self.stop
