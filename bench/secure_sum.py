"""What a secure sum costs: milliseconds per node and at the aggregator, bytes per parameter.

    python bench/secure_sum.py            a table
    python bench/secure_sum.py --json     the same for machines

100,000 parameters as int8, so words of 8 + ceil(log2 n) bits; the threshold is two thirds and one. Per round, in CPU
milliseconds of the process (the machine may be shared), medians with the least and the greatest over the rounds:

- node, contribute: the masks' seeds (a key agreement per peer), masking and packing all spans;
- node, answer: its shares for the unmasking;
- aggregator, take: unpacking and adding all contributions;
- aggregator, unmask: putting secrets together, making the remaining masks, taking them away; once with everybody there
  and once with as many vanished before sending as the threshold allows.

The set-up's share is told apart: an offer for 8 rounds (made by one node, taken by one node from all). The plain sum is
compared with every result. The results are also written to bench/results/secure_sum.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from orbitmesh.trust import Identity, Role, init_mesh, issue, load_identity

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.securesum import SumCollector, SumNode, default_threshold, spans_of, to_words, word_bits  # noqa: E402
from services.securesum.packing import packed_bytes  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "secure_sum.json"
VALUES = 100_000
LARGEST = 127
NODES = (8, 32, 128)
OFFER_ROUNDS = 8
T = TypeVar("T")
Times = dict[str, list[float]]


class Clock:
    """CPU milliseconds of this process, by what they were spent on."""

    def __init__(self) -> None:
        self.times: Times = {}

    def __call__(self, what: str, work: Callable[[], T]) -> T:
        """Does the work and notes what it took."""
        started = time.process_time_ns()
        result = work()
        self.times.setdefault(what, []).append((time.process_time_ns() - started) / 1e6)
        return result


def set_up(
    people: dict[str, Identity], clock: Clock
) -> tuple[SumCollector, dict[str, SumNode], int]:
    """A run with an offer of every node; the size of one with all its boxes, in bytes."""
    now, ca = datetime.now(UTC), next(iter(people.values())).ca
    nodes = {name: SumNode.create(name, "bench", os.urandom) for name in people}
    collector = SumCollector("bench")
    for name, node in nodes.items():
        collector.add_key(node.key(people[name], now), ca, now)
    roster = collector.close_roster(ca, now)
    for node in nodes.values():
        node.join(roster, ca, now)
    size = 0
    for name, node in nodes.items():
        message = clock("node_offer", lambda n=node, p=people[name]: n.offer(p, 0, os.urandom, now, OFFER_ROUNDS))
        size = len(message.to_bytes())
        collector.add_offer(message, ca, now)

    def take(node: SumNode) -> None:
        for relayed in collector.relay(node.name, node.held_offers()):
            node.take_offer(relayed.signed, relayed.box, ca, now)

    for node in nodes.values():
        clock("node_take_offers", lambda n=node: take(n))
    return collector, nodes, size


def one_round(collector: SumCollector, nodes: dict[str, SumNode], index: int, vanished: int, clock: Clock) -> None:
    """A round of which the last `vanished` nodes send nothing; checks the sum."""
    names = sorted(nodes)
    bits = word_bits(LARGEST, len(names))
    rng = np.random.default_rng(index)
    round_sum = collector.begin_round(index, names, spans_of(VALUES), bits)
    senders = names[: len(names) - vanished]
    expected = np.zeros(VALUES, np.int64)

    def contribute(node: SumNode, values: np.ndarray) -> tuple[bytes, list[bytes]]:
        masker = node.contribute(round_sum.plan, bytes(32))
        edges = np.cumsum([0, *round_sum.plan.spans])
        spans = [
            masker.mask(span, to_words(values[edges[span] : edges[span + 1]], LARGEST, bits))
            for span in range(len(round_sum.plan.spans))
        ]
        return masker.context, spans

    taking = 0.0
    for name in senders:
        values = rng.integers(-LARGEST, LARGEST + 1, VALUES)
        expected += values
        context, spans = clock("node_contribute", lambda n=nodes[name], v=values: contribute(n, v))
        started = time.process_time_ns()
        for span, data in enumerate(spans):
            round_sum.take_span(name, context, span, data)
        taking += (time.process_time_ns() - started) / 1e6
    kind = "gone" if vanished else "all"
    clock.times.setdefault(f"aggregator_take_{kind}", []).append(taking)
    request = round_sum.close()
    answers = [clock("node_answer", lambda n=nodes[name]: n.unmask(request)) for name in senders]
    for answer in answers[: collector.roster.threshold if collector.roster else 0]:
        round_sum.take_answer(answer)
    found = clock(f"aggregator_unmask_{kind}", lambda: np.concatenate(list(round_sum.sums())))
    if not np.array_equal(found, expected):
        raise AssertionError(f"the secure sum of {len(senders)} nodes is not the plain sum")


def measure(count: int, rounds: int, directory: Path) -> dict[str, Any]:
    """All figures for one number of nodes."""
    init_mesh(directory / "ca")
    people = {}
    for index in range(count):
        name = f"sat-{index:03d}"
        issue(directory / "ca", Role.EXECUTOR, name, directory / name)
        people[name] = load_identity(directory / name)
    clock = Clock()
    collector, nodes, offer_bytes = set_up(people, clock)
    threshold, bits = default_threshold(count), word_bits(LARGEST, count)
    for index in range(rounds):
        one_round(collector, nodes, 2 * index, 0, clock)
        one_round(collector, nodes, 2 * index + 1, count - threshold, clock)
    row: dict[str, Any] = {
        "nodes": count,
        "threshold": threshold,
        "vanished": count - threshold,
        "values": VALUES,
        "word_bits": bits,
        "masked_bytes_per_value": sum(packed_bytes(size, bits) for size in spans_of(VALUES)) / VALUES,
        "offer_bytes_per_round": offer_bytes / OFFER_ROUNDS,
        "answer_bytes": 36 * count,
    }
    for what, times in clock.times.items():
        row[f"{what}_cpu_ms"] = {
            "median": statistics.median(times), "least": min(times), "greatest": max(times), "samples": len(times)
        }
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    keys = [key for key in rows[0] if key.endswith("_cpu_ms")]
    lines = [f"{'':34}" + "".join(f"{'n = ' + str(row['nodes']):>24}" for row in rows)]
    for key in keys:
        cells = [row[key] for row in rows]
        text = "".join(f"{c['median']:10.2f} ({c['least']:.2f}-{c['greatest']:.2f})".rjust(24) for c in cells)
        lines.append(f"{key.removesuffix('_cpu_ms').replace('_', ' ') + ', ms':34}" + text)
    plain = ("threshold", "vanished", "word_bits", "masked_bytes_per_value", "offer_bytes_per_round", "answer_bytes")
    lines += [f"{key.replace('_', ' '):34}" + "".join(f"{row[key]:>24g}" for row in rows) for key in plain]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, OFFER_ROUNDS // 2 + 1), metavar="N")
    args = parser.parse_args()
    rows = []
    for count in NODES:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(measure(count, args.rounds, Path(directory)))
    result = {"python": platform.python_version(), "cpus": os.cpu_count(), "numpy": np.__version__, "results": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2) if args.json else table(rows))


if __name__ == "__main__":
    main()
