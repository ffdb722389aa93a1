"""A slices service is killed in the middle of requests, again and again: nothing that it acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from orbitmesh.errors import CapacityError, MeshError
from orbitmesh.rpc import open_channel
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import slices_pb2 as pb
from orbitmesh.v1 import slices_pb2_grpc
from services.slices.amounts import exact
from services.slices.book import seen
from services.slices.changes import Whole, changes
from services.slices.store import Memory, SliceStore
from services.slices.values import Node
from tests.slices.recount import over_commitments
from tests.slices.support import NODES, WAIT_S, Client, a_profile, at, make_active

LIVES = 5


def with_nodes(state: Path) -> None:
    """A state that knows nodes: there is no scheduler in this test."""
    store = SliceStore(at(state))
    whole = store.load()
    nodes = {name: Node(exact(has)) for name, has in NODES.items()}
    store.save(changes(whole, Whole(seen(whole.book, nodes), whole.totals)), Memory())
    store.close()


@contextlib.asynccontextmanager
async def running(pki: Path, state: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of the service, and where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.slices", "--identity", str(pki / "slices-slices"), "--listen", "127.0.0.1:0",
        "--state", str(state), "--scheduler", "127.0.0.1:9", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                line = (await process.stderr.readline()).decode()
                assert line, "the service ended"
                if "listening" in line:
                    break
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        said = asyncio.ensure_future(_drop(process.stderr))
        yield process, found.group(0)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if said is not None:
            await said


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


class Story:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.admitted: dict[str, bytes] = {}
        self.withdrawn: set[str] = set()
        self.defined: dict[str, str] = {}
        self.count = 0
        self.unheard = 0

    async def work(
        self, client: Client, until: asyncio.Event, done: asyncio.Semaphore, chance: random.Random
    ) -> None:
        """Admits, gives back and defines, until the service is gone; says so of each piece of work."""
        while not until.is_set():
            self.count += 1
            number = self.count
            try:
                if number % 10 == 0:
                    request = pb.DefineSliceRequest(name=f"s{number}", profile=a_profile(), request_id=f"d{number}")
                    self.defined[f"s{number}"] = (await client("DefineSlice", request)).slice.etag
                    continue
                admit = pb.AdmitRequest(slice="a", resources={"CPU": 0.001}, request_id=f"w{number}")
                self.admitted[f"w{number}"] = (await client("Admit", admit)).SerializeToString()
                done.release()
                if chance.random() < 0.5:
                    await client("Withdraw", pb.WithdrawRequest(request_id=f"w{number}"))
                    self.withdrawn.add(f"w{number}")
            except CapacityError:
                await asyncio.sleep(0.01)
            except MeshError:
                self.unheard += 1
                return


async def test_nothing_that_was_acknowledged_is_lost(pki: Path, tmp_path: Path) -> None:
    """After every kill -9 the slices are there with the etags that were told, work that was admitted gets the same
    answer when it asks again, and of what was given back nothing is left."""
    with_nodes(tmp_path)
    story, chance = Story(), random.Random(1)
    identity = IdentitySource(pki / "operator-olga").current()
    for life in range(LIVES):
        async with (
            running(pki, tmp_path) as (process, address),
            open_channel(address, identity, Role.SLICES, "slices") as channel,
        ):
            client = Client(slices_pb2_grpc.SlicesServiceStub(channel))
            if life == 0:
                await make_active(client, "a", max_number_of_ues=100_000)
            await check(client, story)
            gone, enough = asyncio.Event(), asyncio.Semaphore(0)
            workers = [asyncio.ensure_future(story.work(client, gone, enough, chance)) for _ in range(8)]
            async with asyncio.timeout(WAIT_S):
                for _ in range(40 + chance.randrange(60)):
                    await enough.acquire()
            process.send_signal(signal.SIGKILL)
            gone.set()
            await asyncio.gather(*workers)
    assert len(story.withdrawn) > 20
    store = SliceStore(at(tmp_path))
    assert over_commitments(store.load().book) == []
    store.close()


async def check(client: Client, story: Story) -> None:
    """Compares what is there with what was acknowledged."""
    listed = await client("ListSlices", pb.ListSlicesRequest())
    found = {each.name: each.etag for each in listed.slices}
    assert {name: found.get(name) for name in story.defined} == story.defined
    for key, answer in story.admitted.items():
        admit = pb.AdmitRequest(slice="a", resources={"CPU": 0.001}, request_id=key)
        assert (await client("Admit", admit)).SerializeToString() == answer, key
    held = {each.name: each for each in listed.slices}["a"].admitted
    # Asking again admitted nothing anew: not even what had been given back.
    assert (await client("GetSlice", pb.GetSliceRequest(name="a"))).slice.admitted == held
    # What nobody heard of may be there or not: at most one piece of each worker's was under way at each kill.
    left = len(story.admitted) - len(story.withdrawn)
    assert left - story.unheard <= held <= left + story.unheard
