from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrivacyUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIVACY_UNIT_UNSPECIFIED: _ClassVar[PrivacyUnit]
    PRIVACY_UNIT_RECORD: _ClassVar[PrivacyUnit]
    PRIVACY_UNIT_NODE: _ClassVar[PrivacyUnit]

class TrainingKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINING_KIND_UNSPECIFIED: _ClassVar[TrainingKind]
    TRAINING_KIND_JOIN: _ClassVar[TrainingKind]
    TRAINING_KIND_INITIALISE: _ClassVar[TrainingKind]
    TRAINING_KIND_TRAIN: _ClassVar[TrainingKind]
    TRAINING_KIND_EVALUATE: _ClassVar[TrainingKind]
    TRAINING_KIND_END: _ClassVar[TrainingKind]
    TRAINING_KIND_PREDICT: _ClassVar[TrainingKind]

class SumsKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUMS_KIND_UNSPECIFIED: _ClassVar[SumsKind]
    SUMS_KIND_KEY: _ClassVar[SumsKind]
    SUMS_KIND_ROSTER: _ClassVar[SumsKind]
    SUMS_KIND_OFFER: _ClassVar[SumsKind]
    SUMS_KIND_OFFERS: _ClassVar[SumsKind]
    SUMS_KIND_UNMASK: _ClassVar[SumsKind]
PRIVACY_UNIT_UNSPECIFIED: PrivacyUnit
PRIVACY_UNIT_RECORD: PrivacyUnit
PRIVACY_UNIT_NODE: PrivacyUnit
TRAINING_KIND_UNSPECIFIED: TrainingKind
TRAINING_KIND_JOIN: TrainingKind
TRAINING_KIND_INITIALISE: TrainingKind
TRAINING_KIND_TRAIN: TrainingKind
TRAINING_KIND_EVALUATE: TrainingKind
TRAINING_KIND_END: TrainingKind
TRAINING_KIND_PREDICT: TrainingKind
SUMS_KIND_UNSPECIFIED: SumsKind
SUMS_KIND_KEY: SumsKind
SUMS_KIND_ROSTER: SumsKind
SUMS_KIND_OFFER: SumsKind
SUMS_KIND_OFFERS: SumsKind
SUMS_KIND_UNMASK: SumsKind

class TrainingSpec(_message.Message):
    __slots__ = ("task", "rounds", "seed", "alpha", "strategy", "strategy_options", "local", "compression", "secure_sums", "privacy", "nodes", "quorum", "patience_s", "cohort", "evaluate", "slice")
    class StrategyOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    SECURE_SUMS_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    task: str
    rounds: int
    seed: int
    alpha: float
    strategy: str
    strategy_options: _containers.ScalarMap[str, float]
    local: LocalTraining
    compression: str
    secure_sums: SecureSums
    privacy: Privacy
    nodes: _containers.RepeatedScalarFieldContainer[str]
    quorum: int
    patience_s: float
    cohort: int
    evaluate: bool
    slice: str
    def __init__(self, task: _Optional[str] = ..., rounds: _Optional[int] = ..., seed: _Optional[int] = ..., alpha: _Optional[float] = ..., strategy: _Optional[str] = ..., strategy_options: _Optional[_Mapping[str, float]] = ..., local: _Optional[_Union[LocalTraining, _Mapping]] = ..., compression: _Optional[str] = ..., secure_sums: _Optional[_Union[SecureSums, _Mapping]] = ..., privacy: _Optional[_Union[Privacy, _Mapping]] = ..., nodes: _Optional[_Iterable[str]] = ..., quorum: _Optional[int] = ..., patience_s: _Optional[float] = ..., cohort: _Optional[int] = ..., evaluate: _Optional[bool] = ..., slice: _Optional[str] = ...) -> None: ...

class LocalTraining(_message.Message):
    __slots__ = ("epochs", "steps", "batch_size", "optimiser", "lr", "momentum", "weight_decay", "gradient_norm", "dtype", "keep_optimiser")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    OPTIMISER_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KEEP_OPTIMISER_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    steps: int
    batch_size: int
    optimiser: str
    lr: float
    momentum: float
    weight_decay: float
    gradient_norm: float
    dtype: str
    keep_optimiser: bool
    def __init__(self, epochs: _Optional[int] = ..., steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., optimiser: _Optional[str] = ..., lr: _Optional[float] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ..., gradient_norm: _Optional[float] = ..., dtype: _Optional[str] = ..., keep_optimiser: _Optional[bool] = ...) -> None: ...

class SecureSums(_message.Message):
    __slots__ = ("threshold", "bits", "groups")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    threshold: int
    bits: int
    groups: _containers.RepeatedCompositeFieldContainer[SumGroup]
    def __init__(self, threshold: _Optional[int] = ..., bits: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[SumGroup, _Mapping]]] = ...) -> None: ...

class SumGroup(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class Privacy(_message.Message):
    __slots__ = ("unit", "epsilon", "delta", "clip", "noise_multiplier")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    unit: PrivacyUnit
    epsilon: float
    delta: float
    clip: float
    noise_multiplier: float
    def __init__(self, unit: _Optional[_Union[PrivacyUnit, str]] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., clip: _Optional[float] = ..., noise_multiplier: _Optional[float] = ...) -> None: ...

class TrainingInfo(_message.Message):
    __slots__ = ("run", "round", "order", "joined", "have", "weights", "progress", "contribution", "update", "stored", "refused", "evaluated", "sums", "predicted", "held", "collected")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    order: TrainingOrder
    joined: Joined
    have: WeightsHeld
    weights: SpanInfo
    progress: TrainingProgress
    contribution: ContributionInfo
    update: SpanInfo
    stored: ContributionStored
    refused: TrainingRefusal
    evaluated: Evaluation
    sums: SumsInfo
    predicted: Predicted
    held: ContributionHeld
    collected: Collected
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., order: _Optional[_Union[TrainingOrder, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., have: _Optional[_Union[WeightsHeld, _Mapping]] = ..., weights: _Optional[_Union[SpanInfo, _Mapping]] = ..., progress: _Optional[_Union[TrainingProgress, _Mapping]] = ..., contribution: _Optional[_Union[ContributionInfo, _Mapping]] = ..., update: _Optional[_Union[SpanInfo, _Mapping]] = ..., stored: _Optional[_Union[ContributionStored, _Mapping]] = ..., refused: _Optional[_Union[TrainingRefusal, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluation, _Mapping]] = ..., sums: _Optional[_Union[SumsInfo, _Mapping]] = ..., predicted: _Optional[_Union[Predicted, _Mapping]] = ..., held: _Optional[_Union[ContributionHeld, _Mapping]] = ..., collected: _Optional[_Union[Collected, _Mapping]] = ...) -> None: ...

class TrainingOrder(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: TrainingKind
    def __init__(self, kind: _Optional[_Union[TrainingKind, str]] = ...) -> None: ...

class TrainingWork(_message.Message):
    __slots__ = ("spec", "node_index", "nodes", "weights", "held_spans", "evaluate", "overrides", "sums", "payload_bytes", "inputs", "deliver_to", "collect", "going_on")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    HELD_SPANS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    DELIVER_TO_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    GOING_ON_FIELD_NUMBER: _ClassVar[int]
    spec: TrainingSpec
    node_index: int
    nodes: int
    weights: WeightsInfo
    held_spans: int
    evaluate: bool
    overrides: str
    sums: SumsRound
    payload_bytes: int
    inputs: Inputs
    deliver_to: GroupHead
    collect: _containers.RepeatedScalarFieldContainer[str]
    going_on: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spec: _Optional[_Union[TrainingSpec, _Mapping]] = ..., node_index: _Optional[int] = ..., nodes: _Optional[int] = ..., weights: _Optional[_Union[WeightsInfo, _Mapping]] = ..., held_spans: _Optional[int] = ..., evaluate: _Optional[bool] = ..., overrides: _Optional[str] = ..., sums: _Optional[_Union[SumsRound, _Mapping]] = ..., payload_bytes: _Optional[int] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., deliver_to: _Optional[_Union[GroupHead, _Mapping]] = ..., collect: _Optional[_Iterable[str]] = ..., going_on: _Optional[_Iterable[str]] = ...) -> None: ...

class GroupHead(_message.Message):
    __slots__ = ("name", "address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Inputs(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WeightsInfo(_message.Message):
    __slots__ = ("values", "sha256")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    values: int
    sha256: bytes
    def __init__(self, values: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class SumsRound(_message.Message):
    __slots__ = ("plan", "scale", "examples_reference", "survivors_promised")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_PROMISED_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    scale: float
    examples_reference: int
    survivors_promised: int
    def __init__(self, plan: _Optional[bytes] = ..., scale: _Optional[float] = ..., examples_reference: _Optional[int] = ..., survivors_promised: _Optional[int] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("examples", "values", "layout_sha256")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    examples: int
    values: int
    layout_sha256: bytes
    def __init__(self, examples: _Optional[int] = ..., values: _Optional[int] = ..., layout_sha256: _Optional[bytes] = ...) -> None: ...

class WeightsHeld(_message.Message):
    __slots__ = ("sha256", "spans")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    spans: int
    def __init__(self, sha256: _Optional[bytes] = ..., spans: _Optional[int] = ...) -> None: ...

class SpanInfo(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class TrainingProgress(_message.Message):
    __slots__ = ("step", "steps", "loss")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    loss: float
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class ContributionInfo(_message.Message):
    __slots__ = ("examples", "spans", "sha256", "loss", "steps", "train_s", "sums_context", "release", "summed")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    SUMS_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    SUMMED_FIELD_NUMBER: _ClassVar[int]
    examples: int
    spans: int
    sha256: bytes
    loss: float
    steps: int
    train_s: float
    sums_context: bytes
    release: str
    summed: _containers.RepeatedCompositeFieldContainer[SummedContribution]
    def __init__(self, examples: _Optional[int] = ..., spans: _Optional[int] = ..., sha256: _Optional[bytes] = ..., loss: _Optional[float] = ..., steps: _Optional[int] = ..., train_s: _Optional[float] = ..., sums_context: _Optional[bytes] = ..., release: _Optional[str] = ..., summed: _Optional[_Iterable[_Union[SummedContribution, _Mapping]]] = ...) -> None: ...

class SummedContribution(_message.Message):
    __slots__ = ("node", "examples", "steps", "train_s", "release")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    node: str
    examples: int
    steps: int
    train_s: float
    release: str
    def __init__(self, node: _Optional[str] = ..., examples: _Optional[int] = ..., steps: _Optional[int] = ..., train_s: _Optional[float] = ..., release: _Optional[str] = ...) -> None: ...

class ContributionHeld(_message.Message):
    __slots__ = ("spans",)
    SPANS_FIELD_NUMBER: _ClassVar[int]
    spans: int
    def __init__(self, spans: _Optional[int] = ...) -> None: ...

class Collected(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class ContributionStored(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainingRefusal(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Predicted(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    def __init__(self, sha256: _Optional[bytes] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("sha256", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    figures: _containers.ScalarMap[str, float]
    def __init__(self, sha256: _Optional[bytes] = ..., figures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SumsInfo(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: SumsKind
    def __init__(self, kind: _Optional[_Union[SumsKind, str]] = ...) -> None: ...
