"""Bytes that a link damages: which ones, how many, and that TLS lets none of them through."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.rpc import channel_options, map_rpc_error
from orbitmesh.trust import Role, init_mesh, issue, load_identity
from orbitmesh.trust.names import dns_name
from services.links import LinksProcess, Relay, RelaySpec, Shape
from services.links.shaper import MEBIBYTE, Pipe
from tests.links.support import connect, echo, serving
from tests.links.test_relay import emulator

METHOD = "/test.Echo/Echo"
CALLS = 24
"""Calls of 512 KiB each way: at one byte per mebibyte more than half of them must fail."""
PAYLOAD_BYTES = 512 * 1024


def passed(shape: Shape, data: bytes, cuts: Iterator[int]) -> tuple[bytes, int]:
    """What comes out of a pipe that is fed in pieces, and how many bytes it says it has hit."""
    pipe, out, hits, at = Pipe(shape, "forward"), b"", 0, 0
    while at < len(data):
        size = next(cuts)
        piece, hit = pipe.damage(data[at : at + size])
        out, hits, at = out + piece, hits + hit, at + size
    return out, hits


def test_the_seed_decides_which_bytes_are_hit_and_not_how_they_are_cut() -> None:
    """One bit of each is flipped, as many as asked for on average, and the same in pieces of any size."""
    data = random.Random(1).randbytes(2 * MEBIBYTE)
    draw = random.Random(2)
    shape = Shape(corrupt_per_mib=500, seed=9)
    whole, hits = passed(shape, data, iter([len(data)]))
    pieces, again = passed(shape, data, iter(lambda: draw.randint(1, 200_000), 0))
    wrong = [index for index in range(len(data)) if whole[index] != data[index]]
    assert (pieces, again) == (whole, hits)
    assert len(wrong) == hits
    assert 800 < hits < 1200, "six standard deviations around 1000"
    assert all((whole[index] ^ data[index]).bit_count() == 1 for index in wrong)
    assert passed(Shape(corrupt_per_mib=500, seed=10), data, iter([len(data)]))[0] != whole
    assert passed(Shape(seed=9), data, iter([len(data)])) == (data, 0)
    every, count = passed(Shape(corrupt_per_mib=MEBIBYTE), data[:5000], iter([1000] * 5))
    assert (count, sum(a != b for a, b in zip(every, data, strict=False))) == (5000, 5000)


async def test_a_plain_connection_sees_the_damage_and_the_relay_counts_it() -> None:
    """Without TLS wrong bytes do arrive: just as many as the statistics say, and none of them moved."""
    data = random.Random(3).randbytes(MEBIBYTE)
    async with serving(echo) as target:
        spec = RelaySpec("a>b", target, forward=Shape(corrupt_per_mib=100, seed=4))
        async with await Relay.start(spec) as relay:
            reader, writer = await connect(relay.address)
            writer.write(data)
            back = await reader.readexactly(len(data))
            stats = await relay.stats()
            writer.close()
    wrong = sum(a != b for a, b in zip(back, data, strict=True))
    assert wrong == stats.forward.corrupted_bytes > 20
    assert stats.reverse.corrupted_bytes == 0


class Echo(grpc.GenericRpcHandler):
    """Answers with what it was sent, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def answer(request: bytes, _context: grpc.ServicerContext) -> bytes:
            self.heard.append(request)
            return request

        return grpc.unary_unary_rpc_method_handler(answer) if details.method == METHOD else None


async def test_grpc_over_tls_never_delivers_a_wrong_byte(tmp_path: Path) -> None:
    """Through a damaging link calls fail, with an error of our tree, or are answered with exactly what was sent."""
    init_mesh(tmp_path / "ca", mesh="damage")
    issue(tmp_path / "ca", Role.SCHEDULER, "s", tmp_path / "s")
    issue(tmp_path / "ca", Role.CLIENT, "c", tmp_path / "c")
    mine, theirs = load_identity(tmp_path / "c"), load_identity(tmp_path / "s")
    handler = Echo()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler], options=channel_options())
    pair = [(theirs.tls_key_pem, theirs.tls_cert_pem)]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, theirs.ca_pem, True))
    server.start()
    credentials = grpc.ssl_channel_credentials(mine.ca_pem, mine.tls_key_pem, mine.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", dns_name(Role.SCHEDULER, "s"))]
    sent = [random.Random(number).randbytes(PAYLOAD_BYTES) for number in range(CALLS)]

    def call_all(address: str) -> list[bytes | MeshError]:
        outcomes: list[bytes | MeshError] = []
        with grpc.secure_channel(address, credentials, options=options) as channel:
            call = channel.unary_unary(METHOD)
            for payload in sent:
                try:
                    outcomes.append(call(payload, timeout=30, wait_for_ready=True))
                except grpc.RpcError as error:
                    outcomes.append(map_rpc_error(error))
        return outcomes

    try:
        async with await Relay.start(RelaySpec("a>b", f"127.0.0.1:{port}")) as relay:
            bad = Shape(corrupt_per_mib=1, seed=11)
            await relay.set(forward=bad, reverse=bad)
            outcomes = await asyncio.to_thread(call_all, relay.address)
            failed = [each for each in outcomes if isinstance(each, MeshError)]
            assert len(failed) >= 3, "the link did no damage"
            assert all(isinstance(each, TransportError) for each in failed), [(type(e), e.message) for e in failed]
            assert all(each == ours for each, ours in zip(outcomes, sent, strict=True) if isinstance(each, bytes))
            assert set(handler.heard) <= set(sent), "the server has heard a byte that nobody sent"
            await relay.set(forward=Shape(), reverse=Shape())
            assert await asyncio.to_thread(call_all, relay.address) == sent
    finally:
        server.stop(None).wait()


async def test_a_port_that_is_taken_is_a_typed_error_and_no_hang(tmp_path: Path) -> None:
    """By another program, by another relay, from a configuration file: said with the port, and the rest goes on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        async with serving(echo) as target, await LinksProcess.start() as links:
            for _ in range(2):
                with pytest.raises(TransportError, match=f"{taken}.*already in use.*another port"):
                    await links.add(RelaySpec("a>b", target, listen=taken))
            address = await links.add(RelaySpec("a>b", target))
            with pytest.raises(TransportError, match="already in use"):
                await links.add(RelaySpec("c>d", target, listen=address))
            reader, writer = await connect(address)
            writer.write(b"on")
            assert await reader.readexactly(2) == b"on"
            writer.close()
        config = tmp_path / "links.json"
        config.write_text(f'{{"relays": [{{"name": "a>b", "target": "127.0.0.1:9", "listen": "{taken}"}}]}}')
        code, said = await asyncio.to_thread(run_to_the_end, config)
        assert code == 2
        assert said.startswith("TRANSPORT: cannot listen on")


def run_to_the_end(config: Path) -> tuple[int, str]:
    with emulator("--config", str(config)) as process:
        _, err = process.communicate()
    assert isinstance(process, subprocess.Popen)
    return process.returncode, err.decode()
