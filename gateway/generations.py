"""A prompt's way through the mesh: checked, given to a generation that lives on its own, its tokens handed out.

A generation that its caller named goes on when the caller's stream is cut, and when this process is started anew; the
caller takes its stream up again by the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping

from gateway.admission import Admissions
from gateway.book import Entry, Pages
from gateway.life import Life, Parts
from gateway.packs import PackShelf
from gateway.record import GenerationRecord
from gateway.text import Text, TextStream
from gateway.traces import Traces
from gateway.upstream import Upstream
from orbitmesh.errors import CapacityError, InternalError, InvalidInputError, MeshError, PermissionError_
from orbitmesh.limits import CONTEXT_TOKENS
from orbitmesh.pack import Manifest
from orbitmesh.trust.names import check_name
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2
from services.runtime.caller import current_caller, time_left_s
from services.runtime.logs import EventLog

MAX_NEW_TOKENS_DEFAULT = 64
"""Tokens where the request does not say."""
GENERATION_LIFE_S = 3600.0
"""How long a generation may live where the caller sets no deadline."""
SLOW_READER_S = 30.0
"""How long a client may take no message while there are some for it."""
GENERATIONS_MAX = 512
"""How many generations one gateway runs at once."""
LINGER_MAX_S = 86_400.0
"""The longest that a generation waits for its caller to come back."""
ATTACH_S = 5.0
"""How long a new generation waits for whoever asked for it to listen."""
FINISH_S = 5.0
"""How long a gateway that ends lets generations end by themselves before it leaves them to the next one, in seconds."""
DRAIN_POLL_S = 0.05
"""How often it looks whether they have, in seconds."""
REQUEST_ID_MAX = 64
"""The longest name of a generation, in characters."""

Send = Callable[[gateway_pb2.GenerateResponse], Awaitable[None]]


class Generations:
    """The generations of one gateway."""

    def __init__(
        self,
        upstream: Upstream,
        shelf: PackShelf,
        traces: Traces,
        book: Pages,
        tasks: asyncio.TaskGroup,
        log: EventLog,
        slow_reader_s: float = SLOW_READER_S,
    ) -> None:
        self._slow_reader_s = slow_reader_s
        self._upstream = upstream
        self._shelf = shelf
        self._book = book
        self._tasks = tasks
        self._log = log
        self._admissions = Admissions(upstream, log)
        self._traces = traces
        self._parts = Parts(upstream, traces, self._admissions, tasks, log)
        self._named: dict[tuple[str, str], Life] = {}
        self._beginning: dict[tuple[str, str], asyncio.Task[Life]] = {}
        self._lives: set[Life] = set()
        self._moving: set[tuple[str, int, str]] = set()
        self._warming: asyncio.Task[None] | None = None

    async def answer(self, request: gateway_pb2.GenerateRequest, send: Send) -> None:
        """Answers one prompt, or takes the stream of a named generation up again; every message goes through `send`.

        Raises:
            InvalidInputError: Where prompt, bounds or sampling are wrong.
            CapacityError: Where a stage is full, the gateway or the slice is, or the client does not read.
            PermissionError_: The slice is somebody else's.
            DeadlineError: When the caller's time is spent.
            NodeLostError: Where a node is gone before the generation began.
        """
        life = await self._find_or_begin(request)
        life.attach()
        try:
            await self._stream(life, request, send)
        finally:
            life.detach(_linger_s(request))

    @property
    def running(self) -> int:
        """How many generations are running, also those that nobody listens to at the moment."""
        return len(self._lives)

    @property
    def tokens(self) -> Mapping[tuple[str, str], int]:
        """The tokens that this process has produced, by deployment and slice."""
        return self._parts.tokens

    @property
    def lives(self) -> list[Life]:
        """Those that are running."""
        return list(self._lives)

    async def cancel(self, request_id: str) -> None:
        """Ends a generation of this caller by its name; one that is not there changes nothing."""
        life = self._named.get((current_caller().spiffe, request_id))
        if life is not None:
            await life.end()

    async def take_up(self) -> None:
        """Goes on with the generations that were running when this process ended."""
        for entry, page in await asyncio.to_thread(lambda: list(self._book.unfinished())):
            key = (entry.caller, entry.request.request_id)
            life = Life(self._parts, entry, page)
            self._keep(key, life)
            self._start(life)
            life.detach(_linger_s(entry.request))
            self._log.info(
                "generation_taken_up", generation=entry.number, trace_id=entry.trace_id, produced=len(entry.tokens)
            )

    async def follow(self) -> None:
        """Moves stages of running generations when the scheduler plans it, as long as this process lives."""
        async for deployment in self._upstream.watch():
            lives = [life for life in self._lives if life.entry.request.deployment == deployment.name]
            for life in lives:
                life.know(deployment)
            self._warm([*deployment.pipeline, *(standby.node for standby in deployment.standbys if standby.ready)])
            for planned in deployment.hand_overs:
                key = (deployment.name, planned.stage_index, planned.to.name)
                if key not in self._moving:
                    self._moving.add(key)
                    self._tasks.create_task(self._hand_over(key, getattr(planned, "from"), planned, lives))

    def _warm(self, nodes: list[executor_pb2.PeerAddress]) -> None:
        """Opens sessions ahead of need; one such task at a time, the next change brings another."""
        if self._warming is None or self._warming.done():
            self._warming = self._tasks.create_task(self._upstream.warm(nodes))

    async def _hand_over(
        self, key: tuple[str, int, str], old: str, planned: scheduler_pb2.HandOver, lives: list[Life]
    ) -> None:
        """Moves every generation, then gives the place to the new node for those to come."""
        try:
            await asyncio.gather(*(life.hand_over(planned) for life in lives))
            await self._upstream.replace_stage(key[0], key[1], old, planned.reason, hand_over=True)
        except MeshError as error:
            self._log.warning("hand_over_not_ended", deployment=key[0], stage=key[1], detail=error.message)
        finally:
            self._moving.discard(key)

    async def drain(self) -> None:
        """Lets what ends soon end here; what is named is then left to the next process, and its streams say so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                while self._lives:  # noqa: ASYNC110 - many may end it
                    await asyncio.sleep(DRAIN_POLL_S)
        self.leave()

    def leave(self) -> None:
        """This process ends: named generations go on without it until it is back."""
        for life in list(self._named.values()):
            life.leave()

    async def _find_or_begin(self, request: gateway_pb2.GenerateRequest) -> Life:
        if not request.request_id:
            return await self._begin(request)
        if len(request.request_id) > REQUEST_ID_MAX:
            raise InvalidInputError(f"a request_id has at most {REQUEST_ID_MAX} characters")
        key = (current_caller().spiffe, request.request_id)
        if key in self._named:
            return self._named[key]
        # Two streams with one name at the same time must not begin two generations.
        if key not in self._beginning:
            beginning = asyncio.create_task(self._begin_named(key, request))
            self._beginning[key] = beginning
            beginning.add_done_callback(lambda done: self._beginning.pop(key, None))
        return await asyncio.shield(self._beginning[key])

    async def _begin_named(self, key: tuple[str, str], request: gateway_pb2.GenerateRequest) -> Life:
        life = await self._begin(request)
        self._keep(key, life)
        # Whoever asked may have gone meanwhile: then it ends as one that was left.
        life.detach(max(_linger_s(request), ATTACH_S))
        return life

    def _keep(self, key: tuple[str, str], life: Life) -> None:
        self._named[key] = life
        life.on_gone(lambda: self._named.pop(key, None))

    async def _begin(self, request: gateway_pb2.GenerateRequest) -> Life:
        if len(self._lives) >= GENERATIONS_MAX:
            raise CapacityError(f"{GENERATIONS_MAX} generations are running on this gateway; try again later")
        began_ns = time.monotonic_ns()
        limit_s = time_left_s(GENERATION_LIFE_S)
        deployment = await self._upstream.deployment(request.deployment)
        manifest = Manifest.parse(deployment.manifest)
        text = await asyncio.to_thread(self._shelf.text, deployment.manifest)
        prompt = await self._prompt(request, manifest, text)
        new_tokens = check_bounds(request, manifest, len(prompt))
        entry = Entry(
            number=secrets.randbits(63) + 1,
            trace_id=secrets.token_hex(16),
            caller=current_caller().spiffe,
            request=request,
            prompt=prompt,
            new_tokens=new_tokens,
            began_at=time.time(),
            expires_at=time.time() + limit_s,
            # Tokens that only the caller still knows: they are not produced again.
            tokens=list(request.received.ids)[:new_tokens],
        )
        try:
            await self._let_in(entry, deployment, limit_s, began_ns)
            page = await asyncio.to_thread(self._book.begin, entry) if request.request_id else None
        except (InvalidInputError, PermissionError_, CapacityError):
            raise
        except BaseException:
            if request.slice:
                # It may have been let in although the answer was lost on the way, or nobody waited for it.
                self._tasks.create_task(self._admissions.give_back(entry))
            raise
        life = Life(self._parts, entry, page, deployment=deployment, began_ns=began_ns)
        self._start(life)
        return life

    async def _let_in(
        self, entry: Entry, deployment: scheduler_pb2.Deployment, limit_s: float, began_ns: int
    ) -> None:
        """Asks for leave; a refusal is a trace as well, which its caller is given the number of."""
        try:
            await self._admissions.admit(entry, [node.name for node in deployment.pipeline], limit_s)
        except MeshError as error:
            error.trace_id = entry.trace_id
            self._traces.refused(
                GenerationRecord(
                    entry.trace_id, entry.request.deployment, [], len(entry.prompt), began_ns, time.time_ns(),
                    ended_ns=time.monotonic_ns(), slice=entry.request.slice,
                    error_reason=error.reason, error=error.message,
                )
            )  # fmt: skip
            raise

    def _start(self, life: Life) -> None:
        self._lives.add(life)
        life.begin(lambda: self._lives.discard(life))

    async def _stream(self, life: Life, request: gateway_pb2.GenerateRequest, send: Send) -> None:
        """Hands out what the caller does not have yet."""
        deployment = await life.started()
        text = await asyncio.to_thread(self._shelf.text, deployment.manifest)
        entry = life.entry
        started = gateway_pb2.GenerationStarted(
            trace_id=entry.trace_id, generation=entry.number, prompt_tokens=len(entry.prompt)
        )
        await self._write(send, gateway_pb2.GenerateResponse(started=started))
        pieces = TextStream(text, entry.prompt)
        received = list(request.received.ids)
        at, said = 0, ""
        while True:
            news = life.news
            while at < len(entry.tokens):
                token = entry.tokens[at]
                last = life.finish != 0 and at + 1 == len(entry.tokens)
                piece = pieces.add(token, last=last)
                position = len(entry.prompt) + at
                if at >= len(received):
                    message = gateway_pb2.GeneratedToken(id=token, position=position, text=piece)
                    await self._write(send, gateway_pb2.GenerateResponse(token=message))
                elif received[at] != token:
                    raise InternalError(f"the caller holds another token at position {position} than this gateway")
                at += 1
            if life.over:
                break
            if life.waiting != said:
                said = life.waiting
                if said:
                    waiting = gateway_pb2.GenerationWaiting(reason=said)
                    await self._write(send, gateway_pb2.GenerateResponse(waiting=waiting))
            await news.wait()
        await self._write(send, gateway_pb2.GenerateResponse(finished=await life.finished()))
        life.forget()

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
    given = [*(request.token_ids.ids if request.WhichOneof("prompt") == "token_ids" else ()), *request.received.ids]
    if given and max(given) >= manifest.vocab_size:
        raise InvalidInputError(
            f"{max(given)} is no token of {manifest.name!r}: they are 0 to {manifest.vocab_size - 1}"
        )
    if request.slice:
        check_name(request.slice)
    temperature, top_p = request.sampling.temperature, request.sampling.top_p
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidInputError(f"temperature must be 0 or a positive number, not {temperature}")
    if not 0 <= top_p <= 1:
        raise InvalidInputError(f"top_p must lie between 0 and 1, not {top_p}")
    return new_tokens


def _linger_s(request: gateway_pb2.GenerateRequest) -> float:
    """How long a generation goes on without its caller, in seconds; 0 where it was not named."""
    return min(LINGER_MAX_S, request.linger.ToNanoseconds() / 1e9) if request.request_id else 0.0
