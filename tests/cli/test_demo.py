"""The demo: what its acts are made of, and that an interrupt leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from orbitmesh.cli import demo_sky
from orbitmesh.cli.demo_killed import pick_victim
from orbitmesh.cli.demo_telling import Pace, agrees, stall_table
from orbitmesh.contacts import ContactPlan
from orbitmesh.results import Deployment, Stage
from orbitmesh.trace.breakdown import Breakdown, BreakdownRow
from tests.interruptible import interruptible

pytestmark = pytest.mark.usefixtures("cold")


def test_the_sky_of_the_demo_closes_opens_and_loses_one_satellite() -> None:
    """Its plan is valid, also read back, and says of each moment what the text of the demo says."""
    sky = demo_sky.sky_after(3.0)
    plan = ContactPlan.parse(sky.plan().dump())
    pairs = [(demo_sky.STAYING, demo_sky.SETTING), (demo_sky.STAYING, demo_sky.COMING), ("ground", demo_sky.SETTING)]

    def seen(real_s: float) -> list[bool]:
        found = []
        for a, b in pairs:
            both = {plan.at(x, y, demo_sky.at(real_s)) is not None for x, y in ((a, b), (b, a))}
            assert len(both) == 1
            found.append(both.pop())
        return found

    assert seen(0.1) == seen(sky.closes_s - 0.1) == seen(sky.opens_s + 0.1) == [True, True, True]
    assert seen(sky.closes_s + 0.1) == seen(sky.opens_s - 0.1) == [False, False, False]
    assert seen(sky.sets_s + 0.1) == seen(sky.sets_s + 60) == [False, True, False]


def test_a_slower_machine_gets_more_time_before_the_windows_close() -> None:
    """The first window is longer than the deployment took before."""
    assert all(demo_sky.sky_after(seconds).closes_s > seconds for seconds in (0.0, 1.0, 5.0, 60.0))


def test_the_victim_has_a_standby_where_any_has() -> None:
    """The middle one where it has one, else another that has, else the middle one."""
    stages = tuple(Stage(f"sat-{index}", range(index, index + 1)) for index in range(3))
    pick = [
        pick_victim(Deployment("demo", "ready", stages, standbys=standbys))
        for standbys in ({0: "a", 1: "b", 2: "c"}, {2: "c"}, {})
    ]
    assert pick == [(1, "sat-1"), (2, "sat-2"), (1, "sat-1")]


def test_waits_are_not_counted_as_gaps() -> None:
    """The longest gap is that of a token before which no wait was told."""
    pace = Pace(arrived_s=[0.0, 0.1, 5.1, 5.3, 5.4], waited={2})
    assert pace.longest_s() == pytest.approx(0.2)
    assert pace.median_s() == pytest.approx(0.1)
    assert Pace().longest_s() == Pace().median_s() == 0.0


def test_stalls_are_shown_apart_from_all_else() -> None:
    """Each stall has its row, and the rows sum to the total."""
    what = {"compute": 2.0, "detect": 1.0, "recover": 0.25, "waiting for contact": 0.75}
    rows = tuple(BreakdownRow("gateway", name, True, s, 1, s, s / 4) for name, s in what.items())
    table = stall_table(Breakdown("ab" * 16, "demo", 4.0, 1.0, rows))
    assert list(table.columns[0].cells)[:3] == ["detect", "recover", "waiting for contact"]
    assert list(table.columns[1].cells) == ["1.00 s", "250.0 ms", "750.0 ms", "2.00 s"]


def test_answers_of_different_lengths_may_agree() -> None:
    """One is the beginning of the other, or they differ somewhere."""
    assert agrees([1, 2], [1, 2, 3])
    assert agrees([1, 2, 3], [1, 2])
    assert not agrees([1, 5], [1, 2, 3])


def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C while the processes start ends the command with 130, and every process of its mesh with it."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        interruptible("-m", "orbitmesh.cli.main", "demo", "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stderr is not None
        while line := running.stdout.readline():
            if json.loads(line)["event"] == "progress":
                break
        assert line, running.stderr.read()
        give_up = time.monotonic() + 60
        while len(processes_of(tmp_path)) < 3:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said, complaints = running.communicate(timeout=60)
    assert running.returncode == 130
    assert json.loads(said.splitlines()[-1])["error"]["reason"] == "CANCELLED"
    assert complaints == ""
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("orbitmesh-*")) == []  # torch may leave a cache of its own


def processes_of(directory: Path) -> list[str]:
    """The command lines of the processes that work in a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found
