"""Several real nodes, and an aggregator that sets up secure sums with them and makes sums of what they send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from orbitmesh.trust import Identity, load_identity
from orbitmesh.v1 import training_pb2
from services.securesum import OfferMessage, RoundSum, Signed, SumCollector, UnmaskAnswer, UnmaskRequest, word_bits
from services.securesum.fields import join_fields, split_fields
from services.updates.blocks import shared_indices
from services.updates.integers import largest_integer
from services.updates.scheme import Kind, Scheme
from services.updates.spans import span_count, span_length
from tests.executor.relay_mesh import Ca
from tests.executor.training.support import RUN, Aggregator, Contribution, Running, aggregating, on, running, work_of

NAMES = ("sat-1", "sat-2", "sat-3", "sat-4")
SCALE = 2.0**-12
BITS = 8
KEY = training_pb2.SUMS_KIND_KEY
ROSTER = training_pb2.SUMS_KIND_ROSTER
OFFER = training_pb2.SUMS_KIND_OFFER
OFFERS = training_pb2.SUMS_KIND_OFFERS
UNMASK = training_pb2.SUMS_KIND_UNMASK


@dataclass
class Summing:
    """The aggregator of one run with secure sums."""

    ca: Ca
    root: Path
    stack: AsyncExitStack
    collector: SumCollector = field(default_factory=lambda: SumCollector(RUN))
    nodes: dict[str, Running] = field(default_factory=dict)
    aggs: dict[str, Aggregator] = field(default_factory=dict)
    stacks: dict[str, AsyncExitStack] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return load_identity(self.ca.path("aggregator/agg"))

    async def start(self, name: str) -> None:
        """Starts a node, or starts it anew on the same disk."""
        before = self.stacks.pop(name, None)
        if before is not None:
            await before.aclose()
        stack = self.stacks[name] = await self.stack.enter_async_context(AsyncExitStack())
        self.nodes[name] = await stack.enter_async_context(running(self.ca, self.root / name, name))
        self.aggs[name] = await stack.enter_async_context(aggregating(self.ca, self.nodes[name]))

    def work(self, name: str) -> training_pb2.TrainingWork:
        return work_of(index=NAMES.index(name), **self.spec)

    async def ask(self, name: str, kind: int, body: bytes = b"", round_index: int = 0) -> bytes:
        await self.aggs[name].send(body, round_index, sums=training_pb2.SumsInfo(kind=kind))
        while (received := await self.aggs[name].receive()).info.training.WhichOneof("what") == "progress":
            pass
        info = received.info.training
        assert info.sums.kind == kind and info.round == round_index, info
        return bytes(received.data)

    async def refused(self, name: str, reason: str, kind: int, body: bytes = b"", round_index: int = 0) -> None:
        await self.aggs[name].send(body, round_index, sums=training_pb2.SumsInfo(kind=kind))
        await self.aggs[name].refused(reason)

    async def set_up(self, threshold: int | None = None) -> None:
        """Joins all, and sets up sums from round 0 on."""
        now, ca = datetime.now(UTC), self.identity.ca
        for name in NAMES:
            await self.aggs[name].join(self.work(name))
            self.collector.add_key(Signed.from_bytes(await self.ask(name, KEY)), ca, now)
        roster = self.collector.close_roster(ca, now, threshold).to_bytes()
        for name in NAMES:
            assert await self.ask(name, ROSTER, roster) == b""
        for name in NAMES:
            self.collector.add_offer(OfferMessage.from_bytes(await self.ask(name, OFFER)), ca, now)
        for name in NAMES:
            await self.hand_out(name)

    async def hand_out(self, name: str) -> None:
        held = set(split_fields(await self.ask(name, OFFERS), "held"))
        parts = [part for one in self.collector.relay(name, held) for part in (one.signed.to_bytes(), one.box)]
        held = set(split_fields(await self.ask(name, OFFERS, join_fields(*parts)), "held"))
        assert len(held) == len(NAMES)
        self.collector.delivered(name, held)

    def begin(
        self, round_index: int, values: int, largest: int = largest_integer(BITS), scheme: str = "fp32"
    ) -> RoundSum:
        return self.collector.begin_round(
            round_index, NAMES, spans_sent(Scheme.parse(scheme), round_index, values), word_bits(largest, len(NAMES))
        )

    def ordered(
        self, name: str, weights: np.ndarray, round_sum: RoundSum, *, scale: float = SCALE, promised: int = 0
    ) -> training_pb2.TrainingWork:
        sums = training_pb2.SumsRound(
            plan=round_sum.plan.to_bytes(), scale=scale, examples_reference=400, survivors_promised=promised
        )
        return on(self.work(name), weights, sums=sums)

    async def contribute(self, name: str, weights: np.ndarray, round_sum: RoundSum, **more: Any) -> Contribution:
        """Orders a round of a node, and adds what it sends."""
        work = self.ordered(name, weights, round_sum, **more)
        found = await self.aggs[name].train(work, weights, round_sum.plan.round_index)
        assert found.info.sums_context == round_sum.context
        for span, data in found.spans.items():
            round_sum.take_span(name, found.info.sums_context, span, data)
        return found

    async def unmask(self, round_sum: RoundSum, names: Iterable[str] = NAMES) -> np.ndarray:
        """The plain sum."""
        request = round_sum.close()
        for name in names:
            answer = await self.ask(name, UNMASK, request.to_bytes(), round_sum.plan.round_index)
            round_sum.take_answer(UnmaskAnswer.from_bytes(answer))
        return np.concatenate(list(round_sum.sums()))


def other_survivors(request: UnmaskRequest, *names: str) -> bytes:
    """A request for the same round that names others."""
    return UnmaskRequest(request.plan, tuple(sorted(names))).to_bytes()


def spans_sent(scheme: Scheme, round_index: int, values: int) -> tuple[int, ...]:
    if scheme.kind is Kind.BLOCKS:
        chosen = (shared_indices(round_index, scheme.cycle_rounds, span, values) for span in range(span_count(values)))
        return tuple(each.size for each in chosen)
    return tuple(span_length(span, values) for span in range(span_count(values)))


@asynccontextmanager
async def summing(ca: Ca, root: Path, **spec: Any) -> AsyncIterator[Summing]:
    """Four nodes that take part in a run with secure sums; the run is set up by `set_up`."""
    async with AsyncExitStack() as stack:
        made = Summing(ca, root, stack, spec={"secure_sums": training_pb2.SecureSums(bits=BITS)} | spec)
        for name in NAMES:
            await made.start(name)
        yield made
