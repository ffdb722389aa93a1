"""How long 64 floats take there and back: ours sealed over mTLS, torch RPC in the clear, plain gRPC.

    python bench/hop.py            a table
    python bench/hop.py --json     the same for machines

Client and server are two processes on loopback; the gRPC ones speak mTLS. Each round runs every variant for a
number of round trips, in an order shuffled anew; a round's figure is the median of its round trips, the
result the median over the rounds with the least and the greatest, in microseconds. `torch rpc` is
torch.distributed.rpc (TensorPipe, as it chooses its channels itself, no encryption), measured in a process of
its own that takes part in the same rounds. The result is also written to bench/results/hop.json.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import os
import random
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import wire_pb2

sys.path.insert(0, str(Path(__file__).resolve().parent))
import session_peers as peers

RESULTS = Path(__file__).resolve().parent / "results" / "hop.json"
HERE = str(Path(__file__).resolve())
FLOATS = 64
TARGET_TORCH = 1.0

Round = Callable[[int], Awaitable[float]]


def timed(trip: Callable[[], Awaitable[object]]) -> Round:
    """The median of many round trips, in microseconds."""

    async def round_(trips: int) -> float:
        times = []
        for _ in range(trips):
            started = time.perf_counter_ns()
            await trip()
            times.append(time.perf_counter_ns() - started)
        return statistics.median(times) / 1e3

    return round_


async def ours(stack: AsyncExitStack, one: Identity, two: Identity, data: bytes) -> Round:
    """A transfer there and one back in a session."""
    port = await stack.enter_async_context(peers.peer(peers.SEALED, two))
    session = await stack.enter_async_context(peers.our_session(port, one, sealed=True))
    info = wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[FLOATS]),
        blob=wire_pb2.BlobInfo(tag=peers.ECHO_TAG),
    )

    async def trip() -> None:
        await session.send(info, data)
        await session.receive()

    return timed(trip)


async def plain(stack: AsyncExitStack, one: Identity, two: Identity, data: bytes) -> tuple[Round, Round]:
    """A bare unary call, and a message there and back on a bare bidirectional stream."""
    port = await stack.enter_async_context(peers.peer(peers.GRPC, two))
    channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}", one, Role.EXECUTOR, "two"))
    unary = channel.unary_unary("/bench.Plain/Unary")
    call = channel.stream_stream("/bench.Plain/Bidi")()
    stack.callback(call.cancel)

    async def bidi() -> None:
        await call.write(data)
        await call.read()

    async def call_once() -> None:
        await unary(data)

    return timed(call_once), timed(bidi)


async def torch_rpc(stack: AsyncExitStack, two: Identity) -> Round:
    """torch.distributed.rpc: `torch.add` of 64 floats with 0 at the other worker, and the sum back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    await stack.enter_async_context(peers.peer(peers.TORCH, two, [port]))
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        HERE,
        "--torch-client",
        port,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    stdin, stdout = client.stdin, client.stdout

    async def stop() -> None:
        stdin.write(b"0\n")
        await stdin.drain()
        await client.wait()

    stack.push_async_callback(stop)
    await stdout.readline()

    async def round_(trips: int) -> float:
        stdin.write(b"%d\n" % trips)
        await stdin.drain()
        return float(await stdout.readline())

    return round_


def torch_client(port: str) -> None:
    """The measuring worker of torch RPC: reads how many round trips to make, prints their median."""
    import torch
    from torch.distributed import rpc

    torch.set_num_threads(1)
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{port}", num_worker_threads=2)
    rpc.init_rpc("client", rank=0, world_size=2, rpc_backend_options=options)
    data = torch.zeros(FLOATS)
    print("ready", flush=True)
    while trips := int(sys.stdin.readline()):
        times = []
        for _ in range(trips):
            started = time.perf_counter_ns()
            rpc.rpc_sync("server", torch.add, args=(data, 0))
            times.append(time.perf_counter_ns() - started)
        print(statistics.median(times) / 1e3, flush=True)
    rpc.shutdown()


async def measure(rounds: int, trips: int) -> dict[str, Any]:
    """Runs all variants interleaved."""
    data = array.array("f", range(FLOATS)).tobytes()
    rng = random.Random(1)
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = init_mesh(home / "ca")
        one, two = issue(ca, "executor", "one", home / "one"), issue(ca, "executor", "two", home / "two")
        variants = {"torch rpc": await torch_rpc(stack, two), "ours": await ours(stack, one, two, data)}
        variants["plain grpc.aio unary"], variants["plain grpc.aio bidi"] = await plain(stack, one, two, data)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            order = list(variants)
            rng.shuffle(order)
            for name in order:
                figure = await variants[name](trips)
                if number:  # the first round warms up
                    times[name].append(figure)
    summaries = {name: peers.summary(values) for name, values in times.items()}
    ratio = summaries["ours"]["median"] / summaries["torch rpc"]["median"]
    return {
        "command": shlex.join(["python", "bench/hop.py", *sys.argv[1:]]),
        "machine": peers.machine(),
        "floats": FLOATS,
        "rounds": rounds,
        "trips": trips,
        "round_trip_us": summaries,
        "raw_us": times,
        "ours_of_torch": ratio,
        "ours_of_torch_target": TARGET_TORCH,
        "reached": ratio <= TARGET_TORCH,
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--trips", type=int, default=500)
    parser.add_argument("--torch-client", metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch_client:
        os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
        torch_client(options.torch_client)
        return
    result = asyncio.run(measure(options.rounds, options.trips))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, each in sorted(result["round_trip_us"].items(), key=lambda item: item[1]["median"]):
        print(f"{name:22} {each['median']:7.0f} us   ({each['min']:.0f} to {each['max']:.0f})")
    print(f"ours / torch rpc: {result['ours_of_torch']:.2f} (at most {TARGET_TORCH})")


if __name__ == "__main__":
    main()
