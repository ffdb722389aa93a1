import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orbitmesh.v1 import executor_pb2 as _executor_pb2
from orbitmesh.v1 import wire_pb2 as _wire_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_UP: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_LOST: _ClassVar[NodeState]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_LATENCY: _ClassVar[Objective]
    OBJECTIVE_THROUGHPUT: _ClassVar[Objective]

class DeploymentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STATE_UNSPECIFIED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_LOADING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_READY: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_FAILED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_DEGRADED: _ClassVar[DeploymentState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_UP: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_LOST: NodeState
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_LATENCY: Objective
OBJECTIVE_THROUGHPUT: Objective
DEPLOYMENT_STATE_UNSPECIFIED: DeploymentState
DEPLOYMENT_STATE_LOADING: DeploymentState
DEPLOYMENT_STATE_READY: DeploymentState
DEPLOYMENT_STATE_FAILED: DeploymentState
DEPLOYMENT_STATE_DEGRADED: DeploymentState

class HeartbeatRequest(_message.Message):
    __slots__ = ("address", "kind", "cores", "memory_total_bytes", "memory_free_bytes", "load", "accelerators", "flops", "memory_bandwidth", "stages", "links", "sequence", "draining", "cpu")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    address: str
    kind: str
    cores: int
    memory_total_bytes: int
    memory_free_bytes: int
    load: float
    accelerators: _containers.RepeatedCompositeFieldContainer[Accelerator]
    flops: float
    memory_bandwidth: float
    stages: _containers.RepeatedCompositeFieldContainer[_executor_pb2.Stage]
    links: _containers.RepeatedCompositeFieldContainer[LinkMeasure]
    sequence: int
    draining: bool
    cpu: float
    def __init__(self, address: _Optional[str] = ..., kind: _Optional[str] = ..., cores: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., load: _Optional[float] = ..., accelerators: _Optional[_Iterable[_Union[Accelerator, _Mapping]]] = ..., flops: _Optional[float] = ..., memory_bandwidth: _Optional[float] = ..., stages: _Optional[_Iterable[_Union[_executor_pb2.Stage, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkMeasure, _Mapping]]] = ..., sequence: _Optional[int] = ..., draining: _Optional[bool] = ..., cpu: _Optional[float] = ...) -> None: ...

class Accelerator(_message.Message):
    __slots__ = ("name", "memory_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_bytes: int
    def __init__(self, name: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class LinkMeasure(_message.Message):
    __slots__ = ("peer", "rtt_ns", "rate_bps", "measured_at", "up")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RTT_NS_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    peer: str
    rtt_ns: int
    rate_bps: float
    measured_at: _timestamp_pb2.Timestamp
    up: bool
    def __init__(self, peer: _Optional[str] = ..., rtt_ns: _Optional[int] = ..., rate_bps: _Optional[float] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., up: _Optional[bool] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("lease", "interval", "peers", "places_to_move")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PLACES_TO_MOVE_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    interval: _duration_pb2.Duration
    peers: _containers.RepeatedCompositeFieldContainer[_executor_pb2.PeerAddress]
    places_to_move: int
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[_executor_pb2.PeerAddress, _Mapping]]] = ..., places_to_move: _Optional[int] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "state", "measures", "last_seen", "in_contact", "next_contact", "next_contact_in_s", "contact_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    IN_CONTACT_FIELD_NUMBER: _ClassVar[int]
    NEXT_CONTACT_FIELD_NUMBER: _ClassVar[int]
    NEXT_CONTACT_IN_S_FIELD_NUMBER: _ClassVar[int]
    CONTACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: NodeState
    measures: HeartbeatRequest
    last_seen: _timestamp_pb2.Timestamp
    in_contact: bool
    next_contact: _timestamp_pb2.Timestamp
    next_contact_in_s: float
    contact_bytes: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., measures: _Optional[_Union[HeartbeatRequest, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., in_contact: _Optional[bool] = ..., next_contact: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next_contact_in_s: _Optional[float] = ..., contact_bytes: _Optional[int] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("manifest", "objective", "stages", "nodes", "kv_tokens", "work_s", "work_tokens")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    WORK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    objective: Objective
    stages: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    kv_tokens: int
    work_s: float
    work_tokens: int
    def __init__(self, manifest: _Optional[bytes] = ..., objective: _Optional[_Union[Objective, str]] = ..., stages: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., kv_tokens: _Optional[int] = ..., work_s: _Optional[float] = ..., work_tokens: _Optional[int] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("stages", "crossings", "objective", "objective_s", "token_s", "runner_up", "cuts", "reasons", "proven_optimal", "planning_s", "sky")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CROSSINGS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_S_FIELD_NUMBER: _ClassVar[int]
    TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_OPTIMAL_FIELD_NUMBER: _ClassVar[int]
    PLANNING_S_FIELD_NUMBER: _ClassVar[int]
    SKY_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[PlannedStage]
    crossings: _containers.RepeatedCompositeFieldContainer[PlannedCrossing]
    objective: Objective
    objective_s: float
    token_s: float
    runner_up: RunnerUp
    cuts: _containers.RepeatedCompositeFieldContainer[CutCosts]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    proven_optimal: bool
    planning_s: float
    sky: SkyPlan
    def __init__(self, stages: _Optional[_Iterable[_Union[PlannedStage, _Mapping]]] = ..., crossings: _Optional[_Iterable[_Union[PlannedCrossing, _Mapping]]] = ..., objective: _Optional[_Union[Objective, str]] = ..., objective_s: _Optional[float] = ..., token_s: _Optional[float] = ..., runner_up: _Optional[_Union[RunnerUp, _Mapping]] = ..., cuts: _Optional[_Iterable[_Union[CutCosts, _Mapping]]] = ..., reasons: _Optional[_Iterable[str]] = ..., proven_optimal: _Optional[bool] = ..., planning_s: _Optional[float] = ..., sky: _Optional[_Union[SkyPlan, _Mapping]] = ...) -> None: ...

class SkyPlan(_message.Message):
    __slots__ = ("starts_at", "finishes_at", "starts_in_s", "finishes_in_s", "ways", "runner_up", "hand_overs", "warnings")
    STARTS_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHES_AT_FIELD_NUMBER: _ClassVar[int]
    STARTS_IN_S_FIELD_NUMBER: _ClassVar[int]
    FINISHES_IN_S_FIELD_NUMBER: _ClassVar[int]
    WAYS_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    HAND_OVERS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    starts_at: _timestamp_pb2.Timestamp
    finishes_at: _timestamp_pb2.Timestamp
    starts_in_s: float
    finishes_in_s: float
    ways: _containers.RepeatedCompositeFieldContainer[SkyWay]
    runner_up: SkyRunnerUp
    hand_overs: _containers.RepeatedCompositeFieldContainer[SkyHandOver]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, starts_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finishes_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., starts_in_s: _Optional[float] = ..., finishes_in_s: _Optional[float] = ..., ways: _Optional[_Iterable[_Union[SkyWay, _Mapping]]] = ..., runner_up: _Optional[_Union[SkyRunnerUp, _Mapping]] = ..., hand_overs: _Optional[_Iterable[_Union[SkyHandOver, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class SkyWay(_message.Message):
    __slots__ = ("to", "windows", "via", "latency_s", "closes_in_s")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    CLOSES_IN_S_FIELD_NUMBER: _ClassVar[int]
    to: str
    windows: _containers.RepeatedCompositeFieldContainer[SkyWindow]
    via: _containers.RepeatedScalarFieldContainer[str]
    latency_s: float
    closes_in_s: float
    def __init__(self, to: _Optional[str] = ..., windows: _Optional[_Iterable[_Union[SkyWindow, _Mapping]]] = ..., via: _Optional[_Iterable[str]] = ..., latency_s: _Optional[float] = ..., closes_in_s: _Optional[float] = ..., **kwargs) -> None: ...

class SkyWindow(_message.Message):
    __slots__ = ("to", "opens_at", "closes_at", "max_elevation_deg", "truncated_end")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    OPENS_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSES_AT_FIELD_NUMBER: _ClassVar[int]
    MAX_ELEVATION_DEG_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_END_FIELD_NUMBER: _ClassVar[int]
    to: str
    opens_at: _timestamp_pb2.Timestamp
    closes_at: _timestamp_pb2.Timestamp
    max_elevation_deg: float
    truncated_end: bool
    def __init__(self, to: _Optional[str] = ..., opens_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., closes_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., max_elevation_deg: _Optional[float] = ..., truncated_end: _Optional[bool] = ..., **kwargs) -> None: ...

class SkyRunnerUp(_message.Message):
    __slots__ = ("nodes", "finishes_at", "finishes_in_s", "reason")
    NODES_FIELD_NUMBER: _ClassVar[int]
    FINISHES_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHES_IN_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    finishes_at: _timestamp_pb2.Timestamp
    finishes_in_s: float
    reason: str
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., finishes_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finishes_in_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class SkyHandOver(_message.Message):
    __slots__ = ("stage_index", "to", "at", "in_s")
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    IN_S_FIELD_NUMBER: _ClassVar[int]
    stage_index: int
    to: str
    at: _timestamp_pb2.Timestamp
    in_s: float
    def __init__(self, stage_index: _Optional[int] = ..., to: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., in_s: _Optional[float] = ..., **kwargs) -> None: ...

class PlannedStage(_message.Message):
    __slots__ = ("node", "layer_start", "layer_stop", "compute_s", "memory_bytes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_STOP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    node: str
    layer_start: int
    layer_stop: int
    compute_s: float
    memory_bytes: int
    def __init__(self, node: _Optional[str] = ..., layer_start: _Optional[int] = ..., layer_stop: _Optional[int] = ..., compute_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class PlannedCrossing(_message.Message):
    __slots__ = ("to", "latency_s", "transfer_s")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    to: str
    latency_s: float
    transfer_s: float
    def __init__(self, to: _Optional[str] = ..., latency_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., **kwargs) -> None: ...

class RunnerUp(_message.Message):
    __slots__ = ("stages", "objective_s")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_S_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[PlannedStage]
    objective_s: float
    def __init__(self, stages: _Optional[_Iterable[_Union[PlannedStage, _Mapping]]] = ..., objective_s: _Optional[float] = ...) -> None: ...

class CutCosts(_message.Message):
    __slots__ = ("cut", "candidates")
    CUT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    cut: int
    candidates: _containers.RepeatedCompositeFieldContainer[CutCost]
    def __init__(self, cut: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[CutCost, _Mapping]]] = ...) -> None: ...

class CutCost(_message.Message):
    __slots__ = ("layer", "objective_s")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_S_FIELD_NUMBER: _ClassVar[int]
    layer: int
    objective_s: float
    def __init__(self, layer: _Optional[int] = ..., objective_s: _Optional[float] = ...) -> None: ...

class CreateDeploymentRequest(_message.Message):
    __slots__ = ("request_id", "name", "manifest", "signature", "source", "objective", "stages", "nodes", "kv_tokens", "codec", "standbys", "work_s", "work_tokens", "slice")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    WORK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    manifest: bytes
    signature: bytes
    source: _executor_pb2.PeerAddress
    objective: Objective
    stages: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    kv_tokens: int
    codec: _wire_pb2.Codec
    standbys: int
    work_s: float
    work_tokens: int
    slice: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., source: _Optional[_Union[_executor_pb2.PeerAddress, _Mapping]] = ..., objective: _Optional[_Union[Objective, str]] = ..., stages: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., kv_tokens: _Optional[int] = ..., codec: _Optional[_Union[_wire_pb2.Codec, str]] = ..., standbys: _Optional[int] = ..., work_s: _Optional[float] = ..., work_tokens: _Optional[int] = ..., slice: _Optional[str] = ...) -> None: ...

class CreateDeploymentResponse(_message.Message):
    __slots__ = ("deployment", "progress")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    progress: _containers.RepeatedCompositeFieldContainer[StageProgress]
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., progress: _Optional[_Iterable[_Union[StageProgress, _Mapping]]] = ...) -> None: ...

class StageProgress(_message.Message):
    __slots__ = ("stage_index", "node", "phase", "done_bytes", "total_bytes")
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    stage_index: int
    node: str
    phase: _executor_pb2.StagePhase
    done_bytes: int
    total_bytes: int
    def __init__(self, stage_index: _Optional[int] = ..., node: _Optional[str] = ..., phase: _Optional[_Union[_executor_pb2.StagePhase, str]] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("name", "state", "plan", "manifest", "pipeline", "stages", "failure", "created_at", "codec", "version", "standbys", "hand_overs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    HAND_OVERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: DeploymentState
    plan: Plan
    manifest: bytes
    pipeline: _containers.RepeatedCompositeFieldContainer[_executor_pb2.PeerAddress]
    stages: _containers.RepeatedCompositeFieldContainer[_executor_pb2.Stage]
    failure: str
    created_at: _timestamp_pb2.Timestamp
    codec: _wire_pb2.Codec
    version: int
    standbys: _containers.RepeatedCompositeFieldContainer[Standby]
    hand_overs: _containers.RepeatedCompositeFieldContainer[HandOver]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[DeploymentState, str]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., manifest: _Optional[bytes] = ..., pipeline: _Optional[_Iterable[_Union[_executor_pb2.PeerAddress, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[_executor_pb2.Stage, _Mapping]]] = ..., failure: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., codec: _Optional[_Union[_wire_pb2.Codec, str]] = ..., version: _Optional[int] = ..., standbys: _Optional[_Iterable[_Union[Standby, _Mapping]]] = ..., hand_overs: _Optional[_Iterable[_Union[HandOver, _Mapping]]] = ...) -> None: ...

class Standby(_message.Message):
    __slots__ = ("stage_index", "node", "ready")
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    stage_index: int
    node: _executor_pb2.PeerAddress
    ready: bool
    def __init__(self, stage_index: _Optional[int] = ..., node: _Optional[_Union[_executor_pb2.PeerAddress, _Mapping]] = ..., ready: _Optional[bool] = ...) -> None: ...

class HandOver(_message.Message):
    __slots__ = ("stage_index", "to", "closes_at", "reason", "closes_in_s")
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CLOSES_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLOSES_IN_S_FIELD_NUMBER: _ClassVar[int]
    stage_index: int
    to: _executor_pb2.PeerAddress
    closes_at: _timestamp_pb2.Timestamp
    reason: str
    closes_in_s: float
    def __init__(self, stage_index: _Optional[int] = ..., to: _Optional[_Union[_executor_pb2.PeerAddress, _Mapping]] = ..., closes_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., closes_in_s: _Optional[float] = ..., **kwargs) -> None: ...

class ReplaceStageRequest(_message.Message):
    __slots__ = ("request_id", "deployment", "stage_index", "node", "why", "hand_over")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    deployment: str
    stage_index: int
    node: str
    why: str
    hand_over: bool
    def __init__(self, request_id: _Optional[str] = ..., deployment: _Optional[str] = ..., stage_index: _Optional[int] = ..., node: _Optional[str] = ..., why: _Optional[str] = ..., hand_over: _Optional[bool] = ...) -> None: ...

class ReplaceStageResponse(_message.Message):
    __slots__ = ("deployment", "progress")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    progress: _containers.RepeatedCompositeFieldContainer[StageProgress]
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., progress: _Optional[_Iterable[_Union[StageProgress, _Mapping]]] = ...) -> None: ...

class WatchDeploymentsRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchDeploymentsResponse(_message.Message):
    __slots__ = ("deployment", "deleted")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    deleted: bool
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., deleted: _Optional[bool] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class GetDeploymentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDeploymentResponse(_message.Message):
    __slots__ = ("deployment",)
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ...) -> None: ...

class DeleteDeploymentRequest(_message.Message):
    __slots__ = ("request_id", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteDeploymentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
