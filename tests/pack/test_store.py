"""The content store: files by their hash, on the way and complete."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import IntegrityError, InvalidInputError, PackError
from orbitmesh.pack.store import ContentStore
from orbitmesh.wire.session import Session
from services.executor.loading import StageFiles
from tests.sdk.pattern_pack import write_pack


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**32))
def test_pieces_of_any_size_make_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, seed: int) -> None:
    """However a file is cut, it is complete exactly with its last piece, and reads back bit for bit."""
    store = ContentStore(tmp_path_factory.mktemp("store"))
    chance, offset = random.Random(seed), 0
    while offset < len(data):
        piece = data[offset : offset + chance.randint(1, 90)]
        complete = store.append(digest(data), offset, piece, len(data))
        offset += len(piece)
        assert complete == (offset == len(data))
    assert store.read(digest(data), 0, len(data)) == data


def test_an_interrupted_file_goes_on_from_its_last_byte_in_a_new_process(tmp_path: Path) -> None:
    """What was taken in is durable: another store over the same directory continues there."""
    data = os.urandom(1000)
    ContentStore(tmp_path).append(digest(data), 0, data[:400], len(data))
    again = ContentStore(tmp_path)
    assert again.path(digest(data)) is None
    assert again.held_bytes(digest(data)) == 400
    assert again.append(digest(data), 400, data[400:], len(data))


def test_bytes_that_hash_to_something_else_are_thrown_away(tmp_path: Path) -> None:
    """A wrong byte anywhere: the file never appears, and sending it again works."""
    data = os.urandom(500)
    store = ContentStore(tmp_path)
    with pytest.raises(PackError):
        store.append(digest(data), 0, data[:-1] + bytes([data[-1] ^ 1]), len(data))
    assert store.path(digest(data)) is None
    assert store.append(digest(data), 0, data, len(data))


def write_without_finishing(store: ContentStore, data: bytes, sha256: bytes) -> None:
    """As a process leaves it that is killed behind its last write."""
    store.append(sha256, 0, data[:-1], len(data))
    with (store.directory / f"{sha256.hex()}.part").open("ab") as part:
        part.write(data[-1:])


def test_a_file_whose_writer_died_behind_its_last_byte_is_put_together(tmp_path: Path) -> None:
    """Not only by the next piece, which never comes: there is nothing left to send. Wrong bytes are thrown away."""
    data, store = os.urandom(500), ContentStore(tmp_path)
    assert not store.complete(digest(data), len(data))
    write_without_finishing(store, data, digest(data))
    assert store.path(digest(data)) is None
    assert store.complete(digest(data), len(data))
    assert store.read(digest(data), 0, 500) == data
    other = digest(b"something else")
    write_without_finishing(store, data, other)
    assert not store.complete(other, len(data))
    assert store.held_bytes(other) == 0


async def test_a_node_that_died_behind_the_last_byte_of_a_file_does_not_ask_for_it_again(tmp_path: Path) -> None:
    """It has all of it; asked for what follows the end, the gateway would refuse."""
    name = "layer-00.safetensors"
    manifest = write_pack(tmp_path / "pack", layer_bytes=3000)
    data = (tmp_path / "pack" / name).read_bytes()
    files = StageFiles(tmp_path / "node")
    write_without_finishing(files.store, data, digest(data))

    async def nobody() -> Session:
        raise AssertionError("the source was asked")

    assert [here async for here in files.fetch(manifest, (name,), nobody, "")] == [len(data)]


@pytest.mark.parametrize("offset", [0, 99, 101])
def test_a_piece_must_begin_where_the_last_one_ended(tmp_path: Path, offset: int) -> None:
    """A gap or an overlap is refused, with what is here."""
    data = os.urandom(300)
    store = ContentStore(tmp_path)
    store.append(digest(data), 0, data[:100], 300)
    with pytest.raises(InvalidInputError) as caught:
        store.append(digest(data), offset, data[100:110], 300)
    assert caught.value.metadata == {"held_bytes": "100"}


def test_a_piece_past_the_size_is_refused(tmp_path: Path) -> None:
    """A file cannot grow past what its manifest says."""
    with pytest.raises(InvalidInputError):
        ContentStore(tmp_path).append(digest(b"x"), 0, b"xy", 1)


def test_an_absent_file_and_a_wrong_name_are_told_apart(tmp_path: Path) -> None:
    """Reading what is not here and naming what cannot be are different errors."""
    store = ContentStore(tmp_path)
    with pytest.raises(IntegrityError):
        store.read(digest(b"absent"), 0, 1)
    with pytest.raises(InvalidInputError):
        store.path(b"short")


def test_a_file_may_appear_under_its_own_name(tmp_path: Path) -> None:
    """Placing gives the same bytes under another name, again and again."""
    store = ContentStore(tmp_path / "files")
    store.append(digest(b"abc"), 0, b"abc", 3)
    for _ in range(2):
        store.place(digest(b"abc"), tmp_path / "pack" / "config.json")
    assert (tmp_path / "pack" / "config.json").read_bytes() == b"abc"
