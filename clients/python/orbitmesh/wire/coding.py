"""Coding the frames of a session, in threads where they are large."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from orbitmesh.errors import InvalidInputError
from orbitmesh.wire.frames import malformed
from orbitmesh.wire.tensors import Buffer, DType

INLINE_BYTES = 64 << 10
"""Up to this size a frame is coded on the event loop: handing it to a thread would cost more than the work."""

CODES_AHEAD = 2
"""How many frames of one transfer are coded ahead, and how many threads a session codes with."""


class Threads:
    """The threads of one session; they start when the first large frame is coded."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def get(self) -> ThreadPoolExecutor:
        """The pool."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CODES_AHEAD, thread_name_prefix="orbitmesh-codec")
        return self._pool

    def end(self, *, forget: bool) -> None:
        """Ends them when their work is done; what has not begun is not done where `forget`."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=forget)


class Coder:
    """Codes the frames of one transfer in threads, a few ahead, in order."""

    def __init__(self, pool: ThreadPoolExecutor, chunks: Iterator[memoryview], codec: int, dtype: int) -> None:
        self._pool = pool
        self._chunks = chunks
        self._codec = codec
        self._dtype = dtype
        self._ahead: deque[tuple[asyncio.Future[tuple[bytes, int]], int]] = deque()
        self.work_ns = 0

    async def next(self) -> tuple[bytes, int]:
        """The next frame's payload and how many raw bytes it holds."""
        loop = asyncio.get_running_loop()
        while len(self._ahead) < CODES_AHEAD and (chunk := next(self._chunks, None)) is not None:
            work = loop.run_in_executor(self._pool, encode_frame, self._codec, chunk, self._dtype)
            self._ahead.append((work, len(chunk)))
        coded, size = self._ahead.popleft()
        payload, work_ns = await coded
        self.work_ns += work_ns
        return payload, size

    def cancel(self) -> None:
        """Forgets what is being coded."""
        for each, _ in self._ahead:
            each.cancel()


def encode_frame(codec: int, data: Buffer, dtype: int) -> tuple[bytes, int]:
    """A frame's payload and the work in nanoseconds. The codecs need numpy, which the SDK alone does not bring."""
    from orbitmesh.wire.codecs import CodecId, encode

    started = time.monotonic_ns()
    payload = encode(CodecId(codec), data, DType(dtype or DType.UINT8))
    return payload, time.monotonic_ns() - started


def decode_frame(codec: int, coded: bytes, dtype: int, out: memoryview) -> int:
    """Decodes a frame into place; returns the work in nanoseconds."""
    from orbitmesh.wire.codecs import CodecId, decode_into

    started = time.monotonic_ns()
    try:
        decode_into(CodecId(codec), coded, DType(dtype or DType.UINT8), out)
    except (ValueError, InvalidInputError) as error:
        raise malformed(f"a frame's codec {codec} does not fit its tensor: {error}") from None
    return time.monotonic_ns() - started
