"""The catalogue of codecs: their numbers, names and promises.

Apart from `codecs`, which does the work, so that a client can name and check codecs without numpy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from orbitmesh.errors import InvalidInputError
from orbitmesh.wire.tensors import DType


class CodecId(enum.IntEnum):
    """The codec of a transfer; the numbers are those of the protobuf enum."""

    UNSPECIFIED = 0
    RAW = 1
    ZSTD = 2
    EXPONENT_SPLIT_ZSTD = 3
    CAST_BFLOAT16 = 4
    CAST_FLOAT16 = 5
    INT8_BLOCK = 6


@dataclass(frozen=True)
class Codec:
    """What one codec promises."""

    codec_id: CodecId
    """Its number on the wire."""
    name: str
    """The name that callers use."""
    lossless: bool
    """True where every bit comes back."""
    fixed_rate: bool
    """True where the coded size depends on the raw size alone and so says nothing about the values."""
    error_bound: str
    """The bound on the error of one value, x as sent and y as received, in Markdown."""
    dtypes: frozenset[DType]
    """The element types it takes."""
    chosen_when: str
    """When `auto` takes it, in words."""


_SPLIT_DTYPES = frozenset({DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32})
_ALL_DTYPES = frozenset(dtype for dtype in DType if dtype is not DType.UNSPECIFIED)

CODECS: Mapping[CodecId, Codec] = MappingProxyType(
    {
        codec.codec_id: codec
        for codec in (
            Codec(
                CodecId.RAW,
                "raw",
                lossless=True,
                fixed_rate=True,
                error_bound="none: every bit comes back",
                dtypes=_ALL_DTYPES,
                chosen_when="the link is faster than encoding, or the payload is so small that the call "
                "costs more than the bytes it saves",
            ),
            Codec(
                CodecId.ZSTD,
                "zstd",
                lossless=True,
                fixed_rate=False,
                error_bound="none: every bit comes back",
                dtypes=_ALL_DTYPES,
                chosen_when="integers and masks on a slow link; floats only where repetition makes it "
                "beat the split",
            ),
            Codec(
                CodecId.EXPONENT_SPLIT_ZSTD,
                "exponent-split-zstd",
                lossless=True,
                fixed_rate=False,
                error_bound="none: every bit comes back (NaN payloads, -0 and denormals too)",
                dtypes=_SPLIT_DTYPES,
                chosen_when="floats on every link slower than encoding",
            ),
            Codec(
                CodecId.CAST_BFLOAT16,
                "cast-bfloat16",
                lossless=False,
                fixed_rate=True,
                error_bound="abs(x - y) <= max(2^-8 abs(x), 2^-134); "
                "abs(x) >= (2 - 2^-8) 2^127 becomes infinite; NaN stays NaN",
                dtypes=frozenset({DType.FLOAT32}),
                chosen_when="only where the caller allows it",
            ),
            Codec(
                CodecId.CAST_FLOAT16,
                "cast-float16",
                lossless=False,
                fixed_rate=True,
                error_bound="abs(x - y) <= max(2^-11 abs(x), 2^-25); abs(x) >= 65520 becomes infinite; "
                "NaN stays NaN",
                dtypes=frozenset({DType.FLOAT32}),
                chosen_when="only where the caller allows it",
            ),
            Codec(
                CodecId.INT8_BLOCK,
                "int8-block",
                lossless=False,
                fixed_rate=True,
                error_bound="abs(x - y) <= max(m / 254, 2^-127) (1 + 2^-14), m the largest magnitude in the "
                "value's block of 256; for bf16 and fp16 plus the rounding of their cast; NaN and "
                "infinity are refused",
                dtypes=_SPLIT_DTYPES,
                chosen_when="only where the caller allows it",
            ),
        )
    }
)
"""Every codec by its id."""


def codec_by_name(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        InvalidInputError: There is none; the message lists those there are.
    """
    for codec in CODECS.values():
        if codec.name == name:
            return codec
    valid = ", ".join(codec.name for codec in CODECS.values())
    raise InvalidInputError(f"there is no codec {name!r}; use one of {valid}, or auto")


def codec_table() -> str:
    """The table of codecs as Markdown; docs/codecs.md holds exactly this text."""
    rows = ["| codec | lossless | bound on the error (x sent, y received) | dtypes | when `auto` takes it |"]
    rows.append("|---|---|---|---|---|")
    for codec in CODECS.values():
        names = ", ".join(dtype.name.lower() for dtype in sorted(codec.dtypes))
        dtypes = "all" if codec.dtypes == _ALL_DTYPES else names
        lossless = "yes" if codec.lossless else "no"
        rows.append(f"| `{codec.name}` | {lossless} | {codec.error_bound} | {dtypes} | {codec.chosen_when} |")
    return "\n".join(rows) + "\n"
