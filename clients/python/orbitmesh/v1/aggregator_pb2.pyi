import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orbitmesh.v1 import training_pb2 as _training_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_DONE: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]

class RunNodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_NODE_STATE_UNSPECIFIED: _ClassVar[RunNodeState]
    RUN_NODE_STATE_AWAY: _ClassVar[RunNodeState]
    RUN_NODE_STATE_IDLE: _ClassVar[RunNodeState]
    RUN_NODE_STATE_RECEIVING: _ClassVar[RunNodeState]
    RUN_NODE_STATE_TRAINING: _ClassVar[RunNodeState]
    RUN_NODE_STATE_SENDING: _ClassVar[RunNodeState]
    RUN_NODE_STATE_STORED: _ClassVar[RunNodeState]
    RUN_NODE_STATE_GIVEN_UP: _ClassVar[RunNodeState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_DONE: RunState
RUN_STATE_CANCELLED: RunState
RUN_STATE_FAILED: RunState
RUN_NODE_STATE_UNSPECIFIED: RunNodeState
RUN_NODE_STATE_AWAY: RunNodeState
RUN_NODE_STATE_IDLE: RunNodeState
RUN_NODE_STATE_RECEIVING: RunNodeState
RUN_NODE_STATE_TRAINING: RunNodeState
RUN_NODE_STATE_SENDING: RunNodeState
RUN_NODE_STATE_STORED: RunNodeState
RUN_NODE_STATE_GIVEN_UP: RunNodeState

class RunNode(_message.Message):
    __slots__ = ("name", "state", "examples", "step", "steps", "why", "up_bytes", "down_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    UP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: RunNodeState
    examples: int
    step: int
    steps: int
    why: str
    up_bytes: int
    down_bytes: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[RunNodeState, str]] = ..., examples: _Optional[int] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., why: _Optional[str] = ..., up_bytes: _Optional[int] = ..., down_bytes: _Optional[int] = ...) -> None: ...

class RunContribution(_message.Message):
    __slots__ = ("node", "examples", "size_bytes", "staleness", "down_s", "train_s", "wait_s", "up_s", "via")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    DOWN_S_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    UP_S_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    node: str
    examples: int
    size_bytes: int
    staleness: int
    down_s: float
    train_s: float
    wait_s: float
    up_s: float
    via: str
    def __init__(self, node: _Optional[str] = ..., examples: _Optional[int] = ..., size_bytes: _Optional[int] = ..., staleness: _Optional[int] = ..., down_s: _Optional[float] = ..., train_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., up_s: _Optional[float] = ..., via: _Optional[str] = ...) -> None: ...

class RunRound(_message.Message):
    __slots__ = ("index", "cohort", "contributed", "given_up", "up_bytes", "down_bytes", "figures", "train_loss", "seconds", "epsilon", "done_at", "trace_id", "contributions", "sum_s")
    class GivenUpEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    UP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DONE_AT_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    SUM_S_FIELD_NUMBER: _ClassVar[int]
    index: int
    cohort: _containers.RepeatedScalarFieldContainer[str]
    contributed: _containers.RepeatedScalarFieldContainer[str]
    given_up: _containers.ScalarMap[str, str]
    up_bytes: int
    down_bytes: int
    figures: _containers.ScalarMap[str, float]
    train_loss: float
    seconds: float
    epsilon: float
    done_at: _timestamp_pb2.Timestamp
    trace_id: str
    contributions: _containers.RepeatedCompositeFieldContainer[RunContribution]
    sum_s: float
    def __init__(self, index: _Optional[int] = ..., cohort: _Optional[_Iterable[str]] = ..., contributed: _Optional[_Iterable[str]] = ..., given_up: _Optional[_Mapping[str, str]] = ..., up_bytes: _Optional[int] = ..., down_bytes: _Optional[int] = ..., figures: _Optional[_Mapping[str, float]] = ..., train_loss: _Optional[float] = ..., seconds: _Optional[float] = ..., epsilon: _Optional[float] = ..., done_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trace_id: _Optional[str] = ..., contributions: _Optional[_Iterable[_Union[RunContribution, _Mapping]]] = ..., sum_s: _Optional[float] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "spec", "state", "why", "rounds_done", "values", "nodes", "rounds", "began_at", "epsilon", "more_rounds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    MORE_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: _training_pb2.TrainingSpec
    state: RunState
    why: str
    rounds_done: int
    values: int
    nodes: _containers.RepeatedCompositeFieldContainer[RunNode]
    rounds: _containers.RepeatedCompositeFieldContainer[RunRound]
    began_at: _timestamp_pb2.Timestamp
    epsilon: float
    more_rounds: bool
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[_training_pb2.TrainingSpec, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., why: _Optional[str] = ..., rounds_done: _Optional[int] = ..., values: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[RunNode, _Mapping]]] = ..., rounds: _Optional[_Iterable[_Union[RunRound, _Mapping]]] = ..., began_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., epsilon: _Optional[float] = ..., more_rounds: _Optional[bool] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("request_id", "name", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    spec: _training_pb2.TrainingSpec
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., spec: _Optional[_Union[_training_pb2.TrainingSpec, _Mapping]] = ...) -> None: ...

class StartRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("name", "from_round")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    from_round: int
    def __init__(self, name: _Optional[str] = ..., from_round: _Optional[int] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("name", "from_round")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    from_round: int
    def __init__(self, name: _Optional[str] = ..., from_round: _Optional[int] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("name", "rounds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rounds: int
    def __init__(self, name: _Optional[str] = ..., rounds: _Optional[int] = ...) -> None: ...

class ResumeRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ("not_told",)
    NOT_TOLD_FIELD_NUMBER: _ClassVar[int]
    not_told: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, not_told: _Optional[_Iterable[str]] = ...) -> None: ...

class GetLedgerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("round", "node", "steps", "sample_rate", "noise_multiplier", "survivors", "survivors_promised", "epsilon")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_PROMISED_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    round: int
    node: str
    steps: int
    sample_rate: float
    noise_multiplier: float
    survivors: int
    survivors_promised: int
    epsilon: float
    def __init__(self, round: _Optional[int] = ..., node: _Optional[str] = ..., steps: _Optional[int] = ..., sample_rate: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., survivors: _Optional[int] = ..., survivors_promised: _Optional[int] = ..., epsilon: _Optional[float] = ...) -> None: ...

class GetLedgerResponse(_message.Message):
    __slots__ = ("promised", "epsilon", "rounds_left", "entries")
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    promised: _training_pb2.Privacy
    epsilon: float
    rounds_left: int
    entries: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    def __init__(self, promised: _Optional[_Union[_training_pb2.Privacy, _Mapping]] = ..., epsilon: _Optional[float] = ..., rounds_left: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ...) -> None: ...

class GetWeightsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetWeightsResponse(_message.Message):
    __slots__ = ("values", "sha256", "rounds_done", "data")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    values: int
    sha256: bytes
    rounds_done: int
    data: bytes
    def __init__(self, values: _Optional[int] = ..., sha256: _Optional[bytes] = ..., rounds_done: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("name", "inputs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    inputs: _training_pb2.Inputs
    def __init__(self, name: _Optional[str] = ..., inputs: _Optional[_Union[_training_pb2.Inputs, _Mapping]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("outputs", "node", "rounds_done")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    outputs: _training_pb2.Inputs
    node: str
    rounds_done: int
    def __init__(self, outputs: _Optional[_Union[_training_pb2.Inputs, _Mapping]] = ..., node: _Optional[str] = ..., rounds_done: _Optional[int] = ...) -> None: ...
