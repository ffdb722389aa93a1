"""A node of the mesh that a test plays: a real server with an identity of the mesh's CA that says whatever it likes.

Written against the contract alone (`training.proto`): it shares with real nodes their local training and the encoding
of updates, and nothing of how they follow orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from orbitmesh import Mesh
from orbitmesh.errors import MeshError
from orbitmesh.rpc import keep_status
from orbitmesh.trust import IdentitySource, Role, issue
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc, training_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import SessionAcceptor, exchange_handler
from services.executor.training.work import local_plan
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from services.training import flat
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.codec import encode
from services.updates.layout import Layout
from services.updates.scheme import Scheme
from services.updates.spans import span_count, span_slice, spans
from tests.mesh.support import until
from tests.mesh.test_own_services import scheduler_address
from tests.mesh.training.support import Plain, Weights, task_of

SERVICE = "orbitmesh.v1.ExecutorService"
JOIN = training_pb2.TRAINING_KIND_JOIN
INITIALISE = training_pb2.TRAINING_KIND_INITIALISE
TRAIN = training_pb2.TRAINING_KIND_TRAIN
EVALUATE = training_pb2.TRAINING_KIND_EVALUATE
UP_WITHIN_S = 60.0


class Puppet(executor_pb2_grpc.ExecutorServiceServicer):
    """An honest node; what it says is changed by overriding one of `joined`, `first`, `contribute` and `heard`."""

    def __init__(self) -> None:
        self.refusals: list[training_pb2.TrainingRefusal] = []
        self.orders: list[tuple[int, int]] = []
        self.stored: list[int] = []
        self.slices: set[str] = set()
        """Those of all that it was sent."""
        self.sessions = 0
        self.ended = 0
        self.body = b""
        """Of the message that `heard` is told of."""
        self._kind = JOIN
        self._work: dict[str, tuple[int, training_pb2.TrainingWork]] = {}
        self._weights: dict[int, bytes] = {}

    # What a test may change.

    def joined(self, work: training_pb2.TrainingWork) -> training_pb2.Joined:
        """What it says of itself."""
        task = task_of(work.spec.task)
        model = task.model(work.spec.seed)
        layout = Layout.of({name: one.numpy(force=True) for name, one in flat.floating(model).items()})
        return training_pb2.Joined(
            examples=len(self.shard(work)), values=flat.count(model), layout_sha256=layout.digest
        )

    async def first(self, session: Session, run: str, work: training_pb2.TrainingWork) -> None:
        """It gives the weights that the run begins with."""
        weights = flat.flatten(task_of(work.spec.task).model(work.spec.seed))
        await self.send_vector(session, run, 0, as_spans(weights), examples=len(self.shard(work)))

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        """It gives its update."""
        encoded = self.encoded(work, round_index, self.train(work, round_index, weights))
        await self.send_vector(session, run, round_index, encoded, examples=len(self.shard(work)))

    async def heard(self, session: Session, info: training_pb2.TrainingInfo) -> None:
        """It was told that its contribution is stored, or refused, or anything else."""

    # What there is to do it with.

    def shard(self, work: training_pb2.TrainingWork) -> Any:
        spec = work.spec
        alpha = spec.alpha if spec.HasField("alpha") else None
        return task_of(spec.task).shard(work.node_index, work.nodes, seed=spec.seed, alpha=alpha)

    def train(self, work: training_pb2.TrainingWork, round_index: int, weights: Weights) -> Weights:
        task = task_of(work.spec.task)
        return train_locally(task, self.shard(work), weights, local_plan(work, round_index)).delta

    def encoded(self, work: training_pb2.TrainingWork, round_index: int, delta: Weights) -> list[bytes]:
        scheme = Scheme.parse(work.spec.compression)
        return [data for _, data in encode(scheme, delta, round_index=round_index, rng=None).spans()]

    async def send(self, session: Session, run: str, round_index: int, data: bytes = b"", **what: Any) -> None:
        info = training_pb2.TrainingInfo(run=run, round=round_index, **what)
        await session.send(wire_pb2.TransferInfo(training=info), data)

    async def send_vector(
        self, session: Session, run: str, round_index: int, parts: Sequence[bytes], **facts: Any
    ) -> None:
        """A contribution with its header, of which `facts` are said whatever is true."""
        facts = {"spans": len(parts), "sha256": hashlib.sha256(b"".join(parts)).digest(), "loss": 1.0, **facts}
        await self.send(session, run, round_index, contribution=training_pb2.ContributionInfo(**facts))
        for index, part in enumerate(parts):
            await self.send(session, run, round_index, part, update=training_pb2.SpanInfo(index=index))

    # How it follows orders.

    async def serve(self, session: Session) -> None:
        """One session of an aggregator."""
        self.sessions += 1
        try:
            async for received in session:
                await self._take(session, received)
        finally:
            self.ended += 1

    async def _take(self, session: Session, received: Received) -> None:
        info = received.info.training
        what = info.WhichOneof("what")
        self.slices.add(received.info.slice)
        if what == "order":
            self.orders.append((info.order.kind, info.round))
            await self._order(session, info, bytes(received.data))
        elif what == "weights":
            self._weights[info.weights.index] = bytes(received.data)
            await self._go_on(session, info.run)
        else:
            if what == "refused":
                self.refusals.append(info.refused)
            elif what == "stored" and self._kind == TRAIN:
                self.stored.append(info.round)
            self.body = bytes(received.data)
            await self.heard(session, info)

    async def _order(self, session: Session, info: training_pb2.TrainingInfo, body: bytes) -> None:
        work, kind = training_pb2.TrainingWork.FromString(body), info.order.kind
        self._kind = kind
        if kind == JOIN:
            await self.send(session, info.run, info.round, joined=self.joined(work))
        elif kind == INITIALISE:
            await self.first(session, info.run, work)
        elif kind in (TRAIN, EVALUATE):
            self._work[info.run] = (info.round, work)
            self._weights.clear()
            have = training_pb2.WeightsHeld(sha256=work.weights.sha256, spans=0)
            if kind == TRAIN:  # it measures nothing
                await self.send(session, info.run, info.round, have=have)

    async def _go_on(self, session: Session, run: str) -> None:
        round_index, work = self._work[run]
        if len(self._weights) < span_count(work.weights.values):
            return
        data = b"".join(self._weights[index] for index in sorted(self._weights))
        assert hashlib.sha256(data).digest() == work.weights.sha256
        await self.contribute(session, run, round_index, work, np.frombuffer(data, "<f4").astype(np.float32))

    async def Probe(self, request: executor_pb2.ProbeRequest, context: Any) -> executor_pb2.ProbeResponse:  # noqa: N802
        """Others measure their links to it."""
        return executor_pb2.ProbeResponse(payload=bytes(request.reply_bytes))


def as_spans(vector: Weights) -> list[bytes]:
    """A vector as spans of fp32."""
    return [vector[where].astype("<f4").tobytes() for _, where in spans(vector.size)]


def where_is(span: int, size: int) -> slice:
    """Where a span lies."""
    return span_slice(span, size)


@contextmanager
def in_the_mesh(mesh: Mesh, name: str, home: Path, puppet: Puppet) -> Iterator[None]:
    """The puppet is a member as long as the block runs, in a thread of its own."""
    Plain(task_of("digits"), 1, LocalPlan(steps=1)).round()  # now: its event loop must not stand still for imports
    issue(mesh.local.directory / "ca", Role.EXECUTOR, name, home / name)
    stop, errors = threading.Event(), list[BaseException]()

    def play() -> None:
        try:
            asyncio.run(_play(home / name, scheduler_address(mesh), puppet, stop))
        except BaseException as error:  # the test looks at it
            errors.append(error)

    def is_up() -> bool:
        assert not errors, errors
        return any(node.name == name and node.state == "up" for node in mesh.nodes())

    thread = threading.Thread(target=play, name=name)
    thread.start()
    try:
        until(is_up, f"{name} is a member", UP_WITHIN_S)
        yield
    finally:
        stop.set()
        thread.join(UP_WITHIN_S)
    assert not errors, errors
    until(lambda: all(node.state != "up" for node in mesh.nodes() if node.name == name), f"{name} has left")


async def _play(identity: Path, scheduler: str, puppet: Puppet, stop: threading.Event) -> None:
    source = IdentitySource(identity)
    host = ServiceHost(source, log=EventLog("executor", stream=io.StringIO()))
    pool = ChannelPool(source, {})
    acceptor = SessionAcceptor(source, puppet.serve)
    host.add_stream(SERVICE, "Exchange", exchange_handler(acceptor))
    host.add(SERVICE, executor_pb2_grpc.add_ExecutorServiceServicer_to_server, puppet)
    port = await host.start()

    async def beats() -> AsyncIterator[scheduler_pb2.HeartbeatRequest]:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            yield scheduler_pb2.HeartbeatRequest(
                address=f"127.0.0.1:{port}", kind="satellite", cores=1, flops=1e9, memory_bandwidth=1e9,
                memory_total_bytes=1 << 30, memory_free_bytes=1, sequence=sequence,
            )  # fmt: skip
            await asyncio.sleep(0.1)

    try:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(pool.get(Role.SCHEDULER, "scheduler", scheduler))
        async for _ in keep_status(stub.Heartbeat(beats())):
            pass
    finally:
        with contextlib.suppress(MeshError, grpc.RpcError):
            await acceptor.close()
        await pool.close()
        await host.drain(0.1)
