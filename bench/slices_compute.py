"""The token time of an urgent generation while others saturate every executor: with slices, without, and alone.

    python bench/slices_compute.py [--json] [--rounds 5] [--tokens 96] [--others 16] [--latency-ms 20] [--stages 2]
                                   [--model DIR]

A Llama of 8 layers of width 512 with random weights in two stages (as many as this machine has cores, or their
executors take each other's time) over emulated links (`--latency-ms 0`: none). Per round, in turning order:

- `alone`: one generation and nothing else;
- `without slices`: the same while others generate all the time, first come, first served;
- `with slices`: the same with two slices of the mesh's own slices service: the one generation in a slice of type URLLC
  with 40 % of each node's processors, the others in one of type eMBB with 40 %.

The others are started first and go on until the one has ended; each is started anew when it ends. A token's time is
from the token before to its own arrival at the client; the first is left out. Percentiles are over the tokens of all
rounds (`round_p99`: the median over rounds of each one's), ratios over `alone` of the same run. `parts_ms` is where a
token's time went, in the mean, by the rows of the breakdown: `queue` is the wait for the processor.

A step is never interrupted, so on each stage an urgent token may find one of the others that has just begun: `one step
of the others` is the sum over the stages of what such a step takes when nothing else runs, and `bound` is what a token
took alone plus that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python")]

from bench.generate import machine, random_llama  # noqa: E402 - the paths come first
from orbitmesh import Link, Mesh  # noqa: E402
from orbitmesh.rpc import open_channel  # noqa: E402
from orbitmesh.trust import Role, load_identity  # noqa: E402
from orbitmesh.v1 import (  # noqa: E402
    executor_pb2,
    gateway_pb2,
    gateway_pb2_grpc,
    slices_pb2,
    slices_pb2_grpc,
)

RESULTS = ROOT / "bench" / "results" / "slices_compute.json"
PROMPT = [5, 17, 33, 98, 250, 7, 41, 63]
SHARE = 0.4
OTHERS_TOKENS = 256
SLICES = (("urgent", 2), ("bulk", 1))
CASES = ("alone", "without slices", "with slices")
CALL_S = 60.0
KV_TOKENS = 1 << 15


class Client:
    """Generations and slices of one mesh, over one connection each to its gateway."""

    def __init__(self, user: Any, operator: Any) -> None:
        self._generate = gateway_pb2_grpc.GatewayServiceStub(user)
        self._slices = slices_pb2_grpc.SlicesServiceStub(operator)
        self._number = 0

    async def tokens(self, count: int, slice_name: str) -> AsyncIterator[tuple[float, str]]:
        """When each token of a generation came, in seconds, and its trace."""
        request = gateway_pb2.GenerateRequest(
            deployment="bench",
            token_ids=gateway_pb2.TokenIds(ids=PROMPT),
            max_new_tokens=count,
            sampling=executor_pb2.Sampling(),
            ignore_end=True,
            slice=slice_name,
        )
        trace = ""
        async for event in self._generate.Generate(request, timeout=600.0):
            if event.HasField("started"):
                trace = event.started.trace_id
            elif event.HasField("token"):
                yield time.perf_counter(), trace

    async def breakdown(self, trace: str) -> gateway_pb2.Breakdown:
        """Where the time of a generation went."""
        answer = await self._generate.Explain(gateway_pb2.ExplainRequest(trace_id=trace), timeout=CALL_S)
        return answer.breakdown

    def _id(self) -> str:
        self._number += 1
        return f"bench-{self._number}"

    async def divide(self) -> None:
        """Two slices on every node, by the mesh's own service."""
        for name, kind in SLICES:
            state = await self._slices.ListSlices(slices_pb2.ListSlicesRequest(), timeout=CALL_S)
            profile = slices_pb2.SliceProfile(
                snssai=slices_pb2.Snssai(sst=kind),
                resources={"CPU": sum(SHARE * node.capacity["CPU"] for node in state.nodes)},
                shares={"CPU": slices_pb2.SliceShare(min=SHARE)},
                latency_ms=60_000.0,
                nodes_max=len(state.nodes),
            )
            await self._slices.DefineSlice(
                slices_pb2.DefineSliceRequest(name=name, profile=profile, request_id=self._id()), timeout=CALL_S
            )
            state = await self._slices.ListSlices(slices_pb2.ListSlicesRequest(), timeout=CALL_S)
            rows = [
                slices_pb2.SliceAllocation(
                    slice=name, node=node.name, served=1 / len(state.nodes),
                    resources={"CPU": SHARE * node.capacity["CPU"]},
                )
                for node in state.nodes
            ]  # fmt: skip
            await self._slices.Apply(
                slices_pb2.ApplyRequest(allocations=rows, etag=state.etag, request_id=self._id()), timeout=CALL_S
            )

    async def undivide(self) -> None:
        """No slices any more."""
        state = await self._slices.ListSlices(slices_pb2.ListSlicesRequest(), timeout=CALL_S)
        for each in state.slices:
            release = slices_pb2.ReleaseRequest(name=each.name, etag=each.etag, request_id=self._id())
            give_up = time.monotonic() + CALL_S
            while True:
                try:
                    await self._slices.Release(release, timeout=CALL_S)
                    break
                except grpc.aio.AioRpcError as error:
                    # The gateway gives back the places of generations that were given up a moment ago.
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION or time.monotonic() > give_up:
                        raise
                    await asyncio.sleep(0.2)


@asynccontextmanager
async def saturated(client: Client, count: int, slice_name: str) -> AsyncIterator[list[int]]:
    """Others generate all the time; yields how many tokens they got, once each has begun."""
    got, begun = [0], [asyncio.Event() for _ in range(count)]

    async def other(index: int) -> None:
        while True:
            async for _ in client.tokens(OTHERS_TOKENS, slice_name):
                got[0] += 1
                begun[index].set()

    tasks = [asyncio.create_task(other(index)) for index in range(count)]
    try:
        if tasks:
            await asyncio.wait(
                [*tasks, waiting := asyncio.create_task(_all(begun))], return_when=asyncio.FIRST_COMPLETED
            )
            for task in tasks:
                if task.done():
                    task.result()
            await waiting
        yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def one(client: Client, case: str, tokens: int, others: int) -> dict[str, Any]:
    """One case once."""
    sliced = case == "with slices"
    if sliced:
        await client.divide()
        await asyncio.sleep(1.0)  # until every executor was told
    try:
        async with saturated(client, 0 if case == "alone" else others, "bulk" if sliced else "") as got:
            async for _ in client.tokens(8, "urgent" if sliced else ""):
                pass
            before, began = got[0], time.perf_counter()
            times = [entry async for entry in client.tokens(tokens, "urgent" if sliced else "")]
            rate = (got[0] - before) / (time.perf_counter() - began)
        breakdown = await client.breakdown(times[0][1])
    finally:
        if sliced:
            await client.undivide()
            await asyncio.sleep(1.0)
    stages = [row for row in breakdown.rows if row.what == "compute"]
    parts: dict[str, float] = {}
    for row in breakdown.rows:
        parts[row.what] = parts.get(row.what, 0.0) + row.total_s / tokens * 1e3
    return {
        "token_ms": [(later[0] - earlier[0]) * 1e3 for earlier, later in pairwise(times)],
        "compute_ms": sum(row.median_s for row in stages) * 1e3,
        "parts_ms": parts,
        "others_tokens_per_second": rate,
    }


def percentile(values: list[float], part: float) -> float:
    """The smallest value that at least this part of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


async def measure(mesh: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    user, operator = load_identity(mesh.local.identity), load_identity(mesh.local.operator_identity)
    async with (
        open_channel(mesh.local.gateway, user, Role.GATEWAY, "gateway") as users,
        open_channel(mesh.local.gateway, operator, Role.GATEWAY, "gateway") as operators,
    ):
        client = Client(users, operators)
        for index in range(arguments.rounds):
            turn = index % len(CASES)
            for case in (*CASES[turn:], *CASES[:turn]):
                run = await one(client, case, arguments.tokens, arguments.others)
                runs[case].append(run)
                print(
                    f"round {index + 1} of {arguments.rounds}, {case}: p50 {percentile(run['token_ms'], 0.5):.1f} ms, "
                    f"p99 {percentile(run['token_ms'], 0.99):.1f} ms",
                    file=sys.stderr,
                )
    result: dict[str, Any] = {case: summary(found) for case, found in runs.items()}
    alone = result["alone"]
    step_ms = statistics.median(run["compute_ms"] for run in runs["alone"])
    result["one step of the others"] = step_ms
    result["bound"] = {"p99_over_alone": (alone["p99_ms"] + step_ms) / alone["p99_ms"]}
    for case in CASES[1:]:
        for name in ("p50_ms", "p99_ms", "round_p99_ms"):
            result[case][f"{name[:-3]}_over_alone"] = result[case][name] / alone[name]
    result["rounds"] = runs
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Of all tokens of a case."""
    tokens = [value for run in runs for value in run["token_ms"]]
    return {
        "tokens": len(tokens),
        "p50_ms": percentile(tokens, 0.5),
        "p99_ms": percentile(tokens, 0.99),
        "p999_ms": percentile(tokens, 0.999),
        "round_p99_ms": statistics.median(percentile(run["token_ms"], 0.99) for run in runs),
        "queue_ms": statistics.median(run["parts_ms"].get("queue", 0.0) for run in runs),
        "others_tokens_per_second": statistics.median(run["others_tokens_per_second"] for run in runs),
    }


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--model", help="a model in Hugging Face layout")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--others", type=int, default=16)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of each link, one way; 0: no emulated links")
    arguments = parser.parse_args()
    link = Link(latency_ms=arguments.latency_ms, rate_mbps=100) if arguments.latency_ms > 0 else None
    result: dict[str, Any] = {
        "command": shlex.join(["python", "bench/slices_compute.py", *sys.argv[1:]]),
        "machine": machine(),
    }
    with TemporaryDirectory(prefix="slices-") as scratch, Mesh.local(nodes=arguments.stages, link=link) as mesh:
        model = arguments.model or random_llama(Path(scratch) / "llama-8x512", 8, 512)
        mesh.deploy(model, name="bench", stages=arguments.stages, objective="throughput", kv_tokens=KV_TOKENS)
        result |= asyncio.run(measure(mesh, arguments))
    result["load_at_the_end"] = machine()["load"]
    if arguments.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))
        return 0
    for case in CASES:
        print(case, {key: round(value, 2) for key, value in result[case].items()})
    print("one step of the others", round(result["one step of the others"], 2), "ms; bound", result["bound"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
