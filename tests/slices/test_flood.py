"""A flood of admissions: others are told and served meanwhile, and nothing grows with it."""

from __future__ import annotations

import asyncio

from google.protobuf.duration_pb2 import Duration

from orbitmesh.errors import CapacityError
from orbitmesh.v1 import slices_pb2 as pb
from services.slices.keeper import ENDED_MAX, WAITING_MAX
from tests.slices.recount import over_commitments
from tests.slices.support import WAIT_S, Client, Service, make_active

FLOODS = 8
EACH = 250


async def test_a_flood_of_admissions_hurts_nobody_else(service: Service) -> None:
    """Two thousand admissions by eight callers into one slice, most of them refused. Meanwhile another slice is resized
    again and again and its watcher is told of it; no slice has more than it was promised; no queue grows."""
    olga = await service.client("operator-olga")
    await make_active(olga, "flooded", max_number_of_ues=50)
    made = await make_active(olga, "other")
    met = {"admitted": 0, "SLICE_FULL": 0}

    async def flood(number: int) -> None:
        client = await service.client("gateway-gateway")
        for index in range(EACH):
            request = pb.AdmitRequest(
                slice="flooded", tenant="ann", resources={"CPU": 0.1}, request_id=f"{number}-{index}",
                lifetime=Duration(seconds=3600),
            )  # fmt: skip
            try:
                await client("Admit", request)
                met["admitted"] += 1
                if index % 3 == 0:
                    await client("Withdraw", pb.WithdrawRequest(request_id=request.request_id))
            except CapacityError as error:
                assert int(error.metadata["free_at_ns"]) > 0
                met[error.reason] += 1
            assert len(service.keeper._waiting) <= WAITING_MAX

    floods = [asyncio.ensure_future(flood(number)) for number in range(FLOODS)]
    watcher: Client = await service.client("client-ann")
    watch = watcher.watch()
    resized = 0
    while not all(each.done() for each in floods):
        size = 1 + resized % 5
        request = pb.ResizeRequest(name="other", resources={"CPU": size}, etag=made.etag)
        made = (await olga("Resize", request)).slice
        resized += 1
        told = await asyncio.wait_for(watch.read(), WAIT_S)
        while {each.name: each.etag for each in told.slices}["other"] != made.etag:
            told = await asyncio.wait_for(watch.read(), WAIT_S)
        assert over_commitments(service.keeper.whole.book) == []
    await asyncio.gather(*floods)
    assert resized > 2
    assert met["admitted"] + met["SLICE_FULL"] == FLOODS * EACH
    assert met["SLICE_FULL"] > met["admitted"] > 50
    assert len(service.keeper._ended) <= ENDED_MAX
    assert service.keeper._waiting == []
    assert service.keeper.whole.book.slices["flooded"].admissions.count <= 50
