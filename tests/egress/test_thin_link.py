"""Real processes: an emulated link that is thinner than the node behind it, and sealed sessions over gRPC on it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import slices_pb2, wire_pb2
from orbitmesh.wire.egress import Egress
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import dial, open_exchange
from services.egress import FarEgress, NodeEgress
from services.links import LinksProcess, RelaySpec, Shape
from tests.egress.test_node_links import told, urgent
from tests.egress.test_rules import slice_
from tests.wire.test_session_over_grpc import serving

LINK_BPS = 10e6
NODE_GBPS = 1.0
BULK = 40
WITHIN_S = 60.0


@dataclass
class Receiver:
    """The other end: what came, in order, and when."""

    arrived: list[tuple[str, int, float]] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)

    async def __call__(self, session: Session) -> None:
        async for received in session:
            name = received.info.slice
            self.arrived.append((name, received.info.blob.tag, received.received_ns / 1e9))
            self.bytes[name] = self.bytes.get(name, 0) + received.wire_bytes


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    home: Path = tmp_path_factory.mktemp("identities")
    ca = init_mesh(home / "ca")
    people = (("executor", "sat-1"), ("executor", "sat-2"), ("gateway", "gateway"), ("aggregator", "aggregator"))
    return {name: issue(ca, role, name, home / name) for role, name in people}


@asynccontextmanager
async def over_a_thin_link(
    one: Identity, two: Identity, egress: Egress
) -> AsyncIterator[tuple[Session, Receiver]]:
    """A session over an emulated link of 10 Mbit/s."""
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        port, _ = await stack.enter_async_context(serving(two, receiver))
        links = await stack.enter_async_context(await LinksProcess.start())
        shape = Shape(5.0, LINK_BPS)
        address = await links.add(RelaySpec("thin", f"127.0.0.1:{port}", forward=shape, reverse=shape))
        channel = await stack.enter_async_context(open_channel(address, one, Role.EXECUTOR, two.name))
        session = await dial(
            open_exchange(channel), one, receiver_role="executor", receiver_name=two.name, egress=egress,
            silence_s=WITHIN_S, give_up_after_s=WITHIN_S,
        )  # fmt: skip
        stack.push_async_callback(session.close)
        await session.send(wire_pb2.TransferInfo(slice="warm"), b"up")
        await session.flush()
        yield session, receiver


def info(name: str, tag: int) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(slice=name, blob=wire_pb2.BlobInfo(tag=tag))


async def overtaken(session: Session, receiver: Receiver, size: int) -> tuple[int, int]:
    """Bulk of one frame each, all at once, and a message: how many of them arrived between its sending and its
    arrival, and how many in all."""
    bulk = [asyncio.create_task(session.send(info("embb", tag), bytes(size))) for tag in range(BULK)]
    async with asyncio.timeout(WITHIN_S):
        while not any(name == "embb" for name, _, _ in receiver.arrived):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        before = len(receiver.arrived)
        await session.send(info("urllc", 0), b"now")
        await asyncio.gather(*bulk)
        await session.flush()
        while len(receiver.arrived) < BULK + 2:  # noqa: ASYNC110 - with the one that opened the link
            await asyncio.sleep(0.005)
    names = [name for name, _, _ in receiver.arrived]
    return names.index("urllc") - before, len(names) - before


async def test_an_urgent_message_waits_for_a_frame_of_the_thin_link_not_for_all_bulk(
    identities: dict[str, Identity],
) -> None:
    """The node sends 1 Gbit/s, the link carries a hundredth: where the link is known, a message of an urgent slice
    arrives after a few frames of it; where it is not, after all that others had sent before."""
    slices = slice_("embb", NODE_GBPS / 2), urgent("urllc", NODE_GBPS / 20)
    waited = {}
    for known in (True, False):
        egress = NodeEgress("node-42")
        rates: dict[str, list[tuple[float | None, float]]] = {"sat-2": [(None, LINK_BPS / 1e9)]} if known else {}
        egress.take(told(*slices, gbps=NODE_GBPS, **rates))
        way = egress.towards("sat-2")
        one, two = identities["sat-1"], identities["sat-2"]
        async with over_a_thin_link(one, two, way) as (session, receiver):
            waited[known], _ = await overtaken(session, receiver, 14_000)
        egress.close()
    # One on the link, one that has left before it, and those on their way: 5 ms of latency and what a machine is late.
    assert waited[True] <= 6, waited
    assert waited[False] >= 20, waited


@pytest.mark.parametrize("who", ["gateway", "aggregator"])
async def test_what_a_service_sends_to_a_node_keeps_the_ceiling_of_its_slice(
    identities: dict[str, Identity], who: str
) -> None:
    """A slice with 10 % of the node, offered without end over the link, has no more than that of it in any second, but
    for what the machine held up; the report says what it waited for; other traffic has the rest."""
    share = slices_pb2.SliceShare()
    share.max = 0.1
    message = told(slice_("capped", NODE_GBPS / 20, share=share, at="sat-2"))
    message.nodes.append(slices_pb2.SliceNode(name="sat-2", capacity={"BandwidthGbps": NODE_GBPS}))
    link = message.links.add(to="sat-2")
    link.rates.add(gbps=LINK_BPS / 1e9)
    egress = FarEgress()
    egress.take(message)
    way = egress.towards("sat-2")
    ceiling_bps = 0.1 * LINK_BPS * 0.97
    async with over_a_thin_link(identities[who], identities["sat-2"], way) as (session, receiver):
        until_s = time.monotonic() + 4.0
        whys: set[str] = set()

        async def without_end(name: str, size: int) -> None:
            for tag in itertools.count():
                if time.monotonic() >= until_s:
                    return
                report = await session.send(info(name, tag), bytes(size))
                if name == "capped" and report.queue_ns:
                    whys.add(report.waited_for)

        await asyncio.gather(*(without_end("capped", 600) for _ in range(4)), without_end("", 14_000))
        await session.flush()
    assert "slice ceiling 970 kbit/s" in whys <= {"slice ceiling 970 kbit/s", "link busy"}
    traffic = egress.traffic["capped"]
    arrivals = sorted(at_s for name, _, at_s in receiver.arrived if name == "capped")
    size = traffic.sent_bytes / traffic.frames
    most = max(sum(1 for at_s in arrivals if start <= at_s < start + 1.0) for start in arrivals)
    # What the machine held up arrives together: a tenth of a second of it is left to that.
    assert most * size * 8 <= ceiling_bps * 1.12 + size * 8
    assert traffic.sent_bytes * 8 <= ceiling_bps * (arrivals[-1] - arrivals[0] + 0.5)
    assert traffic.sent_bytes >= receiver.bytes["capped"]
    assert receiver.bytes[""] > 3 * receiver.bytes["capped"]
    egress.close()
