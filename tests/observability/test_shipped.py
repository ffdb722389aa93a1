"""What deploy/observability ships, read: names that the mesh has, places that are there, the same rules everywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from orbitmesh.errors import REASONS
from tests.kubernetes.rendering import K8S, documents

SHIPPED = Path(__file__).parents[2] / "deploy" / "observability"
DASHBOARD = SHIPPED / "grafana" / "dashboards" / "orbitmesh.json"
ALERT_TESTS = Path(__file__).parent / "alerts.yml"


def loaded(name: str) -> Any:
    return yaml.safe_load((SHIPPED / name).read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that show something."""
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [each for each in found if each["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in loaded("alerts.yml")["groups"] for rule in group["rules"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_promtool_finds_nothing_wrong() -> None:
    """The configuration with its rules, and the rules' own tests: each fires when it should and not before."""
    for words in (["check", "config", str(SHIPPED / "prometheus.yml")], ["test", "rules", str(ALERT_TESTS)]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    """With a severity; the reasons that it names are reasons of the mesh."""
    tested = {
        each["alertname"] for group in yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]
        for each in group["alert_rule_test"]
    }  # fmt: skip
    assert tested == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["action"] and rule["for"]
        for names in re.findall(r'outcome=~"([^"]+)"', rule["expr"]):
            assert set(names.split("|")) <= set(REASONS)


def test_a_cluster_gets_the_same_rules() -> None:
    """The object of the Prometheus operator holds the shipped file, word for word."""
    [found] = documents(K8S / "components" / "monitoring" / "rules.yaml")
    assert found["spec"] == loaded("alerts.yml")


def test_the_dashboard_is_one_that_grafana_loads_as_provisioned() -> None:
    """Panels with ids of their own, none over another, each with an expression, a unit and a word of what it means; the
    datasources that it and its links use are those that are provisioned."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    everything = dashboard["panels"]
    assert len({each["id"] for each in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for each in everything:
        at = each["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, each["title"]
        taken |= cells
    for each in panels():
        assert each["targets"] and each["description"] and each["fieldConfig"]["defaults"]["unit"], each["title"]
        assert {target["datasource"]["uid"] for target in each["targets"]} == {"${source}"}
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["source"]["query"] == "prometheus"
    sources = {each["type"] for each in loaded("grafana/provisioning/datasources/orbitmesh.yml")["datasources"]}
    assert sources == {"prometheus", "jaeger"}
    [provider] = loaded("grafana/provisioning/dashboards/orbitmesh.yml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_the_collector_s_pipelines_are_made_of_what_is_declared() -> None:
    """Every receiver, processor and exporter; both kinds of signals that a process sends have a pipeline."""
    config = loaded("otel-collector.yaml")
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for pipeline in pipelines.values():
        for part in ("receivers", "processors", "exporters"):
            assert pipeline[part] and set(pipeline[part]) <= set(config[part])
