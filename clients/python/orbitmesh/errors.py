"""Every error that orbitmesh raises on purpose.

    MeshError                       the root: `.reason`, `.metadata`, `.trace_id`, `.retryable`
    ├── InvalidInputError           the request itself is wrong: fix it, a retry will not help
    │   └── UnknownModelError       no such model, deployment or pack
    ├── IntegrityError              bytes are not what they claim to be: broken seal, wrong hash, wrong signature
    │   ├── SealError               a frame does not open: flipped, cut, repeated, reordered, of another transfer
    │   └── PackError               a pack's file or manifest is damaged, unsigned or signed by a stranger
    ├── AuthError                   who you are does not allow this
    │   ├── IdentityError           a certificate or key is missing, expired or of another mesh
    │   └── PermissionError_        the identity is known and the role may not call this
    ├── CapacityError               something is full: memory, cache, queue; `.metadata` says what is free
    ├── InfeasiblePlanError         no placement satisfies the request; the message names what binds
    ├── TransportError              the mesh could not be reached or a stream broke
    │   ├── DeadlineError           the time given was spent
    │   └── NodeLostError           a node that held part of the work is gone
    ├── CancelledError_             the caller gave up and the work was stopped everywhere
    └── InternalError               a defect of orbitmesh: please report it with the trace id

`REASONS` is the one table that ties a reason (the `ErrorInfo.reason` on the wire) to its gRPC status code, to whether
a retry may help, and to the class that a client sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc

DOMAIN = "orbitmesh"
"""The `ErrorInfo.domain` of every error that orbitmesh puts on the wire."""


class MeshError(Exception):
    """The root of all orbitmesh errors.

    Args:
        message: What was wrong, what was expected, what to do.
        reason: A key of `REASONS`; the class's own default where left out.
        metadata: Machine-readable facts, for instance `{"free_bytes": "1048576"}`. Never a secret.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str | None = None, metadata: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.trace_id: str | None = None

    @property
    def retryable(self) -> bool:
        """True where the same call may succeed later without a change by the caller."""
        return REASONS[self.reason].retryable


class InvalidInputError(MeshError):
    """The request itself is wrong: fix it; a retry will not help."""

    default_reason = "INVALID_INPUT"


class UnknownModelError(InvalidInputError):
    """There is no model, deployment or pack of that name."""

    default_reason = "UNKNOWN_MODEL"


class IntegrityError(MeshError):
    """Bytes are not what they claim to be."""

    default_reason = "INTEGRITY"


class SealError(IntegrityError):
    """A frame does not open: flipped, cut, repeated, reordered, or sealed for another transfer."""

    default_reason = "SEAL_BROKEN"


class PackError(IntegrityError):
    """A pack's file or manifest is damaged, unsigned, or signed by someone this mesh does not trust."""

    default_reason = "PACK_DAMAGED"


class AuthError(MeshError):
    """Who the caller is does not allow this."""

    default_reason = "UNAUTHENTICATED"


class IdentityError(AuthError):
    """A certificate or key is missing, expired, or of another mesh."""

    default_reason = "IDENTITY_INVALID"


class PermissionError_(AuthError):
    """The identity is known and its role may not call this method."""

    default_reason = "ROLE_NOT_ALLOWED"


class CapacityError(MeshError):
    """Something is full; `metadata` says what is free."""

    default_reason = "CAPACITY_EXHAUSTED"


class InfeasiblePlanError(MeshError):
    """No placement satisfies the request; the message names the binding resource."""

    default_reason = "PLAN_INFEASIBLE"


class TransportError(MeshError):
    """The mesh could not be reached, or a stream broke and could not be resumed."""

    default_reason = "TRANSPORT"


class DeadlineError(TransportError):
    """The time given for the call was spent."""

    default_reason = "DEADLINE"


class NodeLostError(TransportError):
    """A node that held part of the work is gone."""

    default_reason = "NODE_LOST"


class CancelledError_(MeshError):
    """The caller gave up and the work was stopped on every node."""

    default_reason = "CANCELLED"


class InternalError(MeshError):
    """A defect of orbitmesh itself."""

    default_reason = "INTERNAL"


@dataclass(frozen=True)
class Reason:
    """What one `ErrorInfo.reason` means."""

    code: grpc.StatusCode
    """The gRPC status code that carries it."""
    retryable: bool
    """True where the same call may succeed later."""
    error: type[MeshError]
    """The class that a client raises."""


_Code = grpc.StatusCode
REASONS: Mapping[str, Reason] = {
    "INVALID_INPUT": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "DTYPE_MISMATCH": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "NOT_FINITE": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "EMPTY_PROMPT": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "PROMPT_TOO_LONG": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "TOO_MANY_STAGES": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "DEADLINE_REQUIRED": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "UNSUPPORTED_MODEL": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "LIMIT_EXCEEDED": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "CONTACT_PLAN_INVALID": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "SCENARIO_INVALID": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "UNKNOWN_MODEL": Reason(_Code.NOT_FOUND, False, UnknownModelError),
    "NOT_FOUND": Reason(_Code.NOT_FOUND, False, InvalidInputError),
    "ALREADY_EXISTS": Reason(_Code.ALREADY_EXISTS, False, InvalidInputError),
    "FAILED_PRECONDITION": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "STALE_EPOCH": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "TOO_FEW_SURVIVORS": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "SHARES_WRONG": Reason(_Code.DATA_LOSS, False, IntegrityError),
    "MASK_KEY_UNPROVEN": Reason(_Code.PERMISSION_DENIED, False, IdentityError),
    "UNMASK_REFUSED": Reason(_Code.PERMISSION_DENIED, False, PermissionError_),
    "SCHEME_INVALID": Reason(_Code.INVALID_ARGUMENT, False, InvalidInputError),
    "LAYOUT_MISMATCH": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "UPDATE_MALFORMED": Reason(_Code.INVALID_ARGUMENT, False, IntegrityError),
    "RESIDUAL_DAMAGED": Reason(_Code.DATA_LOSS, False, IntegrityError),
    "STALE_ROUND": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "NOT_IN_COHORT": Reason(_Code.PERMISSION_DENIED, False, InvalidInputError),
    "NORM_OUTLIER": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "PRIVACY_SPENT": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "CONTRIBUTION_REPLAYED": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "DIGEST_MISMATCH": Reason(_Code.DATA_LOSS, False, InvalidInputError),
    "INTEGRITY": Reason(_Code.DATA_LOSS, False, IntegrityError),
    "SEAL_BROKEN": Reason(_Code.DATA_LOSS, False, SealError),
    "FRAME_TRUNCATED": Reason(_Code.DATA_LOSS, False, SealError),
    "FRAME_REPLAYED": Reason(_Code.DATA_LOSS, False, SealError),
    "FRAME_OUT_OF_ORDER": Reason(_Code.DATA_LOSS, False, SealError),
    "FRAME_MALFORMED": Reason(_Code.INVALID_ARGUMENT, False, SealError),
    "DECOMPRESSION_BOMB": Reason(_Code.INVALID_ARGUMENT, False, IntegrityError),
    "PACK_DAMAGED": Reason(_Code.DATA_LOSS, False, PackError),
    "PACK_UNSIGNED": Reason(_Code.DATA_LOSS, False, PackError),
    "PACK_SIGNER_UNTRUSTED": Reason(_Code.PERMISSION_DENIED, False, PackError),
    "UNAUTHENTICATED": Reason(_Code.UNAUTHENTICATED, False, AuthError),
    "IDENTITY_INVALID": Reason(_Code.UNAUTHENTICATED, False, IdentityError),
    "ROLE_NOT_ALLOWED": Reason(_Code.PERMISSION_DENIED, False, PermissionError_),
    "NOT_YOURSELF": Reason(_Code.PERMISSION_DENIED, False, PermissionError_),
    "RELAY_REFUSED": Reason(_Code.PERMISSION_DENIED, False, PermissionError_),
    "CAPACITY_EXHAUSTED": Reason(_Code.RESOURCE_EXHAUSTED, True, CapacityError),
    "KV_MEMORY_EXHAUSTED": Reason(_Code.RESOURCE_EXHAUSTED, True, CapacityError),
    "SLOW_READER": Reason(_Code.RESOURCE_EXHAUSTED, False, CapacityError),
    "PLAN_INFEASIBLE": Reason(_Code.FAILED_PRECONDITION, False, InfeasiblePlanError),
    "SLICES_INFEASIBLE": Reason(_Code.FAILED_PRECONDITION, False, InfeasiblePlanError),
    "LATENCY_BELOW_FLOOR": Reason(_Code.FAILED_PRECONDITION, False, InfeasiblePlanError),
    "SLICE_FULL": Reason(_Code.RESOURCE_EXHAUSTED, True, CapacityError),
    "SLICE_IN_USE": Reason(_Code.FAILED_PRECONDITION, False, InvalidInputError),
    "SLICE_NOT_YOURS": Reason(_Code.PERMISSION_DENIED, False, PermissionError_),
    "STALE_ETAG": Reason(_Code.ABORTED, False, InvalidInputError),
    "TRANSPORT": Reason(_Code.UNAVAILABLE, True, TransportError),
    "STAGE_UNLOADED": Reason(_Code.UNAVAILABLE, True, NodeLostError),
    "STEP_LOST": Reason(_Code.UNAVAILABLE, True, TransportError),
    "DRAINING": Reason(_Code.UNAVAILABLE, True, TransportError),
    "NOT_LEADER": Reason(_Code.UNAVAILABLE, True, TransportError),
    "NODE_LOST": Reason(_Code.UNAVAILABLE, True, NodeLostError),
    "NO_SPARE_NODE": Reason(_Code.UNAVAILABLE, True, NodeLostError),
    "DEADLINE": Reason(_Code.DEADLINE_EXCEEDED, False, DeadlineError),
    "CANCELLED": Reason(_Code.CANCELLED, False, CancelledError_),
    "INTERNAL": Reason(_Code.INTERNAL, False, InternalError),
}


def error_for(reason: str, message: str, metadata: Mapping[str, str] | None = None) -> MeshError:
    """The exception for a reason off the wire; an unknown one becomes `InternalError` with the reason in its text."""
    known = REASONS.get(reason)
    if known is None:
        return InternalError(f"{message} (unknown reason {reason!r})", metadata=metadata)
    return known.error(message, reason=reason, metadata=metadata)
