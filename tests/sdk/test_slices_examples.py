"""The examples in the docstrings of slices, carried out on a mesh of real processes, in both faces of the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import orbitmesh
from orbitmesh import AsyncMesh, AsyncSliceAdmission, AsyncSlices, Mesh, Slice, SliceAdmission, Slices, SliceTraffic
from tests.sdk.doc_examples import members, show, show_async

LIFE = ("templates", "define", "list", "get", "optimize", "apply", "watch", "admit")
"""In the order of a slice's life, after the class's own example."""
END = ("resize", "release")
ADMISSION = ("slice", "until", "nodes")
VALUES = (
    "SliceOutcome", "SlicesApplied", "SliceShare", "SliceProfile", "SliceAllocation", "SliceTraffic", "Slice",
    "SliceTemplate", "SliceNode", "SlicesOverview",
)  # fmt: skip


@pytest.fixture(scope="module")
def local() -> Iterator[Mesh]:
    """A satellite and a ground node."""
    with Mesh.local(nodes=2) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def nothing_is_left(local: Mesh) -> Iterator[None]:
    """What the examples leave behind goes with the test."""
    yield
    for each in local.slices.list().slices:
        local.slices.release(each)


def scope_of(mesh: Any) -> dict[str, Any]:
    """The names that the examples take for granted."""
    return {**vars(orbitmesh), "mesh": mesh}


def test_the_examples_of_slices_do_what_they_show(local: Mesh) -> None:
    """Defined, optimised, applied, watched, used, looked at, resized, released."""
    scope = scope_of(local)
    show(scope, *members(Mesh, "slices"), Slices, *members(Slices, *LIFE), SliceAdmission)
    show(scope, *members(SliceAdmission, *ADMISSION))
    show(scope, *(getattr(orbitmesh, name) for name in VALUES))
    show(scope, *members(Slice, "served", "violations_allowed", "error_budget_left"))
    show(scope, *members(SliceTraffic, "wait_s"), *members(orbitmesh.SliceOutcome, "served"))
    show(scope, *members(Slices, *END))


async def test_the_examples_of_asyncio_do_what_they_show(local: Mesh) -> None:
    """The same life."""
    async with AsyncMesh.connect(local.local.gateway, identity=local.local.identity) as mesh:
        scope = scope_of(mesh)
        await show_async(scope, *members(AsyncMesh, "slices"), AsyncSlices, *members(AsyncSlices, *LIFE))
        await show_async(scope, AsyncSliceAdmission, *members(AsyncSliceAdmission, *ADMISSION))
        await show_async(scope, *members(AsyncSlices, *END))
