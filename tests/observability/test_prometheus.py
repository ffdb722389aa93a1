"""A Prometheus of the system's own packages fetches from a mesh of real processes, and answers the dashboard."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from orbitmesh import Mesh
from orbitmesh.trust import init_mesh, issue
from tests.kubernetes.rendering import K8S, documents
from tests.mesh.support import Models, deployed, until
from tests.observability.test_shipped import SHIPPED, loaded, panels, rules

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed: apt-get install prometheus"
)
SMALL = {"CPU": 0.01, "GPU": 0, "MemoryGB": 0.001, "BandwidthGbps": 0.001}
PORTS = 5
"""How many ports are tried: another process may take one that was free a moment ago."""
WINDOW = "30s"
"""What stands for Grafana's `$__rate_interval` at a scrape a second."""


@dataclass(frozen=True)
class Member:
    """One process of the mesh."""

    role: str
    name: str
    process: subprocess.Popen[str]
    address: str
    metrics: str


@contextmanager
def member(home: Path, module: str, role: str, name: str, *flags: str) -> Iterator[Member]:
    """A service, started by hand on ports that it takes itself; its own log says which."""
    issue(home / "ca", role, name, home / name)
    (home / f"state-{name}").mkdir()
    words = ["--identity", str(home / name), "--listen", "127.0.0.1:0", "--prometheus", "127.0.0.1:0", *flags]
    if role != "constellation":
        words += ["--state", str(home / f"state-{name}")]
    with subprocess.Popen([sys.executable, "-m", module, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found: dict[str, Any] = {}
        try:
            for line in process.stderr:
                event = json.loads(line) if line.startswith("{") else {}
                found |= {str(event.get("event")): event}
                if {"listening", "metrics_offered"} <= set(found):
                    break
            else:
                pytest.fail(f"{role}/{name} did not start: {found}")
            # What it logs from now on is read, so that it never waits for a reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            port = found["metrics_offered"]["port"]
            yield Member(role, name, process, found["listening"]["address"], f"127.0.0.1:{port}")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Member]]]:
    """Every kind of service, two of them executors."""
    home = tmp_path_factory.mktemp("mesh")
    init_mesh(home / "ca")
    scenario = documents(K8S / "base" / "scenario.yaml")[0]["data"]["scenario.toml"]
    (home / "scenario.toml").write_text(scenario)
    with ExitStack() as running:

        def start(module: str, role: str, name: str, *flags: str) -> Member:
            return running.enter_context(member(home, module, role, name, *flags))

        scheduler = start("services.scheduler", "scheduler", "scheduler")
        near = ["--scheduler", scheduler.address]
        slices = start("services.slices", "slices", "slices", *near)
        near += ["--slices", slices.address]
        found = [
            scheduler, slices, start("services.aggregator", "aggregator", "aggregator", *near),
            start("services.constellation", "constellation", "constellation",
                  "--scenario", str(home / "scenario.toml"), "--clock", "scenario"),
            *(start("services.executor", "executor", name, *near, "--threads", "1", "--memory-bytes", "500000000")
              for name in ("sat-1", "sat-2")),
        ]  # fmt: skip
        found.append(start("gateway", "gateway", "gateway", *near, "--aggregator", found[2].address))
        yield home, {each.name: each for each in found}


@dataclass(frozen=True)
class Prometheus:
    """The server, asked by its HTTP API."""

    address: str

    def get(self, path: str, **words: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> dict[str, float]:
        """The numbers that an expression has now, by their labels; what is no number is not among them."""
        expression = re.sub(r"\$__rate_interval", WINDOW, expression).replace("$name", ".*")
        found = {json.dumps(each["metric"], sort_keys=True): float(each["value"][1])
                 for each in self.get("query", query=expression)["result"]}  # fmt: skip
        return {labels: value for labels, value in found.items() if math.isfinite(value)}


@pytest.fixture(scope="module")
def prometheus(
    members: tuple[Path, dict[str, Member]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Debian's, with the shipped configuration: its targets replaced by the processes of this mesh."""
    home = tmp_path_factory.mktemp("prometheus")
    config = loaded("prometheus.yml")
    [job] = config["scrape_configs"]
    job["static_configs"] = [
        {"targets": [each.metrics], "labels": {"role": each.role, "name": each.name}} for each in members[1].values()
    ]
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(SHIPPED / each) for each in config["rule_files"]]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    for _ in range(PORTS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        words = [f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
        words.append(f"--web.listen-address={address}")
        with (home / "log").open("w") as log, subprocess.Popen(["prometheus", *words], stderr=log) as running:
            try:
                if answers(running, Prometheus(address)):
                    yield Prometheus(address)
                    return
            finally:
                running.kill()
    pytest.fail((home / "log").read_text())


def answers(running: subprocess.Popen[bytes], server: Prometheus) -> bool:
    """Whether it came to serve: it ends where somebody took its port meanwhile."""

    def settled() -> bool:
        try:
            return running.poll() is not None or bool(server.get("targets")["activeTargets"])
        except OSError:
            return False

    until(settled, "Prometheus answers")
    return running.poll() is None


def test_prometheus_fetches_from_every_process_and_the_dashboard_shows_it(
    members: tuple[Path, dict[str, Member]], prometheus: Prometheus, models: Models
) -> None:
    """While answers are given, in a slice and over two stages, each expression of the dashboard has a number; each
    alert rule is evaluated, and the one that is about a process that is gone sees one that was killed."""
    home, mesh_members = members
    me = issue(home / "ca", "client", "me", home / "me").directory
    until(lambda: len(prometheus.values('up{job="orbitmesh"} == 1')) == len(mesh_members), "all are fetched from")
    model = models.get("llama")
    with Mesh.connect(mesh_members["gateway"].address, identity=me) as mesh:
        until(lambda: len(mesh.nodes()) == 2, "both nodes have joined")
        with deployed(mesh, model, "shown", stages=2):
            mesh.slices.define("cam", resources=SMALL, max_number_of_ues=4)
            mesh.slices.apply(mesh.slices.optimize(slices=["cam"]))
            expressions = {target["expr"] for panel in panels() for target in panel["targets"]}
            assert len(expressions) > 30
            empty: list[str] = []

            def all_shown() -> bool:
                mesh.generate("shown", prompt=model.prompt(5), max_new_tokens=8, slice="cam", ignore_end=True).wait()
                empty[:] = [each for each in expressions if not prometheus.values(each)]
                return not empty

            try:
                until(all_shown, "every expression has data")
            except AssertionError:
                pytest.fail("no data: " + "\n".join(empty))
            for metric in documents(K8S / "components" / "autoscaling" / "executors.yaml")[0]["spec"]["metrics"]:
                assert len(prometheus.values(metric["pods"]["metric"]["name"])) == 2
            tokens = prometheus.values('sum(orbitmesh_tokens_total{deployment="shown", slice="cam"})')
            assert sum(tokens.values()) >= 8
        known = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {each["name"] for each in known} == {each["alert"] for each in rules()}
        assert {each["health"] for each in known} == {"ok"}
        mesh_members["sat-2"].process.kill()
        [down] = [rule["expr"] for rule in rules() if rule["alert"] == "OrbitmeshProcessDown"]
        until(lambda: any('"sat-2"' in each for each in prometheus.values(down)), "the killed one is seen")
