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

class SkyLinkState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SKY_LINK_STATE_UNSPECIFIED: _ClassVar[SkyLinkState]
    SKY_LINK_STATE_DOWN: _ClassVar[SkyLinkState]
    SKY_LINK_STATE_ACQUIRING: _ClassVar[SkyLinkState]
    SKY_LINK_STATE_UP: _ClassVar[SkyLinkState]
SKY_LINK_STATE_UNSPECIFIED: SkyLinkState
SKY_LINK_STATE_DOWN: SkyLinkState
SKY_LINK_STATE_ACQUIRING: SkyLinkState
SKY_LINK_STATE_UP: SkyLinkState

class GetScenarioRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetScenarioResponse(_message.Message):
    __slots__ = ("name", "starts_at", "now", "origin_mesh", "origin_wall", "time_factor", "plan_starts_at", "plan_ends_at", "contacts", "warnings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STARTS_AT_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_MESH_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_WALL_FIELD_NUMBER: _ClassVar[int]
    TIME_FACTOR_FIELD_NUMBER: _ClassVar[int]
    PLAN_STARTS_AT_FIELD_NUMBER: _ClassVar[int]
    PLAN_ENDS_AT_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    starts_at: _timestamp_pb2.Timestamp
    now: _timestamp_pb2.Timestamp
    origin_mesh: _timestamp_pb2.Timestamp
    origin_wall: _timestamp_pb2.Timestamp
    time_factor: float
    plan_starts_at: _timestamp_pb2.Timestamp
    plan_ends_at: _timestamp_pb2.Timestamp
    contacts: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., starts_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., origin_mesh: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., origin_wall: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time_factor: _Optional[float] = ..., plan_starts_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., plan_ends_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., contacts: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ListSkyNodesRequest(_message.Message):
    __slots__ = ("at", "page_size", "page_token")
    AT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSkyNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[SkyNode]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[SkyNode, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SkyNode(_message.Message):
    __slots__ = ("name", "kind", "latitude_deg", "longitude_deg", "altitude_m", "lost")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_DEG_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_DEG_FIELD_NUMBER: _ClassVar[int]
    ALTITUDE_M_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    latitude_deg: float
    longitude_deg: float
    altitude_m: float
    lost: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., latitude_deg: _Optional[float] = ..., longitude_deg: _Optional[float] = ..., altitude_m: _Optional[float] = ..., lost: _Optional[bool] = ...) -> None: ...

class GetContactPlanRequest(_message.Message):
    __slots__ = ("starts_at", "span", "nodes", "page_size", "page_token")
    STARTS_AT_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    starts_at: _timestamp_pb2.Timestamp
    span: _duration_pb2.Duration
    nodes: _containers.RepeatedScalarFieldContainer[str]
    page_size: int
    page_token: str
    def __init__(self, starts_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., span: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., nodes: _Optional[_Iterable[str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetContactPlanResponse(_message.Message):
    __slots__ = ("plan", "next_page_token")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    plan: SkyContactPlan
    next_page_token: str
    def __init__(self, plan: _Optional[_Union[SkyContactPlan, _Mapping]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SkyContactPlan(_message.Message):
    __slots__ = ("start_s", "end_s", "contacts", "warnings")
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    start_s: float
    end_s: float
    contacts: _containers.RepeatedCompositeFieldContainer[SkyContact]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., contacts: _Optional[_Iterable[_Union[SkyContact, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class SkyContact(_message.Message):
    __slots__ = ("source", "target", "start_s", "end_s", "rate_bps", "latency", "kind", "acquisition_s", "max_elevation_deg", "truncated_start", "truncated_end")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACQUISITION_S_FIELD_NUMBER: _ClassVar[int]
    MAX_ELEVATION_DEG_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_START_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_END_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    start_s: float
    end_s: float
    rate_bps: float
    latency: _containers.RepeatedCompositeFieldContainer[SkyLatency]
    kind: str
    acquisition_s: float
    max_elevation_deg: float
    truncated_start: bool
    truncated_end: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., rate_bps: _Optional[float] = ..., latency: _Optional[_Iterable[_Union[SkyLatency, _Mapping]]] = ..., kind: _Optional[str] = ..., acquisition_s: _Optional[float] = ..., max_elevation_deg: _Optional[float] = ..., truncated_start: _Optional[bool] = ..., truncated_end: _Optional[bool] = ...) -> None: ...

class SkyLatency(_message.Message):
    __slots__ = ("at_s", "latency_s")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    latency_s: float
    def __init__(self, at_s: _Optional[float] = ..., latency_s: _Optional[float] = ...) -> None: ...

class GetLinkRequest(_message.Message):
    __slots__ = ("source", "target", "at")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetLinkResponse(_message.Message):
    __slots__ = ("link",)
    LINK_FIELD_NUMBER: _ClassVar[int]
    link: SkyLink
    def __init__(self, link: _Optional[_Union[SkyLink, _Mapping]] = ...) -> None: ...

class SkyLink(_message.Message):
    __slots__ = ("source", "target", "at", "state", "latency_s", "rate_bps", "contact", "changes_at", "changes_in_s")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    CONTACT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_IN_S_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    at: _timestamp_pb2.Timestamp
    state: SkyLinkState
    latency_s: float
    rate_bps: float
    contact: SkyContact
    changes_at: _timestamp_pb2.Timestamp
    changes_in_s: float
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[SkyLinkState, str]] = ..., latency_s: _Optional[float] = ..., rate_bps: _Optional[float] = ..., contact: _Optional[_Union[SkyContact, _Mapping]] = ..., changes_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., changes_in_s: _Optional[float] = ...) -> None: ...

class WatchLinksRequest(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchLinksResponse(_message.Message):
    __slots__ = ("at", "links", "initial")
    AT_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    links: _containers.RepeatedCompositeFieldContainer[SkyLink]
    initial: bool
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., links: _Optional[_Iterable[_Union[SkyLink, _Mapping]]] = ..., initial: _Optional[bool] = ...) -> None: ...
