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
        InvalidInputError: It is no array of finite real numbers, has no rows, or is more than a message holds.
    """
    numpy = _numpy()
    try:
        given = numpy.asarray(values)
        if given.dtype.kind not in "biuf":
            raise InvalidInputError(f"the inputs are of type {given.dtype}; expected an array of real numbers")
        # What is too large for float32 becomes infinite, and is refused below.
        with numpy.errstate(over="ignore"):
            array = numpy.ascontiguousarray(given, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the inputs are no array of numbers: {error}") from None
    if given.ndim < 2 or not array.size:
        raise InvalidInputError(
            f"inputs of shape {given.shape} were given; expected an example in each row: for one alone, a first "
            "dimension of 1"
        )
    if array.nbytes > INPUTS_BYTES_MAX:
        raise InvalidInputError(
            f"inputs of shape {given.shape} take {array.nbytes} bytes as float32, and one question at most "
            f"{INPUTS_BYTES_MAX}: ask about fewer at a time",
            reason="LIMIT_EXCEEDED",
        )
    if not numpy.isfinite(array).all():
        raise InvalidInputError("the inputs hold values that are no finite float32: NaN, infinite or too large")
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
