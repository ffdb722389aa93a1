"""What a handler may know of the call that it answers: who called, and how much time is left."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

from orbitmesh.errors import InternalError, PermissionError_
from orbitmesh.trust.certificates import Peer
from orbitmesh.trust.names import Role


@dataclass(frozen=True)
class Call:
    """One call that is being answered."""

    caller: Peer
    """Who called, as its certificate proves."""
    method: str
    """`/package.Service/Method`."""
    deadline_s: float | None
    """When its time is spent, in seconds of the monotonic clock; None where the caller gave no limit."""


_CALL: ContextVar[Call] = ContextVar("orbitmesh_call")


def enter_call(call: Call) -> None:
    """Make `call` the one that this task answers; each call has a task of its own, so nothing is reset."""
    _CALL.set(call)


def current_call() -> Call:
    """The call that this task answers.

    Raises:
        InternalError: This code does not run within a call.
    """
    call = _CALL.get(None)
    if call is None:
        raise InternalError("there is no call here: this was reached from outside a gRPC handler")
    return call


def current_caller() -> Peer:
    """Who made the call that this task answers.

    Raises:
        InternalError: This code does not run within a call.
    """
    return current_call().caller


def time_left_s(default_s: float) -> float:
    """Seconds until the caller's deadline, at least 0; `default_s` where there is no deadline or no call.

    What a handler passes on to the calls that it makes itself.
    """
    call = _CALL.get(None)
    if call is None or call.deadline_s is None:
        return default_s
    return max(0.0, call.deadline_s - time.monotonic())


def require_self(name: str, *, role: Role | None = None, what: str = "node") -> Peer:
    """Let a caller speak for itself only.

    Args:
        name: Whom the request speaks for.
        role: The role that this holds for; callers of other roles pass. Every role where left out.
        what: What `name` names, for the message.

    Returns:
        The caller.

    Raises:
        PermissionError_: NOT_YOURSELF: the request speaks for another.
    """
    caller = current_caller()
    if (role is None or caller.role is role) and caller.name != name:
        raise PermissionError_(
            f"{caller.title} cannot speak for the {what} {name[:80]!r}; it may only speak for itself",
            reason="NOT_YOURSELF",
            metadata={"identity": caller.spiffe, what: name[:80]},
        )
    return caller
