"""The manifests against the program that they start: flags, ports, names, keys, and who may talk to whom."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.server import GatewaySettings
from orbitmesh.trust.names import Role
from services.aggregator.server import AggregatorSettings
from services.constellation.settings import ConstellationSettings
from services.executor.settings import ExecutorSettings
from services.kubernetes import own_identity, pki
from services.runtime.authz import ALLOWED, methods_of, roles_for
from services.runtime.config import load_config
from services.runtime.metrics import CLOSE_MS
from services.runtime.probe import LIVENESS
from services.runtime.server import CLOSE_GRACE_S, DRAIN_GRACE_S
from services.scheduler.server import SchedulerSettings
from services.slices.settings import SlicesSettings
from tests.kubernetes.checking import ROOT, everything, judge, judge_custom, mixed
from tests.kubernetes.rendering import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Manifest,
    containers,
    documents,
    pods,
    render,
    render_by_kustomize,
    title,
)
from tests.runtime.test_gate import mesh_services

SETTINGS: dict[str, type[Any]] = {
    "services.scheduler": SchedulerSettings,
    "gateway": GatewaySettings,
    "services.aggregator": AggregatorSettings,
    "services.slices": SlicesSettings,
    "services.constellation": ConstellationSettings,
    "services.executor": ExecutorSettings,
}
SERVICES = ("scheduler", "gateway", "aggregator", "slices", "constellation", "executor")
COMPONENT = "app.kubernetes.io/component"
MESH = {"app.kubernetes.io/name": "orbitmesh"}
TALKS = re.compile(r"^\| `(?P<who>[a-z]+)` \| (?P<whom>[^|]*) \|", re.M)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    """The objects of one overlay."""
    return render(K8S / "overlays" / request.param)


def workloads(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, dict[str, Any]]]:
    """The services: name, object, template of its pods."""
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment"):
            [pod] = pods(manifest)
            yield manifest["metadata"]["name"], manifest, pod


def serving(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """The container of a service in its pod."""
    [found] = [each for each in pod["spec"]["containers"] if each["name"] == name]
    return dict(found)


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def arguments(container: dict[str, Any], pod_name: str) -> list[str]:
    """What the process is given, with the variables of its pod filled in as a kubelet does."""
    known = {each["name"]: pod_name for each in container.get("env", ())}
    assert all(each["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name" for each in container.get("env", ()))
    return [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], each) for each in container["args"]]


def settings(container: dict[str, Any], pod_name: str) -> Any:
    python, flag, module = container["command"]
    assert (python, flag) == ("python", "-m")
    return load_config(SETTINGS[module], arguments(container, pod_name), prog=module, description="")


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("components", [(), COMPONENTS], ids=["alone", "with-all-components"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_renders_what_we_render(name: str, components: tuple[str, ...], tmp_path: Path) -> None:
    """Object for object, so that what is judged where kustomize is not installed is what a cluster gets."""
    directory = mixed(tmp_path, name, *components)
    if (real := render_by_kustomize(directory)) is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    ours = render(directory)
    assert {title(each): each for each in ours} == {title(each): each for each in real}
    assert len({title(each) for each in ours}) == len(ours)


def test_the_judges_find_what_is_wrong() -> None:
    """A field that no version knows, a port that is text, a probe of neither kind: each is named with its place."""
    manifests = {title(each): each for each in everything()}
    planted = copy.deepcopy(manifests["StatefulSet/scheduler"])
    planted["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    service = copy.deepcopy(manifests["Service/scheduler"])
    service["spec"]["ports"][0]["port"] = "7442"
    wrong = "\n".join(judge([planted, service, manifests["Service/gateway"]]))
    assert "readinesProbe" in wrong and "Service/scheduler at spec.ports.0.port" in wrong and "gateway" not in wrong
    monitor = copy.deepcopy(manifests["ServiceMonitor/orbitmesh"])
    monitor["spec"]["endpoints"][0] |= {"intervall": "15s", "interval": 15}
    found, judged = judge_custom([monitor])
    if judged:
        assert any("intervall is no field" in each for each in found)
        assert any("interval must be string" in each for each in found)


def test_every_flag_is_one_that_the_program_knows(overlay: list[Manifest]) -> None:
    """Each container's arguments are read by the parser of its program; none is shortened."""
    seen = set()
    for manifest in overlay:
        for container in containers(manifest):
            module = container["command"][2]
            given = arguments(container, "executor-0")
            if module in SETTINGS:
                values = load_config(SETTINGS[module], given, prog=module, description="")
                fields = {f"--{each.replace('_', '-')}" for each in vars(values)}
            else:
                parser = {"services.kubernetes.pki": pki, "services.kubernetes.own_identity": own_identity}[module]
                read = vars(parser.build_parser().parse_args(given))
                fields = {f"--{each.replace('_', '-')}" for each in read}
            assert {each.partition("=")[0] for each in given if each.startswith("--")} <= fields, module
            seen.add(module)
    assert seen == {*SETTINGS, "services.kubernetes.pki", "services.kubernetes.own_identity"}


def test_ports_are_those_that_the_processes_listen_on(overlay: list[Manifest]) -> None:
    """Of the container, of the Service, of the probes, and of everybody who is told where to find it."""
    services = named(overlay, "Service")
    for name, _, pod in workloads(overlay):
        container = serving(pod, name)
        given = settings(container, f"{name}-0")
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports == {"grpc": port(given.listen), "probe": port(given.probe), "metrics": port(given.prometheus)}
        offered = {each["name"]: (each["port"], each["targetPort"]) for each in services[name]["spec"]["ports"]}
        assert offered == {"grpc": (ports["grpc"], "grpc"), "metrics": (ports["metrics"], "metrics")}
        for which in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[which]["grpc"]["port"] == ports["probe"]
        for target in SERVICES:
            for address in filter(None, re.split("[, ]", getattr(given, target, "") or "")):
                host = address.partition(":")[0]
                # A pod of a StatefulSet has a name below its Service's.
                grpc = {each["name"]: each["port"] for each in services[host.split(".")[-1]]["spec"]["ports"]}["grpc"]
                assert grpc == port(address), (name, address)


def test_probes_ask_by_names_that_the_service_answers(overlay: list[Manifest]) -> None:
    """Ready by the name of the gRPC service that it offers, alive by the name that also a draining process answers."""
    known = {f"orbitmesh.v1.{name.title()}Service" for name in SERVICES}
    assert known <= set(mesh_services())
    for name, manifest, pod in workloads(overlay):
        container = serving(pod, name)
        ready = container["readinessProbe"]["grpc"].get("service", "")
        # Of several one leads, and the others are as ready as they can be: the process as a whole is asked.
        several = manifest["spec"]["replicas"] > 1 and name != "executor"
        assert ready == ("" if several else f"orbitmesh.v1.{name.title()}Service")
        assert container["livenessProbe"]["grpc"]["service"] == LIVENESS
        assert container["startupProbe"]["grpc"]["service"] == LIVENESS


def test_a_pod_has_the_time_that_a_service_takes_to_drain(overlay: list[Manifest]) -> None:
    """preStop, the grace of the service, its last replies and its last figures, before the kubelet kills it."""
    for name, _, pod in workloads(overlay):
        container = serving(pod, name)
        wait_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] >= wait_s + DRAIN_GRACE_S + CLOSE_GRACE_S + CLOSE_MS / 1e3
        # Nobody is sent there any more when it begins to refuse calls.
        ready = container["readinessProbe"]
        assert wait_s >= 2 and ready["periodSeconds"] * ready["failureThreshold"] <= DRAIN_GRACE_S


def test_every_service_and_budget_selects_the_pods_of_its_name(overlay: list[Manifest]) -> None:
    """And no others; a workload selects its own template."""
    labels = {name: pod["metadata"]["labels"] for name, _, pod in workloads(overlay)}
    assert set(labels) == set(SERVICES)
    for name, manifest, _ in workloads(overlay):
        assert manifest["spec"]["selector"]["matchLabels"] == labels[name]
        if manifest["kind"] == "StatefulSet":
            assert manifest["spec"]["serviceName"] in named(overlay, "Service")
    replicas = {name: manifest["spec"]["replicas"] for name, manifest, _ in workloads(overlay)}
    for name, service in named(overlay, "Service").items():
        own = dict(service["spec"]["selector"])
        # One pod of several has a Service of its own, of its name.
        pod = own.pop("statefulset.kubernetes.io/pod-name", None)
        [selected] = [each for each, has in labels.items() if own.items() <= has.items()]
        assert name in ([selected] if pod is None else [f"{selected}-{n}" for n in range(replicas[selected])])
        assert pod in (None, name)
    for name, budget in named(overlay, "PodDisruptionBudget").items():
        own = budget["spec"]["selector"]["matchLabels"].items()
        assert [each for each, has in labels.items() if own <= has.items()] == [name]
    assert set(named(overlay, "PodDisruptionBudget")) == set(SERVICES)


def test_every_container_is_closed_and_bounded(overlay: list[Manifest]) -> None:
    """What the `restricted` profile of Kubernetes asks, a read-only root, bounded memory, a pinned image; only the pod
    that makes keys may speak to the cluster."""
    for manifest in overlay:
        for pod in pods(manifest):
            spec = pod["spec"]
            context = spec["securityContext"]
            assert context["runAsNonRoot"] and context["runAsUser"] == 10001 == context["fsGroup"]
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is (pod["metadata"]["labels"][COMPONENT] == "pki")
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            assert all({"hostPath"}.isdisjoint(volume) for volume in spec["volumes"])
        for container in containers(manifest):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
            assert re.fullmatch(r"orbitmesh/runtime(-torch)?:\d+\.\d+\.\d+", container["image"])


def test_what_a_service_reads_and_writes_is_mounted(overlay: list[Manifest]) -> None:
    """Its keys read-only, its state on a volume that outlives the pod, what it reads from a map that is there."""
    for name, manifest, pod in workloads(overlay):
        container = serving(pod, name)
        given = settings(container, f"{name}-0")
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        assert mounts[str(given.identity)]["readOnly"] is True
        if state := getattr(given, "state", None):
            claims = {each["metadata"]["name"] for each in manifest["spec"]["volumeClaimTemplates"]}
            assert mounts[str(state)]["name"] in claims
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                data = named(overlay, "ConfigMap")[volume["configMap"]["name"]]["data"]
                assert given.scenario.name in data
                assert str(given.scenario.parent) in mounts


def identities(overlay: list[Manifest]) -> dict[str, pki.Entry]:
    """What the job issues, by secret."""
    [container] = containers(named(overlay, "Job")["pki"])
    given = pki.build_parser().parse_args(container["args"])
    return {entry.secret: entry for entry in map(pki.parse_entry, given.secrets)}


def test_every_service_has_keys_of_its_own_role_and_no_others(overlay: list[Manifest]) -> None:
    """Each mounts one secret, which the job makes and which holds its role's; executors get theirs handed over."""
    issued = identities(overlay)
    for name, manifest, pod in workloads(overlay):
        secrets = [each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each]
        keys = [each for each in secrets if each.startswith("identit")]
        assert len(keys) == 1, name
        entry = issued[keys[0]]
        assert {each.partition("/")[0] for each in entry.names} == {name}
        volume = next(each for each in pod["spec"]["volumes"] if each.get("secret", {}).get("secretName") == keys[0])
        seen_by = {
            each["name"] for each in containers(manifest) for mount in each["volumeMounts"]
            if mount["name"] == volume["name"]
        }  # fmt: skip
        # Secret files are root's: the group may read them, others may not.
        assert volume["secret"]["defaultMode"] == 0o440
        if entry.many:
            assert seen_by == {"identity", "identity-renewal"}
            assert {f"{name}/{name}-{number}" for number in range(manifest["spec"]["replicas"])} <= set(entry.names)
        else:
            assert seen_by == {name}


def test_the_job_may_touch_the_secrets_that_it_keeps_and_no_others(overlay: list[Manifest]) -> None:
    """By name; and the job that renews is the same as the one that begins."""
    rules = named(overlay, "Role")["pki"]["rules"]
    assert {verb for rule in rules if "resourceNames" not in rule for verb in rule["verbs"]} == {"create"}
    [kept] = [set(rule["resourceNames"]) for rule in rules if "resourceNames" in rule]
    assert kept == {pki.CA_SECRET, *identities(overlay)}
    mounted = {
        volume["secret"]["secretName"]
        for manifest in overlay for pod in pods(manifest) for volume in pod["spec"]["volumes"] if "secret" in volume
    }  # fmt: skip
    assert pki.CA_SECRET not in mounted
    assert pods(named(overlay, "Job")["pki"]) == pods(named(overlay, "CronJob")["pki"])


def test_there_are_keys_for_as_many_executors_as_the_autoscaler_may_start() -> None:
    """An executor without an identity could not start."""
    manifests = everything()
    scaler = named(manifests, "HorizontalPodAutoscaler")["executor"]
    assert scaler["spec"]["maxReplicas"] <= len(identities(manifests)["identities-executor"].names)
    target = named(manifests, "StatefulSet")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]


def allowed(manifests: list[Manifest]) -> set[tuple[str, str]]:
    """Who may open a connection to whose gRPC port: out of the one and into the other."""
    labels = {name: pod["metadata"]["labels"] for name, _, pod in workloads(manifests)}
    ports = {name: port(settings(serving(pod, name), f"{name}-0").listen) for name, _, pod in workloads(manifests)}
    policies = named(manifests, "NetworkPolicy").values()

    def meets(selector: dict[str, Any], name: str) -> bool:
        assert set(selector) <= {"matchLabels"}, selector
        return bool(selector.get("matchLabels", {}).items() <= labels[name].items())

    def opened(name: str, peer: str, direction: str, way: str, number: int) -> bool:
        rules = [
            rule for policy in policies if meets(policy["spec"]["podSelector"], name)
            for rule in policy["spec"].get(direction, ())
        ]  # fmt: skip
        return any(
            any(each.get("port") == number for each in rule["ports"])
            and (way not in rule or any("podSelector" in to and meets(to["podSelector"], peer) for to in rule[way]))
            for rule in rules
        )

    return {
        (one, other)
        for one in SERVICES for other in SERVICES
        if opened(one, other, "egress", "to", ports[other]) and opened(other, one, "ingress", "from", ports[other])
    }  # fmt: skip


def test_nobody_may_talk_to_anybody_but_as_documented(overlay: list[Manifest]) -> None:
    """The policies allow exactly the table of docs/kubernetes.md, and nothing where there is none."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    documented = {
        (row["who"], whom)
        for row in TALKS.finditer(page) for whom in re.findall(r"`([a-z]+)`", row["whom"]) if whom in SERVICES
    }  # fmt: skip
    assert allowed(overlay) == documented
    deny = named(overlay, "NetworkPolicy")["default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_whoever_may_connect_may_also_call_something(overlay: list[Manifest]) -> None:
    """No connection is let through that the mesh's own table of roles would refuse every call on; and everybody who is
    told an address may connect to it."""
    calls = allowed(overlay)
    for one, other in calls:
        packs = ["orbitmesh.v1.PackService"] if other == "gateway" else []
        offered = methods_of([f"orbitmesh.v1.{other.title()}Service", *packs])
        assert any(Role(one) in roles_for(method, ALLOWED) for method in offered), (one, other)
    for name, _, pod in workloads(overlay):
        given = settings(serving(pod, name), f"{name}-0")
        for other in SERVICES:
            if getattr(given, other, ""):
                assert (name, other) in calls


def test_gpu_nodes_are_chosen_by_label_and_compute_there() -> None:
    """The component gives executors a node label, one GPU and the device; other services stay as they are."""
    manifests = named(everything(), "StatefulSet")
    [pod] = pods(manifests["executor"])
    assert pod["spec"]["nodeSelector"] == {"orbitmesh/gpu": "true"}
    container = serving(pod, "executor")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings(container, "executor-0").device == "cuda"
    assert "nodeSelector" not in pods(manifests["gateway"])[0]["spec"]


def test_every_file_belongs_to_something() -> None:
    """No manifest lies beside a kustomization that does not name it."""
    for settings_file in K8S.rglob("kustomization.yaml"):
        [found] = documents(settings_file)
        here = {each.name for each in settings_file.parent.glob("*.yaml")} - {"kustomization.yaml"}
        # Values for another's chart, which no kustomization applies.
        assert here - {"prometheus-adapter.yaml"} <= set(found.get("resources", ())), settings_file


def test_of_two_everybody_is_told_both_and_both_share_a_database() -> None:
    """Schedulers and gateways of `ha`: as many addresses as pods, also where a deployment's packs come from; the store
    by a file of a secret, and a way to it for those who have it and nobody else."""
    overlay = render(K8S / "overlays" / "ha")
    given = {name: settings(serving(pod, name), f"{name}-1") for name, _, pod in workloads(overlay)}
    replicas = {name: manifest["spec"]["replicas"] for name, manifest, _ in workloads(overlay)}
    assert (replicas["scheduler"], replicas["gateway"]) == (2, 2)
    for name in ("scheduler", "gateway"):
        service = named(overlay, "Service")[name]["spec"]
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
    schedulers = ",".join(f"scheduler-{number}.scheduler:7442" for number in range(2))
    assert {given[name].scheduler for name in ("gateway", "aggregator", "slices", "executor")} == {schedulers}
    sharing = {name for name, each in given.items() if getattr(each, "store_file", None)}
    assert given["gateway"].advertise == "gateway-0.gateway:7443,gateway-1.gateway:7443"
    assert sharing == {"scheduler", "gateway"}
    let_out = {
        policy["spec"]["podSelector"]["matchLabels"][COMPONENT]
        for policy in named(overlay, "NetworkPolicy").values()
        for rule in policy["spec"].get("egress", ()) if any(each["port"] == 5432 for each in rule["ports"])
    }  # fmt: skip
    assert let_out == sharing
    for name, _, pod in workloads(overlay):
        mounts = {each["mountPath"]: each["name"] for each in serving(pod, name)["volumeMounts"]}
        assert ("/store" in mounts) == (name in sharing)
