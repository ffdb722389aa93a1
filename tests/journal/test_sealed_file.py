"""Sealed files that crashes tear, that somebody changes, and that others try to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from orbitmesh.errors import SealError
from orbitmesh.trust import Identity, init_mesh, issue
from services.journal.sealed_file import SealedReader, SealedWriter

PURPOSE = b"test"
FIRST = [b"the first secret", b"", b"x" * 40]
SECOND = [b"the second secret", b"and more of it"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    home = tmp_path_factory.mktemp("identities")
    return issue(ca, "executor", "sat-1", home / "1"), issue(ca, "executor", "sat-2", home / "2")


def write(path: Path, identity: Identity, records: list[bytes], *, more: bool = False) -> None:
    reader = None
    if more:
        reader = SealedReader(path, identity, PURPOSE)
        list(reader)
    with SealedWriter(path, identity, PURPOSE, after=reader) as file:
        for number, record in enumerate(records):
            file.append(record, durable=number == 0)


def read(path: Path, identity: Identity, purpose: bytes = PURPOSE) -> list[bytes]:
    return list(SealedReader(path, identity, purpose))


@pytest.fixture
def file(tmp_path: Path, nodes: tuple[Identity, Identity]) -> Path:
    """A file of two segments."""
    path = tmp_path / "some" / "file"
    write(path, nodes[0], FIRST)
    write(path, nodes[0], SECOND, more=True)
    return path


def test_what_was_written_is_read(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """Over all segments, in order; the file is its owner's alone and shows nothing of it."""
    assert read(file, nodes[0]) == FIRST + SECOND
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes()
    for record in (*FIRST, *SECOND):
        assert len(record) < 8 or record not in content
    assert b"secret" not in content


def test_another_node_and_another_purpose_read_nothing(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """The first record is refused already."""
    with pytest.raises(SealError):
        next(iter(SealedReader(file, nodes[1], PURPOSE)))
    with pytest.raises(SealError):
        next(iter(SealedReader(file, nodes[0], b"other")))


def test_a_torn_end_is_left_out_at_every_byte(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """Every record that is whole is read; whoever appends next goes on behind it, and all of it is read again."""
    content = file.read_bytes()
    before = 0
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        found = read(file, nodes[0])
        assert found == (FIRST + SECOND)[: len(found)] and len(found) >= before
        before = len(found)
        if size % 7 == 0 or size == len(content):
            write(file, nodes[0], [b"appended"], more=True)
            assert read(file, nodes[0]) == [*found, b"appended"]
    assert before == len(FIRST + SECOND)


def test_a_changed_byte_gives_no_changed_record(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """Wherever it is: the file is refused. Only a size that now points past the end cannot be told from a torn end:
    what comes before it is read then, and nothing else."""
    content = file.read_bytes()
    refused = torn = 0
    for at in range(len(content)):
        for flip in (0x01, 0x80):
            file.write_bytes(content[:at] + bytes((content[at] ^ flip,)) + content[at + 1 :])
            found: list[bytes] = []
            try:
                for record in SealedReader(file, nodes[0], PURPOSE):
                    found.append(record)
                torn += 1
                assert len(found) < len(FIRST + SECOND)
            except SealError as error:
                refused += 1
                assert str(error)
            assert found == (FIRST + SECOND)[: len(found)]
    sizes = 4 * (len(FIRST + SECOND) + 2)
    assert torn <= 2 * sizes and refused >= 2 * (len(content) - sizes)


def test_records_cannot_be_moved_doubled_or_left_out(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """A record opens in its place only, a segment too."""
    content = file.read_bytes()
    second = content.index(b"OMSF", 4)
    starts, at = [], 8 + int.from_bytes(content[4:8], "big")
    while at < second:
        starts.append(at)
        at += 5 + int.from_bytes(content[at + 1 : at + 5], "big")
    one, two, three = content[starts[0] : starts[1]], content[starts[1] : starts[2]], content[starts[2] : second]
    head, tail = content[: starts[0]], content[second:]
    changed = {
        "moved": head + two + one + three + tail,
        "doubled": head + one + one + two + three + tail,
        "left out": head + two + three + tail,
        "last of a segment left out": head + one + two + tail,
        "segments moved": tail + content[:second],
        "segment left out": tail,
        "garbage behind": content + b"garbage",
    }
    for data in changed.values():
        file.write_bytes(data)
        with pytest.raises(SealError):
            read(file, nodes[0])


def test_a_file_that_is_written_anew_holds_nothing_of_before(file: Path, nodes: tuple[Identity, Identity]) -> None:
    """Without a reader the writer begins the file anew."""
    write(file, nodes[0], [b"new"])
    assert read(file, nodes[0]) == [b"new"]


def test_a_renewed_identity_reads_and_goes_on(tmp_path: Path) -> None:
    """Certificates live for a day, files for as long as a run: what was written before a renewal opens after it."""
    ca = init_mesh(tmp_path / "ca")
    path = tmp_path / "file"
    write(path, issue(ca, "executor", "sat-1", tmp_path / "id"), FIRST)
    renewed = issue(ca, "executor", "sat-1", tmp_path / "id")
    assert read(path, renewed) == FIRST
    write(path, renewed, SECOND, more=True)
    assert read(path, issue(ca, "executor", "sat-1", tmp_path / "id")) == FIRST + SECOND
    with pytest.raises(SealError):
        read(path, issue(ca, "executor", "sat-1", tmp_path / "elsewhere"))
