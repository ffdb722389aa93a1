"""What slices get of a thin link: delays, goodput, ceilings, lending and a change of rules under load.

    python bench/slices_link.py [--json] [--rounds 3] [--seconds 10] [--ordinary]

Three real processes: this one sends, one receives, one emulates the link (10 Mbit/s, 10 ms each way) between them. All
traffic is in one sealed gRPC session over mTLS. The cases run one after the other, `--rounds` times:

- `floor`: messages of 200 bytes, every 20 ms on average, alone on the link: what the link and both ends take.
- `slices`: the same beside embb, which offers 120 % of the link in transfers of 64 KiB; a port gives frames their turn.
- `fifo`: the same without a port.
- `thin`: the same from a node that sends 1 Gbit/s, whose link is known to carry 10 Mbit/s: each frame has its turn on
  the link and on the way out.
- `unknown`: the same where the link is not known: the node's own port alone.
- `ceiling`: a slice with a ceiling of 4 Mbit/s offers without end, beside urgent messages; the rate in every second as
  the receiver sees it, and over all as the emulator counts it.
- `lending`: one slice offers without end, another one with 6 Mbit/s guaranteed begins and ends.
- `resize`: as `slices`, while the rules change every 100 ms.

A delay is from the moment at which a message was due to the arrival of its frame, on the machine's monotonic clock. The
ends ask for real-time priority, so that work of others on the machine delays the measurement little; `--ordinary`
leaves that out (the emulator asks for it either way). Figures are medians over rounds with minimum and maximum.

`--json` writes `bench/results/slices_link.json` too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc.aio

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python"), str(ROOT / "bench")]

import session_peers as peers  # noqa: E402 - the paths come first

from orbitmesh.rpc import channel_options, open_channel  # noqa: E402
from orbitmesh.trust import Identity, Role, init_mesh, issue, load_identity  # noqa: E402
from orbitmesh.v1 import slices_pb2, wire_pb2  # noqa: E402
from orbitmesh.wire.egress import Egress  # noqa: E402
from orbitmesh.wire.session import Session  # noqa: E402
from orbitmesh.wire.streams import SessionAcceptor, add_exchange, dial, open_exchange  # noqa: E402
from services.egress import EgressPort, NodeEgress, PortSpec, SliceRule  # noqa: E402
from services.egress.port import USED  # noqa: E402
from services.links import LinksProcess, RelaySpec, Shape  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "slices_link.json"
LINK_BPS = 10e6
PORT_BPS = LINK_BPS * USED
NODE_BPS = 1e9
LATENCY_MS = 10.0
MESSAGE_BYTES = 200
MESSAGE_EVERY_S = 0.02
EMBB_BYTES = 64 << 10
EMBB_OF_LINK = 1.2
CEILING_BPS = 4e6
GUARANTEE_BPS = 6e6
RESIZE_EVERY_S = 0.1
SETTLE_S = 1.0
"""What is not counted at the beginning of a case."""
RECORD_OVERHEAD_BYTES = 36
"""What gRPC, HTTP/2 and TLS put around a message of less than 16 KiB."""
REPORT_TAG = 1 << 60
LINE_BYTES = 64 << 20
ORDINARY = "--ordinary"

URLLC = SliceRule(5e5, 0, 2e6, urgent=True, latency_s=0.03)
RULES = PortSpec(PORT_BPS, {"urllc": URLLC, "embb": SliceRule(7e6)})


def way_out(*, link_known: bool) -> NodeEgress:
    """A node that sends 1 Gbit/s, with the same parts of it as `RULES` gives of the link."""
    told = slices_pb2.WatchSlicesResponse(
        nodes=[slices_pb2.SliceNode(name="one", capacity={"BandwidthGbps": NODE_BPS / 1e9})]
    )
    for name, sst, rule in (("urllc", 2, URLLC), ("embb", 1, RULES.slices["embb"])):
        found = told.slices.add(name=name, state=slices_pb2.SLICE_STATE_ACTIVE)
        found.profile.snssai.sst = sst
        found.profile.latency_ms = rule.latency_s * 1e3
        if rule.ceiling_bps is not None:
            found.profile.shares["BandwidthGbps"].max = rule.ceiling_bps / PORT_BPS
        reserved = rule.guarantee_bps / PORT_BPS * NODE_BPS / 1e9
        found.allocations.add(slice=name, node="one", served=1, resources={"BandwidthGbps": reserved})
    if link_known:
        told.links.add(to="two").rates.add(gbps=LINK_BPS / 1e9)
    egress = NodeEgress("one")
    egress.take(told)
    return egress


def prefer() -> bool:
    """Puts this process before others where the system allows it; whether it did."""
    with contextlib.suppress(OSError):
        if ORDINARY not in sys.argv:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    return os.sched_getscheduler(0) == os.SCHED_RR


async def receive(identity: Identity) -> None:
    """The receiving process: notes what came when, and prints it when it is asked to."""
    arrivals: list[tuple[str, int, int, int]] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            info = received.info
            if info.blob.tag == REPORT_TAG:
                print(json.dumps(arrivals), flush=True)
                arrivals.clear()
            else:
                small = len(received.data) <= MESSAGE_BYTES
                at_ns = received.received_ns if small else time.monotonic_ns()
                arrivals.append((info.slice, info.blob.tag, at_ns, received.wire_bytes))

    server = grpc.aio.server(options=channel_options())
    add_exchange(server, SessionAcceptor(identity, on_session))
    port = server.add_secure_port("127.0.0.1:0", peers.server_credentials(identity))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@dataclass
class Case:
    """One case as it was measured."""

    began_ns: int = 0
    due_ns: list[int] = field(default_factory=list)
    failed: int = 0
    arrivals: list[tuple[str, int, int, int]] = field(default_factory=list)
    link_bytes: int = 0
    link_s: float = 0.0
    port: EgressPort | None = None
    waits: dict[str, list[int]] = field(default_factory=dict)

    def delays_ms(self) -> list[float]:
        """Of the messages that were due after the beginning."""
        settled_ns = self.began_ns + SETTLE_S * 1e9
        return [
            (at_ns - self.due_ns[tag]) / 1e6
            for name, tag, at_ns, _ in self.arrivals
            if name == "urllc" and self.due_ns[tag] >= settled_ns
        ]

    def rate_bps(self, name: str, from_s: float, to_s: float) -> float:
        """What came of a slice in a part of the case, with all that is around it on the link."""
        low, high = self.began_ns + from_s * 1e9, self.began_ns + to_s * 1e9
        sizes = [
            size + RECORD_OVERHEAD_BYTES
            for each, _, at_ns, size in self.arrivals
            if each == name and low <= at_ns < high
        ]
        return sum(sizes) * 8 / (to_s - from_s)

    def goodput_bps(self, name: str, raw_bytes: int) -> float:
        """The raw bytes of all transfers of a slice, over the time until the last one was there."""
        mine = [at_ns for each, _, at_ns, _ in self.arrivals if each == name]
        return len(mine) * raw_bytes * 8e9 / (max(mine) - self.began_ns)

    def windows_bps(self, name: str, from_s: float, to_s: float) -> tuple[float, float]:
        """The least and the greatest rate in any second of a part of the case."""
        mine = sorted((at, size + RECORD_OVERHEAD_BYTES) for each, _, at, size in self.arrivals if each == name)
        moments = [at for at, _ in mine]
        before = [0, *accumulate(size for _, size in mine)]
        low, high = int(self.began_ns + from_s * 1e9), int(self.began_ns + (to_s - 1) * 1e9)
        starts = [at for moment in moments for at in (moment, moment + 1) if low <= at <= high]
        sums = [before[bisect_left(moments, at + 10**9)] - before[bisect_left(moments, at)] for at in starts]
        return min(sums) * 8.0, max(sums) * 8.0


Load = Callable[["Traffic"], Coroutine[Any, Any, None]]


class Traffic:
    """What one case sends in its session."""

    def __init__(self, session: Session, case: Case, seconds: float, seed: int) -> None:
        self.session = session
        self.case = case
        self.port = case.port
        self.until_s = time.monotonic() + seconds
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, name: str, tag: int, data: bytes) -> None:
        """Sends a transfer and does not wait for it."""
        task = asyncio.create_task(self.send(name, tag, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send(self, name: str, tag: int, data: bytes) -> None:
        """Sends a transfer; counts it where it fails."""
        try:
            report = await self.session.send(
                wire_pb2.TransferInfo(slice=name, blob=wire_pb2.BlobInfo(tag=tag)), data
            )
        except Exception as error:
            print(f"a transfer failed: {error!r}", file=sys.stderr)
            self.case.failed += 1
        else:
            self.case.waits.setdefault(name, []).append(report.queue_ns)

    async def messages(self) -> None:
        """Small messages in the urgent slice, at moments that have nothing to do with frames."""
        due_s = time.monotonic()
        while (due_s := due_s + MESSAGE_EVERY_S * self._rng.uniform(0.5, 1.5)) < self.until_s:
            await asyncio.sleep(max(due_s - time.monotonic(), 0))
            self.case.due_ns.append(int(due_s * 1e9))
            self.put("urllc", len(self.case.due_ns) - 1, bytes(MESSAGE_BYTES))

    async def embb(self) -> None:
        """Transfers that offer more than the link carries, whatever becomes of them."""
        due_s, tag = time.monotonic(), 0
        while due_s < self.until_s:
            await asyncio.sleep(max(due_s - time.monotonic(), 0))
            self.put("embb", tag, bytes(EMBB_BYTES))
            tag += 1
            due_s += EMBB_BYTES * 8 / (EMBB_OF_LINK * LINK_BPS)

    async def greedy(self, name: str, from_s: float = 0.0, to_s: float = 1e9) -> None:
        """Transfers of one frame each, some at once, one after the other."""
        assert self.port is not None
        began_s = time.monotonic()
        data = bytes(self.port.frame_bytes(name))
        await asyncio.sleep(from_s)

        async def lane(first: int) -> None:
            tag = first
            while time.monotonic() < min(self.until_s, began_s + to_s):
                await self.send(name, tag, data)
                tag += 4

        await asyncio.gather(*(lane(first) for first in range(4)))

    async def resizes(self) -> None:
        """Other rules, over and over."""
        assert self.port is not None
        turn = 0
        while time.monotonic() < self.until_s:
            await asyncio.sleep(RESIZE_EVERY_S)
            turn += 1
            embb = SliceRule((3e6, 7e6, 5e6)[turn % 3], 0, (None, 9e6, 8e6)[turn % 3])
            urllc = SliceRule((1e6, 5e5)[turn % 2], 0, 2e6, urgent=True, latency_s=0.03)
            self.port.change(PortSpec(PORT_BPS, {"urllc": urllc, "embb": embb}))

    async def drain(self) -> None:
        """Waits until all that was offered was sent."""
        await asyncio.gather(*self._tasks)


class Bench:
    """The link and its two ends.

    Args:
        one: Who sends.
        address: The emulated link's end.
        receiver: The other process.
        links: The emulator.
    """

    def __init__(self, one: Identity, address: str, receiver: asyncio.subprocess.Process, links: LinksProcess) -> None:
        self._one = one
        self._address = address
        self._receiver = receiver
        self._links = links

    async def run(
        self, spec: PortSpec | None, seconds: float, seed: int, *loads: Load, way: Egress | None = None
    ) -> Case:
        """Runs one case: over a port with these rules, over another way, or as it comes."""
        case = Case(port=None if spec is None else EgressPort(spec))
        async with self._session(case.port if way is None else way) as session:
            before, before_s = await self._link_bytes(), time.monotonic()
            case.began_ns = time.monotonic_ns()
            traffic = Traffic(session, case, seconds, seed)
            await asyncio.gather(*(load(traffic) for load in loads))
            case.link_s = time.monotonic() - before_s
            case.link_bytes = await self._link_bytes() - before
            await traffic.drain()
            await session.send(wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=REPORT_TAG)))
            assert self._receiver.stdout is not None
            line = await asyncio.wait_for(self._receiver.stdout.readline(), 120)
            case.arrivals = [tuple(each) for each in json.loads(line)]
        return case

    @asynccontextmanager
    async def _session(self, port: Egress | None) -> AsyncIterator[Session]:
        async with open_channel(self._address, self._one, Role.EXECUTOR, "two") as channel:
            session = await dial(
                open_exchange(channel), self._one, receiver_role="executor", receiver_name="two", egress=port,
                silence_s=30.0, give_up_after_s=120.0,
            )  # fmt: skip
            try:
                await session.send(wire_pb2.TransferInfo(slice="warm"), b"up")
                await session.flush()
                yield session
            finally:
                await session.close()

    async def _link_bytes(self) -> int:
        stats = await self._links.stats("thin")
        return int(stats["forward"]["delivered_bytes"])


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """Starts the link and the receiving process."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = init_mesh(home / "ca")
        one, two = issue(ca, "executor", "one", home / "one"), issue(ca, "executor", "two", home / "two")
        receiver = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--receive", str(two.directory), *([ORDINARY] if ORDINARY in sys.argv else []),
            stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
        )  # fmt: skip

        async def stop() -> None:
            receiver.terminate()
            await receiver.wait()

        stack.push_async_callback(stop)
        assert receiver.stdout is not None
        port = int(await asyncio.wait_for(receiver.stdout.readline(), 60))
        links = await stack.enter_async_context(await LinksProcess.start())
        shape = Shape(LATENCY_MS, LINK_BPS)
        address = await links.add(RelaySpec("thin", f"127.0.0.1:{port}", forward=shape, reverse=shape))
        yield Bench(one, address, receiver, links)


def percentile(values: Sequence[float], part: float) -> float:
    """The value that a part of all are at most."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def one_round(link: Bench, seconds: float, seed: int) -> dict[str, float]:
    """All cases once."""
    messages, embb = Traffic.messages, Traffic.embb
    figures: dict[str, float] = {}
    alone = (await link.run(RULES, seconds, seed, messages)).delays_ms()
    floor = statistics.median(alone)
    figures |= {"floor_ms": floor, "floor_p99_ms": percentile(alone, 0.99)}
    message_bps = (MESSAGE_BYTES + 100 + RECORD_OVERHEAD_BYTES) * 8 / MESSAGE_EVERY_S
    cases = {
        "slices": await link.run(RULES, seconds, seed, messages, embb),
        "fifo": await link.run(None, seconds, seed, messages, embb),
        "thin": await link.run(
            None, seconds, seed, messages, embb, way=way_out(link_known=True).towards("two")
        ),
        "unknown": await link.run(
            None, seconds, seed, messages, embb, way=way_out(link_known=False).towards("two")
        ),
        "resize": await link.run(RULES, seconds, seed, messages, embb, Traffic.resizes),
    }
    for name, case in cases.items():
        delays = [delay - floor for delay in case.delays_ms()]
        figures |= {
            f"{name}_p{text}_over_floor_ms": percentile(delays, part)
            for text, part in (("50", 0.5), ("99", 0.99), ("99.9", 0.999))
        }
        figures[f"{name}_embb_of_rest"] = case.goodput_bps("embb", EMBB_BYTES) / (LINK_BPS - message_bps)
        figures[f"{name}_failed"] = case.failed
        figures[f"{name}_messages"] = len(delays)
    # Against the same messages beside the same load, with rules that stay as they are; the way itself counts.
    figures["resize_p99_of_steady"] = (figures["resize_p99_over_floor_ms"] + floor) / (
        figures["slices_p99_over_floor_ms"] + floor
    )
    figures |= await _ceiling(link, seconds, seed)
    figures |= await _lending(link, seed)
    return figures


async def _ceiling(link: Bench, seconds: float, seed: int) -> dict[str, float]:
    spec = PortSpec(PORT_BPS, {"urllc": URLLC, "embb": SliceRule(CEILING_BPS, 0, CEILING_BPS)})
    case = await link.run(spec, seconds, seed, Traffic.messages, lambda traffic: traffic.greedy("embb"))
    least, most = case.windows_bps("embb", SETTLE_S, seconds)
    alone = await link.run(spec, seconds, seed, lambda traffic: traffic.greedy("embb"))
    return {
        "ceiling_least_percent": (least / CEILING_BPS - 1) * 100,
        "ceiling_most_percent": (most / CEILING_BPS - 1) * 100,
        "ceiling_emulator_percent": (alone.link_bytes * 8 / alone.link_s / CEILING_BPS - 1) * 100,
    }


async def _lending(link: Bench, seed: int) -> dict[str, float]:
    spec = PortSpec(PORT_BPS, {"lender": SliceRule(GUARANTEE_BPS), "embb": SliceRule(3e6)})
    case = await link.run(
        spec, 9.0, seed, lambda traffic: traffic.greedy("embb"), lambda traffic: traffic.greedy("lender", 3.0, 6.0)
    )
    frame_ms = spec.frame_bytes(SliceRule()) * 8 / PORT_BPS * 1e3
    first_ms = case.waits["lender"][0] / 1e6
    return {
        "lent_of_idle": (case.rate_bps("embb", 1.0, 3.0) - 3e6) / (PORT_BPS - 3e6),
        "lent_of_idle_link": (case.rate_bps("embb", 1.0, 3.0) - 3e6) / (LINK_BPS - 3e6),
        "lent_again_of_idle": (case.rate_bps("embb", 6.5, 8.5) - 3e6) / (PORT_BPS - 3e6),
        "taken_back_frames": first_ms / frame_ms,
        "taken_back_of_guarantee": case.rate_bps("lender", 3.1, 6.0) / GUARANTEE_BPS,
    }


GOALS: dict[str, tuple[str, float]] = {
    "slices_p99_over_floor_ms": ("at most", 20.0),
    "slices_embb_of_rest": ("at least", 0.9),
    "thin_p99_over_floor_ms": ("at most", 20.0),
    "thin_embb_of_rest": ("at least", 0.9),
    "ceiling_least_percent": ("at least", -2.0),
    "ceiling_most_percent": ("at most", 2.0),
    "lent_of_idle": ("at least", 0.95),
    "taken_back_frames": ("at most", 1.0),
    "resize_failed": ("at most", 0.0),
    "resize_p99_of_steady": ("at most", 2.0),
}

ALWAYS = ("ceiling_least_percent", "ceiling_most_percent", "resize_failed")


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds."""
    found: list[dict[str, float]] = []
    async with bench() as link:
        for number in range(rounds):
            found.append(await one_round(link, seconds, number))
            print(f"round {number + 1} of {rounds}: {found[-1]}", file=sys.stderr)
    figures = {name: peers.summary([each[name] for each in found]) for name in found[0]}
    return {"goals": judged(figures), "figures": figures, "rounds": found}


def judged(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Whether each goal was met: by the median of the rounds, and by the worst where it is to hold always."""
    goals: dict[str, dict[str, Any]] = {}
    for name, (word, bound) in GOALS.items():
        most = word == "at most"
        value = figures[name][("max" if most else "min") if name in ALWAYS else "median"]
        met = value <= bound if most else value >= bound
        goals[name] = {"goal": f"{word} {bound:g}", "value": value, "met": met}
    return goals


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each case sends")
    parser.add_argument(ORDINARY, action="store_true", help="do not ask for real-time priority")
    parser.add_argument("--receive", metavar="IDENTITY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    preferred = prefer()
    if arguments.receive:
        asyncio.run(receive(load_identity(arguments.receive)))
        return 0
    result = {
        "bench": "slices_link",
        "command": shlex.join(["python", "bench/slices_link.py", *sys.argv[1:]]),
        "machine": {**peers.machine(), "ends_have_realtime_priority": preferred},
        "link": {
            "rate_bps": LINK_BPS, "latency_ms": LATENCY_MS, "port_rate_bps": PORT_BPS, "node_rate_bps": NODE_BPS
        },
        **asyncio.run(measure(arguments.rounds, arguments.seconds)),
    }
    if arguments.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        return 0
    for name, row in result["figures"].items():
        print(f"{name:28} {row['median']:10.3f}  ({row['min']:.3f} - {row['max']:.3f})")
    for name, row in result["goals"].items():
        print(f"{name:28} {row['goal']:>16}: {'met' if row['met'] else 'missed'} with {row['value']:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
