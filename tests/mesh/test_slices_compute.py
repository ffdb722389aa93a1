"""Slices of a real mesh: what the service promises, executors keep to; what they hold back, the trace says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest

from orbitmesh import Mesh
from orbitmesh.errors import CapacityError
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc, slices_pb2, slices_pb2_grpc
from tests.mesh.support import WITHIN_S, Models, channel_to, deployed, nodes_of

CALL_S = 30.0


@dataclass
class Calls:
    """What a program that does not use the SDK would call."""

    slices: slices_pb2_grpc.SlicesServiceStub
    gateway: gateway_pb2_grpc.GatewayServiceStub

    def generate(
        self, name: str, prompt: Sequence[int], new_tokens: int, slice_name: str
    ) -> tuple[list[int], gateway_pb2.Breakdown]:
        """The answer and where its time went."""
        request = gateway_pb2.GenerateRequest(
            deployment=name, token_ids=gateway_pb2.TokenIds(ids=prompt), max_new_tokens=new_tokens,
            ignore_end=True, slice=slice_name,
        )  # fmt: skip
        ids, trace = [], ""
        for event in self.gateway.Generate(request, timeout=CALL_S):
            trace = event.started.trace_id or trace
            if event.HasField("token"):
                ids.append(event.token.id)
        return ids, self.gateway.Explain(gateway_pb2.ExplainRequest(trace_id=trace), timeout=CALL_S).breakdown


@pytest.fixture
def calls(mesh: Mesh) -> Iterator[Calls]:
    """Calls of the operator."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(mesh.local.gateway, identity, Role.GATEWAY, "gateway") as channel:
        yield Calls(slices_pb2_grpc.SlicesServiceStub(channel), gateway_pb2_grpc.GatewayServiceStub(channel))


@contextmanager
def held(calls: Calls, name: str, shares: Mapping[str, slices_pb2.SliceShare]) -> Iterator[None]:
    """A slice with something on every node, for as long as the block runs."""
    profile = slices_pb2.SliceProfile(
        snssai=slices_pb2.Snssai(sst=1), shares=shares, resources={"CPU": 0.01}, latency_ms=60_000.0, nodes_max=16
    )
    define = slices_pb2.DefineSliceRequest(name=name, profile=profile, request_id=f"define {name}")
    calls.slices.DefineSlice(define, timeout=CALL_S)
    state = calls.slices.ListSlices(slices_pb2.ListSlicesRequest(), timeout=CALL_S)
    nodes = [node.name for node in state.nodes if not node.absent]
    part = 1 / len(nodes)
    rows = [
        slices_pb2.SliceAllocation(slice=name, node=node, served=part, resources={"CPU": 0.01 * part})
        for node in nodes
    ]
    apply = slices_pb2.ApplyRequest(allocations=rows, etag=state.etag, request_id=f"apply {name}")
    calls.slices.Apply(apply, timeout=CALL_S)
    try:
        yield
    finally:
        found = calls.slices.GetSlice(slices_pb2.GetSliceRequest(name=name), timeout=CALL_S).slice
        release = slices_pb2.ReleaseRequest(name=name, etag=found.etag, request_id=f"release {name}")
        calls.slices.Release(release, timeout=CALL_S)


def again_until(try_once: Callable[[], bool], what: str) -> None:
    """Tries until executors were told of a change, which takes a moment."""
    give_up = time.monotonic() + WITHIN_S
    while not try_once():
        assert time.monotonic() < give_up, f"within {WITHIN_S:g} s it did not happen that {what}"


def test_a_slice_at_its_ceiling_is_slower_says_why_and_says_the_same_words(
    mesh: Mesh, models: Models, calls: Calls
) -> None:
    """A generation in a slice with 2 % of every node waits for that on every stage, by a row that names the rule; its
    tokens are those of the unsplit model; and once the slice is released it lets nobody in."""
    model = models.get("llama")
    prompt = model.prompt(7)
    expected = model.answer(prompt, 8)
    rule = "waiting: slice narrow ceiling 2%"
    with deployed(mesh, model, "narrow", stages=2) as deployment:
        nodes = set(nodes_of(deployment))

        def waits_for_the_rule() -> bool:
            ids, breakdown = calls.generate("narrow", prompt, 8, "narrow")
            assert ids == expected
            rows = [row for row in breakdown.rows if row.what.startswith("waiting: ")]
            assert {row.what for row in rows} <= {rule}
            assert all(row.wait for row in rows)
            assert sum(row.total_s for row in breakdown.rows) == pytest.approx(breakdown.total_s, rel=0.01)
            return {row.place for row in rows} == nodes

        most = slices_pb2.SliceShare()
        most.max = 0.02
        with held(calls, "narrow", {"CPU": most}):
            again_until(waits_for_the_rule, "every stage held a step back by the rule")
            _, breakdown = calls.generate("narrow", prompt, 8, "")
            assert not any(row.what.startswith("waiting: ") for row in breakdown.rows)
        with pytest.raises(grpc.RpcError) as refused:
            calls.generate("narrow", prompt, 8, "narrow")
        assert map_rpc_error(refused.value).reason == "NOT_FOUND"


def test_a_slice_has_no_more_cache_than_its_share_and_others_go_on(mesh: Mesh, models: Models, calls: Calls) -> None:
    """A generation above its slice's part of the room for keys and values is refused by an error that names the slice;
    the same one without a slice is answered."""
    model = models.get("llama")
    prompt = model.prompt(5)
    half = slices_pb2.SliceShare()
    half.max = 0.5
    with deployed(mesh, model, "small", stages=2, kv_tokens=64), held(calls, "small", {"MemoryGB": half}):
        refused: list[CapacityError] = []

        def is_refused() -> bool:
            try:
                calls.generate("small", prompt, 30, "small")
            except grpc.RpcError as error:
                found = map_rpc_error(error)
                assert isinstance(found, CapacityError)
                refused.append(found)
            return bool(refused)

        again_until(is_refused, "a generation above the share was refused")
        assert refused[0].reason == "KV_MEMORY_EXHAUSTED"
        assert refused[0].metadata["slice"] == "small"
        assert "slice 'small'" in refused[0].message
        for slice_name, tokens in (("", 30), ("small", 20)):
            ids, _ = calls.generate("small", prompt, tokens, slice_name)
            assert ids == model.answer(prompt, tokens)
