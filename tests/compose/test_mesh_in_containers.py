"""The page deploy/README.md, carried out with a container engine: every block of commands, in its order.

Run by `make test-compose`. Needs an engine, docker-compose and, for the block with buf, buf: on the PATH or
in node_modules. The tests stand in the order of the page and each goes on where the one before it ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh.v1 import constellation_pb2
from services.training.flat import load_flat
from services.training.task import find_task
from tests.compose.readme import DEPLOY, blocks
from tests.compose.test_compose_file import NODES, SERVICES

PROJECT = "orbitmesh-test"
PORT = "17443"
NET = "172.31.78"
PROMPT = "The with statement"
BUILD_S = 1500
"""How long a block of commands may take: the first one builds the images."""
SETTLE_S = 600
"""How long the mesh may take to become what a test waits for; five executors that load torch at once start slowly on a
machine that others use too."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(BUILD_S + 300),
    pytest.mark.skipif(
        shutil.which("docker-compose") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0,
        reason="no container engine runs here, or docker-compose is missing",
    ),
]


@dataclass(frozen=True)
class Page:
    """Runs the page's commands as a user would, under another project's name and port."""

    environment: dict[str, str]

    def run(self, title: str) -> str:
        """The output of one block."""
        return self.shell(blocks()[title])

    def shell(self, commands: str) -> str:
        commands = commands.replace("localhost:7443", f"localhost:{PORT}")
        return self._run(commands.replace("127.0.0.1:7443", f"127.0.0.1:{PORT}"), check=True).stdout

    def refused(self, commands: str) -> str:
        """What commands that must fail say."""
        done = self._run(commands, check=False)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def _run(self, commands: str, *, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", commands],
            cwd=DEPLOY, env=self.environment, capture_output=True, text=True, timeout=BUILD_S, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            pytest.fail(f"{commands}\nended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    def cli(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON documents that a command of the CLI writes."""
        words = " ".join(f"'{argument}'" for argument in arguments)
        output = self.shell(
            f"orbitmesh {words} --json --gateway localhost:7443 --identity ~/.orbitmesh/me --timeout 60"
        )
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        [container] = self.shell(f"docker-compose ps -a -q {service}").split()
        [facts] = json.loads(self.shell(f"docker inspect {container}"))
        return dict(facts)

    def wait_until_healthy(self, *services: str) -> None:
        """Waits for the engine to call them healthy."""
        deadline = time.monotonic() + SETTLE_S
        for service in services:
            while (state := self.inspect(service)["State"])["Health"]["Status"] != "healthy":
                if time.monotonic() > deadline:
                    pytest.fail(f"{service} is {state}\n{self.shell(f'docker-compose logs --tail 30 {service}')}")
                time.sleep(0.5)


def _torch_index() -> str:
    """The index for the build: as set, else the public one, else pip's own where that is out of reach."""
    if "TORCH_INDEX" in os.environ:
        return os.environ["TORCH_INDEX"]
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=10):
            return CPU_INDEX
    except (urllib.error.URLError, OSError):
        return ""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The mesh of the compose file, started by the page's first block and removed with its volumes."""
    root = Path(__file__).parents[2]
    path = [str(Path(sys.executable).parent), str(root / "node_modules" / ".bin"), os.environ["PATH"]]
    page = Page(
        os.environ
        | {
            "HOME": str(tmp_path_factory.mktemp("home")),
            "PATH": os.pathsep.join(path),
            "COMPOSE_PROJECT_NAME": PROJECT,
            "ORBITMESH_PORT": PORT,
            "ORBITMESH_NET": NET,
            "TORCH_INDEX": _torch_index(),
        }
    )
    try:
        page.run("Start 1")
        yield page
    finally:
        page.shell("docker-compose down -v --remove-orphans -t 30")


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """The tokens of the unsplit model, answered by transformers itself in a process of its own."""
    order = {"directory": str(DEPLOY.parent / "models" / "pydoc"), "prompt": PROMPT, "max_new_tokens": 24}
    done = subprocess.run(
        [sys.executable, "-m", "orbitmesh.cli.unsplit"],
        input=json.dumps(order), capture_output=True, text=True, check=True, timeout=SETTLE_S,
    )  # fmt: skip
    return list(json.loads(done.stdout)["token_ids"])


def answer(page: Page) -> list[int]:
    """The tokens of the mesh."""
    [finished] = [
        document
        for document in page.cli("generate", "demo", PROMPT, "--max-new-tokens", "24")
        if document.get("event") == "finished"
    ]
    return list(finished["token_ids"])


def stages(page: Page) -> list[dict[str, Any]]:
    """Where the deployment's stages stand."""
    [document] = page.cli("status")
    [deployment] = document["deployments"]
    return list(deployment["stages"])


def ask(page: Page) -> tuple[list[int], dict[str, Any]]:
    """The tokens of the mesh, or else the typed error that it answers with."""
    command = (
        f"orbitmesh generate demo '{PROMPT}' --max-new-tokens 24 --json --timeout 30 "
        f"--gateway localhost:{PORT} --identity ~/.orbitmesh/me"
    )
    done = subprocess.run(["bash", "-c", command], env=page.environment, capture_output=True, text=True, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    if done.returncode == 0:
        return list(last["token_ids"]), {}
    assert set(last) == {"error"}, done.stdout
    return [], dict(last["error"])


def wait_for_answer(page: Page) -> list[int]:
    """The tokens of the mesh once it answers; what it says meanwhile must be a typed error."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        tokens, error = ask(page)
        if not error:
            return tokens
        if time.monotonic() > deadline:
            pytest.fail(f"the mesh does not answer: {error}")
        time.sleep(1)


def wait_for_refusal(page: Page, node: str) -> None:
    """Waits until prompts are refused because that node is lost; none may be answered meanwhile."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        tokens, error = ask(page)
        assert not tokens
        if error["reason"] == "NODE_LOST" and node in error["message"]:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"the loss of {node} is not named: {error}")
        time.sleep(1)


def wait_for_nodes(page: Page) -> None:
    """Waits until all nodes are members."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        [document] = page.cli("status")
        up = {node["name"] for node in document["nodes"] if node["state"] == "up"}
        if up == set(NODES):
            return
        if time.monotonic() > deadline:
            pytest.fail(f"only {sorted(up)} are up")
        time.sleep(0.5)


def test_every_service_becomes_healthy(page: Page) -> None:
    """The engine's own checks say so, and `pki` has ended well."""
    page.wait_until_healthy(*SERVICES)
    assert page.inspect("pki")["State"]["ExitCode"] == 0


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_runs_closed_and_bounded(page: Page, service: str) -> None:
    """Asked of the engine and of the kernel: user, root filesystem, capabilities, limits."""
    facts = page.inspect(service)
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["Memory"] > 0
    assert facts["HostConfig"]["NanoCpus"] > 0
    status = page.shell(f"docker-compose exec -T {service} cat /proc/1/status")
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
    assert fields["Uid"] == ["10001"] * 4
    assert {int(fields[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert "Read-only" in page.refused(f"docker-compose exec -T {service} touch /opt/orbitmesh/new")


def test_python_is_the_only_child_of_the_init(page: Page) -> None:
    """No shell stands between SIGTERM and Python."""
    children = page.shell("docker-compose exec -T gateway cat /proc/1/task/1/children").split()
    # The second one is the command that asks.
    words = page.shell(f"docker-compose exec -T gateway cat /proc/{children[0]}/cmdline").split("\0")
    assert words[:3] == ["python", "-m", "gateway"]


def test_the_lean_image_has_no_torch(page: Page) -> None:
    """Gateway, scheduler and links do without."""
    assert "No module named 'torch'" in page.refused("docker-compose exec -T gateway python -c 'import torch'")


def test_the_client_reaches_the_mesh_from_outside(page: Page) -> None:
    """The identity is copied out, closed to others; every node has joined."""
    page.run("Use it from outside 1")
    key = Path(page.environment["HOME"]) / ".orbitmesh" / "me" / "tls.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_uid == os.getuid()
    wait_for_nodes(page)


def test_a_deployed_model_answers_as_transformers_does(page: Page, expected: list[int]) -> None:
    """Three stages in three containers, 20 ms apart: the same tokens as the model in one process."""
    output = page.run("Use it from outside 2")
    assert "demo serves" in output
    assert answer(page) == expected
    assert len({stage["node"] for stage in stages(page)}) == 3


def trained(page: Page, name: str) -> dict[str, Any]:
    """How a run is."""
    [document] = page.cli("train", "status", name)
    return dict(document["run"])


def test_the_nodes_learn_digits_that_never_leave_them(page: Page) -> None:
    """Five containers, secure sums: what came of it is worth what the mesh says, measured by a model made here."""
    output = page.run("Train in it 1")
    assert "digits is done after 4 rounds" in output
    run = trained(page, "digits")
    assert [each["contributed"] for each in run["rounds"]] == [sorted(NODES)] * 4
    assert {each["examples"] for each in run["nodes"]} == {800}
    task = find_task("mnist5k")
    model = task.model(0)
    load_flat(model, np.load(Path(page.environment["HOME"]) / ".orbitmesh" / "digits.npy", allow_pickle=False))
    figures = task.evaluate(model)
    assert figures == pytest.approx(run["rounds"][-1]["figures"], rel=1e-3)
    # One in ten is what guessing gets.
    assert figures["accuracy"] > 0.5


@pytest.mark.parametrize("task", ["digits", "pydoc-small", "pydoc"])
def test_the_image_has_what_the_other_tasks_learn_from(page: Page, task: str) -> None:
    """Nothing is fetched: the mesh's network leads nowhere."""
    code = f"from services.training.task import find_task; print(len(find_task({task!r}).shard(0, 4, seed=0)))"
    assert int(page.shell(f'docker-compose exec -T sat-1 python -c "{code}"')) > 100


def test_a_run_goes_on_when_the_aggregator_was_killed_in_its_middle(page: Page) -> None:
    """SIGKILL after some rounds, and the watch is begun before it is back: every round is done once, and the weights
    are to the bit those of a run that nobody disturbed."""
    start, kill, again, watch = blocks()["Train in it 2"].splitlines()
    page.shell(start)
    deadline = time.monotonic() + SETTLE_S
    while trained(page, "long")["rounds_done"] < 2:
        assert time.monotonic() < deadline, trained(page, "long")
        time.sleep(0.2)
    page.shell(kill)
    assert "cannot reach the aggregator" in page.refused(
        f"orbitmesh train status --gateway localhost:{PORT} --identity ~/.orbitmesh/me"
    )
    [document] = page.cli("status")
    assert document["training"] == {"aggregator": "unreachable", "runs": []}
    page.shell(again)
    output = page.shell(watch)
    assert "long is done after 10 rounds" in output
    run = trained(page, "long")
    assert [each["index"] for each in run["rounds"]] == list(range(10))
    assert [each["contributed"] for each in run["rounds"]] == [sorted(NODES)] * 10
    page.cli("train", "start", "mnist5k", "--name", "calm", "--rounds", "10", "--watch")
    found = []
    for name in ("long", "calm"):
        [written] = page.cli("train", "weights", name, "--out", f"{page.environment['HOME']}/{name}.npy")
        found.append(written["sha256"])
    assert found[0] == found[1]


def test_buf_lists_the_services_and_generates(page: Page, expected: list[int]) -> None:
    """Reflection over mTLS for the operator; the stream of tokens as JSON; a client may not reflect."""
    page.run("Look into it with buf or grpcurl 1")
    if shutil.which("buf", path=page.environment["PATH"]) is None:
        pytest.skip("buf is not installed: npm install @bufbuild/buf")
    output = page.run("Look into it with buf or grpcurl 2")
    assert {"orbitmesh.v1.GatewayService", "grpc.health.v1.Health"} <= set(output.splitlines())
    assert '"schedulerUp": true' in output
    stream = json.JSONDecoder()
    rest, tokens = output[output.index('"schedulerUp"') :].partition("}")[2].strip(), []
    while rest:
        document, end = stream.raw_decode(rest)
        rest = rest[end:].strip()
        if "token" in document:
            tokens.append(document["token"]["id"])
    assert tokens == expected[:8]
    listing = blocks()["Look into it with buf or grpcurl 2"].splitlines()[1]
    refusal = page.refused(f"cd ~/.orbitmesh/me; {listing}".replace("127.0.0.1:7443", f"127.0.0.1:{PORT}"))
    assert "operator" in refusal


def test_answers_are_right_while_links_get_worse_and_well_again(page: Page, expected: list[int]) -> None:
    """Chaos in the network for some troubles: what is answered is right, what is not is a typed error, and afterwards
    everything is as it was."""
    page.environment.update(ORBITMESH_CHAOS_EVERY_S="1", ORBITMESH_CHAOS_FOR_S="3")
    start, _ = blocks()["Make it worse 1"].splitlines()
    page.shell(start)
    deadline, right = time.monotonic() + SETTLE_S, 0
    while right < 3 or len(weather(page)) < 4:
        tokens, error = ask(page)
        right += tokens == expected
        assert error or tokens == expected
        assert time.monotonic() < deadline, (right, weather(page))
    page.run("Make it worse 2")
    assert wait_for_answer(page) == expected
    wait_for_nodes(page)


def weather(page: Page) -> list[str]:
    """The troubles so far, as chaos says them."""
    lines = page.shell("docker-compose --profile chaos logs --no-color chaos").splitlines()
    return [line for line in lines if '"event": "trouble"' in line]


def test_the_constellation_answers_in_the_mesh(page: Page) -> None:
    """Asked from another container with its own keys, over mutual TLS: the links that are emulated."""
    code = (
        "import grpc;from orbitmesh.rpc import channel_options;from orbitmesh.trust import load_identity;"
        "from orbitmesh.v1 import constellation_pb2 as p, constellation_pb2_grpc as g;me=load_identity('/identity');"
        "c=grpc.secure_channel('constellation:7446',grpc.ssl_channel_credentials(me.ca_pem,me.tls_key_pem,me.tls_cert_pem),"
        "[*channel_options(),('grpc.ssl_target_name_override','constellation.constellation.orbitmesh')]);"
        "l=g.ConstellationServiceStub(c).GetLink(p.GetLinkRequest(source='sat-1',target='sat-2'),timeout=60).link;"
        "print(l.state,round(l.latency_s*1e3),round(l.rate_bps))"
    )
    state, latency_ms, rate_bps = page.shell(f'docker-compose exec -T scheduler python -c "{code}"').split()
    assert (int(latency_ms), int(rate_bps)) == (20, 100_000_000)
    assert constellation_pb2.SkyLinkState.Name(int(state)) == "SKY_LINK_STATE_UP"


def test_every_process_offers_metrics_inside_the_mesh(page: Page) -> None:
    """Fetched from a neighbour in the network, in Prometheus' text; not from this machine."""
    for service in SERVICES[:-1]:
        url = f"http://{service}:9464/metrics"
        code = f"import urllib.request as u; print(u.urlopen('{url}', timeout=60).read().decode())"
        text = page.shell(f'docker-compose exec -T links python -c "{code}"')
        assert "orbitmesh_process_memory_bytes" in text, service


def test_a_killed_node_is_named_and_gets_its_stage_back(page: Page, expected: list[int]) -> None:
    """SIGKILL to a node that holds a stage: prompts are refused with its name; started again, it serves again."""
    kill, start = blocks()["Lose a node, stop, start 1"].splitlines()
    victim = next(stage["node"] for stage in stages(page) if stage["node"] != "ground-1")
    page.shell(kill.replace("sat-2", victim))
    wait_for_refusal(page, victim)
    page.shell(start.replace("sat-2", victim))
    page.wait_until_healthy(victim)
    assert wait_for_answer(page) == expected
    wait_for_nodes(page)


def test_stop_and_start_keep_the_deployment(page: Page, expected: list[int]) -> None:
    """Every process ends by itself with 0, not by SIGKILL; nothing has to be deployed again."""
    stop, start = blocks()["Lose a node, stop, start 2"].splitlines()
    page.shell(stop)
    assert {name: page.inspect(name)["State"]["ExitCode"] for name in SERVICES} == dict.fromkeys(SERVICES, 0)
    page.shell(start)
    page.wait_until_healthy(*SERVICES)
    assert wait_for_answer(page) == expected


def test_keys_are_kept_while_they_are_good_and_issued_on_request(page: Page) -> None:
    """`pki` run again keeps what is fresh; another person's identity works at once."""
    kept = page.run("Keys 1")
    assert "kept the mesh" in kept
    assert "\nissued\n" not in kept
    page.run("Keys 2")
    page.shell(
        'docker cp "$(docker-compose ps -a -q pki | head -n 1)":/identities/client/alice ~/.orbitmesh/\n'
        f"orbitmesh status --gateway localhost:{PORT} --identity ~/.orbitmesh/alice"
    )


def test_down_and_up_bring_the_same_mesh_back(page: Page, expected: list[int]) -> None:
    """The volumes stay: the old identity, the pack and the deployment are still good."""
    page.run("End 1")
    page.shell("docker-compose up -d --no-build")
    page.wait_until_healthy(*SERVICES)
    assert wait_for_answer(page) == expected
