"""A loaded stage at work: its generations, what comes in, what is computed, what goes on.

The ring: work comes from the stage before (the gateway, for the first stage), results go to the stage after, and the
last stage sends the token it chose straight to the first, with a copy to the gateway. The position travels with the
data; nothing is derived from a cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from orbitmesh.errors import CapacityError, InternalError, InvalidInputError, MeshError, PermissionError_
from orbitmesh.limits import GENERATIONS_PER_NODE
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.records import Received, SendReport, SessionPeer
from services.executor.engine import Ran, StepEngine
from services.executor.generation import Generation, StepRecord, timings_message
from services.executor.kvcache import CachePool
from services.executor.outbound import Outbound, Parcel
from services.executor.sampling import sample
from services.executor.stage import Stage

HELD_BYTES = 32 << 20
"""Bytes of inputs that wait and outputs that have not left; past it the stage takes nothing in (back-pressure)."""

TORCH_DTYPES = {
    wire_pb2.DTYPE_FLOAT32: torch.float32,
    wire_pb2.DTYPE_FLOAT16: torch.float16,
    wire_pb2.DTYPE_BFLOAT16: torch.bfloat16,
}
WIRE_DTYPES = {dtype: number for number, dtype in TORCH_DTYPES.items()}

ChooseCodec = Callable[[int, int], int]
"""(dtype, raw bytes) -> codec, for what this stage sends to the next."""


@dataclass(frozen=True)
class Route:
    """Where a stage stands in its pipeline."""

    deployment: str
    """The deployment's name."""
    stage_index: int
    """The stage's place, from 0."""
    nodes: tuple[str, ...]
    """The nodes of the pipeline, in order."""

    @property
    def is_first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that chooses tokens."""
        return self.stage_index == len(self.nodes) - 1

    @property
    def next_node(self) -> str:
        """The node that takes what this stage sends: hidden states, or tokens for the first stage."""
        return self.nodes[(self.stage_index + 1) % len(self.nodes)]

    @property
    def feeder(self) -> str | None:
        """The node whose hidden states this stage takes; None for the first stage."""
        return None if self.is_first else self.nodes[self.stage_index - 1]


class StageRunner:
    """Runs the generations of one stage.

    Args:
        route: The stage's place.
        stage: The layers.
        pool: The memory for caches.
        engine: Where steps are computed.
        onward: To the next stage; for the last stage to the first, None where that is this one.
        to_gateway: Gives the way to a gateway by its SPIFFE name.
        choose_codec: For hidden states sent on.
        token_ns: How long a step of one token takes, as measured when the stage was loaded, in nanoseconds.
    """

    def __init__(
        self,
        route: Route,
        stage: Stage,
        pool: CachePool,
        engine: StepEngine,
        onward: Outbound | None,
        to_gateway: Callable[[str], Outbound],
        choose_codec: ChooseCodec,
        token_ns: int,
    ) -> None:
        self.route = route
        self.stage = stage
        self.pool = pool
        self._engine = engine
        self._onward = onward
        self._to_gateway = to_gateway
        self._choose_codec = choose_codec
        self._generations: dict[int, Generation] = {}
        self._held_bytes = 0
        self._token_ns = token_ns
        self._room = asyncio.Event()
        self._room.set()

    @property
    def open_generations(self) -> int:
        """How many generations are open."""
        return len(self._generations)

    # Generations come and go.

    def open(self, request: executor_pb2.OpenGenerationRequest, gateway: str) -> Generation:
        """Reserves the cache of a generation.

        Raises:
            CapacityError: Where memory or places are short; its metadata says what is free.
            InvalidInputError: Where the number is 0 or taken by another gateway, or a bound is not positive.
        """
        known = self._generations.get(request.generation)
        if known is not None and known.gateway == gateway:
            return known
        if request.generation == 0 or known is not None:
            raise InvalidInputError("a generation needs a number of its own, other than 0", reason="ALREADY_EXISTS")
        if not 0 < request.stop_position <= request.max_tokens:
            raise InvalidInputError("stop_position must be above 0 and at most max_tokens")
        if len(self._generations) >= GENERATIONS_PER_NODE:
            raise CapacityError(
                f"{GENERATIONS_PER_NODE} generations are open in this stage; try again when one has ended",
                metadata={"open_generations": len(self._generations)},
            )
        cache = self.pool.open(str(request.generation), request.max_tokens)
        lives_ns = request.time_to_live.ToNanoseconds()
        generation = Generation(
            number=request.generation,
            gateway=gateway,
            cache=cache,
            max_tokens=request.max_tokens,
            stop_position=request.stop_position,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p or 1.0,
            seed=request.sampling.seed,
            stop_token_ids=frozenset(request.stop_token_ids),
            expires_ns=time.monotonic_ns() + lives_ns,
            keep_timings=request.timings,
        )
        self._generations[generation.number] = generation
        return generation

    def close(self, number: int, gateway: str | None = None) -> executor_pb2.CloseGenerationResponse:
        """Stops a generation, frees its cache and returns what it did; an unknown one returns an empty record.

        Raises:
            PermissionError_: Where `gateway` is given and is not the one that opened it.
        """
        known = self._generations.get(number)
        if known is not None and gateway is not None and known.gateway != gateway:
            raise PermissionError_(f"{gateway} did not open this generation and may not end it", reason="NOT_YOURSELF")
        generation = self._generations.pop(number, None)
        self.pool.close(str(number))
        response = executor_pb2.CloseGenerationResponse()
        if generation is not None:
            generation.closed = True
            response.timings.CopyFrom(timings_message(self.route.stage_index, generation.steps))
            response.raw_bytes = generation.raw_bytes
            response.wire_bytes = generation.wire_bytes
        return response

    def sweep(self, now_ns: int) -> list[int]:
        """Closes the generations whose time is over; returns their numbers."""
        expired = [number for number, held in self._generations.items() if held.expires_ns <= now_ns]
        for number in expired:
            self.close(number)
        return expired

    def close_all(self, error: MeshError) -> None:
        """Ends every generation with an error that its gateway is told."""
        for generation in list(self._generations.values()):
            self._fail(generation, error)

    def holds(self, number: int) -> bool:
        """True where the generation is open here."""
        return number in self._generations

    def refuse(self, number: int, error: MeshError) -> None:
        """Ends a generation because of what was sent for it."""
        generation = self._generations.get(number)
        if generation is not None:
            self._fail(generation, error)

    # Work comes in.

    async def accept(self, incoming: Received, sender: SessionPeer) -> None:
        """Takes a step or a token; waits while the stage holds too many bytes.

        Raises:
            InvalidInputError: Where the transfer does not fit the stage or does not come from whom it should.
        """
        await self._room.wait()
        info = incoming.info
        if info.HasField("token"):
            self._expect_sender(sender, Role.EXECUTOR, self.route.nodes[-1] if self.route.is_first else "nobody")
            if len(incoming.data) != 4:
                raise InvalidInputError("a token is one int32 for the first stage of a pipeline")
            step = wire_pb2.StepInfo(generation=info.token.generation, position=info.token.position, sample=True)
            self._begin(step, incoming, torch.frombuffer(incoming.data, dtype=torch.int32).long())
            return
        if self.route.feeder is None:
            generation = self._generations.get(info.step.generation)
            if sender.role != Role.GATEWAY or (generation is not None and sender.spiffe != generation.gateway):
                raise InvalidInputError(
                    f"{sender.spiffe} may not feed this generation: only the gateway that opened it may",
                    reason="NOT_YOURSELF",
                )
        else:
            self._expect_sender(sender, Role.EXECUTOR, self.route.feeder)
        self._begin(info.step, incoming, self._rows(incoming))

    def _expect_sender(self, sender: SessionPeer, role: Role, name: str) -> None:
        if sender.role != role or sender.name != name:
            raise InvalidInputError(
                f"{sender.spiffe} sent work of {role}/{name} in deployment {self.route.deployment!r}",
                reason="NOT_YOURSELF",
            )

    def _rows(self, incoming: Received) -> torch.Tensor:
        """The tensor of a step: (rows,) token ids for the first stage, else (rows, hidden)."""
        spec = incoming.info.tensor
        shape = tuple(spec.shape)
        if self.route.is_first:
            if spec.dtype != wire_pb2.DTYPE_INT32 or len(shape) != 1 or not 0 < shape[0] * 4 == len(incoming.data):
                raise InvalidInputError("the first stage takes token ids as one row of int32", reason="DTYPE_MISMATCH")
            return torch.frombuffer(incoming.data, dtype=torch.int32).long()
        dtype = TORCH_DTYPES.get(spec.dtype)
        if dtype != self.stage.dtype or len(shape) != 2 or shape[1] != self.stage.manifest.hidden_size:
            raise InvalidInputError(
                f"stage {self.route.stage_index} takes {self.stage.dtype} of shape "
                f"(rows, {self.stage.manifest.hidden_size}), not {wire_pb2.Dtype.Name(spec.dtype)} of shape {shape}",
                reason="DTYPE_MISMATCH",
            )
        if shape[0] * shape[1] * self.stage.dtype.itemsize != len(incoming.data) or shape[0] == 0:
            raise InvalidInputError("the bytes of the step do not fill its shape", reason="DTYPE_MISMATCH")
        return torch.frombuffer(incoming.data, dtype=dtype).view(shape)

    def _begin(self, step: wire_pb2.StepInfo, incoming: Received, rows: torch.Tensor) -> None:
        generation = self._generations.get(step.generation)
        if generation is None:
            return  # closed while this was under way: nobody waits for it
        if step.position + rows.shape[0] > generation.max_tokens:
            self._fail(generation, InvalidInputError("a step goes past the positions that were reserved"))
            return
        self._submit(generation, rows, step.position, step.sample, incoming.received_ns, incoming.open_ns)

    # Work is done and goes on.

    def _submit(
        self, generation: Generation, rows: torch.Tensor, position: int, sampled: bool, received_ns: int, open_ns: int
    ) -> None:
        held = rows.numel() * rows.element_size()
        self._hold(held)
        choose = sampled and self.route.is_last
        decoding = rows.shape[0] == 1

        def compute() -> Any:
            if generation.closed:
                return None
            result = self.stage.forward(rows, generation.cache, position, need_logits=choose)
            if not self.route.is_last:
                return result
            if not choose:
                return None
            at = position + rows.shape[0]
            return sample(
                result, temperature=generation.temperature, top_p=generation.top_p, seed=generation.seed, position=at
            )

        def done(ran: Ran) -> None:
            self._release(held)
            if decoding:
                # The latest counts for an eighth: one slow step on a busy machine says little about the next.
                self._token_ns += (ran.ended_ns - ran.started_ns - self._token_ns) >> 3
            if generation.closed:
                return
            if ran.error is not None:
                self._fail(generation, ran.error)
                return
            record = StepRecord(
                position=position,
                rows=rows.shape[0],
                received_ns=received_ns,
                open_ns=open_ns,
                queue_ns=max(0, ran.started_ns - received_ns - open_ns),
                compute_ns=ran.ended_ns - ran.started_ns,
                ended_ns=ran.ended_ns,
            )
            if generation.keep_timings:
                generation.steps.append(record)
            if not self.route.is_last:
                self._push(generation, ran.value, position, sampled, record)
            elif choose:
                self._return_token(generation, ran.value, position + rows.shape[0], record)

        self._engine.submit(compute, done, expected_ns=self._token_ns if decoding else None)

    def _push(
        self, generation: Generation, hidden: torch.Tensor, position: int, sampled: bool, record: StepRecord
    ) -> None:
        """Sends hidden states (rows, hidden) to the next stage."""
        if self._onward is None:
            raise InternalError("a stage that is not the last has no way to the next")
        array: Any = hidden.cpu().contiguous().view(torch.uint8).numpy()
        data = memoryview(array).cast("B")
        dtype = WIRE_DTYPES[hidden.dtype]
        info = wire_pb2.TransferInfo(
            tensor=wire_pb2.TensorSpec(dtype=dtype, shape=hidden.shape),
            step=wire_pb2.StepInfo(generation=generation.number, position=position, sample=sampled),
        )
        size = len(data)
        self._hold(size)

        def sent(report: SendReport) -> None:
            self._release(size)
            self._count(generation, record, report)

        def failed(error: MeshError) -> None:
            self._release(size)
            self._fail(generation, error)

        self._onward.put(Parcel(info, data, self._choose_codec(dtype, size), sent, failed))

    def _return_token(self, generation: Generation, token: int, position: int, record: StepRecord) -> None:
        """Sends a chosen token to the first stage, unless it is the last one, and a copy to the gateway."""
        finish = wire_pb2.FINISH_REASON_UNSPECIFIED
        if token in generation.stop_token_ids:
            finish = wire_pb2.FINISH_REASON_STOP
        elif position + 1 >= generation.stop_position:
            finish = wire_pb2.FINISH_REASON_LENGTH
        info = wire_pb2.TransferInfo(
            token=wire_pb2.TokenInfo(generation=generation.number, position=position, finish=finish)
        )
        data = token.to_bytes(4, "little", signed=True)

        def sent(report: SendReport) -> None:
            self._count(generation, record, report)

        def failed(error: MeshError) -> None:
            self._fail(generation, error)

        copy_only = finish != wire_pb2.FINISH_REASON_UNSPECIFIED
        if not copy_only and self._onward is not None:
            self._onward.put(Parcel(info, data, wire_pb2.CODEC_RAW, sent, failed))
        elif not copy_only:
            rows = torch.tensor([token], dtype=torch.int64)
            self._submit(generation, rows, position, True, time.monotonic_ns(), 0)
        gateway = self._to_gateway(generation.gateway)
        gateway.put(Parcel(info, data, wire_pb2.CODEC_RAW, sent if copy_only else None, None))

    def _count(self, generation: Generation, record: StepRecord, report: SendReport) -> None:
        generation.raw_bytes += report.raw_bytes
        generation.wire_bytes += report.wire_bytes
        record.codec_ns = report.codec_ns
        record.seal_ns = report.seal_ns
        record.credit_ns = report.credit_ns
        record.send_ns = time.monotonic_ns() - record.ended_ns

    def _fail(self, generation: Generation, error: MeshError) -> None:
        """Ends a generation here and tells its gateway why; the gateway ends it elsewhere."""
        if generation.closed:
            return
        generation.closed = True
        self._generations.pop(generation.number, None)
        self.pool.close(str(generation.number))
        failure = wire_pb2.Failure(
            generation=generation.number, reason=error.reason, message=error.message, metadata=error.metadata
        )
        info = wire_pb2.TransferInfo(failure=failure)
        self._to_gateway(generation.gateway).put(Parcel(info, b"", wire_pb2.CODEC_RAW, None, None))

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        if self._held_bytes > HELD_BYTES:
            self._room.clear()

    def _release(self, size: int) -> None:
        self._held_bytes -= size
        if self._held_bytes <= HELD_BYTES:
            self._room.set()
