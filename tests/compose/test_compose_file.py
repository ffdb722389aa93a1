"""The compose file, read: who may see whose keys, and that its relays are the ways between its places."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from services.constellation.planning import plan_contacts
from services.constellation.scenario import load_scenario
from services.links import RelaySpec, chaos
from services.localmesh.topology import LinkSpec, MeshSpec, ways
from tests.compose.readme import DEPLOY, blocks
from tests.observability.test_shipped import loaded

NODES = ("sat-1", "sat-2", "sat-3", "edge-1", "ground-1")
SERVICES = (*NODES, "gateway", "scheduler", "aggregator", "slices", "constellation", "links")
"""What runs without a profile, but for `pki`, which ends."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def relays() -> dict[str, RelaySpec]:
    """The emulated links by name."""
    config = json.loads((DEPLOY / "links.json").read_text(encoding="utf-8"))
    return {fields["name"]: RelaySpec.parse(fields) for fields in config["relays"]}


def test_nothing_newer_than_docker_compose_1_29_is_used(compose: dict[str, Any]) -> None:
    """Keys that 1.29 refuses are not there."""
    assert set(compose) - {"services", "networks", "volumes"} == {key for key in compose if key.startswith("x-")}
    for service in compose["services"].values():
        assert "start_interval" not in service.get("healthcheck", {})
        assert "develop" not in service
        assert all("required" not in condition for condition in service.get("depends_on", {}).values())


def test_the_relays_are_the_ways_between_places(relays: dict[str, RelaySpec]) -> None:
    """As in the local mesh: every two services at different places, each way, 20 ms and 100 Mbit/s."""
    spec = MeshSpec(NODES, LinkSpec(20, 100), directory=None, torch_threads=1, gateway_at="ground-1", sky=None)
    assert set(relays) == {way.name for way in ways(spec)}
    assert len({relay.listen for relay in relays.values()}) == len(relays)
    for relay in relays.values():
        for shape in (relay.forward, relay.reverse):
            assert (shape.latency_ms, shape.rate_bps) == (20, 100e6)


def test_every_service_takes_its_own_relays_and_no_way_past_them(
    compose: dict[str, Any], relays: dict[str, RelaySpec]
) -> None:
    """`--peers`, `--scheduler` and `--slices` of each service name the relays from it to there, and none is unused."""
    used = set()
    for source in SERVICES[:-1]:
        command = [str(word) for word in compose["services"][source]["command"]]
        ways_taken = {}
        if "--peers" in command:
            for entry in command[command.index("--peers") + 1 :]:
                peer, _, way = entry.partition("=")
                ways_taken[peer.partition("/")[2]] = way
        for word in command:
            service = word.partition("=")[0].removeprefix("--") if word.startswith("--") else ""
            if service in ("scheduler", "slices"):
                ways_taken[service] = word.partition("=")[2]
        for target, way in ways_taken.items():
            relay = relays.get(f"{source}>{target}")
            if relay is None:
                direct = {
                    "scheduler": ("scheduler:7442", ("gateway", "aggregator", "slices", "ground-1")),
                    "slices": ("slices:7445", ("gateway", "aggregator", "ground-1")),
                }
                assert way == direct[target][0]
                assert source in direct[target][1]
                continue
            assert way == f"links:{relay.listen.rpartition(':')[2]}", f"{source}>{target}"
            used.add(relay.name)
    assert used == set(relays)


def test_relays_lead_to_where_services_listen(compose: dict[str, Any], relays: dict[str, RelaySpec]) -> None:
    """The target's port is the one that the service listens on, and its name is known to the emulator."""
    known = {entry.partition(":")[0] for entry in compose["services"]["links"]["extra_hosts"]}
    for relay in relays.values():
        target, _, port = relay.target.partition(":")
        assert f"--listen=0.0.0.0:{port}" in compose["services"][target]["command"]
        assert target in known


def test_fixed_addresses_are_the_ones_that_relays_use(
    compose: dict[str, Any], relays: dict[str, RelaySpec]
) -> None:
    """`extra_hosts` of the emulator repeats the addresses of the services."""
    hosts = compose["services"]["links"]["extra_hosts"]
    for entry in hosts:
        # The variable's own `:-` stands in the address, not in the name.
        name, _, address = entry.partition(":")
        assert compose["services"][name]["networks"]["mesh"]["ipv4_address"] == address
    assert len(hosts) == len({relay.target for relay in relays.values()})
    fixed = [compose["services"][name]["networks"]["mesh"]["ipv4_address"] for name in SERVICES]
    assert len(set(fixed)) == len(fixed)


@pytest.mark.parametrize("service", ["aggregator", "slices"])
def test_the_gateway_is_told_where_services_behind_it_listen(service: str, compose: dict[str, Any]) -> None:
    """The port of the one is the port of the other."""
    [given] = [word for word in compose["services"]["gateway"]["command"] if word.startswith(f"--{service}=")]
    host, _, port = given.removeprefix(f"--{service}=").partition(":")
    assert f"--listen=0.0.0.0:{port}" in compose["services"][host]["command"]


def test_a_service_sees_its_own_keys_and_no_others(compose: dict[str, Any]) -> None:
    """One identity volume each, read-only; the authority's key is for `pki` alone."""
    for name in SERVICES:
        mounts = [volume.split(":") for volume in compose["services"][name].get("volumes", [])]
        keys = [mount for mount in mounts if mount[0].startswith("identity-") or mount[0] == "ca"]
        assert keys == ([] if name == "links" else [[f"identity-{name}", "/identity", "ro"]])
    for name in set(compose["services"]) - {*SERVICES, "pki"}:
        assert not any("identity" in volume for volume in compose["services"][name].get("volumes", ())), name
    assert compose["services"]["pki"]["network_mode"] == "none"


def test_every_container_is_closed_and_bounded(compose: dict[str, Any]) -> None:
    """No capability, a read-only root, a memory limit; all but `pki` are asked for their health."""
    assert {name for name, each in compose["services"].items() if "profiles" not in each} == {*SERVICES, "pki"}
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert service["mem_limit"], name
        assert ("healthcheck" in service) == (name in SERVICES), name
        # Ours have their user in the image; others' images are pinned to a version.
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name
        assert service["image"].startswith("orbitmesh/") or service["profiles"] == ["observability"], name
        assert service.get("privileged", False) is False, name


def test_only_the_gateway_is_reached_from_this_machine_and_from_nowhere_else(compose: dict[str, Any]) -> None:
    """One published port, on 127.0.0.1; the network of the mesh leads nowhere. What watches it publishes there, too."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert {name for name, ports in published.items() if "profiles" not in compose["services"][name]} == {"gateway"}
    assert published["gateway"] == ["127.0.0.1:${ORBITMESH_PORT:-7443}:7443"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert compose["networks"]["mesh"]["internal"] is True
    outside = {name for name, each in compose["services"].items() if "outside" in each.get("networks", ())}
    assert outside == set(published)


def test_prometheus_fetches_from_every_process(compose: dict[str, Any]) -> None:
    """At the port where it offers metrics, under the role and name of its keys; Prometheus is on its network."""
    [job] = loaded("prometheus.yml")["scrape_configs"]
    fetched = {}
    for each in job["static_configs"]:
        [target] = each["targets"]
        host, _, port = target.partition(":")
        assert f"--prometheus=0.0.0.0:{port}" in compose["services"][host]["command"]
        assert (host, "executor" if host in NODES else host) == (each["labels"]["name"], each["labels"]["role"])
        fetched[host] = port
    assert set(fetched) == set(SERVICES) - {"links"}
    assert "mesh" in compose["services"]["prometheus"]["networks"]


def test_spans_reach_jaeger_through_the_collector(compose: dict[str, Any]) -> None:
    """Who is sent spans is told of by name; each can reach the next."""
    services = compose["services"]
    takes = loaded("otel-collector.yaml")
    assert takes["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] == "0.0.0.0:4317"
    assert takes["exporters"]["otlp"]["endpoint"] == "jaeger:4317"
    sending = {name for name in SERVICES if "--otlp-endpoint=${ORBITMESH_OTLP-}" in services[name]["command"]}
    assert sending == {"gateway", "aggregator"}
    assert {"mesh", "watch"} <= set(services["otel-collector"]["networks"])
    assert "watch" in services["jaeger"]["networks"] and "watch" in services["grafana"]["networks"]


def test_what_is_mounted_from_here_is_here(compose: dict[str, Any]) -> None:
    """A missing file would become an empty directory."""
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
                assert rest.endswith(":ro"), (name, volume)
            else:
                assert source in compose["volumes"], (name, source)


def test_the_constellation_knows_the_links_that_are_emulated(relays: dict[str, RelaySpec]) -> None:
    """The same pairs of nodes, latencies and rates; always open."""
    scenario = load_scenario(DEPLOY / "scenario.toml")
    plan = plan_contacts(scenario)
    found = {(each.source, each.target): (each.latency_at(each.start_s) * 1e3, each.rate_bps) for each in plan.contacts}
    nodes = [name.split(">") for name in relays if set(name.split(">")) <= set(NODES)]
    assert set(found) == {(one, other) for one, other in nodes}
    assert set(found.values()) == {(20, 100e6)}


def test_chaos_knows_the_emulator_s_socket_and_nothing_else(compose: dict[str, Any]) -> None:
    """Its flags are read by its own parser; it has no network."""
    service, links = compose["services"]["chaos"], compose["services"]["links"]
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"][3:]]
    given = chaos.build_parser().parse_args(words)
    assert str(given.control_socket) in links["command"] and str(given.config) in links["command"]
    assert service["network_mode"] == "none" and service["profiles"] == ["chaos"]
    assert "links-control:/state" in service["volumes"] and "links-control:/state" in links["volumes"]


def test_the_page_has_the_blocks_that_the_containers_test_runs() -> None:
    """A block that is renamed or added is not left out of the test in silence."""
    assert list(blocks()) == [
        "Start 1",
        "Use it from outside 1",
        "Use it from outside 2",
        "Train in it 1",
        "Train in it 2",
        "Look into it with buf or grpcurl 1",
        "Look into it with buf or grpcurl 2",
        "Make it worse 1",
        "Make it worse 2",
        "Watch it 1",
        "Lose a node, stop, start 1",
        "Lose a node, stop, start 2",
        "Keys 1",
        "Keys 2",
        "End 1",
    ]


@pytest.mark.parametrize("words", [["docker-compose"], ["docker", "compose"]], ids=["1.29", "v2"])
def test_compose_itself_reads_the_file_with_every_profile(words: list[str]) -> None:
    """Each version that is installed here; no engine is asked."""
    here = shutil.which(words[0]) is not None
    if not here or subprocess.run([*words, "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{' '.join(words)} is not installed")
    profiles = ["--profile", "observability", "--profile", "chaos"]
    done = subprocess.run(
        [*words, *profiles, "config"], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert {*SERVICES, "pki", "chaos", "prometheus", "grafana", "jaeger", "otel-collector"} == set(read)
