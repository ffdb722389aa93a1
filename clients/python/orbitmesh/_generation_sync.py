"""Generations, sync. Made by `python -m orbitmesh._generate_sync`: change `_generation.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from types import TracebackType

from orbitmesh._generation import AsyncGeneration
from orbitmesh._loop import LoopThread
from orbitmesh.results import Token


class Generation:
    """An answer on its way. Iterate to get its tokens as they are produced; afterwards it knows its figures.

    Leaving the loop early, an exception in it, `cancel()` and the end of a `with` block stop the work on
    every node.

    Example:
        >>> generation = mesh.generate("demo", prompt="Space is", max_new_tokens=64)
        >>> for token in generation:
        ...     print(token.text, end="")
        >>> generation.tokens_per_second
        14.2
    """

    def __init__(self, core: AsyncGeneration, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def trace_id(self) -> str:
        """The trace of this generation, 32 hex digits: what `explain` asks for.

        Example:
            >>> generation.trace_id
            '5b8aa5a2d2c872e8321cf37308d69df2'
        """
        return self._core.trace_id

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has.

        Example:
            >>> generation.prompt_tokens
            3
        """
        return self._core.prompt_tokens

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that have arrived so far.

        Example:
            >>> generation.tokens[0]
            Token(id=262, text=' the', position=3)
        """
        return self._core.tokens

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that have arrived so far.

        Example:
            >>> generation.token_ids
            (262, 17, 904)
        """
        return self._core.token_ids

    @property
    def text(self) -> str:
        """The text that has arrived so far, without the prompt.

        Example:
            >>> generation.text
            ' the place between the stars'
        """
        return self._core.text

    @property
    def waiting(self) -> str | None:
        """What it waits for right now, as a sentence: a node that is being replaced, a contact, the gateway; None while
        tokens come and after the end. Known as far as the answer was read.

        Example:
            >>> generation.waiting
            'sat-2 does not answer; no other node is in contact'
        """
        return self._core.waiting

    @property
    def waiting_until(self) -> datetime | None:
        """When what it waits for is expected, in UTC; None where nobody knows.

        Example:
            >>> generation.waiting_until
            datetime.datetime(2026, 3, 1, 12, 8, tzinfo=datetime.timezone.utc)
        """
        return self._core.waiting_until

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: `length`, `stop` (the model's end token), `cancelled`, `failed`; None while it goes
        on.

        Example:
            >>> generation.finish_reason
            'length'
        """
        return self._core.finish_reason

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first, as the gateway measured them; None until it ended well.

        Example:
            >>> generation.tokens_per_second
            14.2
        """
        return self._core.tokens_per_second

    @property
    def first_token_s(self) -> float | None:
        """From the request to the first token, in seconds; None until it ended well.

        Example:
            >>> generation.first_token_s
            0.212
        """
        return self._core.first_token_s

    @property
    def total_s(self) -> float | None:
        """From the request to the last token, in seconds; None until it ended well.

        Example:
            >>> generation.total_s
            4.71
        """
        return self._core.total_s

    @property
    def raw_bytes(self) -> int | None:
        """Bytes of hidden states and tokens that crossed links, before codec and seal; None until it ended
        well.

        Example:
            >>> generation.raw_bytes
            98816
        """
        return self._core.raw_bytes

    @property
    def wire_bytes(self) -> int | None:
        """The same as messages on the wire: headers, bodies and seals; None until it ended well.

        Example:
            >>> generation.wire_bytes
            91204
        """
        return self._core.wire_bytes

    def __iter__(self) -> Iterator[Token]:
        index = 0
        try:
            while (token := self._loop.run(partial(self._core._token, index))) is not None:
                yield token
                index += 1
        finally:
            self.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def wait(self) -> Generation:
        """Waits for the end, keeping the tokens, and returns the generation itself.

        Raises:
            MeshError: as iterating does.

        Example:
            >>> generation.wait().text
            ' the place between the stars'
        """
        self._loop.run(lambda: self._core.wait())
        return self

    def cancel(self) -> None:
        """Stops the work on every node and frees its caches; what has arrived stays readable. Repeating it
        changes nothing.

        Example:
            >>> generation.cancel()
            >>> generation.finish_reason
            'cancelled'
        """
        # Where the mesh is closed already, the call went with it.
        if self.finish_reason is None and not self._loop.stopped:
            self._loop.run(lambda: self._core.cancel())
