"""The flat layout of a model: which tensor lies where in the one vector that travels.

Both ends derive it from their own model and compare `digest`: a vector cut differently would be summed without a word.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.spans import Floats, spans

MAX_TENSORS = 1 << 20
"""Tensors of one layout at most."""
MAX_NAME_BYTES = 4_096
"""Bytes of a tensor's name in UTF-8 at most."""
MAX_DIMENSIONS = 16
"""Dimensions of one tensor at most."""
_DIGEST_PURPOSE = b"orbitmesh/v1/update-layout\x00"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a layout."""

    name: str
    """Its key in the model's `state_dict()`."""
    shape: tuple[int, ...]
    """Its dimensions; empty for a single number."""
    offset: int
    """Where its first value is in the vector."""

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in the order of its `state_dict()`, laid end to end.

    Args:
        tensors: The tensors; each begins where the one before it ends.

    Raises:
        InvalidInputError: Two tensors have one name, there are gaps, or a bound of this module is exceeded.
    """

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise InvalidInputError(f"a layout has {len(self.tensors)} floating tensors, expected 1 to {MAX_TENSORS}")
        offset = 0
        for tensor in self.tensors:
            if len(tensor.name.encode()) > MAX_NAME_BYTES or len(tensor.shape) > MAX_DIMENSIONS:
                raise InvalidInputError(
                    f"the tensor {tensor.name[:80]!r} has a name over {MAX_NAME_BYTES} bytes or more than "
                    f"{MAX_DIMENSIONS} dimensions",
                    reason="LIMIT_EXCEEDED",
                )
            if tensor.offset != offset or min(tensor.shape, default=1) < 0:
                raise InvalidInputError(
                    f"the tensor {tensor.name!r} of shape {tensor.shape} is laid at {tensor.offset}, expected {offset}"
                )
            offset += tensor.size
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            raise InvalidInputError("two tensors of a layout have the same name; names of a state_dict differ")
        if offset == 0:
            raise InvalidInputError("the tensors of a layout have no values at all: there is nothing to train")

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """The layout of a model given as arrays; those that hold no floating numbers are left out."""
        laid: list[Tensor] = []
        offset = 0
        for name, array in tensors.items():
            if array.dtype.kind == "f":
                laid.append(Tensor(name, tuple(array.shape), offset))
                offset += array.size
        return cls(tuple(laid))

    @cached_property
    def size(self) -> int:
        """How many values the vector has."""
        return self.tensors[-1].offset + self.tensors[-1].size

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of names and shapes in order, 32 bytes: equal exactly where two layouts are."""
        digest = hashlib.sha256(_DIGEST_PURPOSE)
        for tensor in self.tensors:
            name = tensor.name.encode()
            digest.update(len(name).to_bytes(4, "big") + name + len(tensor.shape).to_bytes(4, "big"))
            digest.update(b"".join(dimension.to_bytes(8, "big") for dimension in tensor.shape))
        return digest.digest()

    def expect(self, digest: bytes) -> None:
        """Compares with the digest of the other end.

        Raises:
            InvalidInputError: It is of another model (LAYOUT_MISMATCH).
        """
        if digest != self.digest:
            raise InvalidInputError(
                f"the other end lays its model out differently: digest {digest.hex()[:16]}, here "
                f"{self.digest.hex()[:16]} of {len(self.tensors)} tensors with {self.size} values; "
                "both ends need the same task in the same version",
                reason="LAYOUT_MISMATCH",
            )

    def flatten(self, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Floats:
        """The arrays as one vector, float32 of shape (size,).

        Raises:
            InvalidInputError: A tensor is missing, one is there that the layout has not, or a shape is another.
        """
        given = {name for name, array in tensors.items() if array.dtype.kind == "f"}
        if given != {tensor.name for tensor in self.tensors}:
            odd = sorted(given ^ {tensor.name for tensor in self.tensors})
            raise InvalidInputError(
                f"the tensors are not those of the layout: {', '.join(odd[:4])} missing or too many",
                reason="LAYOUT_MISMATCH",
            )
        vector = np.empty(self.size, np.float32)
        for tensor in self.tensors:
            array = tensors[tensor.name]
            if array.shape != tensor.shape:
                raise InvalidInputError(
                    f"the tensor {tensor.name!r} has shape {array.shape}, expected {tensor.shape}",
                    reason="LAYOUT_MISMATCH",
                )
            vector[tensor.offset : tensor.offset + tensor.size] = array.reshape(-1)
        return vector

    def unflatten(self, vector: Floats) -> dict[str, Floats]:
        """The vector as tensors by name: views of it, not copies.

        Raises:
            InvalidInputError: The vector has another size or type.
        """
        self._check_form(vector)
        return {
            tensor.name: vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
            for tensor in self.tensors
        }

    def check(self, vector: Floats) -> None:
        """Accepts a vector of this layout whose values are all finite.

        Raises:
            InvalidInputError: The size or type is another, or a value is NaN or infinite (NOT_FINITE): the message
                names the tensor and the index in it.
        """
        self._check_form(vector)
        for _, where in spans(self.size):
            finite = np.isfinite(vector[where])
            if not finite.all():
                at = where.start + int(np.argmin(finite))
                name, index = self.locate(at)
                raise InvalidInputError(
                    f"the value at {list(index)} of the tensor {name!r} is {vector[at]}, expected a finite number; "
                    "lower the learning rate or clip the gradients of the local training",
                    reason="NOT_FINITE",
                    metadata={"tensor": name, "index": list(index)},
                )

    def locate(self, position: int) -> tuple[str, tuple[int, ...]]:
        """The tensor that holds a position of the vector, and the index in it.

        Raises:
            InvalidInputError: The vector has no such position.
        """
        if not 0 <= position < self.size:
            raise InvalidInputError(f"position {position} is outside a vector of {self.size} values")
        # The last of those that begin there: tensors without values before it begin there too.
        tensor = self.tensors[bisect_right(self._offsets, position) - 1]
        index = np.unravel_index(position - tensor.offset, tensor.shape) if tensor.shape else ()
        return tensor.name, tuple(int(axis) for axis in index)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    @cached_property
    def _offsets(self) -> list[int]:
        return [tensor.offset for tensor in self.tensors]

    def _check_form(self, vector: Floats) -> None:
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise InvalidInputError(
                f"a vector of shape {vector.shape} and type {vector.dtype} was given, expected ({self.size},) and "
                "float32; both ends need the same task in the same version",
                reason="LAYOUT_MISMATCH",
            )
