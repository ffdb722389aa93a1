"""One answer on its way: the stream of tokens, what it adds up to, and how it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol

from orbitmesh import _from_proto
from orbitmesh._loop import ForkGuard
from orbitmesh.errors import CancelledError_, MeshError, TransportError
from orbitmesh.results import OnWaiting, Token
from orbitmesh.rpc import mapped_errors
from orbitmesh.v1 import gateway_pb2


class GenerateCall(Protocol):
    """What is needed of a running `Generate` call; grpc.aio's is one."""

    async def read(self) -> Any:
        """The next `GenerateResponse`, or `grpc.aio.EOF`."""

    def cancel(self) -> bool:
        """Stops it."""


class AsyncGeneration:
    """An answer on its way. Iterate to get its tokens as they are produced; afterwards it knows its figures.

    Leaving the loop early, an exception in it, `cancel()` and the end of a `with` block stop the work on
    every node.

    Example:
        >>> generation = await mesh.generate("demo", prompt="Space is", max_new_tokens=64)
        >>> async for token in generation:
        ...     print(token.text, end="")
        >>> generation.tokens_per_second
        14.2
    """

    def __init__(self, call: GenerateCall, on_waiting: OnWaiting | None = None) -> None:
        self._call = call
        self._on_waiting = on_waiting
        self._guard = ForkGuard()
        self._lock = asyncio.Lock()
        self._received: list[Token] = []
        self._trace_id = ""
        self._prompt_tokens = 0
        self._waiting: gateway_pb2.GenerationWaiting | None = None
        self._finished: gateway_pb2.GenerationFinished | None = None
        self._error: MeshError | None = None

    @property
    def trace_id(self) -> str:
        """The trace of this generation, 32 hex digits: what `explain` asks for.

        Example:
            >>> generation.trace_id
            '5b8aa5a2d2c872e8321cf37308d69df2'
        """
        return self._trace_id

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has.

        Example:
            >>> generation.prompt_tokens
            3
        """
        return self._prompt_tokens

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that have arrived so far.

        Example:
            >>> generation.tokens[0]
            Token(id=262, text=' the', position=3)
        """
        return tuple(self._received)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that have arrived so far.

        Example:
            >>> generation.token_ids
            (262, 17, 904)
        """
        return tuple(token.id for token in self._received)

    @property
    def text(self) -> str:
        """The text that has arrived so far, without the prompt.

        Example:
            >>> generation.text
            ' the place between the stars'
        """
        return "".join(token.text for token in self._received)

    @property
    def waiting(self) -> str | None:
        """What it waits for right now, as a sentence: a node that is being replaced, a contact, the gateway; None while
        tokens come and after the end. Known as far as the answer was read.

        Example:
            >>> generation.waiting
            'sat-2 does not answer; no other node is in contact'
        """
        return self._waiting.reason if self._waiting is not None else None

    @property
    def waiting_until(self) -> datetime | None:
        """When what it waits for is expected, in UTC; None where nobody knows.

        Example:
            >>> generation.waiting_until
            datetime.datetime(2026, 3, 1, 12, 8, tzinfo=datetime.timezone.utc)
        """
        if self._waiting is None or not self._waiting.HasField("until"):
            return None
        return self._waiting.until.ToDatetime(UTC)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: `length`, `stop` (the model's end token), `cancelled`, `failed`; None while it goes
        on.

        Example:
            >>> generation.finish_reason
            'length'
        """
        if self._finished is not None:
            return _from_proto.FINISH_REASONS.get(self._finished.reason, "stop")
        if self._error is not None:
            return "cancelled" if isinstance(self._error, CancelledError_) else "failed"
        return None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first, as the gateway measured them; None until it ended well.

        Example:
            >>> generation.tokens_per_second
            14.2
        """
        return self._finished.tokens_per_second if self._finished is not None else None

    @property
    def first_token_s(self) -> float | None:
        """From the request to the first token, in seconds; None until it ended well.

        Example:
            >>> generation.first_token_s
            0.212
        """
        return self._finished.first_token_s if self._finished is not None else None

    @property
    def total_s(self) -> float | None:
        """From the request to the last token, in seconds; None until it ended well.

        Example:
            >>> generation.total_s
            4.71
        """
        return self._finished.total_s if self._finished is not None else None

    @property
    def raw_bytes(self) -> int | None:
        """Bytes of hidden states and tokens that crossed links, before codec and seal; None until it ended
        well.

        Example:
            >>> generation.raw_bytes
            98816
        """
        return self._finished.raw_bytes if self._finished is not None else None

    @property
    def wire_bytes(self) -> int | None:
        """The same as messages on the wire: headers, bodies and seals; None until it ended well.

        Example:
            >>> generation.wire_bytes
            91204
        """
        return self._finished.wire_bytes if self._finished is not None else None

    def __aiter__(self) -> AsyncIterator[Token]:
        return self._iterate()

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    async def wait(self) -> AsyncGeneration:
        """Waits for the end, keeping the tokens, and returns the generation itself.

        Raises:
            MeshError: as iterating does.

        Example:
            >>> (await generation.wait()).text
            ' the place between the stars'
        """
        async for _ in self:
            pass
        return self

    async def cancel(self) -> None:
        """Stops the work on every node and frees its caches; what has arrived stays readable. Repeating it
        changes nothing.

        Example:
            >>> await generation.cancel()
            >>> generation.finish_reason
            'cancelled'
        """
        self._guard.check()
        self._abandon("the generation was cancelled by its caller")

    async def _begin(self) -> None:
        """Waits until every stage has accepted the request, so that a refusal is raised where it was asked
        for."""
        try:
            event = await self._read()
        except BaseException:
            self._abandon("the generation was given up before it began")
            raise
        if event is None or not event.HasField("started"):
            raise self._failed(
                TransportError("the gateway answered a prompt without saying that it began; retry")
            )
        self._trace_id = event.started.trace_id
        self._prompt_tokens = event.started.prompt_tokens

    async def _token(self, index: int) -> Token | None:
        """The token of this index, waiting for it; None after the last one."""
        self._guard.check()
        async with self._lock:
            while len(self._received) <= index:
                if self._finished is not None:
                    return None
                if self._error is not None:
                    raise self._error
                await self._advance()
        return self._received[index]

    async def _iterate(self) -> AsyncGenerator[Token, None]:
        index = 0
        try:
            while (token := await self._token(index)) is not None:
                yield token
                index += 1
        finally:
            self._abandon("the loop over the generation was left before its end")

    async def _advance(self) -> None:
        event = await self._read()
        if event is None:
            raise self._failed(TransportError("the stream of tokens ended before the generation did; retry"))
        if event.HasField("token"):
            token = event.token
            self._received.append(Token(id=token.id, text=token.text, position=token.position))
        elif event.HasField("finished"):
            self._finished = event.finished
        self._wait(event.waiting if event.HasField("waiting") and event.waiting.reason else None)

    def _wait(self, waiting: gateway_pb2.GenerationWaiting | None) -> None:
        before, self._waiting = self.waiting, waiting
        if self._on_waiting is not None and self.waiting != before:
            self._on_waiting(self.waiting)

    async def _read(self) -> gateway_pb2.GenerateResponse | None:
        try:
            with mapped_errors():
                message = await self._call.read()
        except asyncio.CancelledError:
            # The task that waits is being cancelled, or somebody else cancelled the call under it.
            if self._error is None:
                self._abandon("the task that waited for the generation was cancelled")
                raise
            raise self._error from None
        except MeshError as error:
            raise self._failed(self._error or error) from error
        return message if isinstance(message, gateway_pb2.GenerateResponse) else None

    def _failed(self, error: MeshError) -> MeshError:
        if error.trace_id is None:
            error.trace_id = self._trace_id or None
        self._error = error
        self._waiting = None
        self._call.cancel()
        return error

    def _abandon(self, why: str) -> None:
        if self._finished is None and self._error is None:
            self._failed(CancelledError_(why))
