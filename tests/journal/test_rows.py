"""The journal against a plain list of rows, and what it lets nobody read."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InternalError, InvalidInputError
from services.journal.rows import ENTRY_OVERHEAD_BYTES, JournalRoom, RowJournal

WIDTH = 6
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "truncate", "skip", "read"]),
        st.integers(0, 40),
        st.integers(1, 9),
    ),
    max_size=40,
)


def row(number: int) -> bytes:
    return number.to_bytes(WIDTH, "big")


@settings(max_examples=300)
@given(ACTS, st.sampled_from([1 << 20, 2_000, 500, 0]))
def test_a_journal_holds_what_a_list_would(acts: list[tuple[str, int, int]], limit: int) -> None:
    """Whatever is appended, cut and skipped: every row that it says it holds is read back; what it takes of the room
    is what it says, within the bound, and all of it is given back."""
    room = JournalRoom(limit)
    journal = RowJournal(WIDTH, room)
    rows: dict[int, bytes] = {}
    count = 0
    for act, at, size in acts:
        start, stop = journal.start, journal.stop
        if act == "append":
            new = [row(count + index) for index in range(size)]
            count += size
            journal.append(stop, b"".join(new))
            rows.update(enumerate(new, stop))
            assert journal.stop == stop + size and journal.start in (start, journal.stop)
            if limit == 1 << 20:
                assert journal.start == start
        elif act == "truncate":
            journal.truncate(at)
            assert journal.stop == min(stop, at)
            assert journal.start == min(start, at) or journal.start == journal.stop
            if limit == 1 << 20:
                assert journal.start == min(start, at)
        elif act == "skip":
            journal.skip(at)
            assert journal.start == journal.stop == at
        found = list(journal.read(journal.start, journal.stop, size))
        assert b"".join(data for _, data in found) == b"".join(rows[at] for at in range(journal.start, journal.stop))
        position = journal.start
        for first, data in found:
            assert first == position and 0 < len(data) <= size * WIDTH
            position += len(data) // WIDTH
        middle = (journal.start + journal.stop) // 2
        assert b"".join(data for _, data in journal.read(middle, journal.stop, 3)) == b"".join(
            rows[at] for at in range(middle, journal.stop)
        )
        assert 0 <= journal.held_bytes == room.used_bytes <= limit
        assert journal.held_bytes >= (journal.stop - journal.start) * WIDTH
    journal.close()
    assert room.used_bytes == journal.held_bytes == 0


@pytest.mark.parametrize("length", range(13))
def test_a_cut_within_an_entry_keeps_its_first_rows(length: int) -> None:
    """At every row of several entries, and it goes on from there."""
    room = JournalRoom(10_000)
    journal = RowJournal(WIDTH, room)
    for first in (0, 5, 6):
        journal.append(first, b"".join(row(at) for at in range(first, {0: 5, 5: 6, 6: 12}[first])))
    journal.truncate(length)
    journal.append(length, row(99))
    assert (journal.start, journal.stop) == (0, length + 1)
    found = b"".join(data for _, data in journal.read(0, length + 1, 4))
    assert found == b"".join(map(row, (*range(length), 99)))
    assert journal.held_bytes == room.used_bytes


def test_a_journal_without_room_begins_again_behind_what_was_dropped() -> None:
    """And leaves its room to others; it is read from where it begins, not from before."""
    room = JournalRoom(3 * (WIDTH + ENTRY_OVERHEAD_BYTES))
    one, two = RowJournal(WIDTH, room), RowJournal(WIDTH, room)
    for at in range(3):
        one.append(at, row(at))
    two.append(0, row(7))
    assert (two.start, two.stop, one.start) == (1, 1, 0)
    one.append(3, row(3))
    assert (one.start, one.stop, room.used_bytes) == (4, 4, 0)
    two.append(1, row(8))
    assert list(two.read(1, 2, 8)) == [(1, row(8))]
    with pytest.raises(InternalError):
        list(two.read(0, 2, 8))


def test_what_does_not_follow_or_is_no_row_is_refused() -> None:
    """And changes nothing."""
    journal = RowJournal(WIDTH, JournalRoom(10_000), start=5)
    for position, data in ((4, row(1)), (6, row(1)), (5, b"12345"), (5, b"")):
        with pytest.raises(InternalError):
            journal.append(position, data)
    assert (journal.start, journal.stop, journal.held_bytes) == (5, 5, 0)
    with pytest.raises(InternalError):
        list(journal.read(5, 6, 1))
    with pytest.raises(InvalidInputError):
        RowJournal(0, JournalRoom(1))


def test_rows_are_not_in_memory_in_the_clear() -> None:
    """No object that the journal reaches holds the rows, and no two sealed entries of equal rows are equal: a number
    is not used twice, also behind a roll-back."""
    secret = os.urandom(16) * 4
    journal = RowJournal(len(secret), JournalRoom(100_000))
    seals: list[bytes] = []
    for _ in range(5):
        at = journal.stop
        journal.append(at, bytes(secret))
        journal.append(at + 1, bytes(secret))
        journal.truncate(at + 1)
        journal.append(at + 1, bytes(secret))
        journal.truncate(at + 1)
    seen: set[int] = set()
    todo: list[object] = [journal.__dict__]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, bytes):
            assert secret[:16] not in thing
            if len(thing) > len(secret):
                seals.append(thing)
        todo.extend(gc.get_referents(thing))
    assert len(seals) == 5 == len(set(seals))
    assert b"".join(data for _, data in journal.read(0, 5, 2)) == secret * 5
