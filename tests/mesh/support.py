"""What the tests over real processes share: models, what transformers answers, and looks behind the scenes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from transformers import AutoModelForCausalLM

from orbitmesh import Mesh
from orbitmesh.pack.builder import build_pack
from orbitmesh.rpc import channel_options
from orbitmesh.trust import Identity, Role, load_identity
from orbitmesh.trust.names import dns_name
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from tests.models_for_tests import make_model

WITHIN_S = 60.0
"""How long something that must happen may take; far above what it takes, for machines that are busy."""


@dataclass(frozen=True)
class Model:
    """A model in Hugging Face layout, the pack that was made from it, and transformers' own copy of it."""

    pack: Path
    """The pack, unsigned: the SDK signs it as it deploys."""
    unsplit: Any
    """The model as transformers loads it, in float32."""
    layers: int
    """How many layers it has."""
    vocab_size: int
    """How many token ids it knows."""

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        generator = torch.Generator().manual_seed(1000 * seed + length)
        return [int(x) for x in torch.randint(self.vocab_size, (length,), generator=generator)]

    def answer(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """What transformers' own greedy `generate` adds to the prompt."""
        with torch.inference_mode():
            ids = torch.tensor([list(prompt)])
            out = self.unsplit.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
            )
        return [int(token) for token in out[0, len(prompt) :]]


class Models:
    """Makes models on demand, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Model] = {}

    def get(self, family: str, seed: int = 0, **overrides: Any) -> Model:
        """A tiny random model of a family of `models_for_tests`."""
        key = f"{family}-{seed}-" + "-".join(f"{name}.{value}" for name, value in sorted(overrides.items()))
        if key not in self._made:
            source = make_model(family, self._directory / key / "model", seed, **overrides)
            self._made[key] = self.load(source, self._directory / key / "pack")
        return self._made[key]

    @staticmethod
    def load(source: Path, pack: Path) -> Model:
        """Packs a model directory."""
        manifest = build_pack(source, pack, name=f"tiny-{source.parent.name}"[:40])
        load: Any = AutoModelForCausalLM.from_pretrained
        unsplit = load(source, dtype=torch.float32).eval()
        return Model(pack, unsplit, manifest.layer_count, manifest.vocab_size)


@contextmanager
def deployed(mesh: Mesh, model: Model | Path, name: str, **how: Any) -> Iterator[Any]:
    """A deployment for as long as the block runs."""
    deployment = mesh.deploy(model if isinstance(model, Path) else model.pack, name=name, **how)
    try:
        yield deployment
    finally:
        mesh.delete(name)


def until(met: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    """Waits until a condition is met; fails where that takes too long."""
    give_up = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < give_up, f"within {within_s:g} s it did not happen that {what}"
        time.sleep(0.05)


@contextmanager
def channel_to(address: str, identity: Identity, role: Role, name: str) -> Iterator[grpc.Channel]:
    """A plain channel, as a program that does not use the SDK would open one."""
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.tls_key_pem, identity.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", dns_name(role, name))]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


def address_of(mesh: Mesh, node: str) -> str:
    """Where a node's executor listens."""
    return next(each.address for each in mesh.nodes() if each.name == node)


def stages_on(mesh: Mesh, node: str) -> dict[str, executor_pb2.Stage]:
    """What a node says it holds, asked by the mesh's operator."""
    identity = load_identity(mesh.local.operator_identity)
    with channel_to(address_of(mesh, node), identity, Role.EXECUTOR, node) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        answer = stub.ListStages(executor_pb2.ListStagesRequest(), timeout=60.0)
    return {stage.deployment: stage for stage in answer.stages}


def open_generations(mesh: Mesh, name: str, nodes: Sequence[str]) -> int:
    """How many generations of a deployment are open, over all of its nodes."""
    return sum(stages_on(mesh, node)[name].generations for node in nodes)


def is_idle(mesh: Mesh, name: str, nodes: Sequence[str]) -> bool:
    """Whether no node holds anything of any generation: none is open and every byte of cache is free."""
    stages = [stages_on(mesh, node)[name] for node in nodes]
    return all(stage.generations == 0 and stage.kv_free_bytes == stage.kv_budget_bytes > 0 for stage in stages)


def expect_idle(mesh: Mesh, name: str, nodes: Sequence[str], within_s: float = WITHIN_S) -> None:
    """Waits until no node holds anything of any generation."""
    until(lambda: is_idle(mesh, name, nodes), f"{name} is idle on {', '.join(nodes)}", within_s)


def nodes_of(deployment: Any) -> list[str]:
    """The pipeline's nodes, in order."""
    return [stage.node for stage in deployment.stages]


def tokens_of(mesh: Mesh, name: str, prompt: Sequence[int] | str, new_tokens: int, **how: Any) -> list[int]:
    """The tokens that the mesh adds to a prompt."""
    return [token.id for token in mesh.generate(name, prompt, max_new_tokens=new_tokens, **how)]


def pipeline_through(mesh: Mesh, nodes: Sequence[str]) -> list[executor_pb2.PeerAddress]:
    """A pipeline as a generation is opened with it."""
    return [executor_pb2.PeerAddress(role="executor", name=node, address=address_of(mesh, node)) for node in nodes]
