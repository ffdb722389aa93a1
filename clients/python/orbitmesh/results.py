"""What the mesh answers, as values: frozen, typed, free of protobuf.

Every class here is made by the SDK and read by the user; none talks to the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Link:
    """What the link emulator of a local mesh puts between every two nodes.

    Example:
        >>> Link(latency_ms=20, rate_mbps=100).latency_ms
        20
    """

    latency_ms: float
    """One-way latency, in milliseconds."""
    rate_mbps: float
    """Rate of each direction, in megabits per second."""


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Example:
        >>> Token(id=17, text=" is", position=5).text
        ' is'
    """

    id: int
    """Its id in the model's vocabulary."""
    text: str
    """The text that it adds; empty while a character is incomplete."""
    position: int
    """Its index in the sequence of prompt and answer, from 0."""


@dataclass(frozen=True)
class Stage:
    """A run of layers on one node.

    Example:
        >>> Stage(node="sat-1", layers=range(0, 2)).layers
        range(0, 2)
    """

    node: str
    """The node that holds it."""
    layers: range
    """The layers, by their number in the whole model."""
    weight_bytes: int = 0
    """Weights in memory, in bytes; 0 while it is not loaded."""
    kv_bytes_per_token: int = 0
    """Cache that one token takes in this stage, in bytes."""
    kv_budget_bytes: int = 0
    """Cache that all generations together may take, in bytes."""
    kv_free_bytes: int = 0
    """The part of it that is free, in bytes."""
    generations: int = 0
    """Generations that are open in it."""
    layer_s: float = 0.0
    """Median time of one layer for one token, in seconds."""


@dataclass(frozen=True)
class LinkMeasure:
    """A directed link as its sending node measured it.

    Example:
        >>> LinkMeasure(peer="sat-2", rtt_s=0.04, rate_bps=1e8, up=True).up
        True
    """

    peer: str
    """The node at the other end."""
    rtt_s: float
    """Round-trip time, the median of recent probes, in seconds."""
    rate_bps: float
    """Rate towards the peer, in bits per second."""
    up: bool
    """False when the last probes failed."""


@dataclass(frozen=True)
class Node:
    """One machine of the mesh as the scheduler sees it.

    Example:
        >>> [node.name for node in mesh.nodes() if node.state == "up"]
        ['ground-1', 'sat-1', 'sat-2', 'sat-3']
    """

    name: str
    """Its name, from its certificate."""
    kind: str
    """`satellite`, `edge` or `ground`."""
    state: str
    """`up`, `draining` or `lost`."""
    address: str
    """Where others reach its executor, host:port."""
    cores: float
    """Processor time that the executor may use, in cores."""
    memory_total_bytes: int
    """Memory of the machine or the executor's own limit, in bytes."""
    memory_free_bytes: int
    """The part of it that new stages may take, in bytes."""
    load: float
    """Load average over a minute, divided by the cores."""
    flops: float
    """Measured multiply-add rate in float32, in operations per second."""
    accelerators: tuple[str, ...] = ()
    """The accelerators, as their drivers name them."""
    stages: tuple[str, ...] = ()
    """The stages that it holds, as `deployment[first..last]`."""
    links: tuple[LinkMeasure, ...] = ()
    """Its links, as measured by itself."""
    last_seen: datetime | None = None
    """When it last spoke, in UTC."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan.

    Example:
        >>> plan.stages[0].node
        'sat-1'
    """

    node: str
    """The node."""
    layers: range
    """The layers."""
    compute_s: float
    """Predicted computation for one token, in seconds."""
    memory_bytes: int
    """Weights and caches, in bytes."""


@dataclass(frozen=True)
class PlannedCrossing:
    """A crossing between two stages of a plan; the last one closes the ring.

    Example:
        >>> plan.crossings[0].latency_s
        0.02
    """

    source: str
    """The sending node."""
    target: str
    """The receiving node."""
    latency_s: float
    """One-way latency, in seconds."""
    transfer_s: float
    """The time that the bytes of one step take at the link's rate, in seconds."""


@dataclass(frozen=True)
class CutCosts:
    """What it would cost to move one cut of a plan.

    Example:
        >>> min(plan.cuts[0].candidates.values())
        0.0613
    """

    cut: int
    """Which cut, from 0: between stage `cut` and the next."""
    candidates: Mapping[int, float | None]
    """The objective in seconds by the first layer after the cut; None where that does not fit."""


@dataclass(frozen=True)
class Plan:
    """A model cut over nodes, with the reasons.

    Example:
        >>> print("\\n".join(mesh.plan("models/pydoc", stages=3).reasons))
    """

    stages: tuple[PlannedStage, ...]
    """The stages, in order."""
    crossings: tuple[PlannedCrossing, ...]
    """The crossings between them; the last one closes the ring."""
    objective: str
    """What was minimised: `latency` or `throughput`."""
    objective_s: float
    """Its value, in seconds."""
    token_s: float
    """The predicted time of one token, in seconds."""
    runner_up: tuple[PlannedStage, ...] = ()
    """The stages of the best different plan; empty where there is none."""
    runner_up_s: float | None = None
    """The objective of that plan, in seconds."""
    cuts: tuple[CutCosts, ...] = ()
    """What each other place of each cut would cost."""
    reasons: tuple[str, ...] = ()
    """The reasons, as sentences."""
    proven_optimal: bool = False
    """True when nothing better exists; false when the search was stopped at its bound."""
    planning_s: float = 0.0
    """How long the planning took, in seconds."""


@dataclass(frozen=True)
class Deployment:
    """A model that serves, or is on its way.

    Example:
        >>> deployment = mesh.deploy("models/pydoc", name="demo", stages=3)
        >>> deployment.stages[0].node
        'sat-1'
    """

    name: str
    """Its name."""
    state: str
    """`loading`, `ready`, `failed` or `degraded`."""
    stages: tuple[Stage, ...]
    """The stages, in order; as planned until they are loaded."""
    model: str = ""
    """The name of the model in its pack's manifest."""
    codec: str = "auto"
    """The codec on the links."""
    plan: Plan | None = None
    """How it is cut and why."""
    failure: str = ""
    """Why it failed, where it did; of one that serves all the same, which standbys it counts on."""
    created_at: datetime | None = None
    """When it was asked for, in UTC."""
    standbys: Mapping[int, str] = field(default_factory=dict)
    """The node that stands by, loaded, for each stage that has one."""
    version: int = 0
    """Grows with every change of its nodes."""


@dataclass(frozen=True)
class Status:
    """What the gateway is doing.

    Example:
        >>> mesh.status().scheduler_up
        True
    """

    name: str
    """The gateway's name."""
    version: str
    """The version of orbitmesh that it runs."""
    address: str
    """Where executors reach it, host:port."""
    generations: int
    """Generations that are running."""
    packs: int
    """Packs that it keeps."""
    scheduler_up: bool
    """True when it reaches the scheduler."""


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is.

    Example:
        >>> mesh.deploy("models/pydoc", name="demo", on_progress=lambda step: print(step.phase, step.subject))
    """

    phase: str
    """`packing`, `uploading`, `planning`, or of a stage: `fetching`, `verifying`, `loading`, `measuring`,
    `ready`; of a local mesh: `starting`."""
    subject: str
    """What it is about: a file, a node, a process."""
    done_bytes: int = 0
    """How much is done, in bytes; 0 where it is not counted in bytes."""
    total_bytes: int = 0
    """How much there is, in bytes; 0 where that is not known."""


OnProgress = Callable[[Progress], None]
"""Called as long work goes on. It must return soon: it runs on the loop that does the work."""

OnWaiting = Callable[[str | None], None]
"""Called with a sentence when an answer does not get on, and with None when it does again. It must return soon: it runs
on the loop that does the work."""


@dataclass(frozen=True)
class LocalNode:
    """One process of a local mesh.

    Example:
        >>> mesh.local.processes()["sat-1"].pid
        40312
    """

    name: str
    """The node's name."""
    pid: int
    """Its process."""
    address: str
    """Where it listens, host:port."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What else the supervisor says about it."""
