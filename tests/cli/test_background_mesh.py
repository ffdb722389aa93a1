"""`up`, what follows without options, `down`; and the demo interrupted: real processes, none of them left
behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.interruptible import interruptible

pytestmark = pytest.mark.usefixtures("cold")

WAIT_S = 90.0


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with its own state and cache."""
    return {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model directory."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def orbitmesh(home: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """Runs a command with `--json` that must succeed; its documents."""
    command = [sys.executable, "-m", "orbitmesh.cli.main", *arguments, "--json"]
    done = subprocess.run(command, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def family(root: int) -> set[int]:
    """The process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            running.add(pid)
    return running


@pytest.mark.timeout(300)  # ten commands, each a process that imports everything anew
@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
def test_a_mesh_in_the_background_serves_until_it_is_taken_down(home: dict[str, str], model: Path) -> None:
    """`up` returns, the other commands find the mesh by themselves, `down` ends every process of it."""
    up = orbitmesh(home, "up", "--nodes", "2")[-1]
    processes = family(up["mesh"]["pid"])
    try:
        assert up["event"] == "up"
        assert len(processes) >= 5
        assert [node["name"] for node in orbitmesh(home, "nodes")[0]["nodes"]] == ["ground-1", "sat-1"]
        deployed = orbitmesh(home, "deploy", str(model), "--name", "demo", "--stages", "2")[-1]
        assert [stage["layers"] for stage in deployed["deployment"]["stages"]] == [[0, 1], [1, 2]]
        events = orbitmesh(home, "generate", "demo", "--token-ids", "1,2,3", "--max-new-tokens", "4", "--ignore-end")
        assert [event["event"] for event in events] == ["started", *["token"] * 4, "finished"]
        assert events[-1]["token_ids"] == [event["id"] for event in events[1:-1]]
        breakdown = orbitmesh(home, "explain")[0]["breakdown"]
        assert breakdown["trace_id"] == events[0]["trace_id"]
        assert orbitmesh(home, "status")[0]["deployments"][0]["name"] == "demo"
        twice = subprocess.run(
            [sys.executable, "-m", "orbitmesh.cli.main", "up"],
            env=home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert twice.returncode == 1
        assert "ALREADY_EXISTS" in twice.stderr
    finally:
        down = orbitmesh(home, "down")[0]
    assert down == {"event": "down", "was_running": True, "pid": up["mesh"]["pid"]}
    assert not alive(processes)
    assert orbitmesh(home, "down")[0]["was_running"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(home: dict[str, str], model: Path, number: signal.Signals) -> None:
    """Ctrl-C while the mesh starts: exit code 130, and nothing of it runs any more."""
    demo = subprocess.Popen(
        interruptible("-m", "orbitmesh.cli.main", "demo", "--model", str(model), "--json"),
        env=home,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    give_up = time.monotonic() + WAIT_S
    while len(processes := family(demo.pid)) < 4:
        assert demo.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    demo.send_signal(number)
    said = demo.stdout.read()
    assert demo.wait(WAIT_S) == 130
    demo.stdout.close()
    assert json.loads(said.splitlines()[-1])["error"]["reason"] == "CANCELLED"
    while alive(processes) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not alive(processes)
