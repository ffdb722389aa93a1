"""What a pipeline costs: the planner's inputs, checked and turned into arrays, and the price of any given
split.

Memory of a stage: its layers + its share of the KV cache + the embedding (first stage) + the head (last
stage). Time of a token: every stage's compute + every crossing (latency + activation bytes over rate) + the
way of the token from the last stage back to the first. Bottleneck: the longest of any stage's compute and
any crossing's occupancy.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TIE_REL = 1e-9
"""Two bottlenecks within this share of each other are the same; latency then decides (absorbs float
rounding)."""
MAX_NODES = 48
"""Most nodes of one plan: a (first, set, last) label must fit a signed 64-bit key."""
MAX_LAYERS = 4096
"""Most layers of one plan; the arrays grow with nodes x nodes x layers."""
MAX_BYTES = 1 << 52
"""Largest memory figure in bytes; below it float64 and int64 sums are exact."""


class Objective(enum.StrEnum):
    """What a plan minimises."""

    LATENCY = "latency"
    """Seconds per token of one generation: the sum round the ring."""
    THROUGHPUT = "throughput"
    """Seconds between tokens of many generations: the bottleneck; equal bottlenecks are decided by
    latency."""


@dataclass(frozen=True)
class PlanNode:
    """One machine that may hold a stage."""

    name: str
    """Unique name."""
    memory_bytes: int
    """Memory that a stage may use, in bytes."""
    layer_s: tuple[float, ...]
    """Seconds of compute of each layer on this node; one entry per layer of the model."""
    embed_s: float = 0.0
    """Seconds of the embedding, paid if this node holds the first stage."""
    head_s: float = 0.0
    """Seconds of norm, head and sampling, paid if this node holds the last stage."""


@dataclass(frozen=True)
class PlanLink:
    """The directed way from one node to another while it is up."""

    latency_s: float
    """One-way delay in seconds."""
    rate_bps: float
    """Rate in bits per second, above 0; `math.inf` where it never matters."""


@dataclass(frozen=True)
class PlanModel:
    """What the planner must know of a model."""

    layer_bytes: tuple[int, ...]
    """Memory of each layer's weights, in bytes."""
    embed_bytes: int
    """Memory of the embedding (first stage), in bytes."""
    head_bytes: int
    """Memory of norm and head (last stage), in bytes."""
    activation_bytes: int
    """Bytes on the wire between two stages per step."""
    token_bytes: int
    """Bytes on the wire from the last stage back to the first per step."""
    kv_bytes_per_token: tuple[int, ...]
    """KV cache of each layer per token, in bytes."""
    kv_tokens: int
    """Tokens for which KV memory is reserved."""


@dataclass(frozen=True, eq=False)
class Costs:
    """The instance as arrays: N nodes, L layers. `inf` means impossible."""

    names: tuple[str, ...]
    """The nodes' names, in the caller's order."""
    compute_s: Floats
    """[N, L+1]: seconds of the layers before i on node n (a prefix sum)."""
    embed_s: Floats
    """[N]: seconds of the embedding."""
    head_s: Floats
    """[N]: seconds of the head."""
    memory_bytes: Ints
    """[N]: usable bytes."""
    layer_bytes: Ints
    """[L+1]: bytes of weights and KV of the layers before i (a prefix sum)."""
    embed_bytes: int
    """Bytes of the embedding."""
    head_bytes: int
    """Bytes of the head."""
    latency_s: Floats
    """[N, N]: one-way delay, from row to column."""
    occupy_s: Floats
    """[N, N]: seconds that one activation occupies the link."""
    return_s: Floats
    """[N, N]: seconds of the token from the last stage (row) to the first (column)."""

    @property
    def cross_s(self) -> Floats:
        """[N, N]: seconds of one crossing, delay and transfer."""
        return self.latency_s + self.occupy_s

    @property
    def layers(self) -> int:
        """L."""
        return int(self.layer_bytes.size) - 1

    def stage_s(self, node: int, start: int, stop: int) -> float:
        """Seconds of layers [start, stop) on `node`, with embedding and head where they belong."""
        extra = (self.embed_s[node] if start == 0 else 0.0) + (
            self.head_s[node] if stop == self.layers else 0.0
        )
        return float(self.compute_s[node, stop] - self.compute_s[node, start] + extra)

    def stage_bytes(self, start: int, stop: int) -> int:
        """Bytes of layers [start, stop), with KV, embedding and head where they belong."""
        extra = (self.embed_bytes if start == 0 else 0) + (self.head_bytes if stop == self.layers else 0)
        return int(self.layer_bytes[stop] - self.layer_bytes[start]) + extra


def _number(value: float, what: str, *, positive: bool = False, infinite: bool = False) -> float:
    if math.isnan(value) or value < 0 or (positive and value == 0) or (math.isinf(value) and not infinite):
        kind = "above 0" if positive else "0 or more"
        raise InvalidInputError(f"{what} is {value!r}; expected a finite number, {kind}. Measure it again.")
    return float(value)


def _bytes(value: int, what: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
        raise InvalidInputError(f"{what} is {value!r}; expected whole bytes from 0 to {MAX_BYTES}.")
    return value


def _check_model(model: PlanModel) -> None:
    count = len(model.layer_bytes)
    if not 1 <= count <= MAX_LAYERS:
        raise InvalidInputError(f"the model has {count} layers; expected 1 to {MAX_LAYERS}.")
    if len(model.kv_bytes_per_token) != count:
        raise InvalidInputError(
            f"kv_bytes_per_token has {len(model.kv_bytes_per_token)} entries; expected {count}."
        )
    for index, size in enumerate(model.layer_bytes):
        _bytes(size, f"layer_bytes[{index}]")
        _bytes(model.kv_bytes_per_token[index], f"kv_bytes_per_token[{index}]")
    for field in ("embed_bytes", "head_bytes", "activation_bytes", "token_bytes", "kv_tokens"):
        _bytes(getattr(model, field), field)
    whole = sum(model.layer_bytes) + sum(model.kv_bytes_per_token) * model.kv_tokens
    _bytes(whole + model.embed_bytes + model.head_bytes, "the memory of the whole model")


def _check_nodes(model: PlanModel, nodes: Sequence[PlanNode]) -> None:
    if not 1 <= len(nodes) <= MAX_NODES:
        raise InvalidInputError(f"{len(nodes)} nodes were given; expected 1 to {MAX_NODES}.")
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            raise InvalidInputError(f"node name {node.name!r} is empty or given twice; names must be unique.")
        seen.add(node.name)
        _bytes(node.memory_bytes, f"memory_bytes of {node.name}")
        if len(node.layer_s) != len(model.layer_bytes):
            raise InvalidInputError(
                f"layer_s of {node.name} has {len(node.layer_s)} entries; "
                f"expected one per layer, {len(model.layer_bytes)}."
            )
        for index, seconds in enumerate((*node.layer_s, node.embed_s, node.head_s)):
            _number(seconds, f"compute time {index} of {node.name}")


def build(
    model: PlanModel, nodes: Sequence[PlanNode], links: Mapping[tuple[str, str], PlanLink | None]
) -> Costs:
    """Check the inputs and turn them into arrays.

    Raises:
        InvalidInputError: NaN, negative or infinite numbers, wrong lengths, duplicate or unknown names.
    """
    _check_model(model)
    _check_nodes(model, nodes)
    index = {node.name: position for position, node in enumerate(nodes)}
    latency_s, occupy_s, return_s = (np.full((len(nodes), len(nodes)), np.inf) for _ in range(3))
    for (source, target), link in links.items():
        for name in (source, target):
            if name not in index:
                raise InvalidInputError(
                    f"a link names {name!r}, which is none of the nodes: {', '.join(index)}."
                )
        if source == target:
            raise InvalidInputError(f"a link from {source!r} to itself was given; links join distinct nodes.")
        if link is None:
            continue
        at = index[source], index[target]
        latency_s[at] = _number(link.latency_s, f"latency_s from {source} to {target}")
        rate_bps = _number(link.rate_bps, f"rate_bps from {source} to {target}", positive=True, infinite=True)
        occupy_s[at] = model.activation_bytes * 8 / rate_bps
        return_s[at] = latency_s[at] + model.token_bytes * 8 / rate_bps
    kept = [
        size + kv * model.kv_tokens
        for size, kv in zip(model.layer_bytes, model.kv_bytes_per_token, strict=True)
    ]
    compute = np.array([node.layer_s for node in nodes], dtype=np.float64)
    return Costs(
        names=tuple(index),
        compute_s=np.concatenate([np.zeros((len(nodes), 1)), np.cumsum(compute, axis=1)], axis=1),
        embed_s=np.array([node.embed_s for node in nodes], dtype=np.float64),
        head_s=np.array([node.head_s for node in nodes], dtype=np.float64),
        memory_bytes=np.array([node.memory_bytes for node in nodes], dtype=np.int64),
        layer_bytes=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        embed_bytes=model.embed_bytes,
        head_bytes=model.head_bytes,
        latency_s=latency_s,
        occupy_s=occupy_s,
        return_s=return_s,
    )


def price(costs: Costs, nodes: Ints, bounds: Ints) -> tuple[Floats, Floats]:
    """Bottleneck and token time of Q splits with K stages each, in seconds; `inf` where memory or a link
    forbids it.

    Args:
        costs: The instance.
        nodes: [Q, K]: the node of each stage; each at most once per row (not checked).
        bounds: [Q, K+1]: stage k holds layers [bounds[k], bounds[k+1]).
    """
    start, stop = bounds[:, :-1], bounds[:, 1:]
    compute = costs.compute_s[nodes, stop] - costs.compute_s[nodes, start]
    held = costs.layer_bytes[stop] - costs.layer_bytes[start]
    compute[:, 0] += costs.embed_s[nodes[:, 0]]
    compute[:, -1] += costs.head_s[nodes[:, -1]]
    held[:, 0] += costs.embed_bytes
    held[:, -1] += costs.head_bytes
    bad = np.any((held > costs.memory_bytes[nodes]) | (stop <= start), axis=1)
    bottleneck, latency = compute.max(axis=1), compute.sum(axis=1)
    if nodes.shape[1] > 1:
        here, there = nodes[:, :-1], nodes[:, 1:]
        bottleneck = np.maximum(bottleneck, costs.occupy_s[here, there].max(axis=1))
        latency += costs.cross_s[here, there].sum(axis=1) + costs.return_s[nodes[:, -1], nodes[:, 0]]
        bad |= np.isinf(latency)
    bottleneck[bad] = np.inf
    latency[bad] = np.inf
    return bottleneck, latency


@dataclass(frozen=True, eq=False)
class Windows:
    """Which runs of layers each node may hold, under its memory and (for throughput) a cap on compute
    seconds."""

    low: Ints
    """[N, L+1]: the earliest start of a middle stage that stops at j; j itself where not even one layer
    fits."""
    first_stop: Ints
    """[N]: the latest stop of a first stage; 0 where none."""
    last_start: Ints
    """[N]: the earliest start of a last stage; L where none."""
    alone: npt.NDArray[np.bool_]
    """[N]: whether the node may hold the whole model."""


def windows(costs: Costs, cap_s: float = math.inf) -> Windows:
    """The runs of layers that fit; a run of layers that fits keeps fitting when it shrinks, so ranges say it
    all."""
    count, last = costs.memory_bytes.size, costs.layers
    cap_s = cap_s * (1 + TIE_REL)
    low = np.empty((count, last + 1), dtype=np.int64)
    first_stop = np.zeros(count, dtype=np.int64)
    last_start = np.full(count, last, dtype=np.int64)
    alone = np.zeros(count, dtype=np.bool_)
    size = costs.layer_bytes
    for n in range(count):
        memory, spent = int(costs.memory_bytes[n]), costs.compute_s[n]
        embed, head = float(costs.embed_s[n]), float(costs.head_s[n])
        low[n] = np.searchsorted(size, size - memory, "left")
        if cap_s < math.inf:
            low[n] = np.maximum(low[n], np.searchsorted(spent, spent - cap_s, "left"))
        fits = (size + costs.embed_bytes <= memory) & (spent + embed <= cap_s)
        first_stop[n] = np.flatnonzero(fits)[-1] if fits.any() else 0
        fits = (size[last] - size + costs.head_bytes <= memory) & (spent[last] - spent + head <= cap_s)
        last_start[n] = np.flatnonzero(fits)[0] if fits.any() else last
        whole = int(size[last]) + costs.embed_bytes + costs.head_bytes
        alone[n] = whole <= memory and spent[last] + embed + head <= cap_s
    return Windows(np.minimum(low, np.arange(last + 1)), first_stop, last_start, alone)
