"""Secure sums at the aggregator: keys, roster and offers once or now and then, masked words, and one request to unmask.

All of it is asked for and answered in messages that may be lost: what a node was told is told again when it is reached
again. Contributions lie masked in the spool until the round is ready; the sum is then made from them in one pass, so a
restart at any moment makes the same sum again. A plan, once written down, is the plan of its round.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from orbitmesh.errors import IntegrityError, InvalidInputError, MeshError
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import training_pb2
from services.aggregator.link import NodeLink
from services.aggregator.orders import CheckSpan
from services.aggregator.rounds import Round
from services.aggregator.scaling import Scaling
from services.aggregator.spec import RunSpec
from services.aggregator.spool import Spool
from services.aggregator.store import RunNotes
from services.aggregator.strategies.base import Each, Mean, Strategy
from services.runtime.logs import EventLog
from services.securesum import OfferMessage, RoundPlan, RoundSum, Signed, SumCollector, UnmaskAnswer, word_bits
from services.securesum.fields import join_fields, split_fields
from services.securesum.packing import unpack
from services.updates.blocks import shared_indices
from services.updates.scheme import Kind
from services.updates.spans import Floats, span_count, spans

LR = 0.05
"""The learning rate where a run says none."""
WAIT_S = 1.0
"""How often what is waited for is looked at, beside news."""
KEY = training_pb2.SUMS_KIND_KEY
ROSTER = training_pb2.SUMS_KIND_ROSTER
OFFER = training_pb2.SUMS_KIND_OFFER
OFFERS = training_pb2.SUMS_KIND_OFFERS
UNMASK = training_pb2.SUMS_KIND_UNMASK


class SecureCombining:
    """The aggregator sees sums only.

    Args:
        spec: The run.
        run: What the run is called on the wire: its secure sums are set up under that name.
        spool: Where masked contributions are.
        links: The ways to its nodes.
        notes: Where keys, offers and plans are written down.
        identities: Who we are: signatures are checked by the same CA.
        examples: How many examples each node has that takes part.
        revealed: Told before a sum is unmasked, with the survivors and the clip in steps; durable on return.
        say: Told what is waited for.
        log: Where to say what happened.
    """

    def __init__(
        self,
        spec: RunSpec,
        run: str,
        spool: Spool,
        links: Mapping[str, NodeLink],
        notes: RunNotes,
        identities: IdentitySource,
        examples: Callable[[], Mapping[str, int]],
        revealed: Callable[[Round, int, float], Awaitable[None]],
        say: Callable[[str], Awaitable[None]],
        log: EventLog,
    ) -> None:
        self._spec, self._run, self._spool, self._links = spec, run, spool, links
        self._notes, self._identities, self._log = notes, identities, log
        self._examples, self._revealed, self._say = examples, revealed, say
        self._collector = SumCollector(run)
        self._scaling = Scaling(spec)
        self._loaded = False
        self._rostered: set[str] = set()
        self._held: dict[str, set[bytes]] = {}
        self._told: dict[str, tuple[int, int]] = {}
        self._sum: RoundSum | None = None
        self._reference, self._scale, self._values = 1, 1.0, 0
        self._first_round = 0
        self._answered: set[str] = set()
        self._news = asyncio.Event()

    # What the run asks.

    async def prepare(self, state: Round, values: int) -> None:
        """Waits until every node of the cohort can mask for the round, or patience is over and enough can."""
        await self._load()
        self._sum, self._first_round = None, state.index
        self._answered.clear()
        patience = asyncio.get_running_loop().time() + state.patience_s
        written = await self._notes.read("sums-plan")
        if written is not None and written["round"] == state.index:
            self._sizes(state.index, values)
            self._begin(RoundPlan.from_bytes(b64decode(written["plan"])), written)
            return
        learnt = await self._notes.read("sums-bound")
        if learnt is not None and learnt["round"] == state.index:
            self._scaling.bound = float(learnt["bound"])
        while True:
            ready = [node for node in state.cohort if self._is_ready(node, state)]
            if len(ready) == len(state.cohort):
                break
            if asyncio.get_running_loop().time() > patience and len(ready) >= self._spec.quorum:
                break
            missing = [node for node in state.cohort if node not in ready]
            await self._say(f"sets up secure sums with {', '.join(missing)}" if missing else "")
            await self._ask_for_set_up(state)
            await self._wait()
        cohort = sorted(node for node in state.cohort if self._can_contribute(node, ready, state.index))
        largest = self._scaling.largest(values, max([self._examples().get(node, 1) for node in cohort], default=1))
        bits = word_bits(largest, len(cohort))
        sizes = self._sizes(state.index, values)
        round_sum = self._collector.begin_round(state.index, cohort, sizes, bits)
        written = {
            "round": state.index,
            "plan": b64encode(round_sum.plan.to_bytes()).decode(),
            "scale": self._scaling.scale(),
            "reference": max([self._examples().get(node, 1) for node in cohort], default=1),
            "bound": self._scaling.bound,
        }
        await self._write_collector()
        await self._notes.write("sums-plan", written)
        self._begin(round_sum.plan, written)

    def fill(self, work: training_pb2.TrainingWork, node: str) -> None:
        """The plan, and what a step is worth."""
        if self._sum is None:
            return
        work.sums.plan = self._sum.plan.to_bytes()
        work.sums.scale = self._scale
        work.sums.examples_reference = self._reference
        work.sums.survivors_promised = self._spec.quorum if self._spec.shared_noise else 0

    def takes(self, node: str) -> bool:
        """Whether a node is in the sum of the round."""
        return self._sum is None or node in self._sum.plan.cohort

    def check(self, round_index: int) -> CheckSpan:
        """A masked span tells nothing but its size."""
        plan = None if self._sum is None else self._sum.plan

        def check(index: int, data: memoryview) -> None:
            if plan is None or not 0 <= index < len(plan.spans):
                raise InvalidInputError(f"round {round_index} has no span {index}", reason="UPDATE_MALFORMED")
            unpack(data, plan.spans[index], plan.bits)

        return check

    def check_header(self, info: training_pb2.ContributionInfo) -> None:
        """Raises where a contribution is masked for something else than the round."""
        if self._sum is not None and info.sums_context != self._sum.context:
            raise InvalidInputError(
                "the contribution is masked for another plan or under other offers than this round's",
                reason="STALE_ROUND",
            )

    async def combine(self, state: Round, strategy: Strategy, out: Floats) -> Mean | Each:
        """Adds the masked contributions, has the sum unmasked, and gives the mean."""
        round_sum = self._sum
        if round_sum is None:
            raise InvalidInputError(f"round {state.index} has no plan for its sum")
        if round_sum.request is None:
            await asyncio.to_thread(self._add_all, round_sum, state)
            round_sum.close()
        await self._revealed(state, len(round_sum.whole), self._scaling.clip_steps(self._values))
        while True:
            for node in self._links:
                await self._ask_to_unmask(node, round_sum)
            if round_sum.ready:
                try:
                    mean = await asyncio.to_thread(self._mean, round_sum, state, strategy, out)
                    break
                except IntegrityError as error:
                    self._log.warning("shares_wrong", run=self._run, round=state.index, detail=error.message)
            lacking = [node for node in self._links if node not in self._answered]
            await self._say(f"asks for shares to unmask the sum: {', '.join(lacking)} have not answered")
            await self._wait()
        self._collector.retire(state.index + 1)
        await self._write_collector()
        self._scaling.learn(mean.delta)
        # Before the round's end is written down: whoever starts anew between two rounds goes on with what was learnt.
        await self._notes.write("sums-bound", {"round": state.index + 1, "bound": self._scaling.bound})
        return mean

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """An answer of a node."""
        await self._load()
        now, ca = datetime.now(UTC), self._identities.current().ca
        try:
            if kind == KEY:
                if self._collector.add_key(Signed.from_bytes(body), ca, now).name != node:
                    raise InvalidInputError(f"{node} sent the key of another node", reason="MASK_KEY_UNPROVEN")
            elif kind == ROSTER:
                self._rostered.add(node)
            elif kind == OFFER:
                if self._collector.add_offer(OfferMessage.from_bytes(body), ca, now).node != node:
                    raise InvalidInputError(f"{node} sent the offer of another node", reason="MASK_KEY_UNPROVEN")
                await self._write_collector()
            elif kind == OFFERS:
                self._held[node] = set(split_fields(body, "the offers that a node holds"))
                self._collector.delivered(node, self._held[node])
            elif kind == UNMASK and self._sum is not None:
                answer = UnmaskAnswer.from_bytes(body)
                if answer.node == node and self._sum.request is not None:
                    self._sum.take_answer(answer)
                    self._answered.add(node)
        except MeshError as error:
            self._log.warning("sums_refused", run=self._run, node=node, reason=error.reason, detail=error.message)
        self._told.pop(node, None)
        self._news.set()

    def connected(self, node: str) -> None:
        """What it was told may have been lost."""
        self._told.pop(node, None)
        self._held.pop(node, None)
        self._news.set()

    # Setting up.

    async def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        written = await self._notes.read("sums")
        if written is not None:
            self._collector = SumCollector.from_state(written)

    async def _write_collector(self) -> None:
        await self._notes.write("sums", self._collector.to_state())

    def _is_ready(self, node: str, state: Round) -> bool:
        """Whether a node can mask with every other node of the cohort."""
        if self._collector.roster is None or node not in self._rostered or node not in self._held:
            return False
        needed = {offer for name in state.cohort if (offer := self._offer_of(name, state.index)) is not None}
        return self._offer_of(node, state.index) is not None and needed <= self._held[node]

    def _can_contribute(self, node: str, ready: list[str], index: int) -> bool:
        return node in ready and self._offer_of(node, index) is not None

    def _offer_of(self, node: str, index: int) -> bytes | None:
        return self._collector.offer_digest(node, index)

    async def _ask_for_set_up(self, state: Round) -> None:
        collector = self._collector
        if collector.roster is None and set(state.cohort) <= set(collector.names):
            now, ca = datetime.now(UTC), self._identities.current().ca
            await asyncio.to_thread(collector.close_roster, ca, now, self._spec.threshold)
            await self._write_collector()
        for node in state.cohort:
            await self._ask(node, state)

    async def _ask(self, node: str, state: Round) -> None:
        """The next thing that a node has to do before it can mask."""
        collector, index = self._collector, state.index
        if node not in collector.names:
            await self._tell(node, KEY, index, b"")
        elif collector.roster is None:
            return
        elif node not in self._rostered:
            await self._tell(node, ROSTER, index, collector.roster_message().to_bytes())
        elif self._offer_of(node, index) is None:
            await self._tell(node, OFFER, index, b"")
        elif node not in self._held:
            await self._tell(node, OFFERS, index, b"")
        else:
            relayed = collector.relay(node, self._held[node])
            lacking = [part for one in relayed for part in (one.signed.to_bytes(), one.box)]
            if lacking:
                await self._tell(node, OFFERS, len(lacking), join_fields(*lacking))

    async def _ask_to_unmask(self, node: str, round_sum: RoundSum) -> None:
        if node not in self._answered and round_sum.request is not None and node in self._collector.names:
            await self._tell(node, UNMASK, round_sum.plan.round_index, round_sum.request.to_bytes())

    async def _tell(self, node: str, kind: training_pb2.SumsKind, detail: int, body: bytes) -> None:
        """Tells a node once for each time it is reached."""
        if self._told.get(node) == (kind, detail):
            return
        info = training_pb2.TrainingInfo(round=self._first_round, sums=training_pb2.SumsInfo(kind=kind))
        self._told[node] = (kind, detail)
        if not await self._links[node].tell(info, body):
            self._told.pop(node, None)

    # Rounds.

    def _begin(self, plan: RoundPlan, written: dict[str, Any]) -> None:
        self._sum = self._collector.begin_round(plan.round_index, plan.cohort, plan.spans, plan.bits)
        self._scale, self._reference = float(written["scale"]), int(written["reference"])
        self._scaling.bound = float(written["bound"])

    def _sizes(self, index: int, values: int) -> tuple[int, ...]:
        """How many words each span of the round has."""
        self._values = values
        if self._spec.scheme.kind is Kind.BLOCKS:
            cycle = self._spec.scheme.cycle_rounds
            return tuple(shared_indices(index, cycle, span, values).size for span in range(span_count(values)))
        return tuple(where.stop - where.start for _, where in spans(values))

    def _add_all(self, round_sum: RoundSum, state: Round) -> None:
        for node in state.cohort:
            stored = state.stored.get(node)
            if stored is not None and not stored.via:
                summed = tuple(stored.others)
                for span, data in enumerate(self._spool.spans(state.index, node, summed)):
                    round_sum.take_span(node, round_sum.context, span, data, summed)

    def _mean(self, round_sum: RoundSum, state: Round, strategy: Strategy, out: Floats) -> Mean:
        """The mean over the survivors from the plain sum of their integers."""
        survivors = round_sum.whole
        shares = [self._share(state.stored[node].examples) for node in survivors]
        step = self._scale / sum(shares)
        if self._spec.record_sums:
            # What came are gradients: the one step that they are for is taken here.
            step *= self._spec.message.local.lr or LR
        for (span, where), summed in zip(spans(self._values), round_sum.sums(), strict=True):
            piece = out[where]
            if self._spec.scheme.kind is Kind.BLOCKS:
                cycle = self._spec.scheme.cycle_rounds
                piece[:] = 0
                piece[shared_indices(state.index, cycle, span, self._values)] = summed * step
            else:
                piece[:] = summed * step
        weight = sum(strategy.weight(state.stored[node].examples) for node in survivors)
        return Mean(out, weight, len(survivors))

    def _share(self, examples: int) -> float:
        """What a node multiplied its update with before it masked it."""
        if self._spec.record_sums:
            return float(examples)
        return 1.0 if self._spec.node_private else min(1.0, examples / self._reference)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
