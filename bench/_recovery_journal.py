"""What the journal of sent rows costs: one append in microseconds, and answers with and without it.

Part of `bench/recovery.py`. Nothing is added to the product for this: the side without a journal runs with a
`sitecustomize` on its path that makes `RowJournal.append` do nothing; the other side has the same file, told to leave
it alone. Both meshes are up at once and answer in turns. Every stage but the last appends one row per token, so a
token's share is (stages - 1) appends over the token time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _recovery_mesh import listen, summary
from generate import random_llama

from orbitmesh import Mesh
from services.journal.rows import JournalRoom, RowJournal

STAGES = 3
TOKENS = 64
WARM_UP = 16
FLOATS = (256, 768, 4096)
FLOAT_BYTES = 4
SHIPPED_WIDTH = 192
APPENDS = 2000
ROOM_BYTES = 1 << 30
GOAL_PERCENT = 2.0
SWITCH = "ORBITMESH_BENCH_JOURNAL"
PATCH = f"""import os
import services.journal.rows as rows
if os.environ.get("{SWITCH}") == "off":
    rows.RowJournal.append = lambda self, position, data: None
"""

Tell = Callable[[str], None]


def append_us(floats: int) -> float:
    """The median time of appending one row to a journal that grows to an answer of `APPENDS` tokens, microseconds."""
    row = memoryview(os.urandom(floats * FLOAT_BYTES))
    journal = RowJournal(len(row), JournalRoom(ROOM_BYTES))
    times = []
    for position in range(APPENDS):
        began_ns = time.perf_counter_ns()
        journal.append(position, row)
        times.append(time.perf_counter_ns() - began_ns)
    return statistics.median(times) / 1e3


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """The environment that processes started here get."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _sides(models: dict[str, str]) -> Iterator[dict[str, Mesh]]:
    """A mesh with the journal and one without, all models deployed on both."""
    with ExitStack() as stack:
        patch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orbitmesh-bench-")))
        (patch / "sitecustomize.py").write_text(PATCH)
        paths = os.pathsep.join(filter(None, [str(patch), os.environ.get("PYTHONPATH")]))
        sides = {}
        for side in ("on", "off"):
            with environment(PYTHONPATH=paths, **{SWITCH: side}):
                sides[side] = stack.enter_context(Mesh.local(nodes=STAGES))
            for name, model in models.items():
                sides[side].deploy(model, name=name, stages=STAGES, objective="throughput")
        yield sides


def _token_s(mesh: Mesh, name: str) -> float:
    listen(mesh, WARM_UP, name=name)
    return listen(mesh, TOKENS, name=name).median_gap_s


def measure(shipped: str, rounds: int, tell: Tell, *, bigger: bool = False) -> dict[str, Any]:
    """Appends, and answers of both sides in turns.

    Args:
        shipped: The shipped model.
        rounds: How often each side answers with each model.
        tell: Told of each model.
        bigger: Also with a model of the size of GPT-2, which takes minutes to pack, to send and to load.
    """
    appends = {floats: [append_us(floats) for _ in range(rounds)] for floats in FLOATS}
    found: dict[str, Any] = {"append_us": {str(floats): summary(values) for floats, values in appends.items()}}
    with tempfile.TemporaryDirectory(prefix="orbitmesh-bench-") as scratch:
        widths = {"llama-8x512": 512, **({"llama-12x768": 768} if bigger else {})}
        models = {
            name: random_llama(Path(scratch) / name, int(name[6:].split("x")[0]), widths[name]) for name in widths
        }
        models = {"pydoc": shipped, **models}
        with _sides(models) as sides:
            for name in models:
                times: dict[str, list[float]] = {"on": [], "off": []}
                for number in range(rounds):
                    for side in ("on", "off") if number % 2 == 0 else ("off", "on"):
                        times[side].append(_token_s(sides[side], name))
                found[name] = row = _row(widths.get(name, SHIPPED_WIDTH), times)
                tell(f"journal, {name}: {row['append_percent']:.2f} % of a token by its appends")
    return found


def _row(width: int, times: dict[str, list[float]]) -> dict[str, Any]:
    one_us = append_us(width)
    pairs = [(on / off - 1) * 100 for on, off in zip(times["on"], times["off"], strict=True)]
    return {
        "row_floats": width,
        "append_us": one_us,
        "token_ms": summary([each * 1e3 for each in times["on"]]),
        "token_ms_without": summary([each * 1e3 for each in times["off"]]),
        "append_percent": (STAGES - 1) * one_us / 1e6 / statistics.median(times["on"]) * 100,
        "with_over_without_percent": summary(pairs),
        "rounds": times,
    }


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was aimed at, against the worst model."""
    worst = max(row["append_percent"] for row in found.values() if isinstance(row, dict) and "append_percent" in row)
    return {"journal's appends, % of token time": {"goal": GOAL_PERCENT, "worst": worst, "met": worst <= GOAL_PERCENT}}
