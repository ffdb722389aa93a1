"""Weather for emulated links: drawn from a seed, felt by connections, and over when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orbitmesh.errors import InvalidInputError, TransportError
from services.links import RelaySpec, chaos
from services.links.server import Links
from tests.links.support import connect, echo, serving

RELAYS = Path(__file__).parents[2] / "deploy" / "links.json"


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[tuple[Path, Path, dict[str, str]]]:
    """One as a process, with a control socket: its configuration, the socket, where its relays listen."""
    async with serving(echo) as target:
        config, socket = tmp_path / "links.json", tmp_path / "links.sock"
        relays = [{"name": name, "target": target, "latency_ms": 1} for name in ("sat-1>sat-2", "sat-2>sat-1")]
        config.write_text(json.dumps({"relays": relays}))
        words = ["-m", "services.links", "--config", str(config), "--control-socket", str(socket)]
        process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        try:
            yield config, socket, ready["relays"]
        finally:
            process.terminate()
            assert await process.wait() == 0


async def works(address: str) -> bool:
    """Whether a connection through a relay carries a word there and back."""
    try:
        reader, writer = await connect(address)
    except ConnectionError:
        return False
    with contextlib.suppress(ConnectionError):
        writer.write(b"word")
        answer = await reader.read(4)
        writer.close()
        return answer == b"word"
    return False


async def told(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return dict(json.loads(await process.stdout.readline()))


async def test_connections_feel_the_weather_and_it_is_over_when_it_ends(
    emulator: tuple[Path, Path, dict[str, str]],
) -> None:
    """While a node is gone nothing reaches it; after SIGTERM in the middle of that all is as it was configured."""
    config, socket, addresses = emulator
    assert all([await works(each) for each in addresses.values()])
    words = ["-m", "services.links.chaos", "--config", str(config), "--control-socket", str(socket)]
    words += ["--every-s", "0.01", "--for-s", "600", "--kinds", "gone"]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    # What an earlier one may have left behind is ended first.
    assert (await told(process))["event"] == "over"
    trouble = await told(process)
    assert (trouble["event"], trouble["kind"]) == ("trouble", "gone")
    assert not any([await works(each) for each in addresses.values()])
    process.send_signal(signal.SIGTERM)
    assert (await told(process))["event"] == "over"
    assert await process.wait() == 0
    assert all([await works(each) for each in addresses.values()])


def test_the_same_seed_is_the_same_weather() -> None:
    """And another seed another one; of the shipped links every kind comes, and no service is ever gone."""
    relays = chaos.load(RELAYS)
    weather = [list(itertools.islice(chaos.troubles(relays, seed), 200)) for seed in (1, 1, 2)]
    assert weather[0] == weather[1] != weather[2]
    assert {each.kind for each in weather[0]} == set(chaos.KINDS)
    gone = {each.where for each in weather[0] if each.kind == "gone"}
    assert gone == {"sat-1", "sat-2", "sat-3", "edge-1", "ground-1"}
    for each in weather[0]:
        assert each.relays and set(each.relays) <= set(relays)


def test_every_order_is_one_that_the_emulator_takes_and_a_remedy_undoes_it() -> None:
    """Told to the emulator itself: after the remedies each relay is as it was."""
    links = Links()
    try:
        specs = {}
        for name, given in chaos.load(RELAYS).items():
            fields = {"name": name, "target": "127.0.0.1:9", "latency_ms": 20, "rate_bps": 100e6}
            specs[name] = RelaySpec.parse(fields)
            links.perform({"op": "add", **fields})
            assert (given.forward.latency_ms, given.forward.rate_bps) == (20, 100e6)
        before = {name: links.perform({"op": "stats", "name": name}) for name in specs}
        for trouble in itertools.islice(chaos.troubles(specs, 1), 40):
            for request in chaos.orders(trouble, specs):
                links.perform(request)
            for request in chaos.remedies(trouble, specs):
                links.perform(request)
        assert {name: links.perform({"op": "stats", "name": name}) for name in specs} == before
    finally:
        links.close()


def test_an_emulator_that_is_not_there_or_refuses_is_an_error_with_a_type(tmp_path: Path) -> None:
    """Named, with what to do; a configuration without ways too."""
    with pytest.raises(TransportError, match="does not answer"):
        chaos.tell(tmp_path / "none.sock", [{"op": "stats"}])
    (tmp_path / "links.json").write_text('{"relays": []}')
    with pytest.raises(InvalidInputError, match="no relay that is called from>to"):
        chaos.load(tmp_path / "links.json")
