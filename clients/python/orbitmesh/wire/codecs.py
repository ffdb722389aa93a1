"""Codecs: how the raw bytes of one frame become the bytes that are sealed and sent, and back.

A codec works on one frame at a time and each frame stands for itself, so frames can be coded in parallel,
lost and sent again. The payloads, all numbers little-endian:

    RAW                   the bytes
    ZSTD                  u8 mode: 0 = the bytes as they are, 1 = one zstd frame
    EXPONENT_SPLIT_ZSTD   u8 mode: 0 = the bytes as they are, else bit k: plane k (see `planes`) is a zstd
                          frame; a u32 length per such plane; the planes in order
    CAST_BFLOAT16/16      the values in half the size
    INT8_BLOCK            one fp32 scale per begun block of 256 values, then an int8 per value

Decoding trusts nothing in a payload: the caller gives memory of the authenticated raw length, and a payload
that says it is longer is refused before anything is allocated for it.
"""

from __future__ import annotations

import struct
import threading

import numpy as np
import zstandard

from orbitmesh.errors import IntegrityError, InvalidInputError
from orbitmesh.wire import casts, planes
from orbitmesh.wire.catalog import CODECS, Codec, CodecId, codec_by_name, codec_table
from orbitmesh.wire.tensors import Buffer, DType, flat_bytes, require_little_endian

__all__ = [
    "CODECS",
    "MAX_EXPANSION_BYTES",
    "MAX_FRAME_RAW_BYTES",
    "Codec",
    "CodecContext",
    "CodecId",
    "codec_by_name",
    "codec_table",
    "decode_into",
    "encode",
    "max_encoded_bytes",
]

MAX_FRAME_RAW_BYTES = 16 * 1024**2
"""The most raw bytes that one call codes; transfers use 1 MiB."""
MAX_EXPANSION_BYTES = 1
"""By how much a lossless payload can outgrow its raw bytes: the mode byte of the stored form."""

_MODE_STORED = 0
_MODE_ZSTD = 1
_PLANE_LENGTH = struct.Struct("<I")
_ZSTD_LEVEL = 1
# Entropy coding with hardly any search for matches: exponents repeat in distribution, not in order. On planes
# of weights this is both smaller and three times faster than the plain level 1 (docs/codecs.md has the
# numbers).
_PLANE_MIN_MATCH = 7
_PLANE_HASH_LOG = 6
_PLANE_WINDOW_LOG = 17
_SMALLEST_WINDOW_BYTES = 1024


def max_encoded_bytes(codec: CodecId, dtype: DType, raw_bytes: int) -> int:
    """The most bytes that `raw_bytes` of `dtype` can take once coded; exact for a fixed-rate codec.

    Raises:
        InvalidInputError: As for `CodecContext.encode`.
    """
    _check(codec, dtype, raw_bytes)
    if codec is CodecId.RAW:
        return raw_bytes
    if codec is CodecId.INT8_BLOCK:
        return casts.int8_block_bytes(raw_bytes // dtype.itemsize)
    if codec in (CodecId.CAST_BFLOAT16, CodecId.CAST_FLOAT16):
        return raw_bytes // 2
    return raw_bytes + MAX_EXPANSION_BYTES


class _Workspace(threading.local):
    """What one thread reuses between frames; zstandard's objects must not be used by two threads at once."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.plane_compressor = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                _ZSTD_LEVEL,
                min_match=_PLANE_MIN_MATCH,
                hash_log=_PLANE_HASH_LOG,
                window_log=_PLANE_WINDOW_LOG,
                write_content_size=True,
            )
        )
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_FRAME_RAW_BYTES)
        self.scratch = planes.Scratch()


class CodecContext:
    """Encodes and decodes frames, reusing compressors and memory; one context serves any number of threads.

    Raises:
        InvalidInputError: The host is big-endian.
    """

    def __init__(self) -> None:
        require_little_endian()
        self._workspace = _Workspace()

    def encode(self, codec: CodecId, data: Buffer, dtype: DType, *, refuse_non_finite: bool = False) -> bytes:
        """The payload for the raw bytes of one frame.

        Args:
            codec: How to code them.
            data: Raw, row-major, little-endian values, contiguous, at most MAX_FRAME_RAW_BYTES.
            dtype: Their type.
            refuse_non_finite: Whether NaN and infinity are an error, be they in `data` or made by a cast's
                overflow.

        Raises:
            InvalidInputError: The codec does not take the type, or `data` ends inside a value
                (DTYPE_MISMATCH); too many bytes (LIMIT_EXCEEDED); NaN or infinity where refused (NOT_FINITE);
                strided memory.
        """
        raw = flat_bytes(data, "the data to encode")
        _check(codec, dtype, len(raw))
        if refuse_non_finite:
            casts.refuse_non_finite(raw, dtype)
        match codec:
            case CodecId.RAW:
                return data if isinstance(data, bytes) else bytes(raw)
            case CodecId.ZSTD:
                return self._encode_zstd(raw)
            case CodecId.EXPONENT_SPLIT_ZSTD:
                return self._encode_split(raw, dtype)
            case CodecId.CAST_BFLOAT16:
                payload, narrow = casts.float32_to_bfloat16(raw), DType.BFLOAT16
            case CodecId.CAST_FLOAT16:
                payload, narrow = casts.float32_to_float16(raw), DType.FLOAT16
            case _:
                return casts.to_int8_blocks(raw, dtype)
        if refuse_non_finite:
            what = f"the tensor, once cast to {narrow.name.lower()},"
            casts.refuse_non_finite(memoryview(payload), narrow, what)
        return payload

    def decode_into(self, codec: CodecId, payload: Buffer, dtype: DType, out: memoryview) -> None:
        """Undo `encode` into `out`, whose length is the authenticated raw length.

        On an error the content of `out` is undefined. Besides `out`, at most its length plus a constant is
        allocated.

        Raises:
            InvalidInputError: The codec does not take the type (DTYPE_MISMATCH), or `out` is read-only,
                strided or too long (LIMIT_EXCEEDED).
            IntegrityError: The payload would become longer than `out` or does not say how long
                (DECOMPRESSION_BOMB), becomes shorter, or is damaged.
        """
        coded = flat_bytes(payload, "the payload to decode")
        if out.readonly:
            raise InvalidInputError("the memory to decode into is read-only; give writable memory")
        target = flat_bytes(out, "the memory to decode into")
        _check(codec, dtype, len(target))
        match codec:
            case CodecId.RAW:
                _store(coded, target)
            case CodecId.ZSTD:
                self._decode_zstd(coded, target)
            case CodecId.EXPONENT_SPLIT_ZSTD:
                self._decode_split(coded, dtype, target)
            case _:
                _expect_length(coded, max_encoded_bytes(codec, dtype, len(target)))
                if codec is CodecId.CAST_BFLOAT16:
                    casts.bfloat16_to_float32(coded, target)
                elif codec is CodecId.CAST_FLOAT16:
                    casts.float16_to_float32(coded, target)
                else:
                    casts.from_int8_blocks(coded, target, dtype)

    def _encode_zstd(self, raw: memoryview) -> bytes:
        coded = self._workspace.compressor.compress(raw)
        return _stored(raw) if len(coded) >= len(raw) else b"\x01" + coded

    def _decode_zstd(self, coded: memoryview, target: memoryview) -> None:
        mode = _mode(coded)
        if mode == _MODE_STORED:
            _store(coded[1:], target)
        elif mode == _MODE_ZSTD:
            target[:] = self._decompress(coded[1:], len(target))
        else:
            raise IntegrityError(f"a zstd payload has mode {mode}, expected 0 or 1; the frame is damaged")

    def _encode_split(self, raw: memoryview, dtype: DType) -> bytes:
        mode = 0
        lengths: list[bytes] = []
        bodies: list[bytes | memoryview] = []
        workspace = self._workspace
        for index, plane in enumerate(planes.split(raw, dtype, workspace.scratch)):
            # Noise is found to be noise at 16 GB/s, so trying the mantissas too is nearly free, and pays
            # where many values are zero or came from a narrower type.
            coded = workspace.plane_compressor.compress(plane.data)
            if len(coded) + _PLANE_LENGTH.size < plane.nbytes:
                mode |= 1 << index
                lengths.append(_PLANE_LENGTH.pack(len(coded)))
                bodies.append(coded)
            else:
                bodies.append(plane.data)
        if mode == _MODE_STORED:
            return _stored(raw)
        return b"".join((bytes((mode,)), *lengths, *bodies))

    def _decode_split(self, coded: memoryview, dtype: DType, target: memoryview) -> None:
        mode = _mode(coded)
        if mode == _MODE_STORED:
            _store(coded[1:], target)
            return
        sizes = planes.plane_sizes(dtype, len(target))
        if mode >= 1 << len(sizes):
            raise IntegrityError(f"a split payload has mode {mode} for {len(sizes)} planes; it is damaged")
        packed = [bool(mode >> index & 1) for index in range(len(sizes))]
        start = 1 + _PLANE_LENGTH.size * sum(packed)
        if len(coded) < start:
            raise IntegrityError("a split payload ends inside its header; the frame is damaged")
        stated = _PLANE_LENGTH.iter_unpack(coded[1:start])
        lengths = [
            next(stated)[0] if is_packed else size for is_packed, size in zip(packed, sizes, strict=True)
        ]
        _expect_length(coded, start + sum(lengths))
        parts: list[planes.Bytes] = []
        for is_packed, size, length in zip(packed, sizes, lengths, strict=True):
            body: Buffer = coded[start : start + length]
            parts.append(np.frombuffer(self._decompress(body, size) if is_packed else body, np.uint8))
            start += length
        planes.merge(tuple(parts), target, dtype, self._workspace.scratch)

    def _decompress(self, frame: Buffer, size: int) -> bytes:
        """The content of one zstd frame, which must state and have exactly `size` bytes.

        The header is read first, because zstandard allocates what it states whatever `max_output_size` says.
        """
        try:
            stated = zstandard.get_frame_parameters(frame)
            if stated.content_size > size:  # "unknown" is the largest number there is
                unknown = stated.content_size == zstandard.CONTENTSIZE_UNKNOWN
                length = "an unstated number of" if unknown else f"{stated.content_size}"
                raise IntegrityError(
                    f"a compressed frame would become {length} bytes where {size} are announced; refused",
                    reason="DECOMPRESSION_BOMB",
                )
            if stated.content_size < size or stated.window_size > max(size, _SMALLEST_WINDOW_BYTES):
                raise IntegrityError(
                    f"a compressed frame states {stated.content_size} bytes and a window of "
                    f"{stated.window_size} where {size} bytes are announced; the frame is damaged"
                )
            decompressor = self._workspace.decompressor
            content = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise IntegrityError(
                f"a compressed frame does not decompress ({error}); it is damaged"
            ) from error
        if len(content) != size:
            raise IntegrityError(
                f"a compressed frame became {len(content)} bytes instead of {size}; it is damaged"
            )
        return content


def encode(codec: CodecId, data: Buffer, dtype: DType, *, refuse_non_finite: bool = False) -> bytes:
    """`CodecContext.encode` for one frame now and then; hold a context where frames come in numbers."""
    return CodecContext().encode(codec, data, dtype, refuse_non_finite=refuse_non_finite)


def decode_into(codec: CodecId, payload: Buffer, dtype: DType, out: memoryview) -> None:
    """`CodecContext.decode_into` for one frame now and then; hold a context where frames come in numbers."""
    CodecContext().decode_into(codec, payload, dtype, out)


def _check(codec: CodecId, dtype: DType, raw_bytes: int) -> None:
    known = CODECS.get(codec)
    if known is None:
        valid = ", ".join(f"{member.codec_id:d} ({member.name})" for member in CODECS.values())
        raise InvalidInputError(f"there is no codec {int(codec)}; use one of {valid}")
    if dtype not in known.dtypes:
        takes = ", ".join(member.name.lower() for member in sorted(known.dtypes))
        raise InvalidInputError(
            f"codec {known.name} does not take {dtype.name.lower()}; it takes {takes}",
            reason="DTYPE_MISMATCH",
        )
    if raw_bytes % dtype.itemsize:
        raise InvalidInputError(
            f"{raw_bytes} bytes are no whole number of {dtype.name.lower()} values; "
            "cut frames between values",
            reason="DTYPE_MISMATCH",
        )
    if raw_bytes > MAX_FRAME_RAW_BYTES:
        raise InvalidInputError(
            f"a frame of {raw_bytes} raw bytes is over the limit of {MAX_FRAME_RAW_BYTES}; cut it smaller",
            reason="LIMIT_EXCEEDED",
        )


def _mode(coded: memoryview) -> int:
    if not coded:
        raise IntegrityError("the payload is empty, expected at least its mode byte; the frame is damaged")
    return coded[0]


def _stored(raw: memoryview) -> bytes:
    return b"".join((b"\x00", raw))


def _store(stored: memoryview, target: memoryview) -> None:
    _expect_length(stored, len(target))
    target[:] = stored


def _expect_length(payload: memoryview, size: int) -> None:
    """Refuse a payload that is not `size` bytes; a longer one would also become longer than announced."""
    if len(payload) != size:
        raise IntegrityError(
            f"a payload has {len(payload)} bytes where {size} belong to the announced length; it is damaged",
            reason="DECOMPRESSION_BOMB" if len(payload) > size else "INTEGRITY",
        )
