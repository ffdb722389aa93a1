"""Every line of the runbook is run as it stands, and prints what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orbitmesh import Mesh
from tests.mesh.support import Models, deployed, until

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ops.md"
BUF = ROOT / "node_modules" / ".bin"


def blocks() -> dict[str, str]:
    """The blocks of the page, by the word after `sh`."""
    return dict(re.findall(r"^```sh (\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with grpcurl, or with what stands in for it."""
    if shutil.which("grpcurl"):
        return os.environ["PATH"]
    found = f"{BUF}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("buf", path=found) is None:
        pytest.skip("neither grpcurl nor buf is here: npm install")
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "grpcurl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("grpcurl_by_buf.py")} "$@"\n')
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{found}"


def run(mesh: Mesh, path: str, name: str) -> str:
    """What one block of the page prints on this mesh."""
    local = mesh.local
    setup = blocks()["setup"].replace("~/.orbitmesh/operator", str(local.operator_identity))
    setup = setup.replace("127.0.0.1:7443", local.gateway)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", setup + blocks()[name]],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def answering(mesh: Mesh, deployment: str, prompt: list[int]) -> Iterator[None]:
    """One answer after another, as long as the block runs."""
    ended = threading.Event()

    def generate() -> None:
        while not ended.is_set():
            mesh.generate(deployment, prompt=prompt, max_new_tokens=150, ignore_end=True).wait()

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents that were printed one after another."""
    found, rest = [], text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


def test_the_page_has_the_blocks_that_are_tested_here_and_no_others() -> None:
    """A line that is added to the page is added here too."""
    tested = {"setup", "services", "health", "topology", "generations", "explain", "transfers", "process", "loglevel"}
    assert set(blocks()) == tested | {"channelz", "drain"}
    assert PAGE.read_text().count("```sh") == len(blocks())


def test_every_line_prints_what_the_page_says(mesh: Mesh, models: Models, path: str) -> None:
    """On a mesh with a deployment, one answer given and one under way."""
    model = models.get("llama")
    with deployed(mesh, model, "runbook", stages=2, nodes=["sat-1", "sat-2"]) as held:
        pipeline = [stage.node for stage in held.stages]
        with answering(mesh, "runbook", model.prompt(5)):
            found: list[dict[str, Any]] = []
            until(lambda: bool(found.extend(documents(run(mesh, path, "generations"))) or found[-1]), "one is listed")
        told = found[-1]["generations"][0]
        assert told["deployment"] == "runbook" and told["nodes"] == pipeline
        assert told.get("newTokens", 0) <= told["mostNewTokens"] == 150
        assert told["caller"] == "spiffe://orbitmesh/client/local" and re.fullmatch("[0-9a-f]{32}", told["traceId"])
        services = run(mesh, path, "services").split()
        assert {"orbitmesh.v1.OpsService", "orbitmesh.v1.GatewayService", "grpc.health.v1.Health"} <= set(services)
        assert documents(run(mesh, path, "health")) == [{"status": "SERVING"}]
        [topology] = documents(run(mesh, path, "topology"))
        nodes = {each["name"]: each for each in topology["nodes"]}
        [stage] = [each for each in nodes["sat-1"]["stages"] if each["deployment"] == "runbook"]
        assert nodes["sat-1"]["state"] == "up" and stage["serving"] and stage["tokenS"] > 0
        assert {"name": "runbook", "state": "ready", "pipeline": pipeline} in topology["deployments"]
        assert any((link["from"], link["to"]) == ("sat-1", "sat-2") and link["up"] for link in topology["links"])
        [explained] = documents(run(mesh, path, "explain"))
        rows = explained["breakdown"]["rows"]
        assert sum(row.get("totalS", 0) for row in rows) == pytest.approx(explained["breakdown"]["totalS"], rel=0.01)
        [transfers] = documents(run(mesh, path, "transfers"))
        peers = {each["peer"]: each for each in transfers["sessions"]}
        assert transfers["process"] == "executor/sat-1"
        assert peers["gateway/gateway"]["attached"]
        # Which of the two sends work and which tokens is the planner's choice; what is received is counted as well.
        carried = peers["executor/sat-2"]
        assert int(carried.get("sentBytes", 0)) + int(carried.get("receivedBytes", 0)) > 0
    [process] = documents(run(mesh, path, "process"))
    assert process["process"] == "scheduler/scheduler" and process["logLevel"] == "info"
    assert int(process["memoryBytes"]) > 1 << 20 and process["cpuS"] > 0 and "certificateUntil" in process
    there, back = documents(run(mesh, path, "drain"))
    assert there == {"process": "executor/sat-1"} and back == {"process": "executor/sat-1", "before": True}
    up, down = documents(run(mesh, path, "loglevel"))
    assert (up["before"], down["before"]) == ("info", "debug")
    [servers] = documents(run(mesh, path, "channelz"))
    assert int(servers["server"][0]["data"]["callsSucceeded"]) > 0
