import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orbitmesh.v1 import gateway_pb2 as _gateway_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTopologyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTopologyResponse(_message.Message):
    __slots__ = ("nodes", "links", "deployments")
    NODES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[TopologyNode]
    links: _containers.RepeatedCompositeFieldContainer[TopologyLink]
    deployments: _containers.RepeatedCompositeFieldContainer[TopologyDeployment]
    def __init__(self, nodes: _Optional[_Iterable[_Union[TopologyNode, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[TopologyLink, _Mapping]]] = ..., deployments: _Optional[_Iterable[_Union[TopologyDeployment, _Mapping]]] = ...) -> None: ...

class TopologyNode(_message.Message):
    __slots__ = ("name", "kind", "state", "address", "cores", "load", "memory_free_bytes", "memory_total_bytes", "stages", "silent_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    state: str
    address: str
    cores: float
    load: float
    memory_free_bytes: int
    memory_total_bytes: int
    stages: _containers.RepeatedCompositeFieldContainer[TopologyStage]
    silent_s: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., cores: _Optional[float] = ..., load: _Optional[float] = ..., memory_free_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[TopologyStage, _Mapping]]] = ..., silent_s: _Optional[float] = ...) -> None: ...

class TopologyStage(_message.Message):
    __slots__ = ("deployment", "stage_index", "layers", "token_s", "generations", "kv_free_bytes", "kv_budget_bytes", "serving")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    stage_index: int
    layers: str
    token_s: float
    generations: int
    kv_free_bytes: int
    kv_budget_bytes: int
    serving: bool
    def __init__(self, deployment: _Optional[str] = ..., stage_index: _Optional[int] = ..., layers: _Optional[str] = ..., token_s: _Optional[float] = ..., generations: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., serving: _Optional[bool] = ...) -> None: ...

class TopologyLink(_message.Message):
    __slots__ = ("to", "round_trip_s", "rate_bps", "up")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    to: str
    round_trip_s: float
    rate_bps: float
    up: bool
    def __init__(self, to: _Optional[str] = ..., round_trip_s: _Optional[float] = ..., rate_bps: _Optional[float] = ..., up: _Optional[bool] = ..., **kwargs) -> None: ...

class TopologyDeployment(_message.Message):
    __slots__ = ("name", "state", "pipeline", "standbys", "failure")
    class StandbysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    pipeline: _containers.RepeatedScalarFieldContainer[str]
    standbys: _containers.ScalarMap[int, str]
    failure: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., pipeline: _Optional[_Iterable[str]] = ..., standbys: _Optional[_Mapping[int, str]] = ..., failure: _Optional[str] = ...) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations",)
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[RunningGeneration]
    def __init__(self, generations: _Optional[_Iterable[_Union[RunningGeneration, _Mapping]]] = ...) -> None: ...

class RunningGeneration(_message.Message):
    __slots__ = ("trace_id", "generation", "deployment", "caller", "slice", "prompt_tokens", "new_tokens", "most_new_tokens", "age_s", "quiet_s", "nodes", "waiting")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOST_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    QUIET_S_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    generation: str
    deployment: str
    caller: str
    slice: str
    prompt_tokens: int
    new_tokens: int
    most_new_tokens: int
    age_s: float
    quiet_s: float
    nodes: _containers.RepeatedScalarFieldContainer[str]
    waiting: str
    def __init__(self, trace_id: _Optional[str] = ..., generation: _Optional[str] = ..., deployment: _Optional[str] = ..., caller: _Optional[str] = ..., slice: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., new_tokens: _Optional[int] = ..., most_new_tokens: _Optional[int] = ..., age_s: _Optional[float] = ..., quiet_s: _Optional[float] = ..., nodes: _Optional[_Iterable[str]] = ..., waiting: _Optional[str] = ...) -> None: ...

class ExplainTraceRequest(_message.Message):
    __slots__ = ("trace_id",)
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    def __init__(self, trace_id: _Optional[str] = ...) -> None: ...

class ExplainTraceResponse(_message.Message):
    __slots__ = ("breakdown",)
    BREAKDOWN_FIELD_NUMBER: _ClassVar[int]
    breakdown: _gateway_pb2.Breakdown
    def __init__(self, breakdown: _Optional[_Union[_gateway_pb2.Breakdown, _Mapping]] = ...) -> None: ...

class GetProcessRequest(_message.Message):
    __slots__ = ("process",)
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    process: str
    def __init__(self, process: _Optional[str] = ...) -> None: ...

class GetProcessResponse(_message.Message):
    __slots__ = ("process", "version", "pid", "started_at", "up_s", "memory_bytes", "cpu_s", "calls_in_flight", "draining", "log_level", "certificate_until")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UP_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    CALLS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_UNTIL_FIELD_NUMBER: _ClassVar[int]
    process: str
    version: str
    pid: int
    started_at: _timestamp_pb2.Timestamp
    up_s: float
    memory_bytes: int
    cpu_s: float
    calls_in_flight: int
    draining: bool
    log_level: str
    certificate_until: _timestamp_pb2.Timestamp
    def __init__(self, process: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., up_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., cpu_s: _Optional[float] = ..., calls_in_flight: _Optional[int] = ..., draining: _Optional[bool] = ..., log_level: _Optional[str] = ..., certificate_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListTransfersRequest(_message.Message):
    __slots__ = ("process",)
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    process: str
    def __init__(self, process: _Optional[str] = ...) -> None: ...

class ListTransfersResponse(_message.Message):
    __slots__ = ("process", "sessions")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    process: str
    sessions: _containers.RepeatedCompositeFieldContainer[OpenSession]
    def __init__(self, process: _Optional[str] = ..., sessions: _Optional[_Iterable[_Union[OpenSession, _Mapping]]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("peer", "attached", "round_trip_s", "sent_bytes", "received_bytes", "unacknowledged_bytes", "resumes", "resent_bytes", "silent_s", "sending", "receiving")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNACKNOWLEDGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    RESENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    SENDING_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    peer: str
    attached: bool
    round_trip_s: float
    sent_bytes: int
    received_bytes: int
    unacknowledged_bytes: int
    resumes: int
    resent_bytes: int
    silent_s: float
    sending: _containers.RepeatedCompositeFieldContainer[OpenTransfer]
    receiving: int
    def __init__(self, peer: _Optional[str] = ..., attached: _Optional[bool] = ..., round_trip_s: _Optional[float] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., unacknowledged_bytes: _Optional[int] = ..., resumes: _Optional[int] = ..., resent_bytes: _Optional[int] = ..., silent_s: _Optional[float] = ..., sending: _Optional[_Iterable[_Union[OpenTransfer, _Mapping]]] = ..., receiving: _Optional[int] = ...) -> None: ...

class OpenTransfer(_message.Message):
    __slots__ = ("what", "slice", "total_bytes", "sent_bytes", "age_s", "waits_for")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    what: str
    slice: str
    total_bytes: int
    sent_bytes: int
    age_s: float
    waits_for: str
    def __init__(self, what: _Optional[str] = ..., slice: _Optional[str] = ..., total_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., age_s: _Optional[float] = ..., waits_for: _Optional[str] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node", "undo")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    node: str
    undo: bool
    def __init__(self, node: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("process", "before")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    process: str
    before: bool
    def __init__(self, process: _Optional[str] = ..., before: _Optional[bool] = ...) -> None: ...

class SetLogLevelRequest(_message.Message):
    __slots__ = ("process", "level")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    process: str
    level: str
    def __init__(self, process: _Optional[str] = ..., level: _Optional[str] = ...) -> None: ...

class SetLogLevelResponse(_message.Message):
    __slots__ = ("process", "before")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    process: str
    before: str
    def __init__(self, process: _Optional[str] = ..., before: _Optional[str] = ...) -> None: ...

class InjectFaultRequest(_message.Message):
    __slots__ = ("process", "crash", "stall_s", "cut_sessions", "refuse", "delay")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    CRASH_FIELD_NUMBER: _ClassVar[int]
    STALL_S_FIELD_NUMBER: _ClassVar[int]
    CUT_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    process: str
    crash: bool
    stall_s: float
    cut_sessions: bool
    refuse: RefusedCalls
    delay: DelayedCalls
    def __init__(self, process: _Optional[str] = ..., crash: _Optional[bool] = ..., stall_s: _Optional[float] = ..., cut_sessions: _Optional[bool] = ..., refuse: _Optional[_Union[RefusedCalls, _Mapping]] = ..., delay: _Optional[_Union[DelayedCalls, _Mapping]] = ...) -> None: ...

class RefusedCalls(_message.Message):
    __slots__ = ("for_s",)
    FOR_S_FIELD_NUMBER: _ClassVar[int]
    for_s: float
    def __init__(self, for_s: _Optional[float] = ...) -> None: ...

class DelayedCalls(_message.Message):
    __slots__ = ("by_s", "for_s")
    BY_S_FIELD_NUMBER: _ClassVar[int]
    FOR_S_FIELD_NUMBER: _ClassVar[int]
    by_s: float
    for_s: float
    def __init__(self, by_s: _Optional[float] = ..., for_s: _Optional[float] = ...) -> None: ...

class InjectFaultResponse(_message.Message):
    __slots__ = ("process", "sessions_cut")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_CUT_FIELD_NUMBER: _ClassVar[int]
    process: str
    sessions_cut: int
    def __init__(self, process: _Optional[str] = ..., sessions_cut: _Optional[int] = ...) -> None: ...
