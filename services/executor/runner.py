"""A loaded stage at work: its generations, what comes in, what is computed, what goes on.

The ring: work comes from the stage before (the gateway, for the first stage), results go to the stage after, and the
last stage sends the token it chose straight to the first, with a copy to the gateway. The position travels with the
data; nothing is derived from a cache. What a stage sends on it also journals, so that another node can take the place
of the next one. What each message means for a generation is decided in `progress`; `recovery` stops and lets go on.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import torch

from orbitmesh.errors import (
    CapacityError,
    InvalidInputError,
    MeshError,
    NodeLostError,
    PermissionError_,
    TransportError,
)
from orbitmesh.limits import GENERATIONS_PER_NODE
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.records import Received, SessionPeer
from services.executor import progress as transitions
from services.executor.engine import Ran, StepEngine
from services.executor.generation import Generation, StepRecord, route_of, timings_message
from services.executor.kvcache import CachePool
from services.executor.onward import TORCH_DTYPES, HeldBytes, Onward, Ways
from services.executor.progress import Phase, Progress, Verdict
from services.executor.sampling import sample
from services.executor.stage import CacheShape, Stage
from services.journal.rows import JournalRoom, RowJournal

Key = tuple[str, int]
"""A stage on a node: deployment and place in the pipeline."""


class StageRunner:
    """Runs the generations of one stage.

    Args:
        key: Which stage of which deployment.
        stage: The layers.
        pool: The memory for caches.
        engine: Where steps are computed.
        ways: How others are reached.
        journals: What the node has for journals.
        token_ns: How long a step of one token takes, as measured when the stage was loaded, in nanoseconds.
        node: The node's own name.
    """

    def __init__(
        self,
        key: Key,
        stage: Stage,
        pool: CachePool,
        engine: StepEngine,
        ways: Ways,
        journals: JournalRoom,
        token_ns: int,
        node: str,
    ) -> None:
        self.key = key
        self.stage = stage
        self.pool = pool
        self.engine = engine
        self.generations: dict[int, Generation] = {}
        self._journals = journals
        self._node = node
        self._token_ns = token_ns
        self._held = HeldBytes()
        self.onward = Onward(stage, key[1], ways, self._held)

    @property
    def open_generations(self) -> int:
        """How many generations are open."""
        return len(self.generations)

    @cached_property
    def cache_shapes(self) -> tuple[tuple[CacheShape, CacheShape], ...]:
        """What one token's keys and values look like in each layer's cache."""
        return self.stage.cache_shapes()

    @property
    def stage_index(self) -> int:
        """The stage's place in the pipeline."""
        return self.key[1]

    # Generations come and go.

    def open(self, request: executor_pb2.OpenGenerationRequest, gateway: str, expires_ns: int = 0) -> Generation:
        """Reserves the cache of a generation. Opening it again under a later epoch begins it anew.

        Raises:
            CapacityError: Where memory or places are short; its metadata says what is free.
            InvalidInputError: Where the number is 0 or taken by another gateway, or a bound is not positive.
        """
        known = self.generations.get(request.generation)
        if request.generation == 0 or (known is not None and known.gateway != gateway):
            raise InvalidInputError("a generation needs a number of its own, other than 0", reason="ALREADY_EXISTS")
        if known is not None and known.progress.epoch >= request.epoch:
            return known
        if not 0 < request.stop_position <= request.max_tokens:
            raise InvalidInputError("stop_position must be above 0 and at most max_tokens")
        if request.epoch == 0 or request.prompt_tokens == 0:
            raise InvalidInputError("a generation needs an epoch above 0 and the number of its prompt's tokens")
        route = route_of(request.stage_index, request.pipeline)
        if route.nodes[route.stage_index] != self._node or (route.is_first, route.is_last) != (
            self.stage.is_first,
            self.stage.is_last,
        ):
            raise InvalidInputError(f"the pipeline does not have this stage on {self._node} in its place")
        if known is not None:
            self.close(request.generation)
        if len(self.generations) >= GENERATIONS_PER_NODE:
            raise CapacityError(
                f"{GENERATIONS_PER_NODE} generations are open in this stage; try again when one has ended",
                metadata={"open_generations": len(self.generations)},
            )
        now_ns = time.monotonic_ns()
        generation = Generation(
            request=request,
            gateway=gateway,
            # One with an end of its own comes back from disk: it was let in before.
            cache=self.pool.open(str(request.generation), request.max_tokens, request.slice, admitted=expires_ns > 0),
            journal=RowJournal(self.onward.row_bytes, self._journals),
            expires_ns=expires_ns or now_ns + request.time_to_live.ToNanoseconds(),
            progress=Progress(
                epoch=request.epoch,
                phase=_first_phase(request),
                sample_from=request.prompt_tokens,
            ),
            route=route,
            tokens_from=0 if route.is_first else request.prompt_tokens,
            changed_ns=now_ns,
            opened_ns=now_ns,
        )
        self.generations[generation.number] = generation
        return generation

    def close(self, number: int, gateway: str | None = None) -> executor_pb2.CloseGenerationResponse:
        """Stops a generation, frees its cache and returns what it did; an unknown one returns an empty record.

        Raises:
            PermissionError_: Where `gateway` is given and is not the one that opened it.
        """
        known = self.generations.get(number)
        if known is not None and gateway is not None and known.gateway != gateway:
            raise PermissionError_(f"{gateway} did not open this generation and may not end it", reason="NOT_YOURSELF")
        generation = self.generations.pop(number, None)
        self.pool.close(str(number))
        response = executor_pb2.CloseGenerationResponse()
        if generation is not None:
            self._let_go(generation)
            timings = timings_message(self.stage_index, generation.steps, generation.held_by, generation.turn_for)
            response.timings.CopyFrom(timings)
            response.raw_bytes = generation.raw_bytes
            response.wire_bytes = generation.wire_bytes
        return response

    def _let_go(self, generation: Generation) -> None:
        generation.closed = True
        generation.held.clear()
        generation.journal.close()
        if generation.snapshot is not None:
            generation.snapshot.unlink(missing_ok=True)

    def sweep(self, now_ns: int) -> list[Generation]:
        """Closes the generations whose time is over; returns them."""
        expired = [held for held in self.generations.values() if held.expires_ns <= now_ns]
        for generation in expired:
            self.close(generation.number)
        return expired

    def close_all(self, error: MeshError) -> None:
        """Ends every generation with an error that its gateway is told."""
        for generation in list(self.generations.values()):
            self.fail(generation, error)

    def peer_lost(self, peer: str, error: NodeLostError) -> None:
        """Tells the gateways of generations that go through a lost peer; they find another way or wait."""
        for generation in self.generations.values():
            if generation.running and generation.route.next_node == peer:
                self.onward.report(generation, error)

    def refuse(self, number: int, error: MeshError) -> None:
        """Ends a generation because of what was sent for it."""
        generation = self.generations.get(number)
        if generation is not None:
            self.fail(generation, error)

    # Work comes in.

    async def accept(self, incoming: Received, sender: SessionPeer) -> None:
        """Takes a step or a token; waits while the stage holds too many bytes.

        Raises:
            InvalidInputError: Where the transfer does not fit the stage or does not come from whom it should.
        """
        await self._held.wait()
        info = incoming.info
        if info.HasField("token"):
            generation = self.generations.get(info.token.generation)
            if generation is None:
                return  # closed while this was under way: nobody waits for it
            position = info.token.position
            # At a switch, the tail of before still samples the first token of the new way.
            tails = {generation.route_at(at).nodes[-1] for at in (position - 1, position)}
            self._expect_executor(sender, tails if generation.route.is_first else set())
            if len(incoming.data) != 4:
                raise InvalidInputError("a token is one int32 for the first stage of a pipeline")
            rows = torch.frombuffer(incoming.data, dtype=torch.int32).long()
            self.begin(generation, info.token.epoch, position, rows, False, incoming.received_ns, incoming.open_ns)
            return
        step = info.step
        generation = self.generations.get(step.generation)
        if self.stage.is_first:
            if sender.role != Role.GATEWAY or (generation is not None and sender.spiffe != generation.gateway):
                raise InvalidInputError(
                    f"{sender.spiffe} may not feed this generation: only the gateway that opened it may",
                    reason="NOT_YOURSELF",
                )
        elif generation is not None:
            feeder = generation.route_at(step.position).feeder
            self._expect_executor(sender, {feeder} if feeder is not None else set())
        if generation is not None:
            rows = self._rows(incoming)
            self.begin(generation, step.epoch, step.position, rows, step.feed, incoming.received_ns, incoming.open_ns)

    def _expect_executor(self, sender: SessionPeer, names: set[str]) -> None:
        if sender.role != Role.EXECUTOR or sender.name not in names:
            raise InvalidInputError(
                f"{sender.spiffe} sent work of {' or '.join(sorted(names)) or 'nobody'} in deployment {self.key[0]!r}",
                reason="NOT_YOURSELF",
            )

    def _rows(self, incoming: Received) -> torch.Tensor:
        """The tensor of a step: (rows,) token ids for the first stage, else (rows, hidden)."""
        spec = incoming.info.tensor
        shape = tuple(spec.shape)
        if self.stage.is_first:
            if spec.dtype != wire_pb2.DTYPE_INT32 or len(shape) != 1 or not 0 < shape[0] * 4 == len(incoming.data):
                raise InvalidInputError("the first stage takes token ids as one row of int32", reason="DTYPE_MISMATCH")
            return torch.frombuffer(incoming.data, dtype=torch.int32).long()
        dtype = TORCH_DTYPES.get(spec.dtype)
        if dtype != self.stage.dtype or len(shape) != 2 or shape[1] != self.stage.manifest.hidden_size:
            raise InvalidInputError(
                f"stage {self.stage_index} takes {self.stage.dtype} of shape "
                f"(rows, {self.stage.manifest.hidden_size}), not {wire_pb2.Dtype.Name(spec.dtype)} of shape {shape}",
                reason="DTYPE_MISMATCH",
            )
        if shape[0] * shape[1] * self.stage.dtype.itemsize != len(incoming.data) or shape[0] == 0:
            raise InvalidInputError("the bytes of the step do not fill its shape", reason="DTYPE_MISMATCH")
        return torch.frombuffer(incoming.data, dtype=dtype).view(shape)

    def begin(
        self,
        generation: Generation,
        epoch: int,
        position: int,
        rows: torch.Tensor,
        feed: bool,
        received_ns: int,
        open_ns: int,
    ) -> None:
        """Takes a step if it is next, keeps it if the stage is about to go on, drops it if it is of another run."""
        count = rows.shape[0]
        if position + count > generation.request.max_tokens:
            self.fail(generation, InvalidInputError("a step goes past the positions that were reserved"))
            return
        generation.progress, verdict = transitions.take(generation.progress, epoch, position, count, feed=feed)
        generation.settle_route()
        if verdict is Verdict.TAKE:
            self._submit(generation, rows, position, received_ns, open_ns)
        elif verdict is Verdict.HOLD:
            generation.held.append(lambda: self.begin(generation, epoch, position, rows, feed, received_ns, open_ns))
        elif verdict is Verdict.GAP:
            lost = TransportError(
                f"stage {self.stage_index} on {self._node} got position {position} of epoch {epoch} and expected "
                f"{generation.progress.taken} of epoch {generation.progress.epoch}: something before it was lost",
                reason="STEP_LOST",
                metadata={"position": position, "expected": generation.progress.taken},
            )
            self.onward.report(generation, lost, epoch)

    # Work is done and goes on.

    def _submit(
        self, generation: Generation, rows: torch.Tensor, position: int, received_ns: int, open_ns: int
    ) -> None:
        held = rows.numel() * rows.element_size()
        self._held.hold(held)
        run = generation.run
        end = position + rows.shape[0]
        if self.stage.is_first:
            generation.note_tokens(position, rows.tolist())
        choose = self.stage.is_last and transitions.samples(generation.progress, end)
        decoding = rows.shape[0] == 1
        request = generation.request.sampling

        begun = False

        def compute() -> Any:
            nonlocal begun
            if generation.closed or generation.run != run:
                return None
            begun = True
            result = self.stage.forward(rows, generation.cache, position, need_logits=choose)
            if not self.stage.is_last:
                return result
            if not choose:
                return None
            return sample(
                result, temperature=request.temperature, top_p=request.top_p or 1.0, seed=request.seed, position=end
            )

        def done(ran: Ran) -> None:
            self._held.release(held)
            if decoding:
                # The latest counts for an eighth: one slow step on a busy machine says little about the next.
                self._token_ns += (ran.ended_ns - ran.started_ns - self._token_ns) >> 3
            if generation.closed or not begun:
                return
            if ran.error is not None:
                self.fail(generation, ran.error)
                return
            record = StepRecord(
                position=position,
                rows=rows.shape[0],
                received_ns=received_ns,
                open_ns=open_ns,
                queue_ns=max(0, ran.started_ns - received_ns - open_ns),
                compute_ns=ran.ended_ns - ran.started_ns,
                ended_ns=ran.ended_ns,
                held_ns=ran.held_ns,
            )
            generation.held_by = ran.held_by or generation.held_by
            if generation.request.timings:
                generation.steps.append(record)
            self._computed(generation, position, rows.shape[0], ran.value, record)

        expected_ns = self._token_ns if decoding else None
        try:
            whose = generation.request
            self.engine.submit(compute, done, expected_ns=expected_ns, slice_name=whose.slice, owner=whose.owner)
        except CapacityError as error:
            self._held.release(held)
            self.fail(generation, error)

    def _computed(self, generation: Generation, position: int, rows: int, value: Any, record: StepRecord) -> None:
        generation.progress, outcome = transitions.computed(generation.progress, position, rows)
        generation.changed_ns = record.ended_ns
        if self.stage.is_last:
            generation.journal.skip(position + rows)
            if outcome.sample and value is not None:
                self._chosen(generation, value, position + rows, record)
            return
        array: Any = value.cpu().contiguous().view(torch.uint8).numpy()
        data = memoryview(array).cast("B")
        generation.journal.append(position, data)
        if generation.feed_to is not None and generation.progress.epoch_at(position) == generation.progress.epoch:
            self.onward.send_rows(generation, generation.feed_to, position, data, feed=True)
        if outcome.push_from is not None:
            start = outcome.push_from
            rest = data[(start - position) * self.onward.row_bytes :]
            self.onward.send_rows(generation, generation.route_at(start).next_node, start, rest, record=record)

    def _chosen(self, generation: Generation, token: int, position: int, record: StepRecord) -> None:
        generation.note_tokens(position, [token])
        if not generation.running:
            return  # stopped meanwhile: the gateway learns of the token in the answer
        finish = self.onward.send_token(generation, token, position, record)
        if self.stage.is_first and finish == wire_pb2.FINISH_REASON_UNSPECIFIED:
            rows = torch.tensor([token], dtype=torch.int64)
            epoch = generation.progress.epoch_at(position)
            self.begin(generation, epoch, position, rows, False, time.monotonic_ns(), 0)

    def fail(self, generation: Generation, error: MeshError) -> None:
        """Ends a generation here and tells its gateway why; the gateway ends it elsewhere."""
        if generation.closed:
            return
        self.onward.report(generation, error)
        self.generations.pop(generation.number, None)
        self.pool.close(str(generation.number))
        self._let_go(generation)


def _first_phase(request: executor_pb2.OpenGenerationRequest) -> Phase:
    """In its first epoch a generation runs at once; in a later one it first has to be told from where."""
    if request.standby:
        return Phase.STANDBY
    return Phase.RUNNING if request.epoch == 1 else Phase.STOPPED
