"""A run's weights as they come: pieces of a vector, taken for good only when their digest is the one that was said.

What is cut on the way is begun again: the weights may be those of a later round by then.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orbitmesh._resuming import RESUME_S, asked_again
from orbitmesh._streams import next_message
from orbitmesh.durable import made_beside, put_in_place
from orbitmesh.errors import IntegrityError, InvalidInputError, TransportError
from orbitmesh.rpc import keep_status
from orbitmesh.training_results import SavedWeights
from orbitmesh.v1 import aggregator_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MEMORY_BYTES = 8 << 30
"""The largest weights that are put together in memory."""
FILE_BYTES = 1 << 40
"""The largest weights that are written to a file."""
VALUE_BYTES = 4
"""Of a float32."""
_NPY_ALIGNMENT = 64


@dataclass(frozen=True)
class Head:
    """What the first message says."""

    values: int
    """How many values there are."""
    sha256: bytes
    """SHA-256 of all of them, float32, little-endian."""
    rounds_done: int
    """The round that they are after."""


T = TypeVar("T")
Open = Callable[[], Awaitable[Any]]
"""Opens a `GetWeights` stream."""


async def in_memory(open_stream: Open, name: str, address: str | None) -> npt.NDArray[np.float32]:
    """The weights as one vector.

    Raises:
        InvalidInputError: numpy is not here, or they are larger than `MEMORY_BYTES`.
        IntegrityError: what came is not what its digest says.
        MeshError: the stream failed, and was not to be had again in time.
    """
    try:
        import numpy
    except ModuleNotFoundError:
        raise InvalidInputError(
            "weights as an array need numpy, which the base install leaves out: run `pip install numpy`, or write them "
            "to a file with `save_weights`",
            reason="FAILED_PRECONDITION",
        ) from None

    async def take() -> npt.NDArray[np.float32]:
        async with _Stream(await open_stream(), name, address, MEMORY_BYTES) as stream:
            # Grows as bytes come: nothing is allocated on the word of a header alone.
            taken = bytearray()
            async for piece in stream:
                taken += piece
        return numpy.frombuffer(taken, dtype="<f4").astype(numpy.float32, copy=False)

    return await asked_again(take, RESUME_S)


async def to_file(open_stream: Open, name: str, address: str | None, path: Path) -> SavedWeights:
    """Writes the weights as an array of numpy's format; the file is there whole, or not at all.

    Raises:
        InvalidInputError: the file cannot be written, or they are larger than `FILE_BYTES`.
        IntegrityError: what came is not what its digest says.
        MeshError: the stream failed, and was not to be had again in time.
    """
    place = await asyncio.to_thread(path.expanduser)

    async def take() -> SavedWeights:
        async with _Stream(await open_stream(), name, address, FILE_BYTES) as stream:
            written = await asyncio.to_thread(made_beside, place)
            try:
                with await asyncio.to_thread(written.open, "wb") as file:
                    await asyncio.to_thread(file.write, npy_header(stream.head.values))
                    async for piece in stream:
                        await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(put_in_place, written, place)
            finally:
                await asyncio.to_thread(written.unlink, missing_ok=True)
            return SavedWeights(place, stream.head.values, stream.head.sha256.hex(), stream.head.rounds_done)

    try:
        return await asked_again(take, RESUME_S)
    except OSError as error:
        raise InvalidInputError(f"cannot write {place}: {error.strerror}; give another path") from None


def npy_header(values: int) -> bytes:
    """The beginning of a file of numpy's format, version 1.0, for a vector of float32, little-endian."""
    said = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({values},), }}"
    unpadded = len(b"\x93NUMPY\x01\x00") + 2 + len(said) + 1
    padded = said + " " * (-unpadded % _NPY_ALIGNMENT) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")


class _Stream:
    """One stream from its first message on: counted, and compared with its digest at the end."""

    def __init__(self, call: Any, name: str, address: str | None, most_bytes: int) -> None:
        self._call = keep_status(call)
        self._name = name
        self._address = address
        self._most_bytes = most_bytes
        self._first = b""
        self.head = Head(0, b"", 0)

    async def __aenter__(self) -> _Stream:
        try:
            await self._begin()
        except BaseException:
            self._call.cancel()
            raise
        return self

    async def __aexit__(self, *ended: object) -> None:
        self._call.cancel()

    async def _begin(self) -> None:
        first = await self._read()
        if first is None or not first.values or len(first.sha256) != hashlib.sha256().digest_size:
            raise IntegrityError(f"the weights of {self._name!r} came without their size and digest; ask again")
        if first.values * VALUE_BYTES > self._most_bytes:
            raise InvalidInputError(
                f"the weights of {self._name!r} are {first.values * VALUE_BYTES} bytes, and {self._most_bytes} are "
                "taken in this way; write them to a file with `save_weights`, or fetch them where there is more room",
                reason="LIMIT_EXCEEDED",
                metadata={"size_bytes": first.values * VALUE_BYTES, "limit_bytes": self._most_bytes},
            )
        self.head = Head(first.values, first.sha256, first.rounds_done)
        self._first = first.data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces in order.

        Raises:
            IntegrityError: they are more than was said, or other bytes.
            TransportError: they are fewer: the stream was cut.
        """
        digest, left = hashlib.sha256(), self.head.values * VALUE_BYTES
        piece: bytes | None = self._first
        while piece is not None:
            left -= len(piece)
            if left < 0:
                raise IntegrityError(f"the weights of {self._name!r} are longer than was said; ask again")
            digest.update(piece)
            if piece:
                yield piece
            message = await self._read()
            piece = None if message is None else message.data
        if left:
            raise TransportError(f"the weights of {self._name!r} ended {left} bytes early; ask again")
        if digest.digest() != self.head.sha256:
            raise IntegrityError(
                f"the weights of {self._name!r} do not have the digest that was said: bytes were changed; ask again",
                reason="INTEGRITY",
            )

    async def _read(self) -> aggregator_pb2.GetWeightsResponse | None:
        message: aggregator_pb2.GetWeightsResponse | None = await next_message(self._call, self._address)
        return message
