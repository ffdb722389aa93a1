"""What an update takes in each scheme, and how fast it is encoded and decoded on one core.

    python bench/update_codecs.py            a table
    python bench/update_codecs.py --json     the same for machines

Two updates: of the 56,970 parameters of the small CNN and of a million, both heavy-tailed (Laplace) as the updates of a
few local epochs are. Rounding is stochastic. Every round runs every scheme once, in an order shuffled anew, so that
whatever else the machine does falls on all of them alike. Rates are medians over the rounds with the least and the
greatest beside them, in MB (10^6 bytes) of the fp32 update per second; encoding includes what the sender keeps as
decoded for its error feedback. `error` is |update - decoded| / |update|, of one round: with error feedback what is
left out follows later. The result is also written to bench/results/update_codecs.json.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.updates.codec import decode_span, encode  # noqa: E402
from services.updates.scheme import Scheme  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "update_codecs.json"
SCHEMES = [
    *("fp32", "fp16", "int8", "int4"),
    *("topk:0.01", "topk:0.01+fp16", "topk:0.01+int4", "topk:0.1"),
    *("blocks:0.25", "blocks:0.25+int4", "blocks:0.1"),
]
CNN_VALUES = 56_970
SIZES = [CNN_VALUES, 1_000_000]
SEED = 20
ROUND_INDEX = 5
TARGET_SCHEME = "topk:0.01"
TARGET_RATIO = 196.0
"""How many times fewer bytes than fp32 the CNN's update takes at least in that scheme: 1.16 kB of 227.9 kB."""


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
    """What one scheme reached on one update."""

    scheme: str
    """The scheme."""
    values: int
    """Values of the update."""
    wire_bytes: int
    """Bytes of all its spans."""
    bytes_per_value: float
    """The same per value."""
    ratio: float
    """Bytes of the update as fp32 / bytes of its spans."""
    error: float
    """|update - decoded| / |update|."""
    encode_mb_s: Spread
    """MB of fp32 encoded per second."""
    decode_mb_s: Spread
    """MB of fp32 decoded per second."""


@dataclass(frozen=True)
class Run:
    """One pass of one scheme over one update."""

    wire_bytes: int
    """Bytes of all spans."""
    error: float
    """|update - decoded| / |update|."""
    encode_s: float
    """Seconds to encode."""
    decode_s: float
    """Seconds to decode."""


def once(scheme: Scheme, values: npt.NDArray[np.float32], seed: int) -> Run:
    """Encodes and decodes an update."""
    started = time.perf_counter()
    encoded = encode(scheme, values, round_index=ROUND_INDEX, rng=np.random.default_rng(seed))
    spans = list(encoded.spans())
    ended = time.perf_counter()
    received = [decode_span(scheme, data, span, values.size, round_index=ROUND_INDEX) for span, data in spans]
    decoded = time.perf_counter()
    error = np.linalg.norm(values - np.concatenate(received)) / np.linalg.norm(values)
    return Run(sum(len(data) for _, data in spans), float(error), ended - started, decoded - ended)


def rate(values: int, seconds: list[float]) -> Spread:
    """The rates of all rounds as one figure."""
    rates = [4 * values / 1e6 / second for second in seconds]
    return Spread(round(statistics.median(rates), 1), round(min(rates), 1), round(max(rates), 1))


def measure(rounds: int) -> list[Row]:
    """One row per scheme and update."""
    rng = np.random.default_rng(SEED)
    updates = {size: (rng.laplace(size=size) * 1e-3).astype(np.float32) for size in SIZES}
    runs: dict[tuple[int, str], list[Run]] = {(size, text): [] for size in SIZES for text in SCHEMES}
    order = list(runs)
    shuffle = random.Random(SEED)
    for seed in range(rounds):
        shuffle.shuffle(order)
        for size, text in order:
            runs[size, text].append(once(Scheme.parse(text), updates[size], seed))
    rows = []
    for (size, text), found in runs.items():
        wire_bytes = max(run.wire_bytes for run in found)
        rows.append(
            Row(
                text,
                size,
                wire_bytes,
                round(wire_bytes / size, 4),
                round(4 * size / wire_bytes, 1),
                round(statistics.median(run.error for run in found), 4),
                rate(size, [run.encode_s for run in found]),
                rate(size, [run.decode_s for run in found]),
            )
        )
    return rows


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
    }


def target_met(rows: list[Row]) -> tuple[Row, bool]:
    """The row that the target is about, and whether it reaches it."""
    row = next(row for row in rows if (row.scheme, row.values) == (TARGET_SCHEME, CNN_VALUES))
    return row, row.ratio >= TARGET_RATIO


def print_table(rows: list[Row]) -> None:
    """The rows for people."""
    head = f"{'values':>9}  {'scheme':<18}{'bytes':>9}{'B/value':>9}{'ratio':>8}{'error':>8}"
    print(f"{head}  {'encode MB/s':>19}  {'decode MB/s':>19}")
    for row in rows:
        rates = [
            f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})".rjust(19)
            for rate in (row.encode_mb_s, row.decode_mb_s)
        ]
        print(
            f"{row.values:>9,}  {row.scheme:<18}{row.wire_bytes:>9,}{row.bytes_per_value:>9.4f}{row.ratio:>8.1f}"
            f"{row.error:>8.4f}  {'  '.join(rates)}"
        )
    row, met = target_met(rows)
    print(
        f"\n{TARGET_SCHEME} of {CNN_VALUES:,} values: {row.wire_bytes:,} bytes, {row.ratio:.0f} times fewer than fp32 "
        f"(at least {TARGET_RATIO:.0f}): {'met' if met else 'missed'}"
    )


def main() -> int:
    """Run, write and print; the status says whether the target was met."""
    parser = argparse.ArgumentParser(description="Size and speed of encoded updates, on one core.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--rounds", type=int, default=41, help="how often each scheme runs (default: 41)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result is written")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    facts = machine()
    rows = measure(options.rounds)
    row, met = target_met(rows)
    result = {
        "command": " ".join(["python", "bench/update_codecs.py", *sys.argv[1:]]),
        "machine": facts,
        "rounds": options.rounds,
        "target": {
            "what": f"{TARGET_SCHEME} of {CNN_VALUES} values",
            "ratio_min": TARGET_RATIO,
            "ratio": row.ratio,
            "wire_bytes": row.wire_bytes,
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
