"""Rules of slices on a node: what is read from the service's word, and a real service that comes, changes and goes."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.executor.fairqueue import FairQueue, Share
from services.executor.kvcache import CachePool, CacheShare
from services.executor.measures import Machine
from services.executor.node import ExecutorNode
from services.executor.settings import ExecutorSettings
from services.executor.slicing import SliceRules, rules_for
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost

ACTIVE = slices_pb2.SLICE_STATE_ACTIVE


def slice_message(
    name: str,
    *,
    sst: int = 1,
    node: str = "near",
    reserved: dict[str, float] | None = None,
    state: slices_pb2.SliceState = ACTIVE,
    **shares: slices_pb2.SliceShare,
) -> slices_pb2.Slice:
    """A slice that has something on a node."""
    profile = slices_pb2.SliceProfile(snssai=slices_pb2.Snssai(sst=sst), shares=shares)
    allocation = slices_pb2.SliceAllocation(slice=name, node=node, served=1.0, resources=reserved or {})
    return slices_pb2.Slice(name=name, profile=profile, state=state, allocations=[allocation])


def told(*slices: slices_pb2.Slice) -> slices_pb2.WatchSlicesResponse:
    """What the service says of the node `near`."""
    capacity = {"CPU": 16.0, "GPU": 2.0, "MemoryGB": 64.0, "BandwidthGbps": 40.0}
    return slices_pb2.WatchSlicesResponse(
        slices=slices, nodes=[slices_pb2.SliceNode(name="near", capacity=capacity)], etag="1"
    )


def share(dedicated: float = 0.0, least: float = 0.0, most: float | None = None) -> slices_pb2.SliceShare:
    """A share as a message."""
    made = slices_pb2.SliceShare(dedicated=dedicated, min=least)
    if most is not None:
        made.max = most
    return made


def test_rules_are_the_shares_and_what_is_reserved() -> None:
    """What is reserved counts where it is more than the shares say; SST 2 goes first; each resource has its rule."""
    word = told(
        slice_message(
            "urgent", sst=2, reserved={"CPU": 4.0, "GPU": 0.2, "MemoryGB": 16.0},
            CPU=share(0.1, 0.2), GPU=share(0.0, 0.3), MemoryGB=share(0.1, 0.1, 0.5),
        ),
        slice_message("bulk", reserved={"CPU": 1.0}, CPU=share(0.0, 0.25, 0.5)),
        slice_message("elsewhere", node="far", CPU=share(0.0, 0.9)),
        slice_message("planned", state=slices_pb2.SLICE_STATE_DEFINED, CPU=share(0.0, 0.9)),
        slice_message("ending", state=slices_pb2.SLICE_STATE_RELEASING),
    )  # fmt: skip
    assert rules_for("near", word, accelerated=False) == SliceRules(
        {
            "urgent": Share(guaranteed=0.25, dedicated=0.1, first=True),
            "bulk": Share(guaranteed=0.25, ceiling=0.5),
            "ending": Share(),
        },
        {"urgent": CacheShare(0.25, 0.5), "bulk": CacheShare(), "ending": CacheShare()},
    )
    on_gpu = rules_for("near", word, accelerated=True)
    assert on_gpu.steps["urgent"] == Share(guaranteed=0.3, first=True)
    assert on_gpu.steps["bulk"] == Share()
    assert rules_for("near", slices_pb2.WatchSlicesResponse(), accelerated=False) == SliceRules()


NUMBERS = st.floats() | st.floats(0, 1)


@given(
    parts=st.lists(st.tuples(NUMBERS, NUMBERS, st.none() | NUMBERS, st.floats() | st.floats(0, 20)), max_size=6),
)
def test_whatever_is_told_the_rules_can_be_kept_or_are_refused(
    parts: list[tuple[float, float, float | None, float]],
) -> None:
    """Any numbers, NaN and infinities too: either a typed refusal, or rules that queue and pool take."""
    word = told(
        *(
            slice_message(
                f"s{index}", reserved={"CPU": reserved, "MemoryGB": reserved},
                CPU=share(dedicated, least, most), MemoryGB=share(dedicated, least, most),
            )
            for index, (dedicated, least, most, reserved) in enumerate(parts)
        )
    )  # fmt: skip
    try:
        rules = rules_for("near", word, accelerated=False)
    except InvalidInputError:
        return
    queue: FairQueue[int] = FairQueue()
    queue.set_rules(rules.steps, 0)
    assert len(rules.steps) == len(parts)
    pool = CachePool(1000, 1)
    pool.set_shares(rules.caches)
    assert sum(each.guaranteed for each in rules.caches.values()) <= 1 + 1e-9
    for number, name in enumerate(rules.steps):
        queue.put(number, name, 0)
    now = 0
    for _ in parts:
        while (entry := queue.take(now)) is None:
            ready = queue.next_ns(now)
            assert ready is not None
            assert ready > now
            now = ready
        queue.ended(entry, 1_000_000, now + 1_000_000)
        now += 1_000_000


def test_a_node_that_is_smaller_than_it_was_gives_each_slice_its_part() -> None:
    """16 cores are there and 16 and 8 were promised: 2 to 1 of them, and it is told how much was promised; a rounding
    above all of them is not worth a word."""
    before = told(*(slice_message(name, reserved={"CPU": cores}) for name, cores in (("a", 16.0), ("b", 8.0))))
    rules = rules_for("near", before, accelerated=False)
    assert [rules.steps[name].guaranteed for name in "ab"] == pytest.approx([2 / 3, 1 / 3])
    assert rules.overbooked == {"CPU": pytest.approx(1.5)}
    thirds = told(*(slice_message(name, reserved={"CPU": 16 / 3 + 1e-6}) for name in "abc"))
    rules = rules_for("near", thirds, accelerated=False)
    assert sum(each.guaranteed for each in rules.steps.values()) <= 1 + 1e-9
    assert not rules.overbooked


class Slices(slices_pb2_grpc.SlicesServiceServicer):
    """A service that tells what it is given."""

    def __init__(self, word: slices_pb2.WatchSlicesResponse) -> None:
        self.word = word
        self.asked: list[str] = []
        self.changed = asyncio.Event()

    def tell(self, word: slices_pb2.WatchSlicesResponse) -> None:
        self.word = word
        self.changed.set()

    async def WatchSlices(  # noqa: N802
        self, request: slices_pb2.WatchSlicesRequest, context: Any
    ) -> AsyncIterator[slices_pb2.WatchSlicesResponse]:
        self.asked.append(request.node)
        while True:
            self.changed.clear()
            yield self.word
            await self.changed.wait()


@asynccontextmanager
async def serving(identity: Path, slices: Slices, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The service, with certificates and the authorization table of any other."""
    host = ServiceHost(IdentitySource(identity), listen=listen, log=EventLog("slices", stream=io.StringIO()))
    host.add("orbitmesh.v1.SlicesService", slices_pb2_grpc.add_SlicesServiceServicer_to_server, slices)
    await host.start()
    try:
        yield f"127.0.0.1:{host.port}"
    finally:
        await host.server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the watched objects offer no event
            await asyncio.sleep(0.005)


def names(log: io.StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in log.getvalue().splitlines()]


async def test_a_node_keeps_to_the_slices_as_they_are_and_to_the_last_while_the_service_is_away(tmp_path: Path) -> None:
    """Rules come, change and go with the service's word; wrong ones and an absent service leave those that are; a step
    that waits meanwhile is run."""
    ca = init_mesh(tmp_path / "ca")
    issue(ca, Role.EXECUTOR, "near", tmp_path / "near")
    issue(ca, Role.SLICES, "slices", tmp_path / "slices")
    log = io.StringIO()
    machine = Machine(cores=1, memory_bytes=1 << 30, flops=1e9, memory_bandwidth=1e9, accelerators=())
    slices = Slices(told(slice_message("urgent", sst=2, CPU=share(0, 0.4), MemoryGB=share(0, 0.1, 0.5))))
    async with serving(tmp_path / "slices", slices) as address:
        settings = ExecutorSettings(
            identity=tmp_path / "near", listen="127.0.0.1:0", state=tmp_path / "state", scheduler="127.0.0.1:9",
            slices=address,
        )  # fmt: skip
        node = ExecutorNode(settings, IdentitySource(settings.identity), machine, EventLog("near", stream=log))
        following = asyncio.create_task(node.follow_slices())
        await until(lambda: bool(node.rules.steps))
        first = SliceRules({"urgent": Share(guaranteed=0.4, first=True)}, {"urgent": CacheShare(0.1, 0.5)})
        assert node.rules == first
        assert slices.asked == ["near"]
        slices.tell(told(slice_message("urgent", CPU=share(0, 0.9, 0.5))))
        await until(lambda: "slices_not_taken" in names(log))
        assert node.rules == first
    await until(lambda: "slices_out_of_reach" in names(log))
    assert node.rules == first
    go, ran = threading.Event(), []
    node.engine.submit(lambda: go.wait(60), lambda done: None, slice_name="bulk")
    for number in range(3):
        node.engine.submit(lambda number=number: ran.append(number), lambda done: None, slice_name="urgent")  # type: ignore[misc]
    slices.word = told(slice_message("bulk", CPU=share(0, 0.2, 0.3)))
    async with serving(tmp_path / "slices", slices, address):
        await until(lambda: set(node.rules.steps) == {"bulk"})
        slices.tell(told())
        await until(lambda: not node.rules.steps)
        go.set()
        await until(lambda: node.engine.waiting == 0)
        assert ran == [0, 1, 2]
        following.cancel()
    assert names(log).count("slices_out_of_reach") == 1
    await node.close()
