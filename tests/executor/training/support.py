"""A real executor on loopback, and an aggregator that speaks the protocol of training with it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2_grpc, training_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, dial, exchange_handler
from services.executor.measures import Machine
from services.executor.node import ExecutorNode
from services.executor.relaying import RelayTable, known_peers
from services.executor.server import SERVICE, ExecutorServicer
from services.executor.settings import ExecutorSettings
from services.executor.training.shop import digest
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from services.updates.codec import decode_span
from services.updates.scheme import Scheme
from services.updates.spans import span_count, span_slice
from tests.executor.relay_mesh import Ca

WAIT_S = 60.0
RUN = "run.1"
JOIN = training_pb2.TRAINING_KIND_JOIN
INITIALISE = training_pb2.TRAINING_KIND_INITIALISE
TRAIN = training_pb2.TRAINING_KIND_TRAIN
EVALUATE = training_pb2.TRAINING_KIND_EVALUATE
END = training_pb2.TRAINING_KIND_END
MACHINE = Machine(cores=1, memory_bytes=1 << 30, flops=1e9, memory_bandwidth=1e9, accelerators=())


@dataclass
class Running:
    """An executor in this process."""

    node: ExecutorNode
    host: ServiceHost
    text: io.StringIO
    state: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.getvalue().splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


@asynccontextmanager
async def running(ca: Ca, state: Path, name: str = "sat-1") -> AsyncIterator[Running]:
    """A real node with its real server; no scheduler is needed to train."""
    path = ca.path(f"executor/{name}")
    source, text = IdentitySource(path), io.StringIO()
    log = EventLog("executor", stream=text)
    host = ServiceHost(source, log=log)
    node = ExecutorNode(ExecutorSettings(path, "127.0.0.1:0", state, "127.0.0.1:1"), source, MACHINE, log)
    relays = RelayTable(name, node.channels, known_peers({}, dict), log)
    host.add_stream(SERVICE, "Exchange", exchange_handler(node.peers.acceptor))
    host.add(SERVICE, executor_pb2_grpc.add_ExecutorServiceServicer_to_server, ExecutorServicer(node, relays))
    host.on_drain(node.drain)
    await host.start()
    try:
        yield Running(node, host, text, state)
    finally:
        await host.drain(WAIT_S)
        await node.close()


@dataclass
class Contribution:
    """What a node contributed."""

    info: training_pb2.ContributionInfo
    spans: dict[int, bytes]

    def decoded(self, scheme: str, values: int, round_index: int) -> np.ndarray:
        found = np.zeros(values, np.float32)
        for index, data in self.spans.items():
            where = span_slice(index, values)
            found[where] = decode_span(Scheme.parse(scheme), data, index, values, round_index=round_index)
        return found

    def full(self, scheme: str, values: int, round_index: int = 0) -> np.ndarray:
        assert sorted(self.spans) == list(range(self.info.spans))
        return self.decoded(scheme, values, round_index)

    def raw(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.spans[index] for index in sorted(self.spans)), "<f4").astype(np.float32)


@dataclass
class Aggregator:
    """A peer that orders."""

    session: Session
    run: str = RUN
    heard: list[str] = field(default_factory=list)

    async def send(self, body: bytes = b"", round_index: int = 0, **what: Any) -> None:
        info = training_pb2.TrainingInfo(run=self.run, round=round_index, **what)
        await self.session.send(wire_pb2.TransferInfo(training=info), body)

    async def order(self, kind: int, work: training_pb2.TrainingWork | bytes, round_index: int = 0) -> None:
        body = work if isinstance(work, bytes) else work.SerializeToString()
        await self.send(body, round_index, order=training_pb2.TrainingOrder(kind=kind))

    async def receive(self) -> Received:
        async with asyncio.timeout(WAIT_S):
            received = await self.session.receive()
        self.heard.append(str(received.info.training.WhichOneof("what")))
        return received

    async def next(self, what: str, *, passing: tuple[str, ...] = ("progress",)) -> training_pb2.TrainingInfo:
        """The next message, which has to be of that kind; progress may come before it."""
        while True:
            info = (await self.receive()).info.training
            kind = info.WhichOneof("what")
            if kind == what:
                return info
            assert kind in passing, f"{kind} came where {what} was awaited: {info}"

    async def refused(self, reason: str) -> training_pb2.TrainingRefusal:
        refusal = (await self.next("refused")).refused
        assert refusal.reason == reason, refusal
        return refusal

    async def join(self, work: training_pb2.TrainingWork) -> training_pb2.Joined:
        await self.order(JOIN, work)
        return (await self.next("joined")).joined

    async def contribution(self, held: int = 0) -> Contribution:
        info = (await self.next("contribution")).contribution
        return Contribution(info, await self.spans(held, info.spans))

    async def spans(self, first: int, stop: int) -> dict[int, bytes]:
        found = {}
        for index in range(first, stop):
            received = await self.receive()
            assert received.info.training.update.index == index
            found[index] = bytes(received.data)
        return found

    async def give_weights(
        self, weights: np.ndarray, first: int, stop: int | None = None, round_index: int = 0
    ) -> None:
        for index in range(first, span_count(weights.size) if stop is None else stop):
            data = weights[span_slice(index, weights.size)].astype("<f4").tobytes()
            await self.send(data, round_index, weights=training_pb2.SpanInfo(index=index))

    async def train(self, work: training_pb2.TrainingWork, weights: np.ndarray, round_index: int = 0) -> Contribution:
        """Orders a round and brings it to its end."""
        await self.order(TRAIN, on(work, weights), round_index)
        have = (await self.next("have")).have
        assert have.sha256 == digest(weights)
        await self.give_weights(weights, have.spans, round_index=round_index)
        return await self.contribution(work.held_spans)


@asynccontextmanager
async def session_with(ca: Ca, running: Running, title: str = "aggregator/agg") -> AsyncIterator[Session]:
    source = IdentitySource(ca.path(title))
    pool = ChannelPool(source, {})
    name, address = running.node.name, f"127.0.0.1:{running.host.port}"
    try:
        session = await dial(
            pool.exchange(Role.EXECUTOR, name, address, EXCHANGE),
            source,
            receiver_role=Role.EXECUTOR,
            receiver_name=name,
            reconnect=False,
        )
        yield session
        await session.close()
    finally:
        await pool.close()


@asynccontextmanager
async def aggregating(
    ca: Ca, running: Running, title: str = "aggregator/agg", run: str = RUN
) -> AsyncIterator[Aggregator]:
    async with session_with(ca, running, title) as session:
        yield Aggregator(session, run)


def work_of(
    task: str = "digits", *, index: int = 0, nodes: int = 4, seed: int = 7, compression: str = "fp32", **spec: Any
) -> training_pb2.TrainingWork:
    """What a run's orders say; two local steps unless something else is given."""
    local = spec.pop("local", training_pb2.LocalTraining(steps=2))
    made = training_pb2.TrainingSpec(
        task=task, rounds=3, seed=seed, strategy="fedavg", compression=compression, local=local, **spec
    )
    return training_pb2.TrainingWork(spec=made, node_index=index, nodes=nodes)


def on(work: training_pb2.TrainingWork, weights: np.ndarray, **fields: Any) -> training_pb2.TrainingWork:
    """The same with weights to work on, and other fields."""
    made = training_pb2.TrainingWork()
    made.CopyFrom(work)
    made.weights.CopyFrom(training_pb2.WeightsInfo(values=weights.size, sha256=digest(weights)))
    made.MergeFrom(training_pb2.TrainingWork(**fields))
    return made
