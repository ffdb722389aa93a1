"""The slices service on the wire: every call, whoever makes it, and every kind of bad input."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from orbitmesh.errors import DeadlineError, MeshError
from orbitmesh.limits import MESSAGE_BYTES
from orbitmesh.trust import Role
from orbitmesh.v1 import slices_pb2 as pb
from services.runtime.caller import Call, enter_call
from services.slices.access import Caller
from services.slices.book import NAMED_NODES_MAX, NODES_MAX, SLICES_MAX, SPREAD_MAX
from services.slices.deeds import Deeds
from services.slices.values import Book
from tests.slices.recount import contents, over_commitments
from tests.slices.support import WAIT_S, Client, Service, a_profile, a_row, make_active


def now(service: Service) -> Book:
    """The state as it is on disk."""
    return service.keeper.whole.book


async def refused(client: Client, method: str, request: Any) -> MeshError:
    """The error of a call that has to be refused."""
    with pytest.raises(MeshError) as error:
        await client(method, request)
    return error.value


async def test_the_templates_are_the_three(service: Service) -> None:
    """By their names, each with its 3GPP slice/service type."""
    client = await service.client("client-ann")
    found = (await client("ListTemplates", pb.ListTemplatesRequest())).templates
    assert {each.name: each.profile.snssai.sst for each in found} == {"embb": 1, "urllc": 2, "mmtc": 3}


async def test_a_slice_from_its_definition_to_its_end(service: Service) -> None:
    """Defined, applied, resized, worked in, released: each answer is what is told of it afterwards."""
    olga = await service.client("operator-olga")
    given = pb.DefineSliceRequest(name="a", profile=a_profile(template="urllc"), tenant="ann")
    made = (await olga("DefineSlice", given)).slice
    assert (made.tenant, made.state, made.profile.snssai.sst) == ("ann", pb.SLICE_STATE_DEFINED, 2)
    assert made.profile.resources["GPU"] == 0.5
    listed = await olga("ListSlices", pb.ListSlicesRequest())
    row = a_row("a", CPU=4, MemoryGB=8, GPU=0.5, BandwidthGbps=4)
    applied = await olga("Apply", pb.ApplyRequest(allocations=[row], etag=listed.etag))
    assert applied.slices[0].state == pb.SLICE_STATE_ACTIVE
    etag = applied.slices[0].etag
    resized = (await olga("Resize", pb.ResizeRequest(name="a", resources={"CPU": 6}, etag=etag))).slice
    assert resized.allocations[0].resources["CPU"] == 6
    got = (await olga("GetSlice", pb.GetSliceRequest(name="a"))).slice
    assert got == resized
    nodes = {node.name: node for node in (await olga("ListSlices", pb.ListSlicesRequest())).nodes}
    assert nodes["node-1"].reserved["CPU"] == 6
    assert dict(nodes["node-2"].reserved) == {}
    ann = await service.client("client-ann")
    until = (await ann("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 1}, request_id="work"))).until
    assert until.ToNanoseconds() > 0
    assert (await ann("GetSlice", pb.GetSliceRequest(name="a"))).slice.admitted == 1
    await ann("Withdraw", pb.WithdrawRequest(request_id="work"))
    await ann("Withdraw", pb.WithdrawRequest(request_id="work"))
    await olga("Release", pb.ReleaseRequest(name="a", etag=resized.etag))
    assert now(service).slices == {}
    assert now(service).reserved() == {}


async def test_the_same_request_again_changes_nothing_and_gets_the_same_answer(service: Service) -> None:
    """Whether it was to define, to apply, to resize, to admit or to release; also after the slice has changed again."""
    olga = await service.client("operator-olga")
    define = pb.DefineSliceRequest(name="a", profile=a_profile(), request_id="define")
    first = [await olga("DefineSlice", define) for _ in range(2)]
    etag = (await olga("ListSlices", pb.ListSlicesRequest())).etag
    apply = pb.ApplyRequest(allocations=[a_row("a")], etag=etag, request_id="apply")
    second = [await olga("Apply", apply) for _ in range(2)]
    resize = pb.ResizeRequest(name="a", resources={"CPU": 5}, etag=second[0].slices[0].etag, request_id="resize")
    third = [await olga("Resize", resize) for _ in range(2)]
    admit = pb.AdmitRequest(slice="a", resources={"CPU": 5}, request_id="admit")
    fourth = [await olga("Admit", admit) for _ in range(2)]
    await olga("Withdraw", pb.WithdrawRequest(request_id="admit"))
    fourth.append(await olga("Admit", admit))
    assert (await olga("GetSlice", pb.GetSliceRequest(name="a"))).slice.admitted == 0
    release = pb.ReleaseRequest(name="a", etag=third[0].slice.etag, request_id="release")
    fifth = [await olga("Release", release) for _ in range(2)]
    for answers in (first, second, third, fourth, fifth):
        assert all(each == answers[0] for each in answers)
    assert (await olga("DefineSlice", define)) == first[0]
    assert now(service).slices == {}


async def test_a_request_id_that_was_used_for_something_else_is_refused(service: Service) -> None:
    """The second request is not taken for the first; another caller's of the same name is another request."""
    olga, otto = await service.client("operator-olga"), await service.client("operator-otto")
    await olga("DefineSlice", pb.DefineSliceRequest(name="a", profile=a_profile(), request_id="x"))
    error = await refused(olga, "DefineSlice", pb.DefineSliceRequest(name="b", profile=a_profile(), request_id="x"))
    assert error.reason == "ALREADY_EXISTS"
    await otto("DefineSlice", pb.DefineSliceRequest(name="b", profile=a_profile(), request_id="x"))
    await make_active(olga, "c")
    await olga("Admit", pb.AdmitRequest(slice="c", request_id="y"))
    error = await refused(olga, "Admit", pb.AdmitRequest(slice="c", resources={"CPU": 1}, request_id="y"))
    assert error.reason == "ALREADY_EXISTS"


async def test_of_two_operators_with_the_same_etag_one_wins(service: Service) -> None:
    """At the very same time, twenty times: one change is there, the other is refused as stale."""
    olga, otto = await service.client("operator-olga"), await service.client("operator-otto")
    for name in ("a", "b"):
        await olga("DefineSlice", pb.DefineSliceRequest(name=name, profile=a_profile()))
    for _ in range(20):
        etag = (await olga("ListSlices", pb.ListSlicesRequest())).etag
        answers = await asyncio.gather(
            olga("Apply", pb.ApplyRequest(allocations=[a_row("a")], etag=etag)),
            otto("Apply", pb.ApplyRequest(allocations=[a_row("b")], etag=etag)),
            return_exceptions=True,
        )
        [won] = [each for each in answers if isinstance(each, pb.ApplyResponse)]
        [lost] = [each for each in answers if isinstance(each, MeshError)]
        assert lost.reason == "STALE_ETAG"
        assert lost.metadata["etag"] == won.etag == now(service).etag


BAD = [
    ("DefineSlice", pb.DefineSliceRequest(name="A_b", profile=a_profile()), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x" * 64, profile=a_profile()), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(resources={"CPU": -1})), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(resources={"CPU": math.nan})), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(resources={"CPU": math.inf})), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(resources={"TPU": 1})), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(template="xxl")), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=pb.SliceProfile()), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(least_served=1.5)), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(latency_ms=math.nan)), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(snssai=pb.Snssai(sd="xyz"))), "INVALID_INPUT"),
    (
        "DefineSlice",
        pb.DefineSliceRequest(name="x", profile=a_profile(shares={"CPU": pb.SliceShare(min=1.1)})),
        "INVALID_INPUT",
    ),
    (
        "DefineSlice",
        pb.DefineSliceRequest(name="x", profile=a_profile(shares={"CPU": pb.SliceShare(min=0.5, max=0.4)})),
        "INVALID_INPUT",
    ),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(nodes=["n"] * 65)), "LIMIT_EXCEEDED"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(nodes_max=1000)), "LIMIT_EXCEEDED"),
    ("DefineSlice", pb.DefineSliceRequest(name="a", profile=a_profile()), "ALREADY_EXISTS"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(), request_id="x" * 129), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(), tenant="no tenant"), "INVALID_INPUT"),
    ("DefineSlice", pb.DefineSliceRequest(name="a", profile=a_profile(), etag="old"), "STALE_ETAG"),
    ("DefineSlice", pb.DefineSliceRequest(name="x", profile=a_profile(), etag="old"), "NOT_FOUND"),
    ("DefineSlice", pb.DefineSliceRequest(name="a", profile=a_profile(), etag="CURRENT"), "SLICE_IN_USE"),
    ("GetSlice", pb.GetSliceRequest(name="x"), "NOT_FOUND"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a")], etag="old"), "STALE_ETAG"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a")]), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", CPU=-1)], etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", CPU=math.nan)], etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", TPU=1)], etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", CPU=1e30)], etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", served=math.nan)], etag="STATE"), "INVALID_INPUT"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", CPU=1, MemoryGB=8)], etag="STATE"), "SLICES_INFEASIBLE"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", CPU=4, MemoryGB=65)], etag="STATE"), "SLICES_INFEASIBLE"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", "node-9")], etag="STATE"), "NOT_FOUND"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a"), a_row("z")], etag="STATE"), "NOT_FOUND"),
    ("Apply", pb.ApplyRequest(allocations=[a_row("a", "node-2")], etag="STATE"), "SLICE_IN_USE"),
    ("Resize", pb.ResizeRequest(name="x", resources={"CPU": 1}, etag="old"), "NOT_FOUND"),
    ("Resize", pb.ResizeRequest(name="a", resources={"CPU": 1}, etag="old"), "STALE_ETAG"),
    ("Resize", pb.ResizeRequest(name="a", etag="CURRENT"), "INVALID_INPUT"),
    ("Resize", pb.ResizeRequest(name="a", resources={"CPU": -1}, etag="CURRENT"), "INVALID_INPUT"),
    ("Resize", pb.ResizeRequest(name="a", resources={"TPU": 1}, etag="CURRENT"), "INVALID_INPUT"),
    ("Resize", pb.ResizeRequest(name="a", resources={"CPU": 17}, etag="CURRENT"), "SLICES_INFEASIBLE"),
    ("Resize", pb.ResizeRequest(name="a", resources={"CPU": 1e12}, etag="CURRENT"), "INVALID_INPUT"),
    ("Resize", pb.ResizeRequest(name="a", resources={"CPU": 0.5}, etag="CURRENT"), "SLICE_IN_USE"),
    ("Release", pb.ReleaseRequest(name="a", etag="CURRENT"), "SLICE_IN_USE"),
    ("Release", pb.ReleaseRequest(name="a", etag="old"), "STALE_ETAG"),
    ("Release", pb.ReleaseRequest(name="x", etag="old"), "NOT_FOUND"),
    ("Admit", pb.AdmitRequest(slice="x"), "NOT_FOUND"),
    ("Admit", pb.AdmitRequest(slice="a", resources={"CPU": -1}), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", resources={"CPU": math.nan}), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", resources={"TPU": 1}), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 5}), "SLICES_INFEASIBLE"),
    ("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 3.5}), "SLICE_FULL"),
    ("Admit", pb.AdmitRequest(slice="a", nodes=["node-2"]), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", nodes=["node-1"] * 2), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", lifetime=Duration(seconds=-1)), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", lifetime=Duration()), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", lifetime=Duration(seconds=10**11)), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="a", request_id="x" * 129), "INVALID_INPUT"),
    ("Admit", pb.AdmitRequest(slice="d"), "FAILED_PRECONDITION"),
    ("Withdraw", pb.WithdrawRequest(request_id="x" * 129), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(slices=["x"]), "NOT_FOUND"),
    ("Optimize", pb.OptimizeRequest(goal=9), "INVALID_INPUT"),  # type: ignore[arg-type]
    ("Optimize", pb.OptimizeRequest(traffic={"a": math.nan}), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(traffic={"x": 1}), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(time_limit=Duration(seconds=61)), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(time_limit=Duration()), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(nodes=[pb.SliceNode(name="n", capacity={"CPU": -1})]), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(nodes=[pb.SliceNode(name="n")] * 2), "INVALID_INPUT"),
    ("Optimize", pb.OptimizeRequest(what_if=[pb.Slice(name="n", profile=a_profile(template="z"))]), "INVALID_INPUT"),
]


@pytest.fixture
async def used(service: Service) -> tuple[Service, Client]:
    """Slice `a` is active with work in it, `d` is defined."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a")
    await olga("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 1}))
    await olga("DefineSlice", pb.DefineSliceRequest(name="d", profile=a_profile()))
    return service, olga


@pytest.mark.parametrize(("method", "request_", "reason"), BAD)
async def test_bad_input_has_a_typed_error_and_changes_nothing(
    method: str, request_: Any, reason: str, used: tuple[Service, Client]
) -> None:
    """Every allocation, every piece of work and every etag is afterwards what it was."""
    service, olga = used
    before = contents(now(service))
    request = type(request_)()
    request.CopyFrom(request_)
    if "etag" in request.DESCRIPTOR.fields_by_name:
        state = now(service)
        names = {"STATE": state.etag, "CURRENT": state.etag_of(state.slices["a"].promise)}
        request.etag = names.get(request.etag, request.etag)
    error = await refused(olga, method, request)
    assert (error.reason, len(error.message) > 20) == (reason, True)
    assert contents(now(service)) == before


@pytest.mark.parametrize("method", ["DefineSlice", "Apply", "Resize", "Release", "Admit", "Withdraw"])
async def test_what_changes_something_needs_a_request_id(method: str, service: Service) -> None:
    """Without one a retry could not be told from a second wish."""
    olga = await service.client("operator-olga")
    request = getattr(pb, f"{method}Request")()
    with pytest.raises(Exception, match="request_id has 0 characters"):
        await getattr(olga.stub, method)(request, timeout=WAIT_S)


async def test_a_client_has_the_slices_of_its_own_tenant_and_learns_nothing_of_others(service: Service) -> None:
    """Of a slice of somebody else it is told word for word what it is told of one that does not exist."""
    olga, ann, bob = [await service.client(who) for who in ("operator-olga", "client-ann", "client-bob")]
    await make_active(olga, "secret")
    requests: dict[str, list[Any]] = {
        name: [
            pb.GetSliceRequest(name=name),
            pb.DefineSliceRequest(name=name, profile=a_profile(), etag="x"),
            pb.ApplyRequest(allocations=[a_row(name)], etag=now(service).etag),
            pb.ResizeRequest(name=name, resources={"CPU": 1}, etag="x"),
            pb.ReleaseRequest(name=name, etag="x"),
            pb.AdmitRequest(slice=name),
            pb.OptimizeRequest(slices=[name]),
        ]
        for name in ("secret", "absent")
    }
    for theirs, nobodys in zip(requests["secret"], requests["absent"], strict=True):
        method = type(theirs).__name__.removesuffix("Request")
        errors = [await refused(bob, method, request) for request in (theirs, nobodys)]
        assert [each.reason for each in errors] == ["SLICE_NOT_YOURS"] * 2, method
        assert errors[0].message.replace("secret", "absent") == errors[1].message
        assert errors[0].metadata.keys() == errors[1].metadata.keys()
    assert [each.name for each in (await ann("ListSlices", pb.ListSlicesRequest())).slices] == ["secret"]
    assert list((await bob("ListSlices", pb.ListSlicesRequest())).slices) == []
    told = await bob.watch().read()
    assert list(told.slices) == []
    for request in (pb.ListSlicesRequest(tenant="ann"), pb.DefineSliceRequest(name="x", tenant="ann")):
        error = await refused(bob, type(request).__name__.removesuffix("Request"), request)
        assert error.reason == "NOT_YOURSELF"
    # It cannot give back what somebody else was given: names of requests are everybody's own.
    await ann("Admit", pb.AdmitRequest(slice="secret", request_id="mine"))
    await bob("Withdraw", pb.WithdrawRequest(request_id="mine"))
    assert now(service).slices["secret"].admissions.count == 1


async def test_a_gateway_admits_for_the_tenant_that_it_names(service: Service) -> None:
    """It looks and admits; it changes no slice for itself, and a tenant gets into its own slices only."""
    olga, gateway = await service.client("operator-olga"), await service.client("gateway-gateway")
    await make_active(olga, "a")
    await gateway("Admit", pb.AdmitRequest(slice="a", tenant="ann", request_id="g"))
    error = await refused(gateway, "Admit", pb.AdmitRequest(slice="a", tenant="bob"))
    assert error.reason == "SLICE_NOT_YOURS"
    assert (await refused(gateway, "Admit", pb.AdmitRequest(slice="a"))).reason == "INVALID_INPUT"
    assert (await gateway("GetSlice", pb.GetSliceRequest(name="a"))).slice.admitted == 1
    await gateway("Withdraw", pb.WithdrawRequest(request_id="g"))
    for request in (
        pb.DefineSliceRequest(name="x", profile=a_profile(), tenant="ann"),
        pb.ReleaseRequest(name="a", etag="x"),
        pb.ResizeRequest(name="a", etag="x"),
        pb.ApplyRequest(etag="x"),
        pb.OptimizeRequest(),
    ):
        error = await refused(gateway, type(request).__name__.removesuffix("Request"), request)
        assert error.reason == "ROLE_NOT_ALLOWED"


async def test_a_gateway_that_hands_calls_on_gives_its_callers_no_more_than_they_have(service: Service) -> None:
    """For a client it has what the client has, for an operator all; nobody else may say for whom he calls."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a")
    for_bob = await service.client("gateway-gateway", "spiffe://orbitmesh/client/bob")
    assert (await refused(for_bob, "GetSlice", pb.GetSliceRequest(name="a"))).reason == "SLICE_NOT_YOURS"
    assert (await refused(for_bob, "Admit", pb.AdmitRequest(slice="a", tenant="ann"))).reason == "NOT_YOURSELF"
    for_otto = await service.client("gateway-gateway", "spiffe://orbitmesh/operator/otto")
    made = await for_otto("DefineSlice", pb.DefineSliceRequest(name="b", profile=a_profile()))
    assert made.slice.tenant == "otto"
    for behalf in ("spiffe://orbitmesh/executor/node-1", "nobody", "spiffe://other/operator/otto"):
        forged = await service.client("gateway-gateway", behalf)
        with pytest.raises(MeshError):
            await forged("ListSlices", pb.ListSlicesRequest())
    posing = await service.client("client-bob", "spiffe://orbitmesh/operator/olga")
    assert (await refused(posing, "GetSlice", pb.GetSliceRequest(name="a"))).reason == "SLICE_NOT_YOURS"


async def test_an_aggregator_keeps_work_in_the_slices_of_those_whom_it_names(service: Service) -> None:
    """As they themselves could, for as long as it asks again; it changes no slice and asks about none."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a")
    for_ann = await service.client("aggregator-aggregator", "spiffe://orbitmesh/client/ann")
    for_bob = await service.client("aggregator-aggregator", "spiffe://orbitmesh/client/bob")
    assert (await refused(for_bob, "Admit", pb.AdmitRequest(slice="a"))).reason == "SLICE_NOT_YOURS"
    await for_ann("Admit", pb.AdmitRequest(slice="a", request_id="run", lifetime=Duration(seconds=30)))
    assert (await refused(for_bob, "Renew", pb.RenewRequest(request_id="run"))).reason == "NOT_FOUND"
    service.clock["ahead_ns"] = 25 * 10**9
    until = (await for_ann("Renew", pb.RenewRequest(request_id="run", lifetime=Duration(seconds=30)))).until
    assert until.ToNanoseconds() > time.time_ns() + 50 * 10**9
    service.clock["ahead_ns"] = 50 * 10**9
    etag = (await olga("GetSlice", pb.GetSliceRequest(name="a"))).slice.etag
    assert (await refused(olga, "Release", pb.ReleaseRequest(name="a", etag=etag))).reason == "SLICE_IN_USE"
    for bad in (0, -1, 100_000):
        error = await refused(for_ann, "Renew", pb.RenewRequest(request_id="run", lifetime=Duration(seconds=bad)))
        assert error.reason == "INVALID_INPUT"
    await for_ann("Withdraw", pb.WithdrawRequest(request_id="run"))
    assert (await refused(for_ann, "Renew", pb.RenewRequest(request_id="run"))).reason == "NOT_FOUND"
    assert (await refused(for_ann, "GetSlice", pb.GetSliceRequest(name="a"))).reason == "ROLE_NOT_ALLOWED"
    alone = await service.client("aggregator-aggregator")
    assert (await refused(alone, "Admit", pb.AdmitRequest(slice="a"))).reason == "INVALID_INPUT"
    await olga("Release", pb.ReleaseRequest(name="a", etag=etag))


async def test_nodes_report_and_watch_and_do_nothing_else(service: Service) -> None:
    """What a node has measured counts once, however often it says so; percentiles are those of the buckets."""
    olga, node = await service.client("operator-olga"), await service.client("executor-node-1")
    await make_active(olga, "a")
    buckets = [0] * 10 + [98, 1, 1]
    measured = pb.SliceTraffic(offered_bytes=10, sent_bytes=8, dropped_bytes=2, frames=100, wait_buckets=buckets)
    report = pb.ReportTrafficRequest(traffic={"a": measured, "gone": measured}, number=1, process=b"p" * 16)
    for number in (1, 1, 2, 2, 1):
        report.number = number
        await node("ReportTraffic", report)
    report.process = b"q" * 16
    report.number = 1
    await node("ReportTraffic", report)
    found = (await olga("GetSlice", pb.GetSliceRequest(name="a"))).slice.traffic
    assert (found.offered_bytes, found.sent_bytes, found.dropped_bytes, found.frames) == (30, 24, 6, 300)
    # 98 % waited below 2^10 us, 99 % below 2^11, all below 2^12.
    assert (found.wait_p50_ms, found.wait_p99_ms, found.wait_p999_ms) == (1.024, 2.048, 4.096)
    for bad in (
        pb.ReportTrafficRequest(number=0, process=b"p" * 16),
        pb.ReportTrafficRequest(number=9, process=b"short"),
        pb.ReportTrafficRequest(
            number=9, process=b"p" * 16, traffic={"a": pb.SliceTraffic(wait_buckets=[1] * 33)}
        ),
    ):
        assert (await refused(node, "ReportTraffic", bad)).reason == "INVALID_INPUT"
    assert (await refused(node, "ListSlices", pb.ListSlicesRequest())).reason == "ROLE_NOT_ALLOWED"
    assert (await refused(node, "Admit", pb.AdmitRequest(slice="a"))).reason == "ROLE_NOT_ALLOWED"
    told = await node.watch("node-1").read()
    assert [each.name for each in told.slices] == ["a"]
    assert not told.slices[0].HasField("traffic")
    assert [each.name for each in told.nodes] == ["node-1"]
    assert list((await node.watch("node-2").read()).slices) == []


async def test_work_whose_time_is_over_is_given_back_by_itself(service: Service) -> None:
    """The slice is full until then; nobody has to ask."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a")
    await olga("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 4}, lifetime=Duration(seconds=30)))
    error = await refused(olga, "Admit", pb.AdmitRequest(slice="a", resources={"CPU": 1}))
    assert (error.reason, error.retryable) == ("SLICE_FULL", True)
    service.clock["ahead_ns"] = 31 * 10**9
    watch = olga.watch()
    while (await asyncio.wait_for(watch.read(), WAIT_S)).slices[0].admitted:
        pass
    await olga("Admit", pb.AdmitRequest(slice="a", resources={"CPU": 4}))
    assert over_commitments(now(service)) == []


async def test_work_that_nobody_waits_for_any_more_is_not_admitted(service: Service) -> None:
    """A request that is looked at after its deadline may come after its own withdrawal and hold room for nobody."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a")
    deeds, caller = Deeds(service.keeper, service.light, time.time_ns), Caller(Role.OPERATOR, "olga")

    async def late() -> None:
        peer: Any = None
        enter_call(Call(peer, "Admit", time.monotonic() - 0.001))
        await deeds.admit(caller, pb.AdmitRequest(slice="a", request_id="late"))

    with pytest.raises(DeadlineError):
        await asyncio.create_task(late())
    assert now(service).slices["a"].admissions.count == 0


async def test_a_watcher_is_told_whole_states_and_the_newest_alone(service: Service) -> None:
    """A hundred changes between two reads are one message, and that has the last of them."""
    olga = await service.client("operator-olga")
    made = await make_active(olga, "a")
    watch = olga.watch()
    assert (await watch.read()).slices[0].etag == made.etag
    for _ in range(100):
        cpu = 1 + now(service).version % 7
        made = (await olga("Resize", pb.ResizeRequest(name="a", resources={"CPU": cpu}, etag=made.etag))).slice
    told = 0
    while (await asyncio.wait_for(watch.read(), WAIT_S)).slices[0].etag != made.etag:
        told += 1
    assert told < 100


async def test_the_largest_state_fits_into_one_message() -> None:
    """As many slices and nodes as there may be, each as long as it may be."""
    long = "x" * 60
    nodes = [f"{long}{index:03}" for index in range(NAMED_NODES_MAX)]
    amounts = dict.fromkeys(("CPU", "GPU", "MemoryGB", "BandwidthGbps"), 123456789.123456)
    share = pb.SliceShare(dedicated=0.1, min=0.1, max=0.9)
    each = pb.Slice(
        name=nodes[0], tenant=nodes[0], etag="e" * 30, admitted=2**32 - 1, state=pb.SLICE_STATE_ACTIVE,
        profile=pb.SliceProfile(
            template="urllc", snssai=pb.Snssai(sst=255, sd="ffffff"), resources=amounts, latency_ms=0.1,
            shares=dict.fromkeys(amounts, share), within_latency_permille=0.1, least_served=0.1, weight=0.1,
            place="x" * 63, nodes=nodes, nodes_max=SPREAD_MAX, max_number_of_ues=2**32 - 1,
        ),
        allocations=[
            pb.SliceAllocation(slice=nodes[0], node=node, served=0.1, resources=amounts, traffic=0.1)
            for node in nodes[:SPREAD_MAX]
        ],
        traffic=pb.SliceTraffic(
            offered_bytes=2**64 - 1, sent_bytes=2**64 - 1, dropped_bytes=2**64 - 1, frames=2**64 - 1,
            violations=2**64 - 1, wait_buckets=[2**64 - 1] * 32, wait_p50_ms=0.1, wait_p99_ms=0.1, wait_p999_ms=0.1,
        ),
    )  # fmt: skip
    each.changed_at.FromNanoseconds(2**60)
    node = pb.SliceNode(name=nodes[0], capacity=amounts, reserved=amounts, absent=True)
    whole = pb.ListSlicesResponse(slices=[each] * SLICES_MAX, nodes=[node] * NODES_MAX, etag="e" * 30)
    assert whole.ByteSize() < MESSAGE_BYTES
