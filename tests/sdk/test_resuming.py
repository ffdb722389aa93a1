"""Answers that outlive the gateway's process and their client's stream, over a mesh of real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orbitmesh import Link, Mesh
from orbitmesh.rpc import channel_options
from orbitmesh.trust import Role, load_identity
from orbitmesh.trust.names import dns_name
from orbitmesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.interruptible import interruptible

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEW_TOKENS = 120
"""At two crossings of 4 ms each, a second and more."""
WAIT_S = 60.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two nodes with a small model in two stages; tests leave its processes running."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = tmp_path_factory.mktemp("model") / "Tiny_Llama"
    LlamaForCausalLM(config).save_pretrained(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Mesh.local(nodes=2, link=Link(latency_ms=4, rate_mbps=1000)) as local:
            local.deploy(model, name="tiny", stages=2)
            yield local


@pytest.fixture(scope="module")
def undisturbed(mesh: Mesh) -> list[int]:
    """What is answered where nothing happens."""
    return list(ask(mesh).wait().token_ids)


def ask(mesh: Mesh, **more: Any) -> Any:
    return mesh.generate("tiny", PROMPT, max_new_tokens=NEW_TOKENS, ignore_end=True, **more)


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def open_generations(mesh: Mesh) -> int:
    """How many the nodes hold, as they say themselves."""
    return sum(stage.generations for stage in mesh.deployment("tiny").stages)


def command(mesh: Mesh, *more: str) -> subprocess.Popen[str]:
    """`orbitmesh generate` as a user starts it."""
    where = ["--gateway", mesh.local.gateway, "--identity", str(mesh.local.identity)]
    tokens = ["--token-ids", ",".join(map(str, PROMPT)), "--max-new-tokens", str(NEW_TOKENS), "--ignore-end"]
    return subprocess.Popen(
        interruptible("-m", "orbitmesh.cli.main", "generate", "tiny", *tokens, *where, "--json", *more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_stream_outlives_the_gateway_and_repeats_nothing(mesh: Mesh, undisturbed: list[int]) -> None:
    """The gateway is killed in mid-stream and started again: the same tokens, each once, and the wait was told."""
    told: list[str | None] = []
    generation = ask(mesh, on_waiting=told.append)
    positions = []
    for token in generation:
        positions.append(token.position)
        if len(positions) == 20:
            mesh.local.restart("gateway")
    assert list(generation.token_ids) == undisturbed
    assert positions == list(range(len(PROMPT), len(PROMPT) + NEW_TOKENS))
    assert generation.finish_reason == "length"
    assert any(why is not None and "gateway" in why for why in told)
    assert told[-1] is None
    assert generation.waiting is None


def test_a_loop_that_is_left_frees_the_nodes(mesh: Mesh) -> None:
    """After a `break` no node holds the generation, long before its lingering would have ended."""
    for token in ask(mesh):
        if token.position >= len(PROMPT) + 3:
            break
    until(lambda: open_generations(mesh) == 0)
    assert mesh.status().generations == 0


def test_a_generation_lingers_for_a_client_whose_stream_was_cut(mesh: Mesh, undisturbed: list[int]) -> None:
    """It goes on while nobody listens; who comes back with what it has gets the rest, and only the rest."""
    identity = load_identity(mesh.local.identity)
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.tls_key_pem, identity.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", dns_name(Role.GATEWAY, mesh.status().name))]
    request = gateway_pb2.GenerateRequest(
        deployment="tiny", token_ids=gateway_pb2.TokenIds(ids=PROMPT), max_new_tokens=NEW_TOKENS, ignore_end=True,
        request_id="a-client-that-comes-back",
    )  # fmt: skip
    request.linger.FromSeconds(30)
    with grpc.secure_channel(mesh.local.gateway, credentials, options=options) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        had: list[int] = []
        call = stub.Generate(request, timeout=WAIT_S)
        for event in call:
            if event.HasField("token"):
                had.append(event.token.id)
                if len(had) == 5:
                    call.cancel()
                    break
        time.sleep(0.3)
        request.received.ids.extend(had)
        rest = [event.token for event in stub.Generate(request, timeout=WAIT_S) if event.HasField("token")]
    assert [*had, *(token.id for token in rest)] == undisturbed
    assert rest[0].position == len(PROMPT) + 5


def test_the_command_outlives_the_gateway_too(mesh: Mesh, undisturbed: list[int]) -> None:
    """`orbitmesh generate` gives the same tokens over a gateway that is killed and started again."""
    events = []
    with command(mesh) as running:
        assert running.stdout is not None
        for line in running.stdout:
            events.append(json.loads(line))
            if sum(event["event"] == "token" for event in events) == 10 and events[-1]["event"] == "token":
                mesh.local.restart("gateway")
    assert running.returncode == 0
    assert [event["id"] for event in events if event["event"] == "token"] == undisturbed
    kinds = [event["event"] for event in events]
    assert kinds.index("waiting") < kinds.index("going_on")
    assert kinds[-1] == "finished"


def test_an_interrupted_command_stops_the_work_on_the_nodes(mesh: Mesh) -> None:
    """Ctrl-C ends `orbitmesh generate` with 130, and the generation on every node with it."""
    running = command(mesh)
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["event"] == "token":
            break
    running.send_signal(signal.SIGINT)
    said, complaints = running.communicate(timeout=WAIT_S)
    assert running.returncode == 130
    assert json.loads(said.splitlines()[-1])["error"]["reason"] == "CANCELLED"
    assert complaints == ""
    until(lambda: open_generations(mesh) == 0)
    assert mesh.status().generations == 0
