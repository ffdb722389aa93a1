"""What the codecs cost and save on one core: size, encoding and decoding rate, per element type and kind of
data.

    python bench/codecs.py            a table
    python bench/codecs.py --json     the same for machines

Every round runs every variant once, in an order shuffled anew, so that whatever else the machine does falls
on all of them alike. Figures are medians over the rounds with the least and the greatest beside them, in MB
(10^6 bytes) of raw data per second. The result is also written to bench/results/codecs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from orbitmesh.wire import casts, planes
from orbitmesh.wire.codecs import CODECS, CodecContext, CodecId
from orbitmesh.wire.tensors import DType

RESULTS = Path(__file__).resolve().parent / "results" / "codecs.json"
FRAME_BYTES = 1024**2
SEED = 20
TARGET_RATIO = 0.69
"""What exponent-split-zstd may take of bf16 weights at most."""
TARGET_ENCODE_MB_S = 400.0
"""How fast it has to be at least, in MB of raw data per second of one core."""


@dataclass(frozen=True)
class Variant:
    """One way to code one frame."""

    name: str
    """The codec's name, or that of a peer it is compared with."""
    data: str
    """The kind of data."""
    dtype: DType
    """The type of the values."""
    raw: bytes
    """The frame."""
    encode: Callable[[bytes], bytes]
    """Codes the frame."""
    decode: Callable[[bytes], object]
    """Undoes it."""


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    """The median."""
    min: float
    """The least."""
    max: float
    """The greatest."""


@dataclass(frozen=True)
class Row:
    """What one variant reached."""

    codec: str
    """The variant's name."""
    data: str
    """The kind of data."""
    dtype: str
    """The type of the values."""
    ratio: float
    """Coded size / raw size."""
    encode_mb_s: Spread
    """MB of raw data encoded per second."""
    decode_mb_s: Spread
    """MB of raw data decoded per second."""


def bf16(values: npt.NDArray[np.float32]) -> bytes:
    """The values as bf16."""
    return casts.float32_to_bfloat16(values.data.cast("B"))


def frames() -> list[tuple[str, DType, bytes]]:
    """The data: weights of each type, activations behind a ReLU, fp32 that was bf16, token ids, noise."""
    rng = np.random.default_rng(SEED)
    weights = rng.standard_normal(FRAME_BYTES // 2, dtype=np.float32) * np.float32(0.02)
    half = weights[: FRAME_BYTES // 4]
    widened = np.empty(half.nbytes, np.uint8)
    casts.bfloat16_to_float32(memoryview(bf16(half)), widened.data)
    return [
        ("weights N(0, 0.02)", DType.BFLOAT16, bf16(weights)),
        ("weights N(0, 0.02)", DType.FLOAT16, weights.astype(np.float16).tobytes()),
        ("weights N(0, 0.02)", DType.FLOAT32, half.tobytes()),
        ("ReLU activations", DType.BFLOAT16, bf16(np.maximum(weights, np.float32(0)))),
        ("fp32 that was bf16", DType.FLOAT32, widened.tobytes()),
        ("token ids below 32000", DType.INT64, rng.integers(0, 32_000, FRAME_BYTES // 8).tobytes()),
        ("noise", DType.BFLOAT16, rng.bytes(FRAME_BYTES)),
    ]


def ours(context: CodecContext, codec: CodecId, data: str, dtype: DType, raw: bytes) -> Variant:
    """A codec of the mesh, decoding into memory that is there already, as a transfer does."""
    out = memoryview(bytearray(len(raw)))
    return Variant(
        CODECS[codec].name,
        data,
        dtype,
        raw,
        # A view, as from a tensor: `bytes` would let raw skip its copy.
        lambda frame: context.encode(codec, memoryview(frame), dtype),
        lambda payload: context.decode_into(codec, payload, dtype, out),
    )


def plain_level(level: int, data: str, dtype: DType, raw: bytes) -> Variant:
    """The peer: the same split with zstd's own settings for a level on the exponents."""
    compressor = zstandard.ZstdCompressor(level=level)
    decompressor = zstandard.ZstdDecompressor()
    scratch = planes.Scratch()
    out = memoryview(bytearray(len(raw)))

    def encode(frame: bytes) -> bytes:
        exponents, *rest = planes.split(memoryview(frame), dtype, scratch)
        return b"".join((compressor.compress(exponents.data), *(plane.data for plane in rest)))

    def decode(payload: bytes) -> None:
        sizes = planes.plane_sizes(dtype, len(raw))
        body = memoryview(payload)
        head = len(payload) - sum(sizes[1:])
        parts = [np.frombuffer(decompressor.decompress(body[:head]), np.uint8)]
        for size in sizes[1:]:
            parts.append(np.frombuffer(body[head : head + size], np.uint8))
            head += size
        planes.merge(tuple(parts), out, dtype, scratch)

    return Variant(f"split, plain zstd-{level}", data, dtype, raw, encode, decode)


def variants() -> list[Variant]:
    """Every codec on every frame it takes, and the plain levels on bf16 weights."""
    context = CodecContext()
    found: list[Variant] = []
    for data, dtype, raw in frames():
        for codec in CODECS.values():
            refused = codec.codec_id is CodecId.INT8_BLOCK and data == "noise"  # it holds NaN
            if dtype in codec.dtypes and not refused:
                found.append(ours(context, codec.codec_id, data, dtype, raw))
        if dtype is DType.BFLOAT16 and data.startswith("weights"):
            found += [plain_level(level, data, dtype, raw) for level in (1, 3)]
    return found


def spread(values: list[float]) -> Spread:
    """The figures of all rounds as one."""
    return Spread(round(statistics.median(values), 1), round(min(values), 1), round(max(values), 1))


def measure(rounds: int) -> list[Row]:
    """One row per variant."""
    runs = variants()
    encode_mb_s: dict[int, list[float]] = {index: [] for index in range(len(runs))}
    decode_mb_s: dict[int, list[float]] = {index: [] for index in range(len(runs))}
    sizes = {index: len(run.encode(run.raw)) for index, run in enumerate(runs)}
    order = list(range(len(runs)))
    shuffle = random.Random(SEED)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for index in order:
            run = runs[index]
            started = time.perf_counter()
            payload = run.encode(run.raw)
            encoded = time.perf_counter()
            run.decode(payload)
            ended = time.perf_counter()
            encode_mb_s[index].append(len(run.raw) / 1e6 / (encoded - started))
            decode_mb_s[index].append(len(run.raw) / 1e6 / (ended - encoded))
    return [
        Row(
            run.name,
            run.data,
            run.dtype.name.lower(),
            round(sizes[index] / len(run.raw), 4),
            spread(encode_mb_s[index]),
            spread(decode_mb_s[index]),
        )
        for index, run in enumerate(runs)
    ]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1]
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }


def target_met(rows: list[Row]) -> tuple[Row, bool]:
    """The row that the target is about, and whether it reaches it."""
    row = next(row for row in rows if (row.codec, row.dtype) == ("exponent-split-zstd", "bfloat16"))
    return row, row.ratio <= TARGET_RATIO and row.encode_mb_s.median >= TARGET_ENCODE_MB_S


def print_table(rows: list[Row]) -> None:
    """The rows for people."""
    print(f"{'data':<23}{'dtype':<10}{'codec':<22}{'ratio':>7}  {'encode MB/s':>22}  {'decode MB/s':>22}")
    for row in rows:
        rates = [
            f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})".rjust(22)
            for rate in (row.encode_mb_s, row.decode_mb_s)
        ]
        print(f"{row.data:<23}{row.dtype:<10}{row.codec:<22}{row.ratio:>7.3f}  {'  '.join(rates)}")
    row, met = target_met(rows)
    print(
        f"\nexponent-split-zstd on bf16 weights: ratio {row.ratio:.3f} (at most {TARGET_RATIO}), "
        f"{row.encode_mb_s.median:.0f} MB/s (at least {TARGET_ENCODE_MB_S:.0f}): {'met' if met else 'missed'}"
    )


def main() -> int:
    """Run, write and print; the status says whether the target was met."""
    parser = argparse.ArgumentParser(description="Size and speed of the codecs, on one core.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--rounds", type=int, default=41, help="how often each variant runs (default: 41)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result is written")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    facts = machine()
    rows = measure(options.rounds)
    row, met = target_met(rows)
    result = {
        "command": " ".join(["python", "bench/codecs.py", *sys.argv[1:]]),
        "machine": facts,
        "frame_bytes": FRAME_BYTES,
        "rounds": options.rounds,
        "target": {
            "what": "exponent-split-zstd on bf16 weights",
            "ratio_max": TARGET_RATIO,
            "ratio": row.ratio,
            "encode_mb_s_min": TARGET_ENCODE_MB_S,
            "encode_mb_s": row.encode_mb_s.median,
            "met": met,
        },
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(result, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    else:
        print_table(rows)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
