"""Parts of training at a node by themselves: the thread, contributions on disk, and what is imported when."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orbitmesh.errors import IntegrityError, TransportError
from services.executor.training.contribution import ContributionFile, ContributionWriter, Facts
from services.executor.training.files import RunFiles
from services.executor.training.thread import TrainingThread
from services.executor.training.work import local_seed, rounding_seed

ROOT = Path(__file__).resolve().parents[3]
FACTS = Facts(3, "ab" * 32, "int8", 17, loss=0.5, steps=4, train_s=1.5, figures={"accuracy": 0.5})


def test_torch_is_not_imported_before_something_trains() -> None:
    """A node that never trains pays nothing for the part of it that could."""
    code = "import sys, services.executor.training.desk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


async def test_short_work_is_done_between_steps() -> None:
    """While a long job runs, short work is done whenever it pauses, on the same thread; jobs keep their order, and an
    error belongs to whoever asked."""
    thread, done = TrainingThread(), []
    first_step, go_on = threading.Event(), threading.Event()

    def long() -> int:
        first_step.set()
        assert go_on.wait(60)
        thread.breathe()
        done.append("long")
        return threading.get_ident()

    def fail() -> None:
        raise IntegrityError("of the one who asked")

    future = thread.submit(long)
    assert await asyncio.to_thread(first_step.wait, 60)
    short = asyncio.create_task(thread.run_short(lambda: (done.append("short"), threading.get_ident())[1]))
    failing = asyncio.create_task(thread.run_short(fail))
    await asyncio.sleep(0)
    go_on.set()
    assert await short == await asyncio.wrap_future(future)
    with pytest.raises(IntegrityError):
        await failing
    assert done == ["short", "long"]
    await thread.close()
    with pytest.raises(TransportError) as caught:
        await thread.run_short(lambda: None)
    assert caught.value.reason == "DRAINING"


def write(path: Path, spans: list[bytes], *, publish: bool = True) -> None:
    writer = ContributionWriter(path)
    for span in spans:
        writer.add(span)
    writer.finish(FACTS)
    if publish:
        writer.publish()
    writer.abandon()


@pytest.mark.parametrize("spans", [[b"first", b"", b"third" * 1000], [b"x"], []])
def test_a_contribution_is_read_as_it_was_written(spans: list[bytes], tmp_path: Path) -> None:
    """Spans and facts come back; what was not published is not there."""
    path = tmp_path / "train-3.contribution"
    write(path, spans, publish=False)
    assert list(tmp_path.iterdir()) == []
    write(path, spans)
    file = ContributionFile(path)
    assert [file.span(index) for index in range(file.spans)] == spans
    assert (file.facts.examples, file.facts.loss, file.facts.figures) == (17, 0.5, {"accuracy": 0.5})


def test_no_changed_byte_of_a_contribution_passes(tmp_path: Path) -> None:
    """Every byte that is another, and every end that is missing, is found; such a file is removed, so that it is made
    again."""
    path = tmp_path / "train-3.contribution"
    write(path, [b"some bytes", b"and others"])
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert RunFiles(tmp_path).contribution("train", 3) is None
        assert not path.exists()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert RunFiles(tmp_path).contribution("train", 3) is None


def test_seeds_differ_by_all_they_follow_from() -> None:
    """Each node and round trains and rounds in an order of its own, within what a plan and numpy take."""
    local = {local_seed(run, index, node) for run in range(5) for index in range(5) for node in range(5)}
    assert len(local) == 125 and all(0 <= seed < 2**63 for seed in local)
    rounding = {rounding_seed(run, index, node) for run in "ab" for index in range(5) for node in ("1", "2")}
    assert len(rounding) == 20
