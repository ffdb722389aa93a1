"""How a node says no: every error leaves as a reason of the table, and what a task's own code raises as one of ours."""

from __future__ import annotations

import errno

from orbitmesh.errors import CapacityError, InternalError, InvalidInputError, MeshError
from orbitmesh.v1 import training_pb2

TASK_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What code of a task, and torch below it, may raise that is not of the mesh's tree."""


def refusal(run: str, round_index: int, error: MeshError) -> training_pb2.TrainingInfo:
    """The message that tells of an error."""
    told = training_pb2.TrainingRefusal(reason=error.reason, message=error.message, metadata=error.metadata)
    return training_pb2.TrainingInfo(run=run, round=round_index, refused=told)


def typed(error: BaseException, what: str) -> MeshError:
    """An error of Python or torch as one of the mesh. Its text stays here: it may quote what a node trains on."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or "OutOfMemory" in kind:
        return CapacityError(f"the memory of this node did not suffice when {what}: use smaller batches, or free some")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(f"the disk of this node was full when {what}: free some of it, and order again")
    return InternalError(f"{what}, and a {kind} was raised that nobody expected: the node's log has it in full")


def not_joined(run: str) -> InvalidInputError:
    """The error for an order in a run that this node takes no part in."""
    return InvalidInputError(
        f"this node takes no part in the run {run}, or has lost what it kept of it: order it to join first",
        reason="FAILED_PRECONDITION",
    )
