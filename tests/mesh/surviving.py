"""What the tests share in which processes die under a generation: who serves, who stands by, and the blow itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orbitmesh import Mesh
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.mesh.support import Model, channel_to, until

NEW_TOKENS = 64
NO_TOKEN = 1 << 20
"""An end that no vocabulary here holds."""
SETTLE_S = 90.0
"""How long a mesh may take to be as it should after a blow; far above what it takes."""


def described(mesh: Mesh, name: str) -> scheduler_pb2.Deployment:
    """A deployment as the scheduler holds it, standbys and all."""
    user = load_identity(mesh.local.identity)
    with channel_to(mesh.local.gateway, user, Role.GATEWAY, "gateway") as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        answer = stub.GetDeployment(scheduler_pb2.GetDeploymentRequest(name=name), timeout=60.0)
    found: scheduler_pb2.Deployment = answer.deployment
    return found


def pipeline_of(mesh: Mesh, name: str) -> list[str]:
    """The nodes that serve now, in order."""
    return [node.name for node in described(mesh, name).pipeline]


def is_whole(mesh: Mesh, name: str, standbys: bool) -> bool:
    """Whether every node is up and every place has a standby on a node that is up, where it is to have one."""
    up = {node.name for node in mesh.nodes() if node.state == "up"}
    if len(up) < len(mesh.local.processes()):
        return False
    held = described(mesh, name)
    addresses = {node.name: node.address for node in mesh.nodes()}
    if held.state != scheduler_pb2.DEPLOYMENT_STATE_READY or held.failure:
        return False
    if any(addresses[node.name] != node.address for node in held.pipeline):
        return False
    ready = {each.stage_index for each in held.standbys if each.ready and each.node.name in up}
    return not standbys or ready == set(range(len(held.pipeline)))


def until_whole(mesh: Mesh, name: str, *, standbys: bool = True) -> None:
    """Waits until the mesh could bear the loss of any node."""

    def whole() -> bool:
        try:
            return is_whole(mesh, name, standbys)
        except Exception:  # a gateway that was killed is not back yet
            return False

    until(whole, f"{name} is whole again", SETTLE_S)


def strike(mesh: Mesh, process: str) -> None:
    """SIGKILL, this very moment."""
    found = mesh.local.processes()
    pid = found[process].pid if process in found else mesh.local.services()[process]
    os.kill(pid, signal.SIGKILL)


@dataclass
class Heard:
    """What a client was given."""

    ids: list[int] = field(default_factory=list)
    """The tokens, in order."""
    positions: list[int] = field(default_factory=list)
    """Their positions."""
    trace_id: str = ""
    """Of the generation."""


def listen(mesh: Mesh, name: str, prompt: Sequence[int], blows: Mapping[int, Callable[[], None]], **how: Any) -> Heard:
    """Reads an answer; `blows[i]` is dealt when token i is in the client's hands, `blows[-1]` before the first."""
    how = {"max_new_tokens": NEW_TOKENS, "ignore_end": True, "timeout": 100.0, **how}
    generation = mesh.generate(name, list(prompt), **how)
    if -1 in blows:
        blows[-1]()
    heard = Heard(trace_id=generation.trace_id)
    for number, token in enumerate(generation):
        heard.ids.append(token.id)
        heard.positions.append(token.position)
        if number in blows:
            blows[number]()
    assert generation.finish_reason == "length"
    return heard


def expect_answer(heard: Heard, model: Model, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> None:
    """Every token is there once, at its place, and is the one that transformers gives."""
    assert heard.positions == list(range(len(prompt), len(prompt) + new_tokens))
    assert heard.ids == endless(model, prompt, new_tokens)


def endless(model: Model, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """What transformers' own `generate` adds where no token ends the answer."""
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        out = model.unsplit.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            eos_token_id=NO_TOKEN,
        )
    return [int(token) for token in out[0, len(prompt) :]]


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs work in a thread beside the block and hands its error on."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(SETTLE_S)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


@contextlib.contextmanager
def gateway_with_spans(mesh: Mesh, spans: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The mesh's gateway, killed and started again as it was, but with its spans written to a file."""
    pid = mesh.local.services()["gateway"]
    arguments = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    arguments[arguments.index("--listen") + 1] = mesh.local.gateway
    mesh.local.kill("gateway")
    until(lambda: not Path(f"/proc/{pid}").exists(), "the gateway is gone")
    with spans.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([*arguments, "--spans-file", str(spans)], stderr=log, stdout=log)
    try:
        until(lambda: b'"listening"' in spans.with_suffix(".log").read_bytes(), "the gateway listens")
        yield process
    finally:
        process.terminate()
        process.wait(60)
        mesh.local.restart("gateway")


def steps_by_stage(spans: Path, trace_id: str) -> dict[int, Counter[int]]:
    """How often each stage computed each position, from the spans of one generation."""
    counted: dict[int, Counter[int]] = {}
    for line in spans.read_text().splitlines():
        span = json.loads(line)
        if span["name"] == "stage.step" and trace_id in span["context"]["trace_id"]:
            facts = span["attributes"]
            counted.setdefault(facts["orbitmesh.stage"], Counter())[facts["orbitmesh.position"]] += 1
    return counted
