"""What relays cost: round trips, throughput and the opening of a tunnel through 0 to 3 relays.

    python bench/relay.py            a table
    python bench/relay.py --json     the same for machines

Every node is a process of its own on loopback; all connections are mTLS, and through relays the connection from end to
end is TLS within TLS. Each round runs every number of relays, in an order shuffled anew. A round trip is a unary call
of 64 bytes, its figure the median of a round; throughput is 1 MiB calls, four at a time, one way; opening is the first
call on new connections to all nodes. The result of a figure is the median over the rounds with the least and the
greatest. The result is also written to bench/results/relay.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import session_peers as peers  # noqa: E402 - the paths come first

from orbitmesh.trust import IdentitySource, Role, init_mesh, issue  # noqa: E402
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc  # noqa: E402
from services.executor.relaying import RelayTable, known_peers  # noqa: E402
from services.runtime.channels import ChannelPool  # noqa: E402
from services.runtime.logs import EventLog  # noqa: E402
from services.runtime.server import ServiceHost  # noqa: E402
from services.runtime.tunnel import Hop  # noqa: E402

HERE = str(Path(__file__).resolve())
RESULTS = Path(__file__).resolve().parent / "results" / "relay.json"
RELAYS_MAX = 3
SMALL_BYTES = 64
LARGE_BYTES = 1 << 20
AT_A_TIME = 4
DEADLINE_S = 60.0


class Node(executor_pb2_grpc.ExecutorServiceServicer):
    """An executor without models."""

    def __init__(self, relays: RelayTable) -> None:
        self._relays = relays

    async def Relay(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Carries a connection of others."""
        await self._relays.serve(context)

    async def Probe(self, request: executor_pb2.ProbeRequest, context: Any) -> executor_pb2.ProbeResponse:  # noqa: N802
        """Echoes as much as is asked for."""
        return executor_pb2.ProbeResponse(payload=request.payload[: request.reply_bytes])


async def serve(identity: Path, ways: dict[str, str]) -> None:
    """A node with ways to its peers, until stdin closes; prints its port."""
    source = IdentitySource(identity)
    log = EventLog("bench")
    host = ServiceHost(source, log=log)
    pool = ChannelPool(source, ways)
    relays = RelayTable(source.current().name, pool, known_peers(ways, dict), log)
    host.add("orbitmesh.v1.ExecutorService", executor_pb2_grpc.add_ExecutorServiceServicer_to_server, Node(relays))
    print(await host.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await pool.close()
    await host.drain(0.1)


@asynccontextmanager
async def node(identity: Path, ways: dict[str, str]) -> AsyncIterator[Hop]:
    """A node in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HERE,
        "--serve",
        str(identity),
        json.dumps(ways),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield Hop(Role.EXECUTOR, identity.name, f"127.0.0.1:{port}")
    finally:
        process.stdin.close()
        await process.wait()


class Way:
    """Calls to the far node over some relays."""

    def __init__(self, source: IdentitySource, far: Hop, via: Sequence[Hop]) -> None:
        self._source = source
        self._far = far
        self._via = via
        self._pool = ChannelPool(source, {})
        self._stub = self._new_stub(self._pool)

    def _new_stub(self, pool: ChannelPool) -> executor_pb2_grpc.ExecutorServiceStub:
        return executor_pb2_grpc.ExecutorServiceStub(
            pool.get(Role.EXECUTOR, self._far.name, self._far.address, self._via)
        )

    async def opening_ms(self) -> float:
        """The first call on new connections from this process, in milliseconds."""
        pool = ChannelPool(self._source, {})
        started = time.perf_counter()
        await self._new_stub(pool).Probe(executor_pb2.ProbeRequest(), timeout=DEADLINE_S)
        taken_ms = (time.perf_counter() - started) * 1e3
        await pool.close()
        return taken_ms

    async def round_trip_us(self, trips: int) -> float:
        """The median of many round trips, in microseconds."""
        request = executor_pb2.ProbeRequest(payload=bytes(SMALL_BYTES), reply_bytes=SMALL_BYTES)
        times = []
        for _ in range(trips):
            started = time.perf_counter_ns()
            await self._stub.Probe(request, timeout=DEADLINE_S)
            times.append(time.perf_counter_ns() - started)
        return statistics.median(times) / 1e3

    async def rate_mb_s(self, megabytes: int) -> float:
        """One way, in MB/s."""
        request = executor_pb2.ProbeRequest(payload=random.randbytes(LARGE_BYTES))
        left = megabytes

        async def lane() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._stub.Probe(request, timeout=DEADLINE_S)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as lanes:
            for _ in range(AT_A_TIME):
                lanes.create_task(lane())
        return megabytes * LARGE_BYTES / 1e6 / (time.perf_counter() - started)

    async def close(self) -> None:
        """Ends the connections."""
        await self._pool.close()


async def measure(rounds: int, trips: int, megabytes: int) -> dict[str, Any]:
    """Runs all numbers of relays interleaved."""
    rng = random.Random(1)
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = init_mesh(home / "ca")

        def identity(name: str) -> Path:
            issue(ca, "executor", name, home / name)
            return home / name

        far = await stack.enter_async_context(node(identity("far"), {}))
        relays: list[Hop] = []
        known = {far.title: far.address}
        for number in range(RELAYS_MAX, 0, -1):
            relay = await stack.enter_async_context(node(identity(f"r{number}"), known))
            relays.insert(0, relay)
            known = {**known, relay.title: relay.address}
        source = IdentitySource(identity("near"))
        ways = {count: Way(source, far, relays[:count]) for count in range(RELAYS_MAX + 1)}
        figures: dict[str, dict[int, list[float]]] = {
            name: {count: [] for count in ways} for name in ("opening_ms", "round_trip_us", "rate_mb_s")
        }
        for number in range(rounds + 1):
            order = list(ways)
            rng.shuffle(order)
            for count in order:
                way = ways[count]
                opening = await way.opening_ms()
                trip, rate = await way.round_trip_us(trips), await way.rate_mb_s(megabytes)
                if number:  # the first round warms up
                    for name, value in (("opening_ms", opening), ("round_trip_us", trip), ("rate_mb_s", rate)):
                        figures[name][count].append(value)
        for way in ways.values():
            await way.close()
    summaries = {
        name: {str(count): peers.summary(values) for count, values in each.items()} for name, each in figures.items()
    }
    trips_us = [summaries["round_trip_us"][str(count)]["median"] for count in range(RELAYS_MAX + 1)]
    return {
        "command": shlex.join(["python", "bench/relay.py", *sys.argv[1:]]),
        "machine": peers.machine(),
        "rounds": rounds,
        "trips": trips,
        "megabytes": megabytes,
        "by_relays": summaries,
        "added_us_per_relay": (trips_us[-1] - trips_us[0]) / RELAYS_MAX,
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trips", type=int, default=300)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--serve", nargs=2, metavar=("IDENTITY", "WAYS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(Path(options.serve[0]), json.loads(options.serve[1])))
        return
    result = asyncio.run(measure(options.rounds, options.trips, options.megabytes))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print("relays   opening      round trip     throughput")
    for count in range(RELAYS_MAX + 1):
        opening, trip, rate = (
            result["by_relays"][name][str(count)]["median"] for name in ("opening_ms", "round_trip_us", "rate_mb_s")
        )
        print(f"{count:6} {opening:7.1f} ms {trip:11.0f} us {rate:9.0f} MB/s")
    print(f"a relay adds {result['added_us_per_relay']:.0f} us to a round trip")


if __name__ == "__main__":
    main()
