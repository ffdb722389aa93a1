"""A prompt's way through the mesh: checked, admitted by every stage, fed, its tokens handed out, everything freed."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import grpc

from gateway.breakdown import ClockReading, GenerationRecord
from gateway.packs import PackShelf
from gateway.text import Text, TextStream
from gateway.traces import Traces
from gateway.upstream import Arrival, Upstream
from orbitmesh.errors import CapacityError, DeadlineError, InvalidInputError, MeshError
from orbitmesh.limits import CONTEXT_TOKENS, PREFILL_CHUNK_TOKENS
from orbitmesh.pack import Manifest
from orbitmesh.rpc import map_rpc_error
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2, wire_pb2
from services.runtime.caller import time_left_s

MAX_NEW_TOKENS_DEFAULT = 64
"""Tokens where the request does not say."""
GENERATION_LIFE_S = 3600.0
"""How long a generation may live where the caller sets no deadline."""
LIFE_MARGIN_S = 2.0
"""By how much a generation outlives its deadline on the nodes, so that they free it when the gateway cannot."""
SLOW_READER_S = 30.0
"""How long a client may take no message while there are some for it."""
GENERATIONS_MAX = 512
"""How many generations one gateway runs at once."""
OPEN_DEADLINE_S = 20.0
"""How long a stage may take to admit a generation."""
CLOSE_DEADLINE_S = 5.0
"""How long a stage may take to end one."""
ARRIVALS_MAX = CONTEXT_TOKENS
"""How many tokens may wait for a client: a generation is never longer."""

Send = Callable[[gateway_pb2.GenerateResponse], Awaitable[None]]


class Generations:
    """The generations of one gateway."""

    def __init__(
        self,
        upstream: Upstream,
        shelf: PackShelf,
        traces: Traces,
        tasks: asyncio.TaskGroup,
        slow_reader_s: float = SLOW_READER_S,
    ) -> None:
        self._slow_reader_s = slow_reader_s
        self._upstream = upstream
        self._shelf = shelf
        self._traces = traces
        self._tasks = tasks
        self.running = 0

    async def answer(self, request: gateway_pb2.GenerateRequest, send: Send) -> None:
        """Answers one prompt; every message goes through `send`.

        Raises:
            InvalidInputError: Where prompt, bounds or sampling are wrong.
            CapacityError: Where a stage is full, the gateway is, or the client does not read.
            DeadlineError: When the caller's time is spent.
            NodeLostError: Where a node is gone.
        """
        if self.running >= GENERATIONS_MAX:
            raise CapacityError(f"{GENERATIONS_MAX} generations are running on this gateway; try again later")
        self.running += 1
        try:
            await self._answer(request, send)
        finally:
            self.running -= 1

    async def _answer(self, request: gateway_pb2.GenerateRequest, send: Send) -> None:
        began_ns = time.monotonic_ns()
        limit_s = time_left_s(GENERATION_LIFE_S)
        deployment = await self._upstream.deployment(request.deployment)
        manifest = Manifest.parse(deployment.manifest)
        text = await asyncio.to_thread(self._shelf.text, deployment.manifest)
        prompt = await self._prompt(request, manifest, text)
        new_tokens = check_bounds(request, manifest, len(prompt))
        record = GenerationRecord(
            trace_id=secrets.token_hex(16),
            deployment=deployment.name,
            nodes=tuple(node.name for node in deployment.pipeline),
            prompt_tokens=len(prompt),
            began_ns=began_ns,
            began_at_ns=time.time_ns(),
        )
        number = secrets.randbits(63) + 1
        arrivals: asyncio.Queue[Arrival] = asyncio.Queue(ARRIVALS_MAX)
        flow = _Flow(self._upstream, deployment, number, record)
        self._upstream.listen(number, frozenset(record.nodes), arrivals.put_nowait)
        finished = False
        try:
            async with asyncio.timeout(limit_s):
                await flow.open(request, manifest, len(prompt), new_tokens, limit_s)
                started = gateway_pb2.GenerationStarted(
                    trace_id=record.trace_id, generation=number, prompt_tokens=len(prompt)
                )
                await self._write(send, gateway_pb2.GenerateResponse(started=started))
                await flow.feed(prompt)
                stream = TextStream(text, prompt)
                async for arrival in _until_finished(arrivals):
                    piece = stream.add(arrival.token, last=arrival.finish != 0)
                    record.arrived_ns.append(arrival.at_ns)
                    token = gateway_pb2.GeneratedToken(id=arrival.token, position=arrival.position, text=piece)
                    await self._write(send, gateway_pb2.GenerateResponse(token=token))
                    record.finish = arrival.finish
                record.ended_ns = record.arrived_ns[-1]
                finished = True
        except TimeoutError:
            raise DeadlineError(
                f"the deadline of {limit_s:.1f} s passed after {len(record.arrived_ns)} tokens; work was stopped on "
                "every node",
                metadata={"trace_id": record.trace_id, "new_tokens": len(record.arrived_ns)},
            ) from None
        finally:
            self._upstream.forget(number)
            # On its own task: a client that hung up must not keep the nodes from being told.
            closing = self._tasks.create_task(flow.close())
            if not finished:
                self._tasks.create_task(self._remember(closing, record))
        await asyncio.shield(closing)
        await self._remember(closing, record)
        await self._write(send, gateway_pb2.GenerateResponse(finished=_finished(record)))

    async def _write(self, send: Send, message: gateway_pb2.GenerateResponse) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_s):
                await send(message)
        except TimeoutError:
            # The caller's own deadline also ends in TimeoutError; only ours means that the client does not read.
            raise CapacityError(
                f"the client took no message for {self._slow_reader_s:g} s; the generation was stopped",
                reason="SLOW_READER",
            ) from None

    async def _remember(self, closing: asyncio.Task[None], record: GenerationRecord) -> None:
        await asyncio.wait([closing])
        self._traces.add(record)

    @staticmethod
    async def _prompt(request: gateway_pb2.GenerateRequest, manifest: Manifest, text: Text | None) -> list[int]:
        form = request.WhichOneof("prompt")
        if form == "token_ids":
            return list(request.token_ids.ids)
        if not request.text:
            return []
        if text is None:
            raise InvalidInputError(f"the pack {manifest.name!r} has no tokenizer: give token ids instead of text")
        return await asyncio.to_thread(text.encode, request.text)


def check_bounds(request: gateway_pb2.GenerateRequest, manifest: Manifest, prompt_tokens: int) -> int:
    """Checks what a request asks for; returns how many tokens to produce at the most.

    Raises:
        InvalidInputError: With the reason that fits.
    """
    context = min(manifest.context_tokens, CONTEXT_TOKENS)
    if prompt_tokens == 0:
        raise InvalidInputError("the prompt is empty: it must have at least one token", reason="EMPTY_PROMPT")
    new_tokens = request.max_new_tokens or min(MAX_NEW_TOKENS_DEFAULT, context - prompt_tokens)
    if prompt_tokens + new_tokens > context or new_tokens <= 0:
        raise InvalidInputError(
            f"{prompt_tokens} tokens of prompt and {new_tokens} new ones do not fit the model's context of {context}: "
            f"shorten the prompt or ask for at most {max(0, context - prompt_tokens)}",
            reason="PROMPT_TOO_LONG",
            metadata={"prompt_tokens": prompt_tokens, "context_tokens": context},
        )
    if request.WhichOneof("prompt") == "token_ids" and max(request.token_ids.ids) >= manifest.vocab_size:
        raise InvalidInputError(
            f"{max(request.token_ids.ids)} is no token of {manifest.name!r}: they are 0 to {manifest.vocab_size - 1}"
        )
    temperature, top_p = request.sampling.temperature, request.sampling.top_p
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidInputError(f"temperature must be 0 or a positive number, not {temperature}")
    if not 0 <= top_p <= 1:
        raise InvalidInputError(f"top_p must lie between 0 and 1, not {top_p}")
    return new_tokens


class _Flow:
    """One generation's calls to the nodes."""

    def __init__(
        self, upstream: Upstream, deployment: scheduler_pb2.Deployment, number: int, record: GenerationRecord
    ) -> None:
        self._upstream = upstream
        self._deployment = deployment
        self._number = number
        self._record = record

    async def open(
        self, request: gateway_pb2.GenerateRequest, manifest: Manifest, prompt: int, new: int, life_s: float
    ) -> None:
        """Every stage reserves the cache, or none does."""
        message = executor_pb2.OpenGenerationRequest(
            deployment=self._deployment.name,
            generation=self._number,
            max_tokens=prompt + new,
            stop_position=prompt + new,
            sampling=request.sampling,
            stop_token_ids=() if request.ignore_end else manifest.eos_token_ids,
            timings=not request.no_timings,
            traceparent=f"00-{self._record.trace_id}-{self._number:016x}-01",
        )
        message.time_to_live.FromNanoseconds(int((life_s + LIFE_MARGIN_S) * 1e9))
        nodes = self._deployment.pipeline
        outcomes = await asyncio.gather(*(self._open_one(node, message) for node in nodes), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        # What a stage said about itself tells more than that another could not be reached.
        failures.sort(key=lambda failure: isinstance(failure, MeshError) and failure.retryable)
        if failures:
            raise failures[0]
        self._record.admitted_ns = time.monotonic_ns()

    async def _open_one(self, node: executor_pb2.PeerAddress, message: executor_pb2.OpenGenerationRequest) -> None:
        await self._upstream.session(node)  # tokens and failures come back over it
        sent_ns = time.monotonic_ns()
        try:
            answer = await self._upstream.executor(node).OpenGeneration(message, timeout=OPEN_DEADLINE_S)
        except grpc.RpcError as error:
            mapped = map_rpc_error(error, address=node.address)
            metadata = {**mapped.metadata, "node": node.name}
            raise type(mapped)(f"{node.name}: {mapped.message}", reason=mapped.reason, metadata=metadata) from error
        self._record.clocks[node.name] = ClockReading(sent_ns, time.monotonic_ns(), answer.clock_ns)

    async def feed(self, prompt: list[int]) -> None:
        """Sends the prompt to the first stage, in chunks, so that stages overlap on a long one."""
        session = await self._upstream.session(self._deployment.pipeline[0])
        for start in range(0, len(prompt), PREFILL_CHUNK_TOKENS):
            chunk = prompt[start : start + PREFILL_CHUNK_TOKENS]
            last = start + len(chunk) == len(prompt)
            info = wire_pb2.TransferInfo(
                tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_INT32, shape=[len(chunk)]),
                step=wire_pb2.StepInfo(generation=self._number, position=start, sample=last),
            )
            report = await session.send(info, b"".join(token.to_bytes(4, "little") for token in chunk))
            self._record.raw_bytes += report.raw_bytes
            self._record.wire_bytes += report.wire_bytes
        self._record.fed_ns = time.monotonic_ns()

    async def close(self) -> None:
        """Ends the generation on every node at once and takes their timings home."""
        await asyncio.gather(*(self._close_one(node) for node in self._deployment.pipeline))

    async def _close_one(self, node: executor_pb2.PeerAddress) -> None:
        request = executor_pb2.CloseGenerationRequest(deployment=self._deployment.name, generation=self._number)
        sent_ns = time.monotonic_ns()
        # A node that cannot be told frees the generation itself when its time is over.
        with suppress(grpc.RpcError, MeshError):
            answer = await self._upstream.executor(node).CloseGeneration(request, timeout=CLOSE_DEADLINE_S)
            reading = ClockReading(sent_ns, time.monotonic_ns(), answer.clock_ns)
            known = self._record.clocks.get(node.name)
            if known is None or reading.round_trip_ns < known.round_trip_ns:
                self._record.clocks[node.name] = reading
            self._record.stages[answer.timings.stage_index] = answer.timings
            self._record.raw_bytes += answer.raw_bytes
            self._record.wire_bytes += answer.wire_bytes


async def _until_finished(arrivals: asyncio.Queue[Arrival]) -> AsyncIterator[Arrival]:
    while True:
        arrival = await arrivals.get()
        if arrival.error is not None:
            raise arrival.error
        yield arrival
        if arrival.finish != wire_pb2.FINISH_REASON_UNSPECIFIED:
            return


def _finished(record: GenerationRecord) -> gateway_pb2.GenerationFinished:
    first_s = (record.arrived_ns[0] - record.began_ns) / 1e9
    total_s = (record.ended_ns - record.began_ns) / 1e9
    after_first = len(record.arrived_ns) - 1
    rate = after_first / (total_s - first_s) if after_first and total_s > first_s else 1 / max(total_s, 1e-9)
    return gateway_pb2.GenerationFinished(
        reason=wire_pb2.FinishReason.Name(record.finish),
        prompt_tokens=record.prompt_tokens,
        new_tokens=len(record.arrived_ns),
        first_token_s=first_s,
        total_s=total_s,
        raw_bytes=record.raw_bytes,
        wire_bytes=record.wire_bytes,
        tokens_per_second=rate,
    )
