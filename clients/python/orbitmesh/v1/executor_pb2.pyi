import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orbitmesh.v1 import wire_pb2 as _wire_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StagePhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_PHASE_UNSPECIFIED: _ClassVar[StagePhase]
    STAGE_PHASE_FETCHING: _ClassVar[StagePhase]
    STAGE_PHASE_VERIFYING: _ClassVar[StagePhase]
    STAGE_PHASE_LOADING: _ClassVar[StagePhase]
    STAGE_PHASE_MEASURING: _ClassVar[StagePhase]
    STAGE_PHASE_READY: _ClassVar[StagePhase]

class FeedMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEED_MODE_UNSPECIFIED: _ClassVar[FeedMode]
    FEED_MODE_JOURNAL: _ClassVar[FeedMode]
    FEED_MODE_CACHE: _ClassVar[FeedMode]
STAGE_PHASE_UNSPECIFIED: StagePhase
STAGE_PHASE_FETCHING: StagePhase
STAGE_PHASE_VERIFYING: StagePhase
STAGE_PHASE_LOADING: StagePhase
STAGE_PHASE_MEASURING: StagePhase
STAGE_PHASE_READY: StagePhase
FEED_MODE_UNSPECIFIED: FeedMode
FEED_MODE_JOURNAL: FeedMode
FEED_MODE_CACHE: FeedMode

class LoadStageRequest(_message.Message):
    __slots__ = ("request_id", "deployment", "manifest", "signature", "layer_start", "layer_stop", "stage_index", "pipeline", "source", "kv_tokens", "codec", "slice")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_STOP_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    deployment: str
    manifest: bytes
    signature: bytes
    layer_start: int
    layer_stop: int
    stage_index: int
    pipeline: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    source: PeerAddress
    kv_tokens: int
    codec: _wire_pb2.Codec
    slice: str
    def __init__(self, request_id: _Optional[str] = ..., deployment: _Optional[str] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., layer_start: _Optional[int] = ..., layer_stop: _Optional[int] = ..., stage_index: _Optional[int] = ..., pipeline: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ..., source: _Optional[_Union[PeerAddress, _Mapping]] = ..., kv_tokens: _Optional[int] = ..., codec: _Optional[_Union[_wire_pb2.Codec, str]] = ..., slice: _Optional[str] = ...) -> None: ...

class PeerAddress(_message.Message):
    __slots__ = ("role", "name", "address", "via")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    role: str
    name: str
    address: str
    via: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    def __init__(self, role: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., via: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ...) -> None: ...

class LoadStageResponse(_message.Message):
    __slots__ = ("phase", "done_bytes", "total_bytes", "stage")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    phase: StagePhase
    done_bytes: int
    total_bytes: int
    stage: Stage
    def __init__(self, phase: _Optional[_Union[StagePhase, str]] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("deployment", "stage_index", "layer_start", "layer_stop", "weight_bytes", "kv_bytes_per_token", "kv_budget_bytes", "kv_free_bytes", "generations", "layer_ns", "embed_ns", "head_ns")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_STOP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    LAYER_NS_FIELD_NUMBER: _ClassVar[int]
    EMBED_NS_FIELD_NUMBER: _ClassVar[int]
    HEAD_NS_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    stage_index: int
    layer_start: int
    layer_stop: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_budget_bytes: int
    kv_free_bytes: int
    generations: int
    layer_ns: int
    embed_ns: int
    head_ns: int
    def __init__(self, deployment: _Optional[str] = ..., stage_index: _Optional[int] = ..., layer_start: _Optional[int] = ..., layer_stop: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., generations: _Optional[int] = ..., layer_ns: _Optional[int] = ..., embed_ns: _Optional[int] = ..., head_ns: _Optional[int] = ...) -> None: ...

class UnloadStageRequest(_message.Message):
    __slots__ = ("request_id", "deployment", "stage_indexes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEXES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    deployment: str
    stage_indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[str] = ..., deployment: _Optional[str] = ..., stage_indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class UnloadStageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStagesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStagesResponse(_message.Message):
    __slots__ = ("stages",)
    STAGES_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class OpenGenerationRequest(_message.Message):
    __slots__ = ("deployment", "generation", "max_tokens", "stop_position", "sampling", "stop_token_ids", "time_to_live", "traceparent", "timings", "stage_index", "epoch", "pipeline", "prompt_tokens", "standby", "cache_from", "slice", "owner")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_LIVE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    CACHE_FROM_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    generation: int
    max_tokens: int
    stop_position: int
    sampling: Sampling
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    time_to_live: _duration_pb2.Duration
    traceparent: str
    timings: bool
    stage_index: int
    epoch: int
    pipeline: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    prompt_tokens: int
    standby: bool
    cache_from: str
    slice: str
    owner: int
    def __init__(self, deployment: _Optional[str] = ..., generation: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_position: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., time_to_live: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., traceparent: _Optional[str] = ..., timings: _Optional[bool] = ..., stage_index: _Optional[int] = ..., epoch: _Optional[int] = ..., pipeline: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., standby: _Optional[bool] = ..., cache_from: _Optional[str] = ..., slice: _Optional[str] = ..., owner: _Optional[int] = ...) -> None: ...

class OpenGenerationResponse(_message.Message):
    __slots__ = ("reserved_bytes", "free_bytes", "clock_ns", "length")
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    reserved_bytes: int
    free_bytes: int
    clock_ns: int
    length: int
    def __init__(self, reserved_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., clock_ns: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class CloseGenerationRequest(_message.Message):
    __slots__ = ("deployment", "generation", "stage_index")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    generation: int
    stage_index: int
    def __init__(self, deployment: _Optional[str] = ..., generation: _Optional[int] = ..., stage_index: _Optional[int] = ...) -> None: ...

class StopGenerationRequest(_message.Message):
    __slots__ = ("deployment", "generation", "stage_index", "epoch", "position", "pipeline")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    generation: int
    stage_index: int
    epoch: int
    position: int
    pipeline: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    def __init__(self, deployment: _Optional[str] = ..., generation: _Optional[int] = ..., stage_index: _Optional[int] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., pipeline: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ...) -> None: ...

class StopGenerationResponse(_message.Message):
    __slots__ = ("length", "journal_start", "tokens", "finish", "clock_ns")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    length: int
    journal_start: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    finish: _wire_pb2.FinishReason
    clock_ns: int
    def __init__(self, length: _Optional[int] = ..., journal_start: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., finish: _Optional[_Union[_wire_pb2.FinishReason, str]] = ..., clock_ns: _Optional[int] = ...) -> None: ...

class ContinueGenerationRequest(_message.Message):
    __slots__ = ("deployment", "generation", "stage_index", "epoch", "length", "push_from", "sample_from", "switch_at", "pipeline")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PUSH_FROM_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FROM_FIELD_NUMBER: _ClassVar[int]
    SWITCH_AT_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    generation: int
    stage_index: int
    epoch: int
    length: int
    push_from: int
    sample_from: int
    switch_at: int
    pipeline: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    def __init__(self, deployment: _Optional[str] = ..., generation: _Optional[int] = ..., stage_index: _Optional[int] = ..., epoch: _Optional[int] = ..., length: _Optional[int] = ..., push_from: _Optional[int] = ..., sample_from: _Optional[int] = ..., switch_at: _Optional[int] = ..., pipeline: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ...) -> None: ...

class ContinueGenerationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FeedGenerationRequest(_message.Message):
    __slots__ = ("deployment", "generation", "stage_index", "epoch", "mode", "target", "from_position")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    generation: int
    stage_index: int
    epoch: int
    mode: FeedMode
    target: PeerAddress
    from_position: int
    def __init__(self, deployment: _Optional[str] = ..., generation: _Optional[int] = ..., stage_index: _Optional[int] = ..., epoch: _Optional[int] = ..., mode: _Optional[_Union[FeedMode, str]] = ..., target: _Optional[_Union[PeerAddress, _Mapping]] = ..., from_position: _Optional[int] = ...) -> None: ...

class FeedGenerationResponse(_message.Message):
    __slots__ = ("position", "wire_bytes")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    position: int
    wire_bytes: int
    def __init__(self, position: _Optional[int] = ..., wire_bytes: _Optional[int] = ...) -> None: ...

class RelayRequest(_message.Message):
    __slots__ = ("path", "data")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    path: _containers.RepeatedCompositeFieldContainer[PeerAddress]
    data: bytes
    def __init__(self, path: _Optional[_Iterable[_Union[PeerAddress, _Mapping]]] = ..., data: _Optional[bytes] = ...) -> None: ...

class RelayResponse(_message.Message):
    __slots__ = ("connected", "data")
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    connected: bool
    data: bytes
    def __init__(self, connected: _Optional[bool] = ..., data: _Optional[bytes] = ...) -> None: ...

class CloseGenerationResponse(_message.Message):
    __slots__ = ("timings", "raw_bytes", "wire_bytes", "clock_ns")
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    timings: StageTimings
    raw_bytes: int
    wire_bytes: int
    clock_ns: int
    def __init__(self, timings: _Optional[_Union[StageTimings, _Mapping]] = ..., raw_bytes: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., clock_ns: _Optional[int] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("stage_index", "position", "rows", "received_ns", "open_ns", "queue_ns", "compute_ns", "codec_ns", "seal_ns", "credit_ns", "send_ns", "held_ns", "held_by", "turn_ns", "turn_for")
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_NS_FIELD_NUMBER: _ClassVar[int]
    OPEN_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    CODEC_NS_FIELD_NUMBER: _ClassVar[int]
    SEAL_NS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_NS_FIELD_NUMBER: _ClassVar[int]
    SEND_NS_FIELD_NUMBER: _ClassVar[int]
    HELD_NS_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_FIELD_NUMBER: _ClassVar[int]
    TURN_NS_FIELD_NUMBER: _ClassVar[int]
    TURN_FOR_FIELD_NUMBER: _ClassVar[int]
    stage_index: int
    position: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    received_ns: _containers.RepeatedScalarFieldContainer[int]
    open_ns: _containers.RepeatedScalarFieldContainer[int]
    queue_ns: _containers.RepeatedScalarFieldContainer[int]
    compute_ns: _containers.RepeatedScalarFieldContainer[int]
    codec_ns: _containers.RepeatedScalarFieldContainer[int]
    seal_ns: _containers.RepeatedScalarFieldContainer[int]
    credit_ns: _containers.RepeatedScalarFieldContainer[int]
    send_ns: _containers.RepeatedScalarFieldContainer[int]
    held_ns: _containers.RepeatedScalarFieldContainer[int]
    held_by: str
    turn_ns: _containers.RepeatedScalarFieldContainer[int]
    turn_for: str
    def __init__(self, stage_index: _Optional[int] = ..., position: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[int]] = ..., received_ns: _Optional[_Iterable[int]] = ..., open_ns: _Optional[_Iterable[int]] = ..., queue_ns: _Optional[_Iterable[int]] = ..., compute_ns: _Optional[_Iterable[int]] = ..., codec_ns: _Optional[_Iterable[int]] = ..., seal_ns: _Optional[_Iterable[int]] = ..., credit_ns: _Optional[_Iterable[int]] = ..., send_ns: _Optional[_Iterable[int]] = ..., held_ns: _Optional[_Iterable[int]] = ..., held_by: _Optional[str] = ..., turn_ns: _Optional[_Iterable[int]] = ..., turn_for: _Optional[str] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("header", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("header", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("payload", "reply_bytes")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    reply_bytes: int
    def __init__(self, payload: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("payload", "at", "clock_ns")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    at: _timestamp_pb2.Timestamp
    clock_ns: int
    def __init__(self, payload: _Optional[bytes] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., clock_ns: _Optional[int] = ...) -> None: ...
