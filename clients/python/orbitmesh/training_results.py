"""Federated training as values, frozen and free of protobuf: what is asked of a run, and what the mesh says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ENDED = frozenset({"done", "cancelled", "failed"})
"""States of a run in which it does nothing more by itself."""


@dataclass(frozen=True)
class LocalTraining:
    """What one node does with the weights in a round: so many passes over its examples, or so many steps.

    Example:
        >>> mesh.train("run", task="digits", rounds=20, local=LocalTraining(epochs=2, lr=0.1))
    """

    epochs: int = 0
    """Passes over the node's examples; where neither `epochs` nor `steps` is given it is one."""
    steps: int = 0
    """Optimiser steps; not together with `epochs`."""
    batch_size: int = 32
    """Examples of a step."""
    optimiser: str = "sgd"
    """`sgd` or `adamw`."""
    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.0
    """Momentum of SGD, below 1."""
    weight_decay: float = 0.0
    """L2 penalty for SGD, decoupled decay for AdamW."""
    gradient_norm: float = 0.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    dtype: str = "fp32"
    """Type of the forward pass: `fp32`, `bf16` or `fp16`."""
    keep_optimiser: bool = False
    """Whether momenta go on from the node's last round."""


@dataclass(frozen=True)
class SecureSums:
    """Sums that hide what each node adds, also from the aggregator.

    Example:
        >>> mesh.train("run", task="digits", rounds=20, secure_sums=SecureSums(threshold=3))
    """

    threshold: int | None = None
    """How many nodes are needed to unmask a sum; None takes two thirds of them and one."""
    bits: int | None = None
    """Bits of one node's integers, 2 to 24; None takes 8, or 4 where the compression says int4."""
    groups: Sequence[Sequence[str]] = ()
    """Nodes that reach each other better than the aggregator reaches them, such as those of an orbital plane: one of
    each group adds up the masked contributions of the others, and one upload leaves the group. Two or more names each,
    no node in two."""


@dataclass(frozen=True)
class Privacy:
    """Differential privacy: a bound on what the trained weights give away.

    Example:
        >>> mesh.train("run", task="digits", rounds=20, privacy=Privacy(unit="record", epsilon=4.0))
    """

    unit: str
    """Whose presence is hidden: `record`, one example of one node, or `node`, all that one node has."""
    epsilon: float
    """The most that may be spent."""
    delta: float = 1e-5
    """The chance with which epsilon may not hold."""
    clip: float = 1.0
    """The norm to which each unit is clipped."""
    noise_multiplier: float | None = None
    """Standard deviation of the noise in clips; None takes the least that pays for all rounds."""


@dataclass(frozen=True)
class TrainingSpec:
    """What was asked of a run; it does not change while the run goes on.

    Example:
        >>> mesh.training("run").status().spec.strategy
        'fedavg'
    """

    task: str
    """The task: an entry point that is installed on the nodes."""
    rounds: int
    """How many rounds there are at the most."""
    nodes: tuple[str, ...]
    """The nodes of the run."""
    strategy: str
    """What turns contributions into weights."""
    strategy_options: Mapping[str, float]
    """Its options by name."""
    local: LocalTraining
    """What a node does with the weights in a round."""
    compression: str
    """How contributions are compressed."""
    secure_sums: SecureSums | None
    """Whether the aggregator sees sums only; None where it may see each contribution."""
    privacy: Privacy | None
    """What is hidden from whoever sees the result; None where nothing is promised."""
    alpha: float | None
    """Skew of labels between nodes, the concentration of a Dirichlet distribution; None where all get alike."""
    seed: int
    """What splits, first weights and the order of examples follow from."""
    quorum: int
    """How many contributions a round needs at the least."""
    cohort: int
    """How many nodes a round asks."""
    patience_s: float
    """Seconds of contact without progress after which a round goes on without a node."""
    evaluate: bool
    """Whether the weights are measured after every round."""
    slice: str | None = None
    """The slice that it trains and sends in; None for none."""


@dataclass(frozen=True)
class TrainingNode:
    """A node of a run.

    Example:
        >>> [(node.name, node.state) for node in mesh.training("run").status().nodes]
        [('sat-1', 'training'), ('sat-2', 'stored')]
    """

    name: str
    """Its name."""
    state: str
    """`away`, `idle`, `receiving`, `training`, `sending`, `stored` (its contribution of the round is durable) or
    `given_up` (the round goes on without it)."""
    examples: int
    """Examples that it trains on; 0 before it has joined."""
    step: int
    """Optimiser steps done in this round."""
    steps: int
    """All of them; 0 where that is not known."""
    why: str
    """Why it was given up; empty while it is not."""
    up_bytes: int
    """Bytes of contributions that came from it since the run began."""
    down_bytes: int
    """Bytes of weights that went to it since the run began."""


@dataclass(frozen=True)
class TrainingContribution:
    """A contribution that counts, and where its time went. One that came before the aggregator was started anew has no
    times.

    Example:
        >>> mesh.training("run").status().rounds[-1].contributions[0].train_s
        0.41
    """

    node: str
    """Whose."""
    examples: int
    """Examples that it was computed from."""
    size_bytes: int
    """Its bytes, as encoded."""
    staleness: int
    """Rounds between the weights that it began from and those that it became part of."""
    down_s: float
    """From the order until the node had the weights, in seconds."""
    train_s: float
    """Training, as the node says, in seconds."""
    wait_s: float
    """From the weights to its announcement, without the training: queue, codec, the way; in seconds."""
    up_s: float
    """From its announcement until it was durable, in seconds."""
    via: str = ""
    """The node of its group in whose sum it came, and which has the bytes of all in it; empty where it came by
    itself."""


@dataclass(frozen=True)
class TrainingRound:
    """What became of a round.

    Example:
        >>> mesh.training("run").status().rounds[-1].figures
        {'accuracy': 0.94, 'loss': 0.21}
    """

    index: int
    """Which, from 0."""
    cohort: tuple[str, ...]
    """The nodes that were asked."""
    contributed: tuple[str, ...]
    """The nodes whose contributions count."""
    given_up: Mapping[str, str]
    """The nodes that it went on without, with the reason."""
    up_bytes: int
    """Bytes of contributions that count."""
    down_bytes: int
    """Bytes of weights that went to nodes."""
    figures: Mapping[str, float]
    """What the weights after the round are worth, by name: `accuracy`, `loss`; empty where it was not measured."""
    train_loss: float | None
    """Mean training loss of the contributions; None where it is not known."""
    seconds: float
    """From the first order to the new weights."""
    epsilon: float
    """What the promise of privacy has cost after it; 0 without one."""
    done_at: datetime | None
    """When its sum became the weights, in UTC; None while it is open."""
    trace_id: str
    """Its trace."""
    contributions: tuple[TrainingContribution, ...] = ()
    """The contributions that count, in the order of the cohort."""
    sum_s: float = 0.0
    """From the last contribution to the new weights, in seconds: sum, unmasking, strategy, disk."""


@dataclass(frozen=True)
class TrainingStatus:
    """How a run is.

    Example:
        >>> mesh.training("run").status().rounds_done
        12
    """

    name: str
    """Its name."""
    state: str
    """`running`, `paused` (`why` says what it waits for), `done`, `cancelled` or `failed`."""
    why: str
    """What it waits for or why it ended; empty while all is well."""
    spec: TrainingSpec
    """What was asked."""
    rounds_done: int
    """Rounds that are in its weights."""
    values: int
    """Values of the model; 0 before they are known."""
    nodes: tuple[TrainingNode, ...]
    """Its nodes."""
    rounds: tuple[TrainingRound, ...]
    """Its rounds; in an update of `watch` those that are new or have changed, in `trainings` none."""
    began_at: datetime | None
    """When it began, in UTC."""
    epsilon: float
    """What its promise of privacy has cost; 0 without one."""

    @property
    def ended(self) -> bool:
        """Whether it does nothing more by itself: `done`, `cancelled` or `failed`.

        Example:
            >>> mesh.training("run").status().ended
            False
        """
        return self.state in ENDED


@dataclass(frozen=True)
class SavedWeights:
    """Weights that were written to a file.

    Example:
        >>> mesh.training("run").save_weights("run.npy").rounds_done
        12
    """

    path: Path
    """The file."""
    values: int
    """How many values it holds, float32."""
    sha256: str
    """SHA-256 of them, little-endian, in hexadecimal; of the values, not of the file."""
    rounds_done: int
    """The round that they are after."""


@dataclass(frozen=True)
class LedgerEntry:
    """What a round took from an account of privacy.

    Example:
        >>> mesh.training("run").ledger().entries[0].epsilon
        0.41
    """

    round: int
    """The round, from 0."""
    node: str
    """Whose records; empty where the unit is a node and the account is the run's."""
    steps: int
    """Noisy sums of the round."""
    sample_rate: float
    """The chance of each unit to be in each of them."""
    noise_multiplier: float
    """Standard deviation of the noise that protects, in clips."""
    survivors: int
    """Nodes whose noise is in the sum; 0 where each node adds all of it by itself."""
    survivors_promised: int
    """Nodes that the noise was sized for."""
    epsilon: float
    """What the account has spent after it."""


@dataclass(frozen=True)
class Ledger:
    """What a run promised about privacy, and what it has cost.

    Example:
        >>> mesh.training("run").ledger().rounds_left
        17
    """

    promised: Privacy | None
    """The promise; None where there is none."""
    epsilon: float
    """What was spent: the worst account's."""
    rounds_left: int
    """How many rounds more the budget pays for, at the last round's price."""
    entries: tuple[LedgerEntry, ...] = field(default_factory=tuple)
    """Every entry, by round."""
