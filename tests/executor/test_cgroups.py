"""How much of the processors an executor may use: read from control groups, and held to by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orbitmesh.errors import InvalidInputError
from services.executor.cgroups import PREFIX, Confinement, Group, own_group
from services.executor.measures import usable_cpu

SPIN_S = 1.5

V1_CONTAINER = (
    "4:memory:/docker/4f2a\n3:cpu,cpuacct:/docker/4f2a\n0::/\n",
    (
        "31 24 0:26 /docker/4f2a {top} ro,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    ),
)
V2_SERVICE = (
    "0::/system.slice/mesh.service\n",
    "30 23 0:25 / {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
)


def allowed() -> bool:
    """Whether this machine lets us make a control group with a limit."""
    try:
        group = Confinement(1.0)
    except InvalidInputError:
        return False
    group.close()
    return True


@pytest.fixture(scope="module")
def may_confine() -> None:
    if not allowed():
        pytest.skip("no control group may be made here")


def described(directory: Path, texts: tuple[str, str]) -> Path:
    """The two files of a process as the kernel writes them, with a hierarchy that is mounted below `directory`."""
    process = directory / "proc"
    process.mkdir()
    (process / "cgroup").write_text(texts[0])
    (process / "mountinfo").write_text(texts[1].format(top=directory / "top"))
    (directory / "top").mkdir()
    return process


def test_a_container_with_version_1_uses_what_its_own_group_leaves_it(tmp_path: Path) -> None:
    """Docker mounts the container's own group where a machine has the top: its quota is read there."""
    process = described(tmp_path, V1_CONTAINER)
    (tmp_path / "top" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "top" / "cpu.cfs_period_us").write_text("100000\n")
    group = own_group(process)
    assert group == Group(1, tmp_path / "top", tmp_path / "top")
    assert group.quota == 1.5


def test_the_least_of_all_groups_above_counts(tmp_path: Path) -> None:
    """A service without a limit in a slice of systemd that has one may use no more than the slice."""
    process = described(tmp_path, V2_SERVICE)
    service = tmp_path / "top" / "system.slice" / "mesh.service"
    service.mkdir(parents=True)
    (tmp_path / "top" / "cgroup.controllers").write_text("cpuset cpu io memory\n")
    (service / "cpu.max").write_text("max 100000\n")
    group = own_group(process)
    assert group == Group(2, tmp_path / "top", service)
    assert group.quota is None
    (service.parent / "cpu.max").write_text("75000 100000\n")
    assert group.quota == 0.75


def test_a_hierarchy_without_the_cpu_controller_says_nothing(tmp_path: Path) -> None:
    """Version 2 beside version 1 often has no controllers: there is no limit to be read, and none to be set."""
    process = described(tmp_path, V2_SERVICE)
    (tmp_path / "top" / "cgroup.controllers").write_text("hugetlb\n")
    assert own_group(process) is None
    assert own_group(tmp_path / "nobody") is None


@pytest.mark.parametrize("cores", [-1.0, 4097.0, float("nan"), float("inf")])
def test_more_than_there_is_cannot_be_given(cores: float) -> None:
    """An executor that is given more cores than the machine has, or no number, does not start."""
    with pytest.raises(InvalidInputError, match="cores"):
        usable_cpu(cores)
    if cores > 0 or cores != cores:
        with pytest.raises(InvalidInputError, match="cores"):
            Confinement(cores)


def spinning(cores: float, then: str) -> subprocess.Popen[str]:
    """A process that holds itself to some cores, computes without pause on two threads, and then does as it is told."""
    script = f"""
        import hashlib, os, sys, threading, time
        from services.executor.cgroups import Confinement, own_group
        from services.executor.measures import usable_cpu
        group = Confinement({cores})
        ends = time.perf_counter() + {SPIN_S}
        block = bytes(1 << 20)
        def spin():
            while time.perf_counter() < ends:
                hashlib.sha256(block)  # releases the interpreter
        others = [threading.Thread(target=spin) for _ in range(2)]
        began, wall = time.process_time(), time.perf_counter()
        [each.start() for each in others]
        [each.join() for each in others]
        print(time.process_time() - began, time.perf_counter() - wall, own_group().quota, usable_cpu(0.0), group.path,
              flush=True)
        {then}
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


@pytest.mark.usefixtures("may_confine")
def test_a_process_gets_no_more_than_it_is_held_to() -> None:
    """Two threads that compute without pause get a quarter of a core together; the process knows; its group ends."""
    with spinning(0.25, "group.close()") as process:
        assert process.stdout is not None
        spent, wall, quota, usable, path = process.stdout.readline().split()
        # The processor's time as the kernel counts it; a period more than the limit is its slack.
        assert float(spent) <= 0.25 * float(wall) * 1.15 + 0.02
        assert (float(quota), float(usable)) == (0.25, 0.25)
        assert process.wait(60) == 0
    assert not Path(path).exists()


@pytest.mark.usefixtures("may_confine")
def test_the_next_start_removes_what_a_killed_process_left() -> None:
    """`kill -9` leaves an empty group behind; whoever makes one next removes it, and not those that are in use."""
    with spinning(0.5, "time.sleep(600)") as killed, spinning(0.5, "sys.stdin.read()") as living:
        try:
            assert killed.stdout is not None and living.stdout is not None
            left, used = (Path(each.stdout.readline().split()[-1]) for each in (killed, living))
            killed.send_signal(signal.SIGKILL)
            killed.wait(60)
            assert left.name == f"{PREFIX}{killed.pid}" and left.exists()
            Confinement(1.0).close()
            assert not left.exists() and used.exists()
        finally:
            killed.kill()
            living.kill()
    Confinement(1.0).close()
    assert not used.exists()
    assert not (used.parent / f"{PREFIX}{os.getpid()}").exists()


def test_an_executor_that_is_given_more_than_there_is_says_so_and_ends(tmp_path: Path) -> None:
    """One line that names what is there, exit code 2, before anything else is looked at."""
    flags = ["--identity", tmp_path, "--listen", "127.0.0.1:0", "--state", tmp_path, "--scheduler", "127.0.0.1:1"]
    command = [sys.executable, "-m", "services.executor", *map(str, flags), "--cores", "4000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "4000 cores; expected 0 to" in ended.stderr


def test_where_it_is_not_allowed_the_error_says_what_to_change(tmp_path: Path) -> None:
    """A group that cannot be written: a typed error with the cure, and nothing is left behind."""
    outside = Group(1, tmp_path, tmp_path / "none")
    with pytest.raises(InvalidInputError, match="Delegate=cpu") as refused:
        Confinement(0.5, outside)
    assert refused.value.reason == "FAILED_PRECONDITION"
    assert not list(tmp_path.iterdir())
