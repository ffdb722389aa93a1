from orbitmesh.v1 import training_pb2 as _training_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT64: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]
    DTYPE_UINT8: _ClassVar[Dtype]
    DTYPE_INT16: _ClassVar[Dtype]
    DTYPE_INT32: _ClassVar[Dtype]
    DTYPE_INT64: _ClassVar[Dtype]
    DTYPE_BOOL: _ClassVar[Dtype]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_RAW: _ClassVar[Codec]
    CODEC_ZSTD: _ClassVar[Codec]
    CODEC_EXPONENT_SPLIT_ZSTD: _ClassVar[Codec]
    CODEC_CAST_BFLOAT16: _ClassVar[Codec]
    CODEC_CAST_FLOAT16: _ClassVar[Codec]
    CODEC_INT8_BLOCK: _ClassVar[Codec]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_FLOAT64: Dtype
DTYPE_INT8: Dtype
DTYPE_UINT8: Dtype
DTYPE_INT16: Dtype
DTYPE_INT32: Dtype
DTYPE_INT64: Dtype
DTYPE_BOOL: Dtype
CODEC_UNSPECIFIED: Codec
CODEC_RAW: Codec
CODEC_ZSTD: Codec
CODEC_EXPONENT_SPLIT_ZSTD: Codec
CODEC_CAST_BFLOAT16: Codec
CODEC_CAST_FLOAT16: Codec
CODEC_INT8_BLOCK: Codec
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason

class TensorSpec(_message.Message):
    __slots__ = ("dtype", "shape")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class StepInfo(_message.Message):
    __slots__ = ("generation", "position", "sample", "epoch", "stage_index", "feed")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    generation: int
    position: int
    sample: bool
    epoch: int
    stage_index: int
    feed: bool
    def __init__(self, generation: _Optional[int] = ..., position: _Optional[int] = ..., sample: _Optional[bool] = ..., epoch: _Optional[int] = ..., stage_index: _Optional[int] = ..., feed: _Optional[bool] = ...) -> None: ...

class CacheInfo(_message.Message):
    __slots__ = ("generation", "stage_index", "epoch", "layer", "position", "rows", "key_bytes")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KEY_BYTES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    stage_index: int
    epoch: int
    layer: int
    position: int
    rows: int
    key_bytes: int
    def __init__(self, generation: _Optional[int] = ..., stage_index: _Optional[int] = ..., epoch: _Optional[int] = ..., layer: _Optional[int] = ..., position: _Optional[int] = ..., rows: _Optional[int] = ..., key_bytes: _Optional[int] = ...) -> None: ...

class TokenInfo(_message.Message):
    __slots__ = ("generation", "position", "finish", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    position: int
    finish: FinishReason
    epoch: int
    def __init__(self, generation: _Optional[int] = ..., position: _Optional[int] = ..., finish: _Optional[_Union[FinishReason, str]] = ..., epoch: _Optional[int] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("sha256", "offset", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    size_bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class FileRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("generation", "reason", "message", "metadata", "sha256", "epoch", "stage_index")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    generation: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    sha256: bytes
    epoch: int
    stage_index: int
    def __init__(self, generation: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., sha256: _Optional[bytes] = ..., epoch: _Optional[int] = ..., stage_index: _Optional[int] = ...) -> None: ...

class TransferInfo(_message.Message):
    __slots__ = ("tensor", "step", "token", "file", "file_request", "failure", "blob", "cache", "training", "slice")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    FILE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorSpec
    step: StepInfo
    token: TokenInfo
    file: FileInfo
    file_request: FileRequest
    failure: Failure
    blob: BlobInfo
    cache: CacheInfo
    training: _training_pb2.TrainingInfo
    slice: str
    def __init__(self, tensor: _Optional[_Union[TensorSpec, _Mapping]] = ..., step: _Optional[_Union[StepInfo, _Mapping]] = ..., token: _Optional[_Union[TokenInfo, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ..., file_request: _Optional[_Union[FileRequest, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., blob: _Optional[_Union[BlobInfo, _Mapping]] = ..., cache: _Optional[_Union[CacheInfo, _Mapping]] = ..., training: _Optional[_Union[_training_pb2.TrainingInfo, _Mapping]] = ..., slice: _Optional[str] = ...) -> None: ...

class BlobInfo(_message.Message):
    __slots__ = ("tag",)
    TAG_FIELD_NUMBER: _ClassVar[int]
    tag: int
    def __init__(self, tag: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("seal_certificate", "versions", "process")
    SEAL_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    seal_certificate: bytes
    versions: _containers.RepeatedScalarFieldContainer[int]
    process: bytes
    def __init__(self, seal_certificate: _Optional[bytes] = ..., versions: _Optional[_Iterable[int]] = ..., process: _Optional[bytes] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session_id", "version", "wrapped_key", "salt", "sender", "receiver", "resume", "next_number", "refused_reason", "refused_for_good")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_KEY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    NEXT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REASON_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FOR_GOOD_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    version: int
    wrapped_key: bytes
    salt: bytes
    sender: str
    receiver: str
    resume: bool
    next_number: int
    refused_reason: str
    refused_for_good: bool
    def __init__(self, session_id: _Optional[bytes] = ..., version: _Optional[int] = ..., wrapped_key: _Optional[bytes] = ..., salt: _Optional[bytes] = ..., sender: _Optional[str] = ..., receiver: _Optional[str] = ..., resume: _Optional[bool] = ..., next_number: _Optional[int] = ..., refused_reason: _Optional[str] = ..., refused_for_good: _Optional[bool] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("next_number", "credit_limit_bytes")
    NEXT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    next_number: int
    credit_limit_bytes: int
    def __init__(self, next_number: _Optional[int] = ..., credit_limit_bytes: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("next_number", "credit_limit_bytes", "ping", "pong")
    NEXT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    next_number: int
    credit_limit_bytes: int
    ping: int
    pong: int
    def __init__(self, next_number: _Optional[int] = ..., credit_limit_bytes: _Optional[int] = ..., ping: _Optional[int] = ..., pong: _Optional[int] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("number", "transfer", "index", "last", "codec", "raw_size_bytes", "info", "total_size_bytes", "abandoned", "ends_session")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    RAW_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    ENDS_SESSION_FIELD_NUMBER: _ClassVar[int]
    number: int
    transfer: int
    index: int
    last: bool
    codec: Codec
    raw_size_bytes: int
    info: TransferInfo
    total_size_bytes: int
    abandoned: bool
    ends_session: bool
    def __init__(self, number: _Optional[int] = ..., transfer: _Optional[int] = ..., index: _Optional[int] = ..., last: _Optional[bool] = ..., codec: _Optional[_Union[Codec, str]] = ..., raw_size_bytes: _Optional[int] = ..., info: _Optional[_Union[TransferInfo, _Mapping]] = ..., total_size_bytes: _Optional[int] = ..., abandoned: _Optional[bool] = ..., ends_session: _Optional[bool] = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("data", "ack", "hello", "open", "accept")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    data: Data
    ack: Ack
    hello: Hello
    open: Open
    accept: Accept
    def __init__(self, data: _Optional[_Union[Data, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ...) -> None: ...
