"""The way out of a node: it keeps to the slices that it is told of, and lets all pass while there are none."""

from __future__ import annotations

import asyncio

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from orbitmesh.wire.egress import Turn
from services.egress import NodeEgress
from services.egress.port import USED
from tests.egress.test_rules import node, slice_

GBPS = 0.01


def told(*slices: slices_pb2.Slice) -> slices_pb2.WatchSlicesResponse:
    return slices_pb2.WatchSlicesResponse(nodes=[node(gbps=GBPS)], slices=slices)


async def test_without_slices_everything_passes_at_once() -> None:
    """Before it was told anything, and where no slice has bandwidth on the node, nothing waits and frames are whole."""
    egress = NodeEgress("node-42")
    for _ in range(2):
        turns = [egress.ask("any", 1 << 20) for _ in range(100)]
        assert all(isinstance(turn, Turn) and turn.waited_ns == 0 for turn in turns)
        assert egress.frame_bytes("any") == 1 << 20
        egress.take(told(slice_("elsewhere", 0.001, at="node-7"), slice_("only CPU", 0.0)))
    assert egress.spec is None


async def test_rules_come_and_go_and_nothing_overtakes() -> None:
    """With a slice, frames have their turn at the rate of the node; once it is gone, what waits still goes in order,
    and only then is everything let through again."""
    egress = NodeEgress("node-42")
    egress.take(told(slice_("a", GBPS / 2)))
    assert egress.spec is not None
    assert egress.spec.rate_bps == pytest.approx(GBPS * 1e9 * USED)
    order: list[int] = []

    async def send(number: int) -> None:
        asked = egress.ask("a", 10_000)
        if not isinstance(asked, Turn):
            await asked
        order.append(number)

    before = [asyncio.create_task(send(number)) for number in range(5)]
    await asyncio.sleep(0)
    egress.take(told())
    assert egress.spec is None
    after = [asyncio.create_task(send(number)) for number in range(5, 8)]
    await asyncio.gather(*before, *after)
    assert order == list(range(8))
    assert isinstance(egress.ask("a", 10_000), Turn)
    traffic = egress.traffic
    assert sum(each.sent_bytes for each in traffic.values()) == 80_000


async def test_a_word_that_contradicts_itself_changes_nothing() -> None:
    """Rules that cannot be are refused, and those of before hold."""
    egress = NodeEgress("node-42")
    egress.take(told(slice_("a", GBPS / 2)))
    before = egress.spec
    with pytest.raises(InvalidInputError):
        egress.take(told(slice_("a", float("nan"))))
    assert egress.spec == before
