"""How an error of our tree goes over the wire: a `google.rpc.Status` with `ErrorInfo` and, where it helps,
`RetryInfo`."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from orbitmesh.durable import no_room
from orbitmesh.errors import DOMAIN, REASONS, InternalError, MeshError
from orbitmesh.rpc import STATUS_DETAILS_KEY, map_rpc_error

MESSAGE_MAX_CHARS = 1024
"""Longest error message on the wire, in characters."""
METADATA_MAX_ENTRIES = 24
"""Most metadata entries of one error on the wire."""
METADATA_VALUE_MAX_CHARS = 256
"""Longest metadata value on the wire, in characters."""
RETRY_DELAY_MS = 500
"""When a caller may try again where the error does not say `retry_after_ms`, in milliseconds."""
RETRY_DELAY_MAX_MS = 60_000
"""The longest that a caller is asked to wait, in milliseconds."""


def to_trailer(error: MeshError) -> tuple[grpc.StatusCode, str, tuple[str, bytes]]:
    """Code, message and the trailer that carries the details of an error."""
    known = REASONS.get(error.reason)
    reason = error.reason if known is not None else "INTERNAL"
    meaning = REASONS[reason]
    message = _cut(error.message, MESSAGE_MAX_CHARS)
    metadata = {
        _cut(key, 64): _cut(value, METADATA_VALUE_MAX_CHARS)
        for key, value in list(error.metadata.items())[:METADATA_MAX_ENTRIES]
    }
    if error.trace_id:
        metadata["trace_id"] = error.trace_id
    details = [_pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))]
    if meaning.retryable:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_retry_delay_ms(error))
        details.append(_pack(retry))
    status = status_pb2.Status(code=meaning.code.value[0], message=message, details=details)
    return meaning.code, message, (STATUS_DETAILS_KEY, status.SerializeToString())


def as_mesh_error(error: BaseException) -> MeshError | None:
    """The error of our tree that an exception stands for; None for what nobody meant to raise.

    A group (of an `asyncio.TaskGroup`) stands for its first meant error, where it holds no other kind. A write for
    which there is no room is a full service.
    """
    if isinstance(error, MeshError):
        return error
    if isinstance(error, grpc.RpcError):
        return map_rpc_error(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = [as_mesh_error(leaf) for leaf in _leaves(error)]
        return leaves[0] if leaves and all(leaf is not None for leaf in leaves) else None
    return no_room(error)


def defect(reference: str, method: str) -> InternalError:
    """What a caller is told of an unexpected exception: where to find it, and nothing of what it says."""
    return InternalError(
        f"{method} failed by a defect of the service; its log has the details under the reference "
        f"{reference}: "
        "report it with that",
        metadata={"reference": reference},
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _retry_delay_ms(error: MeshError) -> int:
    given = error.metadata.get("retry_after_ms", "")
    return min(int(given), RETRY_DELAY_MAX_MS) if given.isdecimal() else RETRY_DELAY_MS


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit_chars: int) -> str:
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"
