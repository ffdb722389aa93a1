"""What the parts of `bench/train.py` share: a mesh with the bench's own tasks, a run through it, and what it cost."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orbitmesh import Link, LocalTraining, Mesh, TrainingStatus

TASKS = Path(__file__).resolve().parent / "_train_tasks.py"
ENTRY_POINTS = """[orbitmesh.tasks]
bench-100k = bench_train_tasks:Thousands
bench-1m = bench_train_tasks:Million
bench-50m = bench_train_tasks:Millions
bench-linear = bench_train_tasks:Linear
"""
NODES = 8
ENDED_S = 3600.0
"""How long a run may take; a safety net."""
POLL_S = 0.005
"""How often memory is looked at."""

Tell = Callable[[str], None]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@contextmanager
def installed() -> Iterator[Path]:
    """A directory like one of site-packages in which the bench's tasks are installed; processes started here see it."""
    with tempfile.TemporaryDirectory(prefix="orbitmesh-bench-") as text:
        directory = Path(text)
        info = directory / "orbitmesh_bench_tasks-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orbitmesh-bench-tasks\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        shutil.copyfile(TASKS, directory / "bench_train_tasks.py")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [text, before]))
        try:
            yield directory
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


@contextmanager
def mesh_of(nodes: int = NODES, link: Link | None = None) -> Iterator[Mesh]:
    """A local mesh on whose nodes the bench's tasks are installed."""
    with installed(), Mesh.local(nodes=nodes, link=link) as mesh:
        yield mesh


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    status: TrainingStatus
    """How it ended, with all its rounds."""
    epsilon: float
    """What its promise of privacy has cost; 0 without one."""

    @property
    def percent(self) -> list[float]:
        """Accuracy on the held-out examples after each round."""
        return [100 * each.figures["accuracy"] for each in self.status.rounds]

    @property
    def losses(self) -> list[float | None]:
        """Loss on the held-out examples after each round; None where who was to measure it was cut off."""
        return [each.figures.get("loss") for each in self.status.rounds]

    @property
    def loss(self) -> float:
        """The same after the last round."""
        return self.status.rounds[-1].figures["loss"]

    @property
    def up_bytes(self) -> float:
        """Bytes of one node's contribution to one round, as its scheme encodes it: the mean of all."""
        rounds = self.status.rounds
        return sum(each.up_bytes for each in rounds) / sum(len(each.contributed) for each in rounds)

    @property
    def wire_bytes(self) -> float:
        """All that a node sent the aggregator, for each round: headers, progress and set-up with it. The median node:
        one of them also sent the first weights."""
        return statistics.median(node.up_bytes for node in self.status.nodes) / len(self.status.rounds)

    @property
    def per_value(self) -> float:
        """Bytes of a contribution for each value of the model."""
        return self.up_bytes / self.status.values

    @property
    def rounds_s(self) -> list[float]:
        """Seconds from the end of each round but the last to the end of the next."""
        ends = [each.done_at.timestamp() for each in self.status.rounds if each.done_at is not None]
        return [after - before for before, after in pairwise(ends)]


def run(mesh: Mesh, name: str, **asked: Any) -> Outcome:
    """A run from its beginning to its end; arguments are those of `Mesh.train`."""
    training = mesh.train(name, **asked)
    status = training.wait(timeout=ENDED_S)
    return Outcome(status, training.ledger().epsilon if asked.get("privacy") is not None else 0.0)


def plan_of(local: LocalTraining) -> dict[str, object]:
    """A local plan as the result names it, without what is as it was by itself."""
    unset = LocalTraining()
    return {key: value for key, value in vars(local).items() if value != getattr(unset, key)} | {"lr": local.lr}


def memory_kib(pid: int) -> dict[str, int]:
    """VmHWM, VmRSS and RssAnon of a process in KiB: the most it held, what it holds, and what of that is no file's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    wanted = ("VmHWM", "VmRSS", "RssAnon")
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in wanted}


class MemoryPeak:
    """Watches the anonymous memory of a process for as long as its block runs.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.before = memory_kib(pid)
        self.peak_kib = self.before["RssAnon"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            self.peak_kib = max(self.peak_kib, memory_kib(self._pid)["RssAnon"])
