"""What the tests of links share: servers, connections, plans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint, MeshClock

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
POLL_S = 0.005
EPOCH_S = 1_700_000_000.0
"""The mesh time at which the plans of these tests begin."""


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """A server on a port of its own; its `host:port`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - the condition is another thread's or process's
        await asyncio.sleep(POLL_S)


def contact(
    source: str,
    target: str,
    start_s: float,
    end_s: float,
    *,
    rate_bps: float = 1e9,
    latency_s: tuple[float, ...] = (0.001,),
    acquisition_s: float = 0.0,
) -> Contact:
    """A contact by seconds after `EPOCH_S`; its latencies are spread evenly over it."""
    steps = max(len(latency_s) - 1, 1)
    corners = [start_s + (end_s - start_s) * step / steps for step in range(len(latency_s))]
    corners[-1] = end_s if len(latency_s) > 1 else start_s
    points = tuple(LatencyPoint(EPOCH_S + at_s, value) for at_s, value in zip(corners, latency_s, strict=True))
    return Contact(source, target, EPOCH_S + start_s, EPOCH_S + end_s, rate_bps, points, acquisition_s=acquisition_s)


def both_ways(start_s: float, end_s: float, **how: object) -> tuple[Contact, Contact]:
    """The same contact from a to b and from b to a."""
    return contact("a", "b", start_s, end_s, **how), contact("b", "a", start_s, end_s, **how)  # type: ignore[arg-type]


def plan_of(*contacts: Contact, span_s: float = 100_000.0) -> ContactPlan:
    return ContactPlan(EPOCH_S, EPOCH_S + span_s, contacts)


def clock_from(mesh_s: float = 0.0, factor: float = 1.0) -> MeshClock:
    """A clock on which it is now so many seconds after `EPOCH_S`."""
    return MeshClock(EPOCH_S + mesh_s, time.time(), factor)
