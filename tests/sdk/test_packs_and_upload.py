"""From a source to a signed pack, and from there to a gateway: what is sent, what is not, and what is
refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gateway.packs import PackShelf
from orbitmesh import (
    InvalidInputError,
    MeshError,
    PackError,
    Progress,
    UnknownModelError,
    _packs,
    transfer_files,
)
from orbitmesh._packs import SignedPack
from orbitmesh._stubs import Stubs
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue, load_identity, verify_signature
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc
from orbitmesh.wire.streams import SessionAcceptor, exchange_handler
from services.runtime.logs import EventLog
from tests.sdk.pattern_pack import write_pack
from tests.sdk.small_gateway import refuse


class Shelf(gateway_pb2_grpc.PackServiceServicer):
    """The gateway's own shelf of packs behind a plain server."""

    def __init__(self, shelf: PackShelf) -> None:
        self.shelf = shelf

    async def CreatePack(self, request: Any, context: Any) -> gateway_pb2.CreatePackResponse:  # noqa: N802
        """Registers."""
        try:
            return await asyncio.to_thread(self.shelf.create, request)
        except MeshError as error:
            await refuse(context, error.reason, error.message)
            raise


@pytest.fixture
async def shelf_and_stubs(tmp_path: Path) -> AsyncIterator[tuple[PackShelf, Stubs]]:
    """The real shelf of the gateway, and a client's connection to it."""
    init_mesh(tmp_path / "ca")
    identity = issue(tmp_path / "ca", Role.GATEWAY, "gateway", tmp_path / "gateway")
    issue(tmp_path / "ca", Role.CLIENT, "me", tmp_path / "me")
    source = IdentitySource(tmp_path / "gateway")
    shelf = PackShelf(tmp_path / "shelf", source, EventLog("gateway/gateway"))
    acceptor = SessionAcceptor(source, shelf.serve)
    server = grpc.aio.server()
    add: Any = gateway_pb2_grpc.add_PackServiceServicer_to_server
    add(Shelf(shelf), server)
    server.add_registered_method_handlers("orbitmesh.v1.PackService", {"Transfer": exchange_handler(acceptor)})
    credentials = grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    stubs = Stubs.open(f"127.0.0.1:{port}", load_identity(tmp_path / "me"))
    yield shelf, stubs
    await stubs.close()
    await acceptor.close()
    await server.stop(None)


def until_held(shelf: PackShelf, sha256: bytes) -> int:
    """How much of the file is there, once there is some."""
    give_up = time.monotonic() + 60
    while not (held := shelf.store.held_bytes(sha256)):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return held


async def pack_at(directory: Path, stubs: Stubs) -> SignedPack:
    write_pack(directory)
    return await _packs.signed_pack(directory, stubs.identity, lambda _: None)


async def test_an_unsigned_pack_is_signed_by_the_caller_and_left_as_it_is(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """The signature is made over the exact bytes, and nothing is written into the user's directory."""
    _, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    peer = verify_signature(pack.manifest_bytes, pack.signature, stubs.identity.ca, {Role.CLIENT})
    assert peer.name == "me"
    assert pack.manifest_bytes == (tmp_path / "pack" / "manifest.json").read_bytes()
    assert not (tmp_path / "pack" / "manifest.sig").exists()


async def test_a_signature_that_is_there_is_used_as_it_is(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """A signed pack keeps its signer, also one that the mesh will not trust."""
    _, stubs = shelf_and_stubs
    write_pack(tmp_path / "pack")
    (tmp_path / "pack" / "manifest.sig").write_bytes(b"of someone else")
    pack = await _packs.signed_pack(tmp_path / "pack", stubs.identity, lambda _: None)
    assert pack.signature == b"of someone else"
    with pytest.raises(PackError):
        verify_signature(pack.manifest_bytes, pack.signature, stubs.identity.ca, {Role.CLIENT})


async def test_a_pack_arrives_whole_and_is_sent_once(tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]) -> None:
    """Every file is on the gateway's disk with its hash when `upload` returns; a second one sends nothing."""
    shelf, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    steps: list[Progress] = []
    await transfer_files.upload(stubs, pack, steps.append)
    for file in pack.manifest.files:
        held = shelf.store.path(bytes.fromhex(file.sha256))
        assert held is not None
        assert hashlib.sha256(held.read_bytes()).hexdigest() == file.sha256
    assert steps[-1].done_bytes == steps[-1].total_bytes == pack.manifest.total_bytes
    steps.clear()
    await transfer_files.upload(stubs, pack, steps.append)
    assert steps == []


async def test_what_the_gateway_has_is_not_sent_again(tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]) -> None:
    """After an upload that was given up in the middle of a file, only the rest goes over the wire."""
    shelf, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)

    class Enough(Exception):
        pass

    def stop_in_the_layer(step: Progress) -> None:
        if step.subject.startswith("layer") and step.done_bytes > transfer_files.PIECE_BYTES:
            raise Enough

    with pytest.raises(Enough):
        await transfer_files.upload(stubs, pack, stop_in_the_layer)
    layer = bytes.fromhex(pack.manifest.file("layer-00.safetensors").sha256)
    held = await asyncio.to_thread(until_held, shelf, layer)
    steps: list[Progress] = []
    await transfer_files.upload(stubs, pack, steps.append)
    assert 0 < held < pack.manifest.layer_bytes[0]
    assert steps[-1].total_bytes <= pack.manifest.layer_bytes[0] - held
    assert shelf.store.path(layer) is not None


async def test_an_empty_piece_ends_a_file_that_is_all_there(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """The gateway wrote the last byte of an upload that was given up and had not named the file yet when it was asked
    what is missing."""
    shelf, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    await transfer_files._still_missing(stubs, pack)
    entry = pack.manifest.file("layer-00.safetensors")
    sha256, data = bytes.fromhex(entry.sha256), (pack.directory / entry.name).read_bytes()
    shelf.store.append(sha256, 0, data[:-1], len(data))
    with (shelf.store.directory / f"{entry.sha256}.part").open("ab") as part:
        part.write(data[-1:])
    piece = transfer_files.Piece(pack.directory / entry.name, entry.name, sha256, entry.size_bytes, entry.size_bytes)
    missing = await transfer_files._send_all(stubs, pack, [piece], lambda step: None)
    assert entry.name not in [file.name for file in missing]
    assert shelf.store.path(sha256) is not None


async def test_two_uploads_of_one_pack_at_once_both_end_well(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """Who comes second with a piece waits for the other and sends what is still missing then."""
    shelf, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(transfer_files.upload(stubs, pack, lambda _: None))
    assert all(shelf.store.path(bytes.fromhex(file.sha256)) for file in pack.manifest.files)


async def test_a_file_that_differs_from_the_manifest_is_refused(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """One flipped byte: the gateway finds it, the caller gets PackError, and the file is not taken."""
    shelf, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    path = tmp_path / "pack" / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackError):
        await transfer_files.upload(stubs, pack, lambda _: None)
    assert shelf.store.path(bytes.fromhex(pack.manifest.file("head.safetensors").sha256)) is None


async def test_a_file_of_another_size_is_refused_before_anything_is_sent(
    tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """A truncated or missing file is named at once."""
    _, stubs = shelf_and_stubs
    pack = await pack_at(tmp_path / "pack", stubs)
    (tmp_path / "pack" / "head.safetensors").write_bytes(b"short")
    steps: list[Progress] = []
    with pytest.raises(PackError, match=r"head\.safetensors is 5 bytes"):
        await transfer_files.upload(stubs, pack, steps.append)
    (tmp_path / "pack" / "head.safetensors").unlink()
    with pytest.raises(PackError, match="missing"):
        await transfer_files.upload(stubs, pack, steps.append)
    assert steps == []


async def test_an_untrusted_signer_is_refused(tmp_path: Path, shelf_and_stubs: tuple[PackShelf, Stubs]) -> None:
    """A pack signed by another mesh's user is not taken."""
    _, stubs = shelf_and_stubs
    init_mesh(tmp_path / "other")
    stranger = issue(tmp_path / "other", Role.CLIENT, "me", tmp_path / "stranger")
    write_pack(tmp_path / "pack")
    pack = await _packs.signed_pack(tmp_path / "pack", stranger, lambda _: None)
    with pytest.raises(PackError) as caught:
        await transfer_files.upload(stubs, pack, lambda _: None)
    assert caught.value.reason == "PACK_SIGNER_UNTRUSTED"


@pytest.mark.parametrize("source", ["nowhere", "./a/b/c", "/does/not/exist"])
async def test_what_is_nothing_is_unknown(source: str, shelf_and_stubs: tuple[PackShelf, Stubs]) -> None:
    """A source that is neither directory nor hub id says what would be one."""
    _, stubs = shelf_and_stubs
    with pytest.raises(UnknownModelError, match="hub id"):
        await _packs.signed_pack(source, stubs.identity, lambda _: None)


async def test_packing_without_the_extra_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf_and_stubs: tuple[PackShelf, Stubs]
) -> None:
    """A model directory on a base install says `pip install 'orbitmesh[mesh]'`."""
    _, stubs = shelf_and_stubs
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(_packs, "PACKING_MODULES", ("surely_not_installed",))
    with pytest.raises(InvalidInputError, match=r"pip install 'orbitmesh\[mesh\]'"):
        await _packs.signed_pack(tmp_path / "model", stubs.identity, lambda _: None)


async def test_a_model_that_cannot_be_packed_is_refused_with_the_builders_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packing process's refusal comes through typed, and nothing is left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2"]}))
    with pytest.raises(InvalidInputError) as caught:
        await _packs.build(tmp_path / "model", tmp_path / "dest", lambda _: None)
    assert caught.value.reason == "UNSUPPORTED_MODEL"
    assert not (tmp_path / "dest").exists()
    assert not (tmp_path / "dest.partial").exists()


def test_a_cached_pack_of_another_format_is_made_anew(tmp_path: Path) -> None:
    """A pack that an older version left in the cache is not taken for one of today's."""
    write_pack(tmp_path / "pack", layer_bytes=512)
    assert _packs._is_readable(tmp_path / "pack")
    manifest = tmp_path / "pack" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocab_size"', '"words"'))
    assert not _packs._is_readable(tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
