"""How fast 64 MiB tensors cross one mTLS connection: ours sealed and unsealed, Arrow Flight, plain gRPC.

    python bench/wire.py            a table
    python bench/wire.py --json     the same for machines

Client and server are two processes on loopback. Each round sends the same tensors by every variant, in an
order shuffled anew, and waits until the receiver holds each tensor whole (`flight` alone only passes over its batches;
`whole flight` puts them together, as a receiver that computes must); figures
are medians over the rounds with the least and the greatest, in MB (10^6 bytes) per second. The result is also
written to bench/results/wire.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
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

RESULTS = Path(__file__).resolve().parent / "results" / "wire.json"
TENSOR_BYTES = 64 << 20
TENSORS = 3
BATCH_BYTES = 1 << 20
WHOLE = "whole flight"
"""Flight whose server puts a tensor together in one piece of memory, as ours and plain gRPC do."""
FLIGHT_BATCHES = (1 << 20, 4 << 20, 64 << 20)
TARGET_FLIGHT = 0.7
TARGET_TAX = 0.20

Send = Callable[[], Awaitable[None]]


async def ours(
    stack: AsyncExitStack, one: Identity, two: Identity, data: memoryview, *, sealed: bool
) -> Send:
    """Sends tensors in a session."""
    port = await stack.enter_async_context(peers.peer(peers.SEALED if sealed else peers.UNSEALED, two))
    session = await stack.enter_async_context(peers.our_session(port, one, sealed=sealed))
    info = wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_UINT8, shape=[len(data)]),
        blob=wire_pb2.BlobInfo(tag=peers.SINK_TAG),
    )

    async def send() -> None:
        await session.send(info, data)
        await session.receive()

    return send


async def plain(stack: AsyncExitStack, one: Identity, two: Identity, data: memoryview) -> Send:
    """Sends tensors as 1 MiB messages of a bare bidirectional stream."""
    port = await stack.enter_async_context(peers.peer(peers.GRPC, two))
    channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}", one, Role.EXECUTOR, "two"))
    call = channel.stream_stream("/bench.Plain/Sink")(metadata=(("size", str(len(data))),))
    stack.callback(call.cancel)

    async def send() -> None:
        for at in range(0, len(data), BATCH_BYTES):
            await call.write(bytes(data[at : at + BATCH_BYTES]))
        await call.write(b"")
        await call.read()

    return send


async def flight(
    stack: AsyncExitStack, one: Identity, two: Identity, data: memoryview, batch_bytes: int, *, together: bool
) -> Send:
    """Sends tensors by DoPut as record batches of one column, zero-copy at the sender."""
    import pyarrow
    from pyarrow import flight as arrow_flight

    port = await stack.enter_async_context(peers.peer(peers.FLIGHT, two))
    client = arrow_flight.FlightClient(
        f"grpc+tls://127.0.0.1:{port}",
        tls_root_certs=one.ca_pem,
        cert_chain=one.tls_cert_pem,
        private_key=one.tls_key_pem,
        override_hostname=two.dns,
        generic_options=[("grpc.max_send_message_length", -1)],
    )
    schema = pyarrow.schema([("data", pyarrow.uint8())])
    batches = []
    for at in range(0, len(data), batch_bytes):
        piece = pyarrow.py_buffer(data[at : at + batch_bytes])
        column = pyarrow.Array.from_buffers(pyarrow.uint8(), piece.size, [None, piece])
        batches.append(pyarrow.record_batch([column], schema=schema))
    command = b"%s %d" % (b"together" if together else b"apart", len(data))
    writer, reader = client.do_put(arrow_flight.FlightDescriptor.for_command(command), schema)
    stack.callback(client.close)
    stack.callback(writer.close)

    def put() -> None:
        for batch in batches[:-1]:
            writer.write_batch(batch)
        writer.write_with_metadata(batches[-1], b"end")
        reader.read()

    async def send() -> None:
        # Flight's own threads do the work; nothing else runs in this process meanwhile.
        put()

    return send


async def measure(rounds: int) -> dict[str, Any]:
    """Runs all variants interleaved."""
    rng = random.Random(1)
    data = memoryview(rng.randbytes(1 << 20) * (TENSOR_BYTES >> 20))
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = init_mesh(home / "ca")
        one, two = issue(ca, "executor", "one", home / "one"), issue(ca, "executor", "two", home / "two")
        variants: dict[str, Send] = {
            "ours": await ours(stack, one, two, data, sealed=True),
            "ours unsealed": await ours(stack, one, two, data, sealed=False),
            "plain grpc.aio": await plain(stack, one, two, data),
        }
        for size in FLIGHT_BATCHES:
            variants[f"flight {size >> 20} MiB"] = await flight(stack, one, two, data, size, together=False)
            variants[f"{WHOLE} {size >> 20} MiB"] = await flight(stack, one, two, data, size, together=True)
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            order = list(variants)
            rng.shuffle(order)
            for name in order:
                started = time.perf_counter()
                for _ in range(TENSORS):
                    await variants[name]()
                if number:  # the first round warms up
                    rates[name].append(TENSORS * TENSOR_BYTES / (time.perf_counter() - started) / 1e6)
    return report(rates, rounds)


def report(rates: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    """The figures, and whether they reach their targets."""
    medians = {name: peers.summary(values) for name, values in rates.items()}

    def best(prefix: str) -> str:
        return max((name for name in rates if name.startswith(prefix)), key=lambda name: medians[name]["median"])

    like, fastest = best(WHOLE), best("flight")
    of_flight = medians["ours"]["median"] / medians[like]["median"]
    tax = 1 - medians["ours"]["median"] / medians["ours unsealed"]["median"]
    return {
        "command": shlex.join(["python", "bench/wire.py", *sys.argv[1:]]),
        "machine": peers.machine(),
        "tensor_bytes": TENSOR_BYTES,
        "rounds": rounds,
        "rate_mb_s": medians,
        "raw_mb_s": rates,
        "flight_like_for_like": like,
        "ours_of_flight": of_flight,
        "fastest_flight": fastest,
        "ours_of_fastest_flight": medians["ours"]["median"] / medians[fastest]["median"],
        "ours_of_flight_target": TARGET_FLIGHT,
        "aead_tax": tax,
        "aead_tax_target": TARGET_TAX,
        # Judged by the faster Flight, though it puts no tensor together: the aim names no easier one.
        "reached": medians["ours"]["median"] >= TARGET_FLIGHT * medians[fastest]["median"] and tax <= TARGET_TAX,
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    result = asyncio.run(measure(options.rounds))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, each in sorted(result["rate_mb_s"].items(), key=lambda item: -item[1]["median"]):
        print(f"{name:16} {each['median']:7.0f} MB/s   ({each['min']:.0f} to {each['max']:.0f})")
    print(f"ours / {result['flight_like_for_like']}: {result['ours_of_flight']:.2f} (at least {TARGET_FLIGHT})")
    print(f"ours / {result['fastest_flight']}: {result['ours_of_fastest_flight']:.2f}")
    print(f"AEAD tax: {result['aead_tax']:.1%} (at most {TARGET_TAX:.0%})")


if __name__ == "__main__":
    main()
