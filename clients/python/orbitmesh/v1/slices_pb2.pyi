import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SliceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLICE_STATE_UNSPECIFIED: _ClassVar[SliceState]
    SLICE_STATE_DEFINED: _ClassVar[SliceState]
    SLICE_STATE_ACTIVE: _ClassVar[SliceState]
    SLICE_STATE_RELEASING: _ClassVar[SliceState]

class SliceGoal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLICE_GOAL_UNSPECIFIED: _ClassVar[SliceGoal]
    SLICE_GOAL_BALANCED: _ClassVar[SliceGoal]
    SLICE_GOAL_LATENCY_SENSITIVE: _ClassVar[SliceGoal]
    SLICE_GOAL_THROUGHPUT_MAX: _ClassVar[SliceGoal]
SLICE_STATE_UNSPECIFIED: SliceState
SLICE_STATE_DEFINED: SliceState
SLICE_STATE_ACTIVE: SliceState
SLICE_STATE_RELEASING: SliceState
SLICE_GOAL_UNSPECIFIED: SliceGoal
SLICE_GOAL_BALANCED: SliceGoal
SLICE_GOAL_LATENCY_SENSITIVE: SliceGoal
SLICE_GOAL_THROUGHPUT_MAX: SliceGoal

class Snssai(_message.Message):
    __slots__ = ("sst", "sd")
    SST_FIELD_NUMBER: _ClassVar[int]
    SD_FIELD_NUMBER: _ClassVar[int]
    sst: int
    sd: str
    def __init__(self, sst: _Optional[int] = ..., sd: _Optional[str] = ...) -> None: ...

class SliceShare(_message.Message):
    __slots__ = ("dedicated", "min", "max")
    DEDICATED_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    dedicated: float
    min: float
    max: float
    def __init__(self, dedicated: _Optional[float] = ..., min: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class SliceProfile(_message.Message):
    __slots__ = ("template", "snssai", "resources", "shares", "latency_ms", "within_latency_permille", "least_served", "weight", "place", "nodes", "nodes_max", "max_number_of_ues")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SharesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SliceShare
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SliceShare, _Mapping]] = ...) -> None: ...
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SNSSAI_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_LATENCY_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    LEAST_SERVED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    NODES_MAX_FIELD_NUMBER: _ClassVar[int]
    MAX_NUMBER_OF_UES_FIELD_NUMBER: _ClassVar[int]
    template: str
    snssai: Snssai
    resources: _containers.ScalarMap[str, float]
    shares: _containers.MessageMap[str, SliceShare]
    latency_ms: float
    within_latency_permille: float
    least_served: float
    weight: float
    place: str
    nodes: _containers.RepeatedScalarFieldContainer[str]
    nodes_max: int
    max_number_of_ues: int
    def __init__(self, template: _Optional[str] = ..., snssai: _Optional[_Union[Snssai, _Mapping]] = ..., resources: _Optional[_Mapping[str, float]] = ..., shares: _Optional[_Mapping[str, SliceShare]] = ..., latency_ms: _Optional[float] = ..., within_latency_permille: _Optional[float] = ..., least_served: _Optional[float] = ..., weight: _Optional[float] = ..., place: _Optional[str] = ..., nodes: _Optional[_Iterable[str]] = ..., nodes_max: _Optional[int] = ..., max_number_of_ues: _Optional[int] = ...) -> None: ...

class SliceAllocation(_message.Message):
    __slots__ = ("slice", "node", "served", "resources", "traffic")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SLICE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    slice: str
    node: str
    served: float
    resources: _containers.ScalarMap[str, float]
    traffic: float
    def __init__(self, slice: _Optional[str] = ..., node: _Optional[str] = ..., served: _Optional[float] = ..., resources: _Optional[_Mapping[str, float]] = ..., traffic: _Optional[float] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("name", "tenant", "profile", "state", "allocations", "etag", "admitted", "changed_at", "traffic")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALLOCATIONS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenant: str
    profile: SliceProfile
    state: SliceState
    allocations: _containers.RepeatedCompositeFieldContainer[SliceAllocation]
    etag: str
    admitted: int
    changed_at: _timestamp_pb2.Timestamp
    traffic: SliceTraffic
    def __init__(self, name: _Optional[str] = ..., tenant: _Optional[str] = ..., profile: _Optional[_Union[SliceProfile, _Mapping]] = ..., state: _Optional[_Union[SliceState, str]] = ..., allocations: _Optional[_Iterable[_Union[SliceAllocation, _Mapping]]] = ..., etag: _Optional[str] = ..., admitted: _Optional[int] = ..., changed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., traffic: _Optional[_Union[SliceTraffic, _Mapping]] = ...) -> None: ...

class SliceTemplate(_message.Message):
    __slots__ = ("name", "profile", "about")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    profile: SliceProfile
    about: str
    def __init__(self, name: _Optional[str] = ..., profile: _Optional[_Union[SliceProfile, _Mapping]] = ..., about: _Optional[str] = ...) -> None: ...

class SliceNode(_message.Message):
    __slots__ = ("name", "capacity", "reserved", "absent")
    class CapacityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ReservedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    capacity: _containers.ScalarMap[str, float]
    reserved: _containers.ScalarMap[str, float]
    absent: bool
    def __init__(self, name: _Optional[str] = ..., capacity: _Optional[_Mapping[str, float]] = ..., reserved: _Optional[_Mapping[str, float]] = ..., absent: _Optional[bool] = ...) -> None: ...

class SliceTraffic(_message.Message):
    __slots__ = ("offered_bytes", "sent_bytes", "dropped_bytes", "frames", "violations", "wait_buckets", "wait_p50_ms", "wait_p99_ms", "wait_p999_ms")
    OFFERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    WAIT_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P50_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P999_MS_FIELD_NUMBER: _ClassVar[int]
    offered_bytes: int
    sent_bytes: int
    dropped_bytes: int
    frames: int
    violations: int
    wait_buckets: _containers.RepeatedScalarFieldContainer[int]
    wait_p50_ms: float
    wait_p99_ms: float
    wait_p999_ms: float
    def __init__(self, offered_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., dropped_bytes: _Optional[int] = ..., frames: _Optional[int] = ..., violations: _Optional[int] = ..., wait_buckets: _Optional[_Iterable[int]] = ..., wait_p50_ms: _Optional[float] = ..., wait_p99_ms: _Optional[float] = ..., wait_p999_ms: _Optional[float] = ...) -> None: ...

class ListTemplatesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTemplatesResponse(_message.Message):
    __slots__ = ("templates",)
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedCompositeFieldContainer[SliceTemplate]
    def __init__(self, templates: _Optional[_Iterable[_Union[SliceTemplate, _Mapping]]] = ...) -> None: ...

class DefineSliceRequest(_message.Message):
    __slots__ = ("name", "profile", "tenant", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    profile: SliceProfile
    tenant: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., profile: _Optional[_Union[SliceProfile, _Mapping]] = ..., tenant: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DefineSliceResponse(_message.Message):
    __slots__ = ("slice",)
    SLICE_FIELD_NUMBER: _ClassVar[int]
    slice: Slice
    def __init__(self, slice: _Optional[_Union[Slice, _Mapping]] = ...) -> None: ...

class GetSliceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetSliceResponse(_message.Message):
    __slots__ = ("slice",)
    SLICE_FIELD_NUMBER: _ClassVar[int]
    slice: Slice
    def __init__(self, slice: _Optional[_Union[Slice, _Mapping]] = ...) -> None: ...

class ListSlicesRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListSlicesResponse(_message.Message):
    __slots__ = ("slices", "nodes", "etag")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    nodes: _containers.RepeatedCompositeFieldContainer[SliceNode]
    etag: str
    def __init__(self, slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[SliceNode, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class OptimizeRequest(_message.Message):
    __slots__ = ("goal", "slices", "traffic", "nodes", "what_if", "time_limit")
    class TrafficEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    WHAT_IF_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    goal: SliceGoal
    slices: _containers.RepeatedScalarFieldContainer[str]
    traffic: _containers.ScalarMap[str, float]
    nodes: _containers.RepeatedCompositeFieldContainer[SliceNode]
    what_if: _containers.RepeatedCompositeFieldContainer[Slice]
    time_limit: _duration_pb2.Duration
    def __init__(self, goal: _Optional[_Union[SliceGoal, str]] = ..., slices: _Optional[_Iterable[str]] = ..., traffic: _Optional[_Mapping[str, float]] = ..., nodes: _Optional[_Iterable[_Union[SliceNode, _Mapping]]] = ..., what_if: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., time_limit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class OptimizeResponse(_message.Message):
    __slots__ = ("allocations", "objective", "bound", "gap", "took", "etag", "goal")
    ALLOCATIONS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    allocations: _containers.RepeatedCompositeFieldContainer[SliceAllocation]
    objective: float
    bound: float
    gap: float
    took: _duration_pb2.Duration
    etag: str
    goal: SliceGoal
    def __init__(self, allocations: _Optional[_Iterable[_Union[SliceAllocation, _Mapping]]] = ..., objective: _Optional[float] = ..., bound: _Optional[float] = ..., gap: _Optional[float] = ..., took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., etag: _Optional[str] = ..., goal: _Optional[_Union[SliceGoal, str]] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("allocations", "etag", "request_id")
    ALLOCATIONS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    allocations: _containers.RepeatedCompositeFieldContainer[SliceAllocation]
    etag: str
    request_id: str
    def __init__(self, allocations: _Optional[_Iterable[_Union[SliceAllocation, _Mapping]]] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("slices", "etag")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    etag: str
    def __init__(self, slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class ResizeRequest(_message.Message):
    __slots__ = ("name", "resources", "shares", "etag", "request_id")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SharesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SliceShare
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SliceShare, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    resources: _containers.ScalarMap[str, float]
    shares: _containers.MessageMap[str, SliceShare]
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., resources: _Optional[_Mapping[str, float]] = ..., shares: _Optional[_Mapping[str, SliceShare]] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ResizeResponse(_message.Message):
    __slots__ = ("slice",)
    SLICE_FIELD_NUMBER: _ClassVar[int]
    slice: Slice
    def __init__(self, slice: _Optional[_Union[Slice, _Mapping]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id", "drain")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    drain: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ..., drain: _Optional[bool] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("slice",)
    SLICE_FIELD_NUMBER: _ClassVar[int]
    slice: Slice
    def __init__(self, slice: _Optional[_Union[Slice, _Mapping]] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("slice", "resources", "nodes", "tenant", "lifetime", "request_id", "through")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SLICE_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    slice: str
    resources: _containers.ScalarMap[str, float]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    tenant: str
    lifetime: _duration_pb2.Duration
    request_id: str
    through: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slice: _Optional[str] = ..., resources: _Optional[_Mapping[str, float]] = ..., nodes: _Optional[_Iterable[str]] = ..., tenant: _Optional[str] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ..., through: _Optional[_Iterable[str]] = ...) -> None: ...

class AdmitResponse(_message.Message):
    __slots__ = ("until", "nodes")
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    until: _timestamp_pb2.Timestamp
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("request_id", "lifetime")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lifetime: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("until",)
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    until: _timestamp_pb2.Timestamp
    def __init__(self, until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class WithdrawResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportTrafficRequest(_message.Message):
    __slots__ = ("traffic", "number", "process")
    class TrafficEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SliceTraffic
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SliceTraffic, _Mapping]] = ...) -> None: ...
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    traffic: _containers.MessageMap[str, SliceTraffic]
    number: int
    process: bytes
    def __init__(self, traffic: _Optional[_Mapping[str, SliceTraffic]] = ..., number: _Optional[int] = ..., process: _Optional[bytes] = ...) -> None: ...

class ReportTrafficResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchSlicesRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class WatchSlicesResponse(_message.Message):
    __slots__ = ("slices", "nodes", "etag", "links")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    nodes: _containers.RepeatedCompositeFieldContainer[SliceNode]
    etag: str
    links: _containers.RepeatedCompositeFieldContainer[SliceLink]
    def __init__(self, slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[SliceNode, _Mapping]]] = ..., etag: _Optional[str] = ..., links: _Optional[_Iterable[_Union[SliceLink, _Mapping]]] = ...) -> None: ...

class SliceLink(_message.Message):
    __slots__ = ("to", "rates")
    TO_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    to: str
    rates: _containers.RepeatedCompositeFieldContainer[SliceLinkRate]
    def __init__(self, to: _Optional[str] = ..., rates: _Optional[_Iterable[_Union[SliceLinkRate, _Mapping]]] = ...) -> None: ...

class SliceLinkRate(_message.Message):
    __slots__ = ("since", "gbps")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    GBPS_FIELD_NUMBER: _ClassVar[int]
    since: _timestamp_pb2.Timestamp
    gbps: float
    def __init__(self, since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., gbps: _Optional[float] = ...) -> None: ...
