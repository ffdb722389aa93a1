"""Files that others read while they are written, and that a loss of power must not tear."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orbitmesh.durable import made_beside, put_in_place, write_durably


def test_writers_of_one_file_at_once_leave_it_whole(tmp_path: Path) -> None:
    """Many threads write the same name: each ends well, and the file is one of what they wrote."""
    contents = [bytes([value]) * 4096 for value in range(16)]
    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(lambda data: write_durably(tmp_path / "manifest.json", data), contents))
    assert (tmp_path / "manifest.json").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_file_takes_its_name_between_the_flush_of_its_bytes_and_that_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another order a loss of power could leave the name with a part of the bytes, or take the name away again."""
    written, path = tmp_path / "new", tmp_path / "manifest.json"
    path.write_bytes(b"old")
    written.write_bytes(b"new")
    flushed, flush = [], os.fsync

    def note(descriptor: int) -> None:
        flush(descriptor)
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", note)
    put_in_place(written, path)
    assert flushed == [(written, b"old"), (tmp_path, b"new")]
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_permission_bits_are_those_asked_for(tmp_path: Path, mode: int) -> None:
    """Whatever the umask takes away; a file there before gives its own up."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(0o077)
    try:
        write_durably(path, b"new", mode=mode)
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)


def test_a_file_for_the_user_has_the_permissions_of_his_other_files(tmp_path: Path) -> None:
    """As `open` would make it under the same umask."""
    before = os.umask(0o027)
    try:
        (tmp_path / "other").write_bytes(b"")
        put_in_place(made_beside(tmp_path / "mine"), tmp_path / "mine")
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "other").stat().st_mode
