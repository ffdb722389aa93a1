"""Where the nodes come from: a real scheduler's, with heartbeats as executors send them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.rpc import open_channel
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from orbitmesh.v1 import slices_pb2 as pb
from services.runtime.channels import ChannelPool
from services.slices.nodes import Nodes
from services.slices.settings import SlicesSettings, bandwidths
from tests.slices.support import WAIT_S, make_active, serving


@contextlib.asynccontextmanager
async def scheduler(pki: Path, state: Path) -> AsyncIterator[str]:
    """A scheduler's process; gives where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.scheduler", "--identity", str(pki / "scheduler-scheduler"),
        "--listen", "127.0.0.1:0", "--state", str(state), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            while "listening" not in (line := (await process.stderr.readline()).decode()):
                assert line, "the scheduler ended"
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found is not None
        yield found.group(0)
    finally:
        process.kill()
        await process.communicate()


async def test_nodes_are_those_of_the_scheduler(pki: Path, tmp_path: Path) -> None:
    """With what their heartbeats measure and the bandwidth of the settings; one that leaves stays, absent, for as long
    as something is reserved there; and without the scheduler all stays as it was."""
    settings = SlicesSettings(
        pki / "slices-slices", "", tmp_path, "", bandwidth=("node-1=2.5",), default_bandwidth=0.25
    )
    identity = IdentitySource(pki / "executor-node-1").current()
    async with serving(pki, tmp_path / "slices") as service:
        await service.see({})
        channels = ChannelPool(IdentitySource(pki / "slices-slices"), {})
        async with scheduler(pki, tmp_path / "scheduler") as address:
            nodes = Nodes(
                channels, address, "scheduler", bandwidths(settings), service.keeper, service.host.log
            )
            await nodes.refresh()
            assert service.keeper.whole.book.nodes == {}
            async with open_channel(address, identity, Role.SCHEDULER, "scheduler") as channel:
                call = scheduler_pb2_grpc.SchedulerServiceStub(channel).Heartbeat()
                gpus = [scheduler_pb2.Accelerator(name="x", memory_bytes=1)] * 2
                beat = scheduler_pb2.HeartbeatRequest(
                    address="127.0.0.1:9", kind="edge", cores=8, memory_total_bytes=16 * 10**9, accelerators=gpus
                )
                await call.write(beat)
                await call.read()
                await nodes.refresh()
                olga = await service.client("operator-olga")
                [node] = (await olga("ListSlices", pb.ListSlicesRequest())).nodes
                assert dict(node.capacity) == {"CPU": 8, "GPU": 2, "MemoryGB": 16, "BandwidthGbps": 2.5}
                assert not node.absent
                await make_active(olga, "a")
                await call.done_writing()
                await call.read()
            await nodes.refresh()
            [node] = (await olga("ListSlices", pb.ListSlicesRequest())).nodes
            assert node.absent
            assert node.reserved["CPU"] == 4
        with pytest.raises(MeshError):
            await nodes.refresh()
        assert (await olga("ListSlices", pb.ListSlicesRequest())).nodes == [node]
        await channels.close()


@pytest.mark.parametrize("entry", ["node-1", "=3", "node-1=", "node-1=fast", "node-1=-1", "node-1=nan", "node-1=inf"])
def test_a_bandwidth_that_is_none_is_refused(entry: str, tmp_path: Path) -> None:
    """When the service starts, and with the entry's own text."""
    with pytest.raises(InvalidInputError):
        bandwidths(SlicesSettings(tmp_path, "", tmp_path, "", bandwidth=(entry,)))
