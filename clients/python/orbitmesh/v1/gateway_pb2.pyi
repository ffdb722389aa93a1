import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orbitmesh.v1 import executor_pb2 as _executor_pb2
from orbitmesh.v1 import wire_pb2 as _wire_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("deployment", "text", "token_ids", "max_new_tokens", "sampling", "ignore_end", "no_timings", "request_id", "received", "linger", "slice")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IGNORE_END_FIELD_NUMBER: _ClassVar[int]
    NO_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LINGER_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    text: str
    token_ids: TokenIds
    max_new_tokens: int
    sampling: _executor_pb2.Sampling
    ignore_end: bool
    no_timings: bool
    request_id: str
    received: TokenIds
    linger: _duration_pb2.Duration
    slice: str
    def __init__(self, deployment: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_executor_pb2.Sampling, _Mapping]] = ..., ignore_end: _Optional[bool] = ..., no_timings: _Optional[bool] = ..., request_id: _Optional[str] = ..., received: _Optional[_Union[TokenIds, _Mapping]] = ..., linger: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slice: _Optional[str] = ...) -> None: ...

class CancelGenerationRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelGenerationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "token", "finished", "waiting")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    started: GenerationStarted
    token: GeneratedToken
    finished: GenerationFinished
    waiting: GenerationWaiting
    def __init__(self, started: _Optional[_Union[GenerationStarted, _Mapping]] = ..., token: _Optional[_Union[GeneratedToken, _Mapping]] = ..., finished: _Optional[_Union[GenerationFinished, _Mapping]] = ..., waiting: _Optional[_Union[GenerationWaiting, _Mapping]] = ...) -> None: ...

class GenerationWaiting(_message.Message):
    __slots__ = ("reason", "until")
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    reason: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[str] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GenerationStarted(_message.Message):
    __slots__ = ("trace_id", "generation", "prompt_tokens")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    generation: int
    prompt_tokens: int
    def __init__(self, trace_id: _Optional[str] = ..., generation: _Optional[int] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class GeneratedToken(_message.Message):
    __slots__ = ("id", "position", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    position: int
    text: str
    def __init__(self, id: _Optional[int] = ..., position: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class GenerationFinished(_message.Message):
    __slots__ = ("reason", "prompt_tokens", "new_tokens", "first_token_s", "total_s", "raw_bytes", "wire_bytes", "tokens_per_second")
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    reason: _wire_pb2.FinishReason
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    total_s: float
    raw_bytes: int
    wire_bytes: int
    tokens_per_second: float
    def __init__(self, reason: _Optional[_Union[_wire_pb2.FinishReason, str]] = ..., prompt_tokens: _Optional[int] = ..., new_tokens: _Optional[int] = ..., first_token_s: _Optional[float] = ..., total_s: _Optional[float] = ..., raw_bytes: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., tokens_per_second: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("trace_id",)
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    def __init__(self, trace_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("breakdown",)
    BREAKDOWN_FIELD_NUMBER: _ClassVar[int]
    breakdown: Breakdown
    def __init__(self, breakdown: _Optional[_Union[Breakdown, _Mapping]] = ...) -> None: ...

class Breakdown(_message.Message):
    __slots__ = ("trace_id", "title", "total_s", "attributed", "rows", "new_tokens", "token_attributed", "clock_offsets", "started_at", "incomplete", "token_s", "slice", "error_reason", "error")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ATTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    title: str
    total_s: float
    attributed: float
    rows: _containers.RepeatedCompositeFieldContainer[BreakdownRow]
    new_tokens: int
    token_attributed: _containers.RepeatedScalarFieldContainer[float]
    clock_offsets: _containers.RepeatedCompositeFieldContainer[ClockOffset]
    started_at: _timestamp_pb2.Timestamp
    incomplete: bool
    token_s: _containers.RepeatedScalarFieldContainer[float]
    slice: str
    error_reason: str
    error: str
    def __init__(self, trace_id: _Optional[str] = ..., title: _Optional[str] = ..., total_s: _Optional[float] = ..., attributed: _Optional[float] = ..., rows: _Optional[_Iterable[_Union[BreakdownRow, _Mapping]]] = ..., new_tokens: _Optional[int] = ..., token_attributed: _Optional[_Iterable[float]] = ..., clock_offsets: _Optional[_Iterable[_Union[ClockOffset, _Mapping]]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., incomplete: _Optional[bool] = ..., token_s: _Optional[_Iterable[float]] = ..., slice: _Optional[str] = ..., error_reason: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class BreakdownRow(_message.Message):
    __slots__ = ("place", "what", "wait", "total_s", "count", "median_s", "share")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_S_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    place: str
    what: str
    wait: bool
    total_s: float
    count: int
    median_s: float
    share: float
    def __init__(self, place: _Optional[str] = ..., what: _Optional[str] = ..., wait: _Optional[bool] = ..., total_s: _Optional[float] = ..., count: _Optional[int] = ..., median_s: _Optional[float] = ..., share: _Optional[float] = ...) -> None: ...

class ClockOffset(_message.Message):
    __slots__ = ("node", "offset_ns", "uncertainty_ns")
    NODE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_NS_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_NS_FIELD_NUMBER: _ClassVar[int]
    node: str
    offset_ns: int
    uncertainty_ns: int
    def __init__(self, node: _Optional[str] = ..., offset_ns: _Optional[int] = ..., uncertainty_ns: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("generations", "packs", "version", "name", "address", "scheduler_up")
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    PACKS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_UP_FIELD_NUMBER: _ClassVar[int]
    generations: int
    packs: int
    version: str
    name: str
    address: str
    scheduler_up: bool
    def __init__(self, generations: _Optional[int] = ..., packs: _Optional[int] = ..., version: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., scheduler_up: _Optional[bool] = ...) -> None: ...

class CreatePackRequest(_message.Message):
    __slots__ = ("request_id", "manifest", "signature")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    manifest: bytes
    signature: bytes
    def __init__(self, request_id: _Optional[str] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CreatePackResponse(_message.Message):
    __slots__ = ("missing",)
    MISSING_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedCompositeFieldContainer[MissingFile]
    def __init__(self, missing: _Optional[_Iterable[_Union[MissingFile, _Mapping]]] = ...) -> None: ...

class MissingFile(_message.Message):
    __slots__ = ("name", "sha256", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: bytes
    offset: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ListPacksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPacksResponse(_message.Message):
    __slots__ = ("packs",)
    PACKS_FIELD_NUMBER: _ClassVar[int]
    packs: _containers.RepeatedCompositeFieldContainer[Pack]
    def __init__(self, packs: _Optional[_Iterable[_Union[Pack, _Mapping]]] = ...) -> None: ...

class Pack(_message.Message):
    __slots__ = ("name", "manifest_sha256", "size_bytes", "complete")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest_sha256: bytes
    size_bytes: int
    complete: bool
    def __init__(self, name: _Optional[str] = ..., manifest_sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class TransferRequest(_message.Message):
    __slots__ = ("header", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class TransferResponse(_message.Message):
    __slots__ = ("header", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...
