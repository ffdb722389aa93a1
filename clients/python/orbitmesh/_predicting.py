"""Inputs for the model of a run, and its answers, as arrays."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from orbitmesh.errors import IntegrityError, InvalidInputError
from orbitmesh.v1 import aggregator_pb2, training_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INPUTS_BYTES_MAX = 2 << 20
"""The largest inputs of one question."""


def inputs(values: npt.ArrayLike) -> training_pb2.Inputs:
    """What a model is asked about.

    Raises:
        InvalidInputError: It is no array of numbers, has no rows, or is more than a message holds.
    """
    numpy = _numpy()
    try:
        array = numpy.ascontiguousarray(values, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the inputs are no array of numbers: {error}") from None
    if array.ndim < 2 or not array.size or array.nbytes > INPUTS_BYTES_MAX:
        raise InvalidInputError(
            f"inputs of shape {array.shape} were given; expected an example in each row, in all at most "
            f"{INPUTS_BYTES_MAX} bytes as float32"
        )
    return training_pb2.Inputs(shape=array.shape, data=array.tobytes())


def outputs(answer: aggregator_pb2.PredictResponse) -> npt.NDArray[np.float32]:
    """What a model said.

    Raises:
        IntegrityError: The answer's bytes are not those of its shape.
    """
    numpy = _numpy()
    shape = list(answer.outputs.shape)
    count = 1
    for length in shape:
        count *= length
    if len(answer.outputs.data) != 4 * count:
        raise IntegrityError(f"{answer.node} answered with {len(answer.outputs.data)} bytes for a shape of {shape}")
    found: npt.NDArray[np.float32] = numpy.frombuffer(answer.outputs.data, "<f4").reshape(shape).copy()
    return found


def _numpy() -> ModuleType:
    try:
        import numpy
    except ModuleNotFoundError:
        raise InvalidInputError(
            "asking a model about arrays needs numpy, which the base install leaves out: run `pip install numpy`",
            reason="FAILED_PRECONDITION",
        ) from None
    return numpy
