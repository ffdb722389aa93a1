"""The examples in the docstrings of slices, carried out in both faces of the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import orbitmesh
from orbitmesh import AsyncMesh, AsyncSliceAdmission, AsyncSlices, Mesh, Slice, SliceAdmission, Slices, SliceTraffic
from orbitmesh._loop import LoopThread
from tests.sdk.doc_examples import members, show, show_async
from tests.sdk.small_gateway import Identities, SmallGateway, serve
from tests.sdk.small_slices import SmallSlices

LIFE = ("templates", "define", "list", "get", "optimize", "apply", "watch", "admit")
"""In the order of a slice's life, after the class's own example."""
END = ("resize", "release")
ADMISSION = ("slice", "until", "nodes")
VALUES = (
    "SliceOutcome", "SlicesApplied", "SliceShare", "SliceProfile", "SliceAllocation", "SliceTraffic", "Slice",
    "SliceTemplate", "SliceNode", "SlicesOverview",
)  # fmt: skip


@pytest.fixture
def address(identities: Identities) -> Iterator[str]:
    """Where a gateway answers, on a loop in another thread."""
    loop, place = LoopThread(), SmallGateway()
    server = loop.run(serve(place, identities.gateway, slices=SmallSlices()))
    yield place.address
    loop.run(server.stop(None))
    loop.stop()


def scope_of(mesh: Any) -> dict[str, Any]:
    """The names that the examples take for granted."""
    return {**vars(orbitmesh), "mesh": mesh}


def test_the_examples_of_slices_do_what_they_show(address: str, identities: Identities) -> None:
    """Defined, optimised, applied, watched, used, looked at, resized, released."""
    with Mesh.connect(address, identity=identities.client) as mesh:
        scope = scope_of(mesh)
        show(scope, *members(Mesh, "slices"), Slices, *members(Slices, *LIFE), SliceAdmission)
        show(scope, *members(SliceAdmission, *ADMISSION))
        show(scope, *(getattr(orbitmesh, name) for name in VALUES))
        show(scope, *members(Slice, "served", "violations_allowed", "error_budget_left"))
        show(scope, *members(SliceTraffic, "wait_s"), *members(orbitmesh.SliceOutcome, "served"))
        show(scope, *members(Slices, *END))


async def test_the_examples_of_asyncio_do_what_they_show(address: str, identities: Identities) -> None:
    """The same life."""
    async with AsyncMesh.connect(address, identity=identities.client) as mesh:
        scope = scope_of(mesh)
        await show_async(scope, *members(AsyncMesh, "slices"), AsyncSlices, *members(AsyncSlices, *LIFE))
        await show_async(scope, AsyncSliceAdmission, *members(AsyncSliceAdmission, *ADMISSION))
        await show_async(scope, *members(AsyncSlices, *END))
