"""What leaves a node for one peer, when slices share the link to it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from orbitmesh.errors import TransportError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import SendReport
from orbitmesh.wire.session import Session
from services.executor.outbound import Outbound, Parcel


class SlowSlice:
    """A session in which one slice has to wait for its turn; each peer has one, however many ask."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.turn = asyncio.Event()

    async def send(self, info: wire_pb2.TransferInfo, data: bytes, *, codec: int) -> SendReport:
        if info.slice == "slow":
            await self.turn.wait()
        if info.blob.tag == 99:
            raise TransportError("lost")
        self.sent.append((info.slice, info.blob.tag))
        return SendReport(len(data), len(data), 1, 0, 0, 0, 0)


def parcel(name: str, tag: int, told: list[Any]) -> Parcel:
    info = wire_pb2.TransferInfo(slice=name, blob=wire_pb2.BlobInfo(tag=tag))
    return Parcel(info, b"data", wire_pb2.CODEC_RAW, told.append, told.append)


async def test_no_slice_waits_for_another_and_each_keeps_its_order() -> None:
    """While a slice waits for its turn, parcels of others leave; those of each slice leave in the order they were put;
    one that cannot be sent is told of and the next ones go; one session serves them all."""
    session, opened, told = SlowSlice(), 0, list[Any]()

    async def open_session() -> Session:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0)
        return cast("Session", session)

    outbound = Outbound("sat-2", open_session)
    for tag in range(4):
        for name in ("slow", "", "fast"):
            outbound.put(parcel(name, 99 if (name, tag) == ("slow", 1) else tag, told))

    async def until(count: int) -> None:
        while len(told) < count:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await until(8)
        assert [each for each in session.sent if each[0] == "slow"] == []
        session.turn.set()
        await until(12)
        outbound.put(parcel("slow", 4, told))
        await until(13)
    assert [tag for name, tag in session.sent if name == "slow"] == [0, 2, 3, 4]
    assert [tag for name, tag in session.sent if name == "fast"] == [0, 1, 2, 3]
    assert [tag for name, tag in session.sent if name == ""] == [0, 1, 2, 3]
    assert sum(isinstance(each, TransportError) for each in told) == 1
    assert opened == 1
    await outbound.close()
