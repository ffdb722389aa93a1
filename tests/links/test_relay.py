"""Real connections through emulated links: lateness, exact bytes, cuts, pauses, ends, resets, the process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orbitmesh.errors import InvalidInputError, TransportError
from services.links import Engine, LinksProcess, Relay, RelaySpec, Shape
from services.links.shaper import BUFFER_BYTES
from tests.links.support import POLL_S, connect, echo, serving, until

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@asynccontextmanager
async def link(target: str, shape: Shape, name: str = "sat-1>sat-2") -> AsyncIterator[Relay]:
    async with await Relay.start(RelaySpec(name, target, forward=shape, reverse=shape)) as relay:
        yield relay


async def test_a_round_trip_takes_at_least_twice_the_latency() -> None:
    """Through 2 x 20 ms no answer is back before 40 ms."""
    async with serving(echo) as target, link(target, Shape(latency_ms=20)) as relay:
        reader, writer = await connect(relay.address)
        for number in range(5):
            start_s = time.monotonic()
            writer.write(b"%04d" % number)
            assert await reader.readexactly(4) == b"%04d" % number
            assert time.monotonic() - start_s >= 0.040
        writer.close()


async def test_the_two_directions_have_shapes_of_their_own_and_change_at_once() -> None:
    """30 ms one way and none back is 30 ms; after `set` it is 60 ms."""
    async with serving(echo) as target:
        spec = RelaySpec("up>down", target, forward=Shape(latency_ms=30))
        async with await Relay.start(spec) as relay:
            reader, writer = await connect(relay.address)
            for least_s in (0.030, 0.060):
                start_s = time.monotonic()
                writer.write(b"x")
                await reader.readexactly(1)
                assert time.monotonic() - start_s >= least_s
                await relay.set(forward=Shape(latency_ms=60))
            assert relay.spec.forward.latency_ms == 60
            writer.close()


async def test_bytes_take_at_least_their_time_at_the_rate() -> None:
    """200 kB at 8 Mbit/s take 200 ms one way, shared by the two connections that carry them."""
    async with serving(echo) as target:
        spec = RelaySpec("thin", target, forward=Shape(rate_bps=8e6))
        async with await Relay.start(spec) as relay:
            pairs = [await connect(relay.address) for _ in range(2)]
            start_s = time.monotonic()
            for _, writer in pairs:
                writer.write(bytes(100_000))
            await asyncio.gather(*(reader.readexactly(100_000) for reader, _ in pairs))
            assert time.monotonic() - start_s >= 0.200
            for _, writer in pairs:
                writer.close()


async def test_relays_that_share_a_medium_share_its_rate_and_take_turns() -> None:
    """Two ways there and one way back over one beam: 300 kB take 300 ms at 8 Mbit/s, and nobody waits for the rest."""
    thin = Shape(rate_bps=8e6)
    size = 100_000
    async with serving(echo) as target:
        engine = Engine()
        specs = [
            RelaySpec("one", target, forward=thin, forward_medium="beam"),
            RelaySpec("two", target, forward=thin, forward_medium="beam"),
            RelaySpec("back", target, reverse=thin, reverse_medium="beam"),
            RelaySpec("other", target, forward=thin, forward_medium="another"),
        ]
        relays = [await Relay.start(spec, engine) for spec in specs]
        pairs = [await connect(relay.address) for relay in relays]
        start_s = time.monotonic()
        done_s: dict[str, float] = {}
        left: dict[str, int] = {}

        async def carry(index: int) -> None:
            reader, writer = pairs[index]
            writer.write(bytes(size))
            await reader.readexactly(size)
            done_s[specs[index].name] = time.monotonic() - start_s
            if not left:
                for each in (0, 1, 2):
                    stats = await relays[each].stats()
                    lane = stats.reverse if each == 2 else stats.forward
                    left[specs[each].name] = size - lane.delivered_bytes

        await asyncio.gather(*(carry(index) for index in range(3)))
        assert max(done_s.values()) >= 0.299, "three times the bytes of one"
        assert max(left.values()) <= size * 0.6, f"when the first was done, others had hardly begun: {left}"
        await relays[0].cut()
        await relays[1].pause()
        _, other = pairs[2]
        other.write(bytes(1000))
        assert await pairs[2][0].readexactly(1000) == bytes(1000)
        await carry(3)
        for (_, writer), relay in zip(pairs, relays, strict=True):
            writer.close()
            await relay.close()
        engine.close()


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(2, 400e6), Shape(5, 200e6, jitter_ms=10, seed=7)], ids=["bare", "thin", "jitter"]
)
async def test_many_connections_at_once_carry_exactly_their_bytes(shape: Shape) -> None:
    """Twelve connections echo random bytes of random sizes; every digest is right and every byte is
    counted."""

    async def talk(address: str, seed: int) -> int:
        draw = random.Random(seed)
        data = draw.randbytes(draw.randint(1, 600_000))
        reader, writer = await connect(address)

        async def send() -> None:
            sent = 0
            while sent < len(data):
                step = draw.randint(1, 50_000)
                writer.write(data[sent : sent + step])
                await writer.drain()
                sent += step
            writer.write_eof()

        _, back = await asyncio.gather(send(), reader.read(-1))
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        writer.close()
        return len(data)

    async with serving(echo) as target, link(target, shape) as relay:
        total = sum(await asyncio.gather(*(talk(relay.address, seed) for seed in range(12))))

        async def all_gone() -> bool:
            return (await relay.stats()).connections == 0

        await until(all_gone)
        stats = await relay.stats()
        assert stats.forward.taken_bytes == stats.forward.delivered_bytes == total
        assert stats.reverse.taken_bytes == stats.reverse.delivered_bytes == total
        assert (stats.accepted, stats.forward.in_flight_bytes, stats.reverse.in_flight_bytes) == (12, 0, 0)


async def test_a_half_closed_connection_still_answers() -> None:
    """The target sees the client's end, and the client then reads an answer of a megabyte and the target's
    end."""
    answer = random.Random(1).randbytes(1_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(-1) == b"question"
        writer.write(answer)
        await writer.drain()

    async with serving(serve) as target, link(target, Shape(10, 200e6)) as relay:
        reader, writer = await connect(relay.address)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == answer
        writer.close()


async def test_a_reset_arrives_as_a_reset_behind_the_bytes_before_it() -> None:
    """The client resets; the target reads what was sent before, and then a reset, not an end."""
    outcome: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = b""
        try:
            while data := await reader.read(100):
                got += data
            await outcome.put((got, False))
        except ConnectionResetError:
            await outcome.put((got, True))

    async with serving(serve) as target, link(target, Shape(latency_ms=20)) as relay:
        host, port = relay.address.rsplit(":", 1)
        client = socket.create_connection((host, int(port)))
        client.sendall(b"last words")

        async def taken() -> bool:
            return (await relay.stats()).forward.taken_bytes == 10

        await until(taken)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        assert await outcome.get() == (b"last words", True)

        async def none_left() -> bool:
            return (await relay.stats()).connections == 0

        await until(none_left)


async def test_a_target_that_resets_is_seen_by_the_client() -> None:
    """A server that aborts makes the client's read fail with a reset."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()

    async with serving(serve) as target, link(target, Shape(latency_ms=5)) as relay:
        reader, writer = await connect(relay.address)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_a_target_that_is_not_up_closes_the_connection_and_a_later_one_works() -> None:
    """The client is reset at once; when the target listens, the same relay reaches it."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with link(f"127.0.0.1:{port}", Shape(latency_ms=50)) as relay:
            with pytest.raises(ConnectionResetError):
                reader, writer = await connect(relay.address)
                await reader.readexactly(1)
            assert (await relay.stats()).unreachable == 1
            server = await asyncio.start_server(echo, "127.0.0.1", port, reuse_address=True)
            reader, writer = await connect(relay.address)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            server.close()


async def test_a_cut_resets_and_refuses_and_what_arrived_is_an_exact_prefix() -> None:
    """Bytes cut in flight are a prefix of what was sent; connects are refused until the restore, on the same
    port."""
    data = random.Random(3).randbytes(4_000_000)
    arrived = bytearray()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                arrived.extend(piece)
        finally:
            ended.set()

    async with serving(serve) as target, link(target, Shape(10, 50e6)) as relay:
        port = relay.port
        for _ in range(3):
            arrived.clear()
            ended.clear()
            reader, writer = await connect(relay.address)
            writer.write(data)

            async def some_arrived() -> bool:
                return len(arrived) > 100_000

            await until(some_arrived)
            await relay.cut()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
            await ended.wait()
            assert 100_000 < len(arrived) < len(data)
            assert arrived == data[: len(arrived)]
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError):
                    await connect(relay.address)
            stats = await relay.stats()
            assert (stats.state, stats.connections, stats.forward.in_flight_bytes) == ("cut", 0, 0)
            await relay.restore()
            assert relay.port == port
        assert (await relay.stats()).state == "up"


async def test_cutting_twice_and_restoring_what_is_up_change_nothing() -> None:
    """The operations say what shall be, so that a caller may repeat them."""
    async with serving(echo) as target, link(target, Shape()) as relay:
        await relay.restore()
        await relay.cut()
        await relay.cut()
        await relay.pause()
        assert (await relay.stats()).state == "cut"
        await relay.restore()
        await relay.restore()
        reader, writer = await connect(relay.address)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()


async def test_a_pause_holds_bytes_and_loses_none() -> None:
    """In a pause nothing arrives, not even what was under way; after it everything does, later by the
    pause."""
    data = random.Random(4).randbytes(300_000)
    async with serving(echo) as target, link(target, Shape(30, 100e6)) as relay:
        reader, writer = await connect(relay.address)
        start_s = time.monotonic()
        writer.write(data)
        await writer.drain()
        await relay.pause()
        before = (await relay.stats()).forward.delivered_bytes
        await asyncio.sleep(0.2)
        stats = await relay.stats()
        assert (stats.state, stats.forward.delivered_bytes, stats.connections) == ("paused", before, 1)
        await relay.restore()
        assert await reader.readexactly(len(data)) == data
        assert time.monotonic() - start_s >= 0.26
        writer.close()


async def test_a_receiver_that_does_not_read_holds_its_sender_and_nobody_else() -> None:
    """The stuck connection keeps a bounded number of bytes; another one on the same link goes on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"s":
            await asyncio.Event().wait()  # stuck: reads no more
        await echo(reader, writer)

    shape = Shape(1, 1e9)
    window_bytes = shape.in_flight_bytes + BUFFER_BYTES
    async with serving(serve) as target, link(target, shape) as relay:
        host, port = relay.address.rsplit(":", 1)
        stuck = socket.create_connection((host, int(port)))
        stuck.setblocking(False)
        stuck.send(b"s")
        block, sent, idle = bytes(1 << 20), 0, 0
        while idle < 20:
            try:
                sent += stuck.send(block)
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(POLL_S)
        assert 0 < (await relay.stats()).forward.in_flight_bytes <= window_bytes
        assert sent < 40 * 1024 * 1024
        reader, writer = await connect(relay.address)
        writer.write(b"e" + bytes(500_000))
        assert await reader.readexactly(500_000) == bytes(500_000)
        writer.close()
        stuck.close()


async def test_one_engine_hosts_many_relays_and_a_busy_port_is_refused() -> None:
    """Ten relays share a thread; a port that is taken gives a typed error, and closing gives it back."""
    engine = Engine()
    async with serving(echo) as target:
        relays = [await Relay.start(RelaySpec(f"link-{number}", target), engine) for number in range(10)]
        taken = RelaySpec("again", target, listen=relays[0].address)
        with pytest.raises(TransportError, match="cannot listen"):
            await Relay.start(taken, engine)
        for relay in relays:
            reader, writer = await connect(relay.address)
            writer.write(b"z")
            assert await reader.readexactly(1) == b"z"
            writer.close()
            await relay.close()
        async with await Relay.start(taken, engine) as relay:
            assert relay.address == taken.listen
    engine.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a"}, {"target": "127.0.0.1:1"}, {"name": "", "target": "127.0.0.1:1"},
        {"name": "a", "target": "127.0.0.1"}, {"name": "a", "target": "127.0.0.1:70000"},
        {"name": "a", "target": "127.0.0.1:0"}, {"name": "a", "target": "127.0.0.1:1", "listen": 5},
        {"name": "a", "target": "127.0.0.1:1", "forward": 20},
        {"name": "a", "target": "127.0.0.1:1", "speed": 1},
        {"name": "a", "target": "127.0.0.1:1", "forward": {"latency": 20}},
    ],
)  # fmt: skip
def test_a_relay_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    """Missing, unknown and malformed fields are typed errors before a socket is opened."""
    with pytest.raises(InvalidInputError):
        RelaySpec.parse(fields)


async def test_a_target_of_unknown_name_is_a_typed_error() -> None:
    """A name that does not resolve is said so, as something a retry may cure."""
    with pytest.raises(TransportError, match="not known"):
        await Relay.start(RelaySpec("a", "no-such-host.invalid:1"))


async def test_the_process_is_driven_by_json_lines_and_ends_with_its_stdin() -> None:
    """Add, use, change, cut, restore, count and remove over pipes; errors keep their class; the process
    ends."""
    async with serving(echo) as target:
        links = await LinksProcess.start()
        shape = Shape(10, 1e8)
        address = await links.add(RelaySpec("sat-1>sat-2", target, forward=shape, reverse=shape))
        with pytest.raises(InvalidInputError, match="already"):
            await links.add(RelaySpec("sat-1>sat-2", target))
        with pytest.raises(InvalidInputError, match="no relay"):
            await links.cut("sat-9>sat-1")
        with pytest.raises(InvalidInputError, match="op is"):
            await links.request("explode")
        reader, writer = await connect(address)
        for least_s in (0.020, 0.040):
            start_s = time.monotonic()
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            assert time.monotonic() - start_s >= least_s
            await links.set("sat-1>sat-2", forward={"latency_ms": 30})
        stats = await links.stats("sat-1>sat-2")
        assert (stats["forward"]["delivered_bytes"], stats["reverse"]["delivered_bytes"]) == (8, 8)
        await links.cut("sat-1>sat-2")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        await links.restore("sat-1>sat-2")
        reader, writer = await connect(address)
        writer.write(b"pong")
        assert await reader.readexactly(4) == b"pong"
        writer.close()
        await links.remove("sat-1>sat-2")
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        await links.close()
        with pytest.raises(ProcessLookupError):
            os.kill(links.pid, 0)


def emulator(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "services.links", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def test_what_is_not_a_control_object_is_answered_and_the_process_goes_on() -> None:
    """Broken JSON, arrays and an endless line get typed errors; an `id` comes back with its answer."""
    lines = [b"not json", b"[1]", b'{"op": "stats", "id": 7}', b"x" * 70_000]
    with emulator("--control") as process:
        out, err = process.communicate(b"\n".join(lines) + b"\n")
    answers = [json.loads(line) for line in out.splitlines()]
    assert answers[0] == {"event": "ready", "relays": {}}
    assert [answer["ok"] for answer in answers[1:]] == [False, False, True, False]
    assert answers[3] == {"ok": True, "result": {"relays": {}}, "id": 7}
    assert answers[4]["error"]["reason"] == "LIMIT_EXCEEDED"
    assert (process.returncode, err) == (0, b"")


def test_a_configuration_file_starts_relays_and_a_signal_ends_them(tmp_path: Path) -> None:
    """The ready line says where each relay listens; SIGTERM is an orderly end."""
    config = tmp_path / "links.json"
    config.write_text(json.dumps({"relays": [{"name": "a>b", "target": "127.0.0.1:9", "latency_ms": 20}]}))
    with emulator("--config", str(config)) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert list(ready["relays"]) == ["a>b"]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    config.write_text('{"relays": [{"name": "a>b"}]}')
    with emulator("--config", str(config)) as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith(b"INVALID_INPUT: target is None")


def test_the_process_does_not_outlive_a_killed_parent() -> None:
    """A parent that is killed closes the pipe, and the emulator ends by itself."""
    script = (
        "import asyncio, sys\n"
        "from services.links import LinksProcess\n"
        "async def main():\n"
        "    links = await LinksProcess.start()\n"
        "    print(links.pid, flush=True)\n"
        "    await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        parent.kill()
    while running(child_pid):
        time.sleep(POLL_S)


def running(pid: int) -> bool:
    """Whether the process exists and has not ended (an ended one may wait for its new parent to notice)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
