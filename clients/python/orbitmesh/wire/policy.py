"""`auto`: which codec makes a transfer arrive soonest, from the link's measured rate and the codecs' measured
rates.

A transfer is a pipeline of three stages per frame, encode, link and decode, which work on different frames at
once. With n frames of equal size the last one arrives after

    T = (encode + link + decode) of one frame + (n - 1) * the slowest of the three

(the makespan of a permutation flow shop with identical jobs; for a long transfer the time per raw byte tends
to max(1/R_encode, ratio/B_link, 1/R_decode)). Each stage pays a fixed cost per call as well, which is all
that matters for a few hundred bytes. The codec with the least T wins, and the plainer one wins a near tie.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from orbitmesh.errors import InvalidInputError
from orbitmesh.wire import casts
from orbitmesh.wire.catalog import CODECS, CodecId
from orbitmesh.wire.codecs import CodecContext
from orbitmesh.wire.tensors import DType

FRAME_BYTES = 1024**2
"""Raw bytes per frame that the model assumes; the size of the mesh's own frames."""
TIE_SHARE = 0.02
"""A codec must be better by this share to displace a plainer one: less is within the measurements' noise."""
EWMA_WEIGHT = 0.2
"""Weight of one new observation against all older ones."""
RATE_SAMPLE_MIN_BYTES = 64 * 1024
"""Smaller frames say nothing of a rate: their time is mostly the fixed cost of the call."""
RATIO_SAMPLE_MIN_BYTES = 4 * 1024
"""Smaller frames say nothing of a ratio: their size is mostly headers."""
CALIBRATION_MAX_S = 2.0
"""The longest that one calibration may run, in seconds, whatever its caller asks for."""
CALIBRATION_SEED = 2018
"""Seed of the calibration's data, so that two runs measure the same work."""

_LONG_TRANSFER_BYTES = 64 * FRAME_BYTES
_OVERHEAD_SAMPLE_VALUES = 16
_OVERHEAD_CALLS = 20


@dataclass(frozen=True)
class CodecRates:
    """What one codec costs and saves on one element type, on one core of this machine.

    Raises:
        InvalidInputError: A rate is not positive, or a ratio or an overhead is negative.
    """

    encode_bps: float
    """Raw bits encoded per second, beyond the fixed cost."""
    decode_bps: float
    """Raw bits decoded per second, beyond the fixed cost."""
    ratio: float
    """Coded size / raw size."""
    overhead_s: float
    """Fixed cost of one call, in seconds; paid by encoding and by decoding."""

    def __post_init__(self) -> None:
        if not (self.encode_bps > 0 and self.decode_bps > 0 and self.ratio >= 0 and self.overhead_s >= 0):
            raise InvalidInputError(f"{self} is impossible: rates are > 0, ratio and overhead >= 0")


def _rates(encode_mb_s: float, decode_mb_s: float, ratio: float, overhead_us: float) -> CodecRates:
    return CodecRates(encode_mb_s * 8e6, decode_mb_s * 8e6, ratio, overhead_us * 1e-6)


_SPLIT = _rates(1000, 2000, 0.84, 11)
_INT8_NARROW = _rates(800, 1000, 0.51, 12)
DEFAULT_RATES: Mapping[CodecId, CodecRates] = MappingProxyType(
    {
        CodecId.RAW: _rates(20_000, 20_000, 1.0, 1),
        CodecId.ZSTD: _rates(500, 1200, 0.92, 3),
        CodecId.EXPONENT_SPLIT_ZSTD: _SPLIT,
        CodecId.CAST_BFLOAT16: _rates(5000, 10_000, 0.5, 6),
        CodecId.CAST_FLOAT16: _rates(2000, 3000, 0.5, 4),
        CodecId.INT8_BLOCK: _INT8_NARROW,
    }
)
"""What is assumed before anything was measured: modest figures for floats, see bench/results/codecs.json."""
_DEFAULTS_BY_TYPE: Mapping[tuple[CodecId, DType], CodecRates] = MappingProxyType(
    {
        (CodecId.ZSTD, DType.BFLOAT16): _rates(500, 1200, 0.78, 3),
        (CodecId.ZSTD, DType.INT32): _rates(500, 1200, 0.5, 3),
        (CodecId.ZSTD, DType.INT64): _rates(500, 1200, 0.25, 3),
        (CodecId.EXPONENT_SPLIT_ZSTD, DType.BFLOAT16): replace(_SPLIT, ratio=0.67),
        (CodecId.INT8_BLOCK, DType.FLOAT32): replace(_INT8_NARROW, ratio=0.255),
    }
)


def default_rates(codec: CodecId, dtype: DType) -> CodecRates:
    """The rates assumed for a codec and type before anything was measured."""
    return _DEFAULTS_BY_TYPE.get((codec, dtype), DEFAULT_RATES[codec])


def lossless_codecs(dtype: DType) -> frozenset[CodecId]:
    """The codecs that `auto` may take for a type when nobody allowed a lossy one."""
    return frozenset(codec.codec_id for codec in CODECS.values() if codec.lossless and dtype in codec.dtypes)


def transfer_seconds(rates: CodecRates, link_rate_bps: float, raw_bytes: int) -> float:
    """The time in seconds until `raw_bytes` have crossed an idle link and are decoded, propagation left out.

    Args:
        rates: Those of the codec.
        link_rate_bps: What the link carries, in bits per second, > 0.
        raw_bytes: The size of the transfer before coding, in bytes.
    """
    frame_bits = 8 * min(raw_bytes, FRAME_BYTES)
    frames = max(1.0, raw_bytes / FRAME_BYTES)
    encode_s = rates.overhead_s + frame_bits / rates.encode_bps
    link_s = rates.ratio * frame_bits / link_rate_bps
    decode_s = rates.overhead_s + frame_bits / rates.decode_bps
    return encode_s + link_s + decode_s + (frames - 1) * max(encode_s, link_s, decode_s)


def choose(rates: Mapping[CodecId, CodecRates], link_rate_bps: float, raw_bytes: int) -> CodecId:
    """The codec of `rates` with the least `transfer_seconds`; among those within TIE_SHARE of it, the lowest
    id.

    Raises:
        InvalidInputError: `rates` is empty, or the link's rate is not positive.
    """
    if not rates:
        raise InvalidInputError("no codec is allowed for this transfer; allow at least raw")
    if not link_rate_bps > 0:
        raise InvalidInputError(f"a link rate of {link_rate_bps} bit/s is impossible; expected more than 0")
    seconds = {codec: transfer_seconds(rates[codec], link_rate_bps, raw_bytes) for codec in rates}
    limit = min(seconds.values()) * (1 + TIE_SHARE)
    return min(codec for codec, needed in seconds.items() if needed <= limit)


class CodecPolicy:
    """Chooses a codec per transfer to one peer and learns from what the transfers cost.

    Safe to use from several threads. What it remembers is bounded by the number of codecs times types.

    Args:
        measured: Rates from `calibrate`, per type; defaults stand in for what is missing.
    """

    def __init__(self, measured: Mapping[DType, Mapping[CodecId, CodecRates]] | None = None) -> None:
        self._rates: dict[tuple[CodecId, DType], CodecRates] = {
            (codec, dtype): rates
            for dtype, by_codec in (measured or {}).items()
            for codec, rates in by_codec.items()
        }
        self._lock = threading.Lock()

    def rates(self, codec: CodecId, dtype: DType) -> CodecRates:
        """What is believed of a codec and type now."""
        with self._lock:
            return self._rates.get((codec, dtype)) or default_rates(codec, dtype)

    def choose(
        self,
        dtype: DType,
        link_rate_bps: float,
        raw_bytes: int = _LONG_TRANSFER_BYTES,
        *,
        allowed: Collection[CodecId] | None = None,
    ) -> CodecId:
        """The codec that should make the transfer arrive soonest.

        Args:
            dtype: The type of the tensor's elements.
            link_rate_bps: The measured rate of the link, in bits per second.
            raw_bytes: The size of the transfer; a long one where it is left out.
            allowed: What caller and receiver accept; every lossless codec where it is left out. A lossy codec
                is taken only if it is named here.

        Raises:
            InvalidInputError: No allowed codec takes the type, or the link's rate is not positive.
        """
        candidates = lossless_codecs(dtype) if allowed is None else _that_take(dtype, allowed)
        return choose({codec: self.rates(codec, dtype) for codec in candidates}, link_rate_bps, raw_bytes)

    def observe(
        self,
        codec: CodecId,
        dtype: DType,
        raw_bytes: int,
        coded_bytes: int,
        *,
        encode_s: float | None = None,
        decode_s: float | None = None,
    ) -> None:
        """Learn from one frame; each side tells what it knows, and frames too small to tell anything are
        passed over.

        Args:
            codec: How the frame was coded.
            dtype: The type of its values.
            raw_bytes: Its size before coding.
            coded_bytes: Its size once coded.
            encode_s: How long encoding took, in seconds of one core.
            decode_s: How long decoding took, likewise.
        """
        if raw_bytes < RATIO_SAMPLE_MIN_BYTES:
            return
        with self._lock:
            old = self._rates.get((codec, dtype)) or default_rates(codec, dtype)
            new = replace(old, ratio=_blend(old.ratio, coded_bytes / raw_bytes))
            if raw_bytes >= RATE_SAMPLE_MIN_BYTES:
                if encode_s is not None:
                    new = replace(
                        new, encode_bps=_blend_rate(old.encode_bps, raw_bytes, encode_s, old.overhead_s)
                    )
                if decode_s is not None:
                    new = replace(
                        new, decode_bps=_blend_rate(old.decode_bps, raw_bytes, decode_s, old.overhead_s)
                    )
            self._rates[(codec, dtype)] = new


def calibrate(
    dtype: DType,
    seconds_budget: float,
    *,
    context: CodecContext | None = None,
    codecs: Iterable[CodecId] | None = None,
) -> Mapping[CodecId, CodecRates]:
    """Measure codecs on this machine, on weights drawn from N(0, 0.02) (integers: N(0, 20) rounded).

    Args:
        dtype: The type to measure with.
        seconds_budget: How long it may take, in seconds; cut to CALIBRATION_MAX_S. Every codec is measured at
            least once, so a tiny budget is overrun by a few milliseconds.
        context: The context that will do the work later; a new one where left out.
        codecs: What to measure; everything that takes the type where left out.

    Returns:
        The best rate seen per codec: interruptions by other work only ever make a run slower.

    Raises:
        InvalidInputError: None of the codecs takes the type, or the budget is not positive.
    """
    if not seconds_budget > 0:
        raise InvalidInputError(f"a calibration of {seconds_budget} seconds is impossible; give more than 0")
    context = context or CodecContext()
    wanted = _that_take(dtype, CODECS if codecs is None else codecs)
    budget_s = min(seconds_budget, CALIBRATION_MAX_S)
    frame = _sample(dtype, FRAME_BYTES // dtype.itemsize)
    share_s = budget_s / max(1, len(wanted))
    return {codec: _measure(context, codec, dtype, frame, share_s) for codec in sorted(wanted)}


def _measure(
    context: CodecContext, codec: CodecId, dtype: DType, frame: bytes, budget_s: float
) -> CodecRates:
    small = frame[: _OVERHEAD_SAMPLE_VALUES * dtype.itemsize]
    overheads = [sum(_time_once(context, codec, dtype, small)[:2]) / 2 for _ in range(_OVERHEAD_CALLS)]
    overhead_s = min(overheads)
    end = time.perf_counter() + budget_s
    encode_s = decode_s = float("inf")
    while True:
        one_encode_s, one_decode_s, coded_bytes = _time_once(context, codec, dtype, frame)
        encode_s, decode_s = min(encode_s, one_encode_s), min(decode_s, one_decode_s)
        if time.perf_counter() >= end:
            break
    return CodecRates(
        encode_bps=_rate_bps(len(frame), encode_s, overhead_s),
        decode_bps=_rate_bps(len(frame), decode_s, overhead_s),
        ratio=coded_bytes / len(frame),
        overhead_s=overhead_s,
    )


def _time_once(context: CodecContext, codec: CodecId, dtype: DType, raw: bytes) -> tuple[float, float, int]:
    out = memoryview(bytearray(len(raw)))
    started = time.perf_counter()
    # A view, because what comes from a tensor is one, and `bytes` would let raw skip its copy.
    payload = context.encode(codec, memoryview(raw), dtype)
    encoded = time.perf_counter()
    context.decode_into(codec, payload, dtype, out)
    return encoded - started, time.perf_counter() - encoded, len(payload)


def _sample(dtype: DType, count: int) -> bytes:
    values = np.random.default_rng(CALIBRATION_SEED).standard_normal(count, dtype=np.float32)
    match dtype:
        case DType.BFLOAT16:
            return casts.float32_to_bfloat16((values * np.float32(0.02)).data.cast("B"))
        case DType.FLOAT32 | DType.FLOAT16 | DType.FLOAT64:
            return (values * np.float32(0.02)).astype(f"f{dtype.itemsize}").tobytes()
        case DType.BOOL:
            return (values > 0).tobytes()
        case DType.UINT8:
            return np.abs(np.rint(values * 20)).astype(np.uint8).tobytes()
        case _:
            return np.rint(values * 20).astype(f"i{dtype.itemsize}").tobytes()


def _that_take(dtype: DType, codecs: Iterable[CodecId]) -> frozenset[CodecId]:
    """The codecs among `codecs` that take the type; it is an error if there are some and none does."""
    given = frozenset(codecs)
    fitting = frozenset(codec for codec in given if codec in CODECS and dtype in CODECS[codec].dtypes)
    if given and not fitting:
        names = ", ".join(codec.name.lower() for codec in sorted(given))
        raise InvalidInputError(
            f"none of the allowed codecs ({names}) takes {dtype.name.lower()}; allow raw as well",
            reason="DTYPE_MISMATCH",
        )
    return fitting


def _rate_bps(raw_bytes: int, seconds: float, overhead_s: float) -> float:
    """Bits per second beyond the fixed cost; at most four times the plain quotient, whatever the noise."""
    return 8 * raw_bytes / max(seconds - overhead_s, seconds / 4, 1e-9)


def _blend(old: float, new: float) -> float:
    return old + EWMA_WEIGHT * (new - old)


def _blend_rate(old_bps: float, raw_bytes: int, seconds: float, overhead_s: float) -> float:
    # Times are averaged, not rates: one absurdly quick reading then moves the result by at most its weight.
    return 1 / _blend(1 / old_bps, 1 / _rate_bps(raw_bytes, seconds, overhead_s))
