"""Compressed contributions over real processes: the bytes that are told are those that came, and the weights are those
of a loop that encodes and decodes by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orbitmesh import LocalTraining, Mesh
from orbitmesh.training_results import TrainingStatus
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.executor.training.work import rounding_seed
from services.training.plan import LocalPlan
from services.updates.codec import encode
from services.updates.scheme import Scheme
from tests.mesh.training.blows import events
from tests.mesh.training.puppet import Puppet, in_the_mesh
from tests.mesh.training.support import ENDED_WITHIN_S, Plain, Weights, each_once, names, task_of

NODES, ROUNDS, SEED = 3, 8, 23
PLAN = LocalPlan(epochs=1, lr=0.1, momentum=0.9)
LOCAL = LocalTraining(epochs=1, lr=0.1, momentum=0.9)
FRAMES = 0.05
"""What frames, progress and other messages add to contributions at most, beside `MESSAGES_BYTES` a round."""
MESSAGES_BYTES = 600
LAST_BITS, OTHERWISE, ROUNDING, STEP = 8, 0.01, 1e-4, 5e-3
"""From the second round on weights differ in last bits, which may round to other integers or halves, and those do not
take the same room: what the bytes of a contribution may differ by (bytes, or a part of them where that is more), and
the weights."""
# Of each scheme: the part of what is left out that is sent later, whether it is rounded by chance, the most bytes a
# value may take, and the accuracy that eight rounds reach at the least.
SCHEMES = {
    "fp32": (0.0, False, 4.001, 0.9),
    "fp16": (0.0, False, 2.01, 0.9),
    "int8": (0.0, True, 1.02, 0.9),
    "int4": (0.0, True, 0.52, 0.9),
    "topk:0.01": (1.0, False, 0.025, 0.6),
    "blocks:0.25": (0.5, True, 0.27, 0.85),
}


def wire_name(mesh: Mesh, node: str, run: str) -> str:
    """What nodes call a run: rounding by chance follows from it."""
    said = [event["run"] for event in events(mesh, node) if event["event"] == "run_joined"]
    return next(str(name) for name in said if name.startswith(f"{run}."))


class Compressed(Plain):
    """A run without a mesh whose updates are encoded and decoded, each node keeping what was left out."""

    def __init__(self, scheme: str, names: list[str], run: str, feedback: float, by_chance: bool) -> None:
        super().__init__(task_of("digits"), len(names), PLAN, SEED)
        self.sizes: list[list[int]] = []
        self._scheme, self._names, self._run = Scheme.parse(scheme), names, run
        self._feedback, self._by_chance = np.float32(feedback), by_chance
        self._left = [np.zeros(self.weights.size, np.float32) for _ in names]

    def round(self, nodes: object = None) -> Weights:
        decoded, sizes = [], []
        for node, name in enumerate(self._names):
            wanted = self.train(node).delta + self._feedback * self._left[node]
            rng = np.random.default_rng(rounding_seed(self._run, self.rounds, name)) if self._by_chance else None
            encoded = encode(self._scheme, wanted, round_index=self.rounds, rng=rng)
            sizes.append(sum(len(data) for _, data in encoded.spans()))
            decoded.append(encoded.decoded.astype(np.float64))
            self._left[node] = wanted - encoded.decoded
        self.weights = self.outer(self.weights, np.stack(decoded), self.examples).astype(np.float32)
        self.sizes.append(sizes)
        self.rounds += 1
        return self.weights


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_and_weights_are_those_of_the_encoder(mesh: Mesh, scheme: str) -> None:
    """Round by round and node by node, and what is learned is not lost with the bytes."""
    feedback, by_chance, most, accuracy = SCHEMES[scheme]
    nodes, name = names(mesh, NODES), "bytes-" + "".join(each if each.isalnum() else "-" for each in scheme)
    training = mesh.train(
        name, task="digits", rounds=ROUNDS, nodes=nodes, local=LOCAL, compression=scheme, seed=SEED
    )
    status = training.wait(timeout=ENDED_WITHIN_S)
    each_once(status, nodes)
    plain = Compressed(scheme, nodes, wire_name(mesh, nodes[0], name), feedback, by_chance)
    for each in status.rounds:
        plain.round()
        sizes = {part.node: part.size_bytes for part in each.contributions}
        off = {"abs": LAST_BITS, "rel": OTHERWISE} if each.index else {"abs": 0}
        assert [sizes[node] for node in nodes] == pytest.approx(plain.sizes[-1], **off)
        assert each.up_bytes == sum(sizes.values()) <= most * status.values * NODES
    apart = np.abs(training.weights() - plain.weights)
    # The last bits of a mean may turn a rounding; some values are then a step of an integer apart.
    assert np.median(apart) <= ROUNDING and apart.max() <= STEP, (np.median(apart), apart.max())
    assert status.rounds[-1].figures["accuracy"] >= accuracy
    expect_frames(status, nodes)


def expect_frames(status: TrainingStatus, nodes: list[str]) -> None:
    """What came over the sessions is what contributed, and little more."""
    for node in status.nodes:
        sent = sum(part.size_bytes for each in status.rounds for part in each.contributions if part.node == node.name)
        first = 4 * status.values if node.name == nodes[0] else 0  # the weights that the run begins with
        assert sent + first < node.up_bytes <= (1 + FRAMES) * (sent + first) + MESSAGES_BYTES * (ROUNDS + 2)


class Scale(Puppet):
    """An honest node that weighs what it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def contribute(
        self, session: Session, run: str, round_index: int, work: training_pb2.TrainingWork, weights: Weights
    ) -> None:
        parts = self.encoded(work, round_index, self.train(work, round_index, weights))
        self.sizes.append(sum(map(len, parts)))
        await self.send_vector(session, run, round_index, parts, examples=len(self.shard(work)))


@pytest.mark.parametrize("scheme", ["topk:0.05+fp16", "blocks:0.1+int4"])
def test_bytes_that_are_told_are_bytes_that_were_sent(mesh: Mesh, tmp_path: Path, scheme: str) -> None:
    """A node that the test plays weighs every contribution before it sends it."""
    puppet, nodes, name = Scale(), [*names(mesh, 2), "scale"], f"weighed-{scheme[:4]}"
    with in_the_mesh(mesh, "scale", tmp_path, puppet):
        training = mesh.train(name, task="digits", rounds=4, nodes=nodes, local=LOCAL, compression=scheme)
        status = training.wait(timeout=ENDED_WITHIN_S)
    each_once(status, nodes)
    told = [part.size_bytes for each in status.rounds for part in each.contributions if part.node == "scale"]
    assert told == puppet.sizes
