"""A local mesh leaves no process behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orbitmesh import Mesh
from tests.interruptible import interruptible
from tests.mesh.support import until

pytestmark = pytest.mark.usefixtures("cold")

PROGRAM = """
import sys, time
from orbitmesh import Link, Mesh
try:
    with Mesh.local(nodes=1, link=Link(latency_ms=1, rate_mbps=100), directory=sys.argv[1]) as mesh:
        print(mesh.local.pid, flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def family(pid: int) -> list[psutil.Process]:
    """A process and everything that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False  # it has ended between the two questions

    return not any(runs(each) for each in processes)


def test_leaving_the_block_ends_every_process(tmp_path: Path) -> None:
    """Also where the block is left by an exception."""
    with pytest.raises(RuntimeError, match="on purpose"), Mesh.local(nodes=1, directory=tmp_path) as mesh:
        processes = family(mesh.local.pid)
        assert len(processes) >= 4, "supervisor, scheduler, gateway, executor"
        raise RuntimeError("on purpose")
    assert gone(processes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
def test_a_program_that_is_ended_leaves_no_mesh_behind(how: signal.Signals, tmp_path: Path) -> None:
    """SIGKILL gives it no time to clean up; Ctrl-C interrupts whatever it is doing."""
    program = subprocess.Popen(
        interruptible("-c", PROGRAM, str(tmp_path)),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with program:
        assert program.stdout is not None
        processes = [*family(program.pid), *family(int(program.stdout.readline()))]
        assert len(processes) >= 5
        os.killpg(program.pid, how)
        said = program.stdout.read()
    assert said == (b"interrupted\n" if how == signal.SIGINT else b"")
    until(lambda: gone(processes), "every process is gone", 60)


def test_a_mesh_that_is_given_up_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    """Interrupted while it is coming up: the processes that were there already end, too."""
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.DEVNULL)
    with program:
        until(lambda: len(family(program.pid)) >= 4, "some services have started", 60)
        processes = family(program.pid)
        program.kill()
    until(lambda: gone(processes), "every process is gone", 60)
