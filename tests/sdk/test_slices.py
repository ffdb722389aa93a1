"""Slices through the SDK, against a small real gateway: what is sent, what is refused before it is sent, changes that
somebody else came before, work that is admitted and given back, and streams that break."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from orbitmesh import (
    AsyncMesh,
    CapacityError,
    DeadlineError,
    InfeasiblePlanError,
    InvalidInputError,
    Mesh,
    MeshError,
    PermissionError_,
    Slice,
    SliceAllocation,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SliceShare,
    SliceTraffic,
    TransportError,
    _requests,
    _slices,
    _slices_proto,
)
from orbitmesh._loop import LoopThread
from orbitmesh.slice_results import GOALS, RESOURCES
from orbitmesh.trust.names import check_name
from orbitmesh.v1 import slices_pb2
from services.slices import deeds, fitting, optimising, resources
from services.slices.templates import Profile
from tests.sdk.small_gateway import Identities, SmallGateway, serve
from tests.sdk.small_slices import CAPACITY, CHANGED, SmallSlices

WAIT_S = 60.0
NODE_42 = SliceNode("node-42", {"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40})


@pytest.fixture
async def service(gateway: SmallGateway, identities: Identities) -> AsyncIterator[SmallSlices]:
    """A service of slices behind a gateway."""
    small = SmallSlices()
    gateway.address = ""
    server = await serve(gateway, identities.gateway, slices=small)
    yield small
    await server.stop(None)


@pytest.fixture
async def sliced(service: SmallSlices, gateway: SmallGateway, identities: Identities) -> AsyncIterator[AsyncMesh]:
    """A connected client of it."""
    async with AsyncMesh.connect(gateway.address, identity=identities.client) as connected:
        yield connected


@pytest.fixture
async def cam(sliced: AsyncMesh) -> Slice:
    """A slice that is active."""
    await sliced.slices.define("cam", resources={"CPU": 1}, latency_ms=20)
    await sliced.slices.apply(await sliced.slices.optimize())
    return await sliced.slices.get("cam")


async def test_everything_that_is_asked_is_sent(service: SmallSlices, sliced: AsyncMesh) -> None:
    """Each argument stands in its field, and every definition has another request id."""
    asked: dict[str, Any] = {
        "resources": {"CPU": 4, "GPU": 0.5, "MemoryGB": 8, "BandwidthGbps": 2.5},
        "shares": {"CPU": SliceShare(0.05, 0.1, 0.5), "GPU": SliceShare(dedicated=0.25)},
        "latency_ms": 15.5,
        "within_latency_permille": 999.5,
        "least_served": 0.75,
        "weight": 3.0,
        "place": "berlin",
        "nodes": ["sat-1", "sat-2"],
        "nodes_max": 2,
        "max_number_of_ues": 40,
        "sst": 2,
        "sd": "00ABCD",
        "tenant": "acme",
    }
    await sliced.slices.define("cam", "urllc", **asked)
    await sliced.slices.define("cam-2", "urllc", **asked)
    first, second = service.requests(slices_pb2.DefineSliceRequest)
    assert first.profile == slices_pb2.SliceProfile(
        template="urllc",
        snssai=slices_pb2.Snssai(sst=2, sd="00abcd"),
        resources={"CPU": 4, "GPU": 0.5, "MemoryGB": 8, "BandwidthGbps": 2.5},
        shares={
            "CPU": slices_pb2.SliceShare(dedicated=0.05, min=0.1, max=0.5),
            "GPU": slices_pb2.SliceShare(dedicated=0.25, min=0.25),
        },
        latency_ms=15.5, within_latency_permille=999.5, least_served=0.75, weight=3.0, place="berlin",
        nodes=["sat-1", "sat-2"], nodes_max=2, max_number_of_ues=40,
    )  # fmt: skip
    assert (first.name, first.tenant, first.etag) == ("cam", "acme", "")
    assert first.request_id != second.request_id != ""


async def test_what_is_not_asked_for_is_left_to_the_template(service: SmallSlices, sliced: AsyncMesh) -> None:
    """The least request names the slice and its template, and nothing else."""
    await sliced.slices.define("cam")
    (request,) = service.requests(slices_pb2.DefineSliceRequest)
    request.request_id = ""
    assert request == slices_pb2.DefineSliceRequest(name="cam", profile=slices_pb2.SliceProfile(template="urllc"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "Cam"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": 7}, "name"),
        ({"template": 7}, "template"),
        ({"resources": {"CPU": -1}}, r"resources\['CPU'\]"),
        ({"resources": {"CPU": math.nan}}, r"resources\['CPU'\]"),
        ({"resources": {"CPU": math.inf}}, r"resources\['CPU'\]"),
        ({"resources": {"CPU": "4"}}, r"resources\['CPU'\]"),
        ({"resources": {"cpu": 1}}, "CPU, GPU, MemoryGB, BandwidthGbps"),
        ({"resources": [("CPU", 1)]}, "resources"),
        ({"shares": {"TPU": SliceShare()}}, "TPU"),
        ({"shares": {"CPU": 0.5}}, "SliceShare"),
        ({"shares": {"CPU": SliceShare(min=1.1)}}, "min"),
        ({"shares": {"CPU": SliceShare(min=math.nan)}}, "min"),
        ({"shares": {"CPU": SliceShare(dedicated=0.3, min=0.2)}}, "at least the one before it"),
        ({"shares": {"CPU": SliceShare(min=0.3, max=0.2)}}, "at least the one before it"),
        ({"shares": {"CPU": SliceShare(dedicated=0.3, max=0.2)}}, "at least the one before it"),
        ({"latency_ms": -1.0}, "latency_ms"),
        ({"latency_ms": math.nan}, "latency_ms"),
        ({"within_latency_permille": 1001}, "within_latency_permille"),
        ({"least_served": 1.5}, "least_served"),
        ({"weight": -1}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"place": 7}, "place"),
        ({"nodes": "sat-1"}, "nodes"),
        ({"nodes": ["a b"]}, "node"),
        ({"nodes_max": -1}, "nodes_max"),
        ({"max_number_of_ues": 1.5}, "max_number_of_ues"),
        ({"sst": 256}, "sst"),
        ({"sd": "12345"}, "sd"),
        ({"sd": "zzzzzz"}, "sd"),
        ({"tenant": "a\nb"}, "tenant"),
    ],
    ids=str,
)
async def test_what_cannot_be_sent_is_refused_by_its_name(
    wrong: dict[str, Any], words: str, service: SmallSlices, sliced: AsyncMesh
) -> None:
    """A typed error that names the argument, and nothing leaves."""
    with pytest.raises(InvalidInputError, match=words):
        await sliced.slices.define(**({"name": "cam"} | wrong))
    assert service.asked == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda slices: slices.optimize("best"), "balanced, latency_sensitive, throughput_max"),
        (lambda slices: slices.optimize(traffic={"cam": -1}), "traffic"),
        (lambda slices: slices.optimize(traffic=["cam"]), "traffic"),
        (lambda slices: slices.optimize(slices="cam"), "slices"),
        (lambda slices: slices.optimize(nodes=["sat-1"]), "SliceNode"),
        (lambda slices: slices.optimize(nodes=[SliceNode("n", {"CPU": -1})]), "capacity of n"),
        (lambda slices: slices.optimize(what_if={"cam": "urllc"}), "SliceProfile"),
        (lambda slices: slices.optimize(what_if=["cam"]), "what_if"),
        (lambda slices: slices.optimize(time_limit_s=61), "time_limit_s"),
        (lambda slices: slices.optimize(time_limit_s=0), "time_limit_s"),
        (lambda slices: slices.apply("all"), "what `optimize` returned"),
        (lambda slices: slices.resize("cam"), "nothing of cam"),
        (lambda slices: slices.resize("cam", resources={"CPU": -1}), "CPU"),
        (lambda slices: slices.resize("cam", resources={"CPU": 1}, etag=""), "etag"),
        (lambda slices: slices.release("No"), "name"),
        (lambda slices: slices.get(None), "name"),
        (lambda slices: slices.admit("cam", resources={"CPU": -1}).__aenter__(), "CPU"),
        (lambda slices: slices.admit("cam", lifetime_s=0).__aenter__(), "lifetime_s"),
        (lambda slices: slices.admit("cam", nodes="sat-1").__aenter__(), "nodes"),
        (lambda slices: slices.list(timeout=0), "timeout"),
    ],
)
async def test_no_call_sends_what_is_wrong(
    call: Callable[[Any], Awaitable[Any]], words: str, service: SmallSlices, sliced: AsyncMesh
) -> None:
    """The message names the argument, and nothing leaves."""
    with pytest.raises(InvalidInputError, match=words):
        await call(sliced.slices)
    assert service.asked == []


def test_what_is_refused_here_is_what_the_service_refuses() -> None:
    """A message that names a range names the one that holds; a name, a resource and a goal that are good here are good
    there."""
    assert (_slices_proto.TIME_LIMIT_S, _slices_proto.TIME_LIMIT_MAX_S) == (
        optimising.TIME_LIMIT_S,
        optimising.TIME_LIMIT_MAX_S,
    )
    assert (_slices_proto.AMOUNT_MAX, _slices_proto.TRAFFIC_MAX) == (resources.MOST, fitting.TRAFFIC_MAX)
    assert _slices_proto.LIFETIME_MAX_S == deeds.LIFETIME_MAX_S
    assert (RESOURCES, set(GOALS)) == (resources.NAMES, {str(goal) for goal in optimising.Goal})
    for name in ("a", "cam-1", "-a", "0" * 63, "Upper", "a.b", "a_b", "a" * 64, "", "a\n", "\u0663"):
        assert accepted(_requests.slice_name, name) == accepted(check_name, name), name
    for latency, weight in ((1e9, 1e6), (1.1e9, 1.0), (1.0, 1.1e6)):
        profile = SliceProfile(latency_ms=latency, weight=weight)
        there = accepted(lambda profile: Profile(latency_ms=profile.latency_ms, weight=profile.weight), profile)
        assert accepted(_slices_proto.profile_message, profile) == there


def accepted(check: Callable[[Any], Any], value: Any) -> bool:
    """Whether a check lets it pass."""
    try:
        check(value)
    except InvalidInputError:
        return False
    return True


async def test_a_slice_is_told_as_it_is(service: SmallSlices, sliced: AsyncMesh) -> None:
    """Every field of the message stands in the value, resources in their order."""
    told = slices_pb2.Slice(
        name="cam",
        tenant="acme",
        profile=slices_pb2.SliceProfile(
            template="urllc", snssai=slices_pb2.Snssai(sst=2, sd="00abcd"), resources={"BandwidthGbps": 2, "CPU": 4},
            shares={"CPU": slices_pb2.SliceShare(dedicated=0.1, min=0.2), "GPU": slices_pb2.SliceShare(max=0.0)},
            latency_ms=15.5, within_latency_permille=990, least_served=0.75, weight=3.0, place="berlin",
            nodes=["sat-1"], nodes_max=2, max_number_of_ues=40,
        ),
        state=slices_pb2.SLICE_STATE_RELEASING,
        allocations=[
            slices_pb2.SliceAllocation(slice="cam", node="sat-1", served=0.5, resources={"CPU": 2}, traffic=3)
        ],
        etag="e-7",
        admitted=3,
        traffic=slices_pb2.SliceTraffic(
            offered_bytes=1, sent_bytes=2, dropped_bytes=3, frames=1000, violations=4, wait_buckets=[5, 995]
        ),
    )  # fmt: skip
    told.changed_at.FromDatetime(CHANGED)
    service.slices["cam"] = told
    seen = await sliced.slices.get("cam")
    assert seen == Slice(
        name="cam",
        tenant="acme",
        profile=SliceProfile(
            "urllc", {"CPU": 4.0, "BandwidthGbps": 2.0}, {"CPU": SliceShare(0.1, 0.2), "GPU": SliceShare(max=0.0)},
            15.5, 990, 0.75, 3.0, "berlin", ("sat-1",), 2, 40, 2, "00abcd",
        ),
        state="releasing",
        allocations=(SliceAllocation("cam", "sat-1", 0.5, {"CPU": 2.0}, 3.0),),
        etag="e-7",
        admitted=3,
        changed_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        traffic=SliceTraffic(1, 2, 3, 1000, 4, (5, 995)),
    )  # fmt: skip
    assert list(seen.profile.resources) == ["CPU", "BandwidthGbps"]
    assert (seen.served, seen.violations_allowed, seen.error_budget_left) == (0.5, 10.0, 0.6)
    overview = await sliced.slices.list()
    assert (overview.slices, overview.etag) == ((seen,), "all-1")
    assert overview.nodes == (SliceNode("sat-1", CAPACITY, {"CPU": 2.0}),)
    assert [each.profile.latency_ms for each in await sliced.slices.templates()] == [20, 100, 1000]


async def test_an_outcome_is_applied_as_it_was_computed(service: SmallSlices, sliced: AsyncMesh) -> None:
    """What `apply` sends are the allocations that `optimize` got, and the etag that they were computed from."""
    for name in ("cam", "bulk"):
        await sliced.slices.define(name, "embb", resources={"CPU": 0.1, "MemoryGB": 1e-3})
    outcome = await sliced.slices.optimize("throughput_max", slices=["bulk", "cam"], traffic={"cam": 0.5})
    assert (outcome.goal, outcome.objective, outcome.bound, outcome.gap) == ("throughput_max", 1.0, 1.0, 0.0)
    assert (outcome.took_s, outcome.what_if, outcome.served) == (0.012, False, {"bulk": 1.0, "cam": 1.0})
    (asked,) = service.requests(slices_pb2.OptimizeRequest)
    assert (list(asked.slices), dict(asked.traffic)) == (["bulk", "cam"], {"cam": 0.5})
    assert asked.time_limit.ToMilliseconds() == 1000
    applied = await sliced.slices.apply(outcome)
    assert [(each.name, each.state) for each in applied.slices] == [("bulk", "active"), ("cam", "active")]
    (sent,) = service.requests(slices_pb2.ApplyRequest)
    assert sent.etag == outcome.etag
    computed = slices_pb2.SliceAllocation(
        slice="cam", node="sat-1", served=1.0, resources={"CPU": 0.1, "BandwidthGbps": 30, "MemoryGB": 1e-3},
        traffic=0.5,
    )  # fmt: skip
    assert sent.allocations[1] == computed
    assert (await sliced.slices.list()).etag == applied.etag


async def test_what_would_be_is_asked_and_never_applied(service: SmallSlices, sliced: AsyncMesh) -> None:
    """Nodes and slices of one's own are sent whole; an outcome for them is refused before it leaves."""
    profile = SliceProfile("urllc", {"CPU": 4}, latency_ms=20)
    outcome = await sliced.slices.optimize(nodes=[NODE_42], what_if={"cam": profile}, time_limit_s=2.5)
    (asked,) = service.requests(slices_pb2.OptimizeRequest)
    assert asked.nodes[0] == slices_pb2.SliceNode(name="node-42", capacity=NODE_42.capacity)
    assert asked.what_if[0] == slices_pb2.Slice(
        name="cam", profile=slices_pb2.SliceProfile(template="urllc", resources={"CPU": 4}, latency_ms=20)
    )
    assert asked.time_limit.ToMilliseconds() == 2500
    assert (outcome.what_if, outcome.allocations[0].node) == (True, "node-42")
    for only in (
        await sliced.slices.optimize(nodes=[NODE_42]), await sliced.slices.optimize(what_if={"cam": profile}), outcome
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match="not the mesh's") as refused:
            await sliced.slices.apply(only)
        assert refused.value.reason == "FAILED_PRECONDITION"
    assert service.requests(slices_pb2.ApplyRequest) == []


async def test_nobody_overwrites_what_somebody_else_has_changed(sliced: AsyncMesh, cam: Slice) -> None:
    """Whoever decided on an older state is refused, by each change; the slice stays as the other one left it."""
    outcome = await sliced.slices.optimize()
    other = await sliced.slices.resize(cam, resources={"CPU": 2})
    for late in (
        sliced.slices.resize(cam, resources={"CPU": 3}),
        sliced.slices.resize("cam", resources={"CPU": 3}, etag=cam.etag),
        sliced.slices.release(cam),
        sliced.slices.release("cam", etag=cam.etag),
        sliced.slices.define("cam", resources={"CPU": 3}, etag=cam.etag),
        sliced.slices.apply(outcome),
    ):
        with pytest.raises(InvalidInputError) as refused:
            await late
        assert (refused.value.reason, refused.value.retryable) == ("STALE_ETAG", False)
    assert await sliced.slices.get("cam") == other


async def test_a_change_by_name_is_decided_on_the_slice_as_it_is(
    service: SmallSlices, sliced: AsyncMesh, cam: Slice
) -> None:
    """Its etag is asked for; that of a slice that was seen is not."""
    asked = len(service.requests(slices_pb2.GetSliceRequest))
    shares = {"CPU": SliceShare(min=0.25, max=0.5)}
    grown = await sliced.slices.resize("cam", resources={"CPU": 2}, shares=shares)
    assert (grown.profile.resources["CPU"], grown.profile.shares) == (2.0, shares)
    assert grown.profile.resources["MemoryGB"] == 8.0
    assert len(service.requests(slices_pb2.GetSliceRequest)) == asked + 1
    smaller = await sliced.slices.resize(grown, resources={"CPU": 1})
    await sliced.slices.release(smaller)
    assert len(service.requests(slices_pb2.GetSliceRequest)) == asked + 1
    with pytest.raises(InvalidInputError) as refused:
        await sliced.slices.release("cam")
    assert refused.value.reason == "NOT_FOUND"


@pytest.mark.parametrize(
    ("reason", "error", "again"),
    [
        ("SLICES_INFEASIBLE", InfeasiblePlanError, False),
        ("LATENCY_BELOW_FLOOR", InfeasiblePlanError, False),
        ("SLICE_FULL", CapacityError, True),
        ("SLICE_IN_USE", InvalidInputError, False),
        ("SLICE_NOT_YOURS", PermissionError_, False),
        ("STALE_ETAG", InvalidInputError, False),
    ],
)
async def test_every_refusal_has_its_class(
    reason: str, error: type[MeshError], again: bool, service: SmallSlices, sliced: AsyncMesh
) -> None:
    """With the reason, the words of the service, and whether asking again may help."""
    service.refusing["OptimizeRequest"] = (reason, "CPU binds on node-42; 2 more would do")
    with pytest.raises(error, match="2 more would do") as refused:
        await sliced.slices.optimize()
    assert (refused.value.reason, refused.value.retryable) == (reason, again)


async def test_a_mesh_without_slices_says_so(mesh: AsyncMesh) -> None:
    """A gateway that does not know the service is no riddle."""
    with pytest.raises(InvalidInputError, match="does not have this method") as refused:
        await mesh.slices.templates()
    assert refused.value.reason == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("ListTemplatesRequest", lambda slices: slices.templates()),
        ("DefineSliceRequest", lambda slices: slices.define("more")),
        ("GetSliceRequest", lambda slices: slices.get("cam")),
        ("ListSlicesRequest", lambda slices: slices.list()),
        ("OptimizeRequest", lambda slices: slices.optimize()),
        ("ApplyRequest", lambda slices: _apply(slices)),
        ("ResizeRequest", lambda slices: slices.resize("cam", resources={"CPU": 2})),
        ("ReleaseRequest", lambda slices: slices.release("cam")),
        ("AdmitRequest", lambda slices: _admit(slices)),
        ("WithdrawRequest", lambda slices: _admit(slices)),
    ],
)
async def test_what_may_be_sent_again_is_sent_again(
    kind: str, call: Callable[[Any], Awaitable[Any]], service: SmallSlices, sliced: AsyncMesh, cam: Slice
) -> None:
    """A service that is away for a moment is asked again with the very same request: it cannot count twice."""
    service.unavailable[kind] = 2
    before = len(service.asked)
    await call(sliced.slices)
    sent = [each for each in service.asked[before:] if type(each).__name__ == kind]
    assert len(sent) == 3
    assert all(each == sent[0] for each in sent)


async def _apply(slices: Any) -> None:
    await slices.apply(await slices.optimize())


async def _admit(slices: Any) -> None:
    async with slices.admit("cam"):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda slices, each: slices.templates(timeout=each),
        lambda slices, each: slices.define("more", timeout=each),
        lambda slices, each: slices.get("cam", timeout=each),
        lambda slices, each: slices.list(timeout=each),
        lambda slices, each: slices.optimize(timeout=each),
        lambda slices, each: slices.apply(SliceOutcome("balanced", (), 1, 1, 0, 0, "e"), timeout=each),
        lambda slices, each: slices.resize("cam", resources={"CPU": 2}, timeout=each),
        lambda slices, each: slices.release("cam", timeout=each),
        lambda slices, each: slices.admit("cam", timeout=each).__aenter__(),
    ],
    ids=range(9),
)
async def test_a_time_is_a_total(
    call: Callable[[Any, float], Awaitable[Any]], service: SmallSlices, sliced: AsyncMesh
) -> None:
    """Of two calls that one needs, the second does not get the time anew."""
    service.delay_s = WAIT_S
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(call(sliced.slices, 0.3), WAIT_S / 2)


async def test_two_calls_share_one_time(service: SmallSlices, sliced: AsyncMesh, cam: Slice) -> None:
    """The slice is seen in time, its change would end after it."""
    service.delay_s = 2.0
    with pytest.raises(DeadlineError, match="resizing cam"):
        await sliced.slices.resize("cam", resources={"CPU": 2}, timeout=3.0)


@pytest.mark.parametrize("ends", ["well", "with an error", "by cancelling"])
async def test_what_is_admitted_is_given_back(ends: str, service: SmallSlices, sliced: AsyncMesh, cam: Slice) -> None:
    """However the work ends; and what its end was is not hidden."""
    inside = asyncio.Event()

    async def work() -> None:
        async with sliced.slices.admit("cam", resources={"CPU": 0.5}, nodes=["sat-1"], lifetime_s=90) as admission:
            assert list(service.admitted.values()) == ["cam"]
            assert admission.until == CHANGED + timedelta(seconds=90)
            inside.set()
            if ends == "with an error":
                raise KeyError("the work's own")
            if ends == "by cancelling":
                await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await asyncio.wait_for(inside.wait(), WAIT_S)
    if ends == "by cancelling":
        task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    expected = {"well": type(None), "with an error": KeyError, "by cancelling": asyncio.CancelledError}
    assert type(outcome) is expected[ends]
    assert service.admitted == {}
    (asked,) = service.requests(slices_pb2.AdmitRequest)
    assert (dict(asked.resources), list(asked.nodes)) == ({"CPU": 0.5}, ["sat-1"])
    assert [each.request_id for each in service.requests(slices_pb2.WithdrawRequest)] == [asked.request_id]


@pytest.mark.parametrize("how", ["its time is spent", "its caller gives up"])
async def test_an_admission_that_nobody_heard_of_is_given_back(
    how: str, service: SmallSlices, sliced: AsyncMesh, cam: Slice
) -> None:
    """The answer is lost: whether it was admitted is not known, so its id is withdrawn; closing waits for that."""
    service.delay_s = 1.0
    admission = sliced.slices.admit("cam", timeout=0.3 if "time" in how else None)
    entering = asyncio.ensure_future(admission.__aenter__())
    if "caller" in how:
        await asyncio.sleep(0.3)
        entering.cancel()
    with pytest.raises(DeadlineError if "time" in how else asyncio.CancelledError):
        await entering
    await sliced.close()
    (asked,) = service.requests(slices_pb2.AdmitRequest)
    assert [each.request_id for each in service.requests(slices_pb2.WithdrawRequest)] == [asked.request_id]


@pytest.mark.parametrize("when", ["entering", "leaving"])
async def test_a_mesh_that_is_closed_at_once_still_gives_back(
    when: str, service: SmallSlices, gateway: SmallGateway, identities: Identities
) -> None:
    """The error leaves both blocks in one step: the withdrawal is on its way before the connection goes."""

    async def work() -> None:
        async with AsyncMesh.connect(gateway.address, identity=identities.client) as mesh:
            await mesh.slices.define("cam")
            service.delay_s = 1.0
            async with mesh.slices.admit("cam", timeout=0.3 if when == "entering" else None):
                service.delay_s = 3.0

    task = asyncio.ensure_future(work())
    if when == "leaving":
        while not service.admitted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        task.cancel()
    with pytest.raises(DeadlineError if when == "entering" else asyncio.CancelledError):
        await task
    (asked,) = service.requests(slices_pb2.AdmitRequest)
    assert asked.request_id in [each.request_id for each in service.requests(slices_pb2.WithdrawRequest)]


async def test_a_refused_admission_is_not_given_back(service: SmallSlices, sliced: AsyncMesh, cam: Slice) -> None:
    """Nothing was reserved: the block is not entered, and nothing is withdrawn. The same handle may be tried again."""
    service.refusing["AdmitRequest"] = ("SLICE_FULL", "0.2 CPU are free")
    admission = sliced.slices.admit("cam", resources={"CPU": 0.5})
    with pytest.raises(CapacityError, match=r"0\.2 CPU are free"):
        async with admission:
            pytest.fail("it was let in")
    assert service.requests(slices_pb2.WithdrawRequest) == []
    service.refusing.clear()
    async with admission:
        with pytest.raises(InvalidInputError, match="in use already"):
            await admission.__aenter__()
    assert service.admitted == {}
    first, second = service.requests(slices_pb2.AdmitRequest)
    assert first.request_id != second.request_id


async def test_what_cannot_be_given_back_is_said_beside_what_went_wrong(
    service: SmallSlices, sliced: AsyncMesh, cam: Slice
) -> None:
    """An error of the work stays the error; without one, that it could not be given back is."""
    service.refusing["WithdrawRequest"] = ("INTERNAL", "broken")
    with pytest.raises(KeyError) as worked:
        async with sliced.slices.admit("cam"):
            raise KeyError("the work's own")
    assert "ends by itself at 2026-03-01 13:00" in worked.value.__notes__[0]
    with pytest.raises(MeshError, match="broken") as left:
        async with sliced.slices.admit("cam"):
            pass
    assert "ends by itself" in left.value.__notes__[0]


@pytest.mark.parametrize("how", ["TRANSPORT", "DRAINING", ""], ids=["cut", "draining", "ended in good order"])
async def test_a_watch_goes_on_over_a_new_stream(
    how: str, service: SmallSlices, sliced: AsyncMesh, cam: Slice
) -> None:
    """Each answer is whole: what was changed while nobody listened is in the first of the next stream."""
    service.cuts = [how]
    seen = []
    async for overview in sliced.slices.watch():
        seen.append(overview.slices[0].profile.resources["CPU"])
        if len(seen) == 1:
            cam = await sliced.slices.resize(cam, resources={"CPU": 2})
        elif seen[-1] == 2:
            cam = await sliced.slices.resize(cam, resources={"CPU": 3})
        elif seen[-1] == 3:
            break
    assert seen == [1, 2, 3]


async def test_a_watch_gives_up_when_nobody_answers(
    service: SmallSlices, sliced: AsyncMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patience is bounded, and the error is the one that it was cut by."""
    monkeypatch.setattr(_slices, "PATIENCE_S", -1.0)
    service.cuts = ["TRANSPORT"]
    with pytest.raises(TransportError, match="as the test wants it"):
        async for _ in sliced.slices.watch():
            pass


async def test_a_watch_does_not_go_on_over_a_refusal(service: SmallSlices, sliced: AsyncMesh) -> None:
    """What asking again does not mend is raised at once."""
    service.cuts = ["SLICE_NOT_YOURS"]
    with pytest.raises(PermissionError_):
        async for _ in sliced.slices.watch("sat-1"):
            pass
    with pytest.raises(InvalidInputError, match="node"):
        async for _ in sliced.slices.watch("a b"):
            pass


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_percentile_is_never_better_than_the_truth(part: float, seed: int) -> None:
    """Against numpy's own percentile of the same waits: at least as long, and less than twice as long."""
    generator = np.random.default_rng(seed)
    waits_us = generator.lognormal(mean=6, sigma=2.5, size=100 * 10**seed)
    buckets = np.histogram(waits_us, bins=[0, *(2.0**index for index in range(31)), np.inf])[0]
    found = SliceTraffic(wait_buckets=tuple(map(int, buckets))).wait_s(part)
    truth = float(np.quantile(waits_us, part, method="inverted_cdf")) / 1e6
    assert found is not None
    assert truth < found <= max(2 * truth, 1e-6)


def test_percentiles_at_the_ends() -> None:
    """Nothing counted is no wait; beyond the last bucket there is no bound; parts outside are refused."""
    assert SliceTraffic().wait_s(0.99) is None
    assert SliceTraffic(wait_buckets=(0,) * 32).wait_s(0.99) is None
    assert SliceTraffic(wait_buckets=(1,)).wait_s(0.001) == 1e-6
    assert SliceTraffic(wait_buckets=(99, *(0,) * 30, 1)).wait_s(0.99) == 1e-6
    assert SliceTraffic(wait_buckets=(98, *(0,) * 30, 2)).wait_s(0.99) == math.inf
    for part in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="part"):
            SliceTraffic(wait_buckets=(1,)).wait_s(part)


@pytest.mark.parametrize(
    ("frames", "violations", "permille", "left"),
    [
        (0, 0, 999, None),
        (1000, 0, 999, 1.0),
        (10_000, 5, 999, 0.5),
        (1000, 1, 999, 0.0),
        (1000, 3, 999, -2.0),
        (1000, 0, 1000, 1.0),
        (1000, 1, 1000, -math.inf),
        (10_000, 5, 0, 0.5),
    ],
)
def test_the_error_budget_is_what_is_left_of_the_violations_that_are_allowed(
    frames: int, violations: int, permille: float, left: float | None
) -> None:
    """1 - violations / allowed; a profile that does not say it allows 1 of 1000."""
    seen = Slice(
        "cam", "me", SliceProfile(within_latency_permille=permille), "active", (), "e", 0, None,
        SliceTraffic(frames=frames, violations=violations),
    )  # fmt: skip
    assert seen.error_budget_left == (None if left is None else pytest.approx(left))


@pytest.fixture
def elsewhere(identities: Identities) -> Iterator[tuple[SmallGateway, SmallSlices]]:
    """The same on a loop in another thread, for the sync client."""
    loop = LoopThread()
    place, small = SmallGateway(), SmallSlices()
    server = loop.run(lambda: serve(place, identities.gateway, slices=small))
    yield place, small
    loop.run(lambda: server.stop(None))
    loop.stop()


def test_the_sync_client_does_the_same(elsewhere: tuple[SmallGateway, SmallSlices], identities: Identities) -> None:
    """A life of a slice; a loop that is left early leaves its stream, and work that fails is given back."""
    place, small = elsewhere
    with Mesh.connect(place.address, identity=identities.client) as mesh:
        cam = mesh.slices.define("cam", resources={"CPU": 1})
        assert (cam.state, [each.name for each in mesh.slices.templates()]) == ("defined", ["urllc", "embb", "mmtc"])
        (active,) = mesh.slices.apply(mesh.slices.optimize()).slices
        for overview in mesh.slices.watch():
            assert overview.slices == mesh.slices.list().slices == (active,)
            break
        with pytest.raises(KeyError), mesh.slices.admit("cam") as admission:
            assert (admission.slice, list(small.admitted.values())) == ("cam", ["cam"])
            with pytest.raises(InvalidInputError) as refused:
                mesh.slices.release("cam")
            assert refused.value.reason == "SLICE_IN_USE"
            ending = mesh.slices.release("cam", drain=True)
            assert ending is not None
            assert (ending.state, admission.nodes) == ("releasing", ("sat-1",))
            raise KeyError("the work's own")
        assert small.admitted == {}
        assert mesh.slices.resize(ending, resources={"CPU": 2}).profile.resources["CPU"] == 2
        assert mesh.slices.release("cam") is None
        assert mesh.slices.list().slices == ()
