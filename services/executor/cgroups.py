"""Control groups of Linux: how much of the machine's processors this process may use, and holding it to less.

Both versions are read: a hierarchy of version 1 with the `cpu` controller (cgroups(7)), and the one of version 2
(`Documentation/admin-guide/cgroup-v2.rst` of the kernel). A limit holds for a group with all below it, so what a
process may use is the least that its own group or any above it says.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.errors import InvalidInputError

PERIOD_US = 20_000
"""Over which time a limit holds, in microseconds. With the kernel's default of 100 ms a group that has used its part
would stand still for up to that long, and tokens with it."""
PREFIX = "orbitmesh-"
"""How the groups that are made here are named; the number of the process follows."""
CORES_MAX = 4096.0
"""The most cores that anything is held to."""


@dataclass(frozen=True)
class Group:
    """The control group of this process in the hierarchy that has the `cpu` controller."""

    version: int
    """1 or 2."""
    top: Path
    """Where that hierarchy begins, as far as this process sees it."""
    path: Path
    """The directory of the group, `top` or below."""

    @property
    def quota(self) -> float | None:
        """The cores that it and all above it leave; None where none of them says."""
        found = [limit for each in self._upwards() if (limit := _limit(each, self.version)) is not None]
        return min(found, default=None)

    def _upwards(self) -> list[Path]:
        return [each for each in (self.path, *self.path.parents) if each == self.top or self.top in each.parents]


def own_group(process: Path = Path("/proc/self")) -> Group | None:
    """The group that a process is in; None where there are no control groups with the `cpu` controller.

    Args:
        process: The directory of the process in the proc file system.
    """
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    paths = {tuple(names.split(",")): path for _, names, path in (line.split(":", 2) for line in groups)}
    for version, kind in ((1, "cgroup"), (2, "cgroup2")):
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            root, top = (_unescaped(field) for field in before.split()[3:5])
            filesystem, _, options = after.split()[:3]
            if filesystem != kind or (version == 1 and "cpu" not in options.split(",")):
                continue
            for names, path in paths.items():
                if names == ("",) if version == 2 else "cpu" in names:
                    group = Group(version, Path(top), _below(Path(top), root, path))
                    if version == 1 or _has_cpu(group):
                        return group
    return None


class Confinement:
    """A group of its own for this process, with a limit.

    Args:
        cores: How much processor time it may use, in cores, above 0.
        inside: The group to make it in; this process's own where left out.

    Raises:
        InvalidInputError: FAILED_PRECONDITION where the machine does not allow it, with what would have to change.
    """

    def __init__(self, cores: float, inside: Group | None = None) -> None:
        if not 0 < cores <= CORES_MAX:
            raise InvalidInputError(f"{cores:g} cores; expected above 0, at most {CORES_MAX:g}")
        found = inside or own_group()
        if found is None:
            raise _refused("this machine has no control groups with the cpu controller; start without a limit")
        self._parent = found.path
        self.path = found.path / f"{PREFIX}{os.getpid()}"
        """The directory of the group."""
        remove_empty(found.path)
        try:
            self.path.mkdir(exist_ok=True)
            if found.version == 2:
                # A group of version 2 divides what it has among groups below it only if no process is in it itself.
                self._move(self.path)
                (self._parent / "cgroup.subtree_control").write_text("+cpu")
                (self.path / "cpu.max").write_text(f"{_quota_us(cores)} {PERIOD_US}")
            else:
                (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self.path / "cpu.cfs_quota_us").write_text(str(_quota_us(cores)))
                self._move(self.path)
        except OSError as error:
            self.close()
            raise _refused(
                f"cannot hold this process to {cores:g} cores in {found.path}: {error.strerror}; run it as root, or "
                "let the group be its own (systemd: Delegate=cpu), or limit it from outside (a container's cpus)"
            ) from None

    def close(self) -> None:
        """Goes back to the group of before and removes the own one."""
        with contextlib.suppress(OSError):
            self._move(self._parent)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @staticmethod
    def _move(to: Path) -> None:
        (to / "cgroup.procs").write_text(str(os.getpid()))


def remove_empty(inside: Path) -> None:
    """Removes the groups that processes left behind which were killed."""
    for each in inside.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use by one that lives
            each.rmdir()


def _limit(group: Path, version: int) -> float | None:
    """The cores that one group says; None where it says none or cannot be read."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _has_cpu(group: Group) -> bool:
    """Whether the hierarchy of version 2 has the `cpu` controller; else version 1 has it, or nobody."""
    try:
        return "cpu" in (group.top / "cgroup.controllers").read_text().split()
    except OSError:
        return False


def _below(top: Path, root: str, path: str) -> Path:
    """Where a group is seen whose hierarchy is mounted from `root` on; the mount itself where it is not below it."""
    relative = os.path.relpath(path, root)
    return top if relative.startswith("..") else (top / relative)


def _unescaped(field: str) -> str:
    """A field of mountinfo, in which spaces and the like are written as octal numbers."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found.group(1), 8)), field)


def _quota_us(cores: float) -> int:
    return max(1000, round(cores * PERIOD_US))  # the kernel takes no less than a millisecond


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(why, reason="FAILED_PRECONDITION")
