"""A mesh of identities and a whole secure sum between its nodes, in one process and without a wire."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography import x509
from numpy.typing import NDArray

from orbitmesh.trust import Identity, Role, init_mesh, issue, load_identity
from services.securesum import (
    OfferMessage,
    RosterMessage,
    RoundPlan,
    RoundSum,
    Signed,
    SumCollector,
    SumNode,
    UnmaskAnswer,
    UnmaskRequest,
    to_words,
)

LARGEST = 127
BITS = 11
UPDATE_DIGEST = bytes(32)
Values = NDArray[np.int64]


@dataclass(frozen=True)
class People:
    """The identities of a mesh's nodes."""

    identities: Mapping[str, Identity]
    now: datetime

    @property
    def names(self) -> list[str]:
        return sorted(self.identities)

    @property
    def ca(self) -> x509.Certificate:
        return next(iter(self.identities.values())).ca

    def first(self, count: int) -> list[str]:
        return self.names[:count]


def make_people(directory: Path, count: int) -> People:
    """A mesh with `count` nodes."""
    init_mesh(directory / "ca")
    identities = {}
    for index in range(count):
        name = f"sat-{index:03d}"
        issue(directory / "ca", Role.EXECUTOR, name, directory / name)
        identities[name] = load_identity(directory / name)
    return People(identities, datetime.now(UTC))


def seeded(seed: object) -> random.Random:
    return random.Random(f"secure sum {seed}")


def make_nodes(people: People, names: Iterable[str], seed: object, run: str = "run-1") -> dict[str, SumNode]:
    rng = seeded(seed)
    return {name: SumNode.create(name, run, rng.randbytes) for name in names}


def join_all(
    people: People, nodes: Mapping[str, SumNode], threshold: int | None = None, run: str = "run-1"
) -> SumCollector:
    """Keys and roster; everything crosses as bytes."""
    collector = SumCollector(run)
    for name, node in nodes.items():
        signed = Signed.from_bytes(node.key(people.identities[name], people.now).to_bytes())
        collector.add_key(signed, people.ca, people.now)
    message = collector.close_roster(people.ca, people.now, threshold)
    for node in nodes.values():
        node.join(RosterMessage.from_bytes(message.to_bytes()), people.ca, people.now)
    return collector


def offer_all(
    people: People,
    collector: SumCollector,
    nodes: Mapping[str, SumNode],
    seed: object,
    first_round: int = 0,
    rounds: int = 2,
    sharers: Collection[str] | None = None,
) -> None:
    """Offers of those who share, and their boxes to everybody in `nodes`."""
    rng = seeded(seed)
    for name, node in nodes.items():
        if sharers is None or name in sharers:
            message = node.offer(people.identities[name], first_round, rng.randbytes, people.now, rounds)
            collector.add_offer(OfferMessage.from_bytes(message.to_bytes()), people.ca, people.now)
    hand_out(people, collector, nodes)


def hand_out(people: People, collector: SumCollector, nodes: Mapping[str, SumNode]) -> None:
    for name, node in nodes.items():
        for relayed in collector.relay(name, node.held_offers()):
            node.take_offer(relayed.signed, relayed.box, people.ca, people.now)
        collector.delivered(name, node.held_offers())


def make_values(names: Sequence[str], count: int, seed: int, largest: int = LARGEST) -> dict[str, Values]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-largest, largest + 1, count) for name in names}


def masked(node: SumNode, plan: RoundPlan, values: Values, largest: int = LARGEST) -> tuple[bytes, list[bytes]]:
    """The context and the spans of a node's contribution."""
    masker = node.contribute(RoundPlan.from_bytes(plan.to_bytes()), UPDATE_DIGEST)
    spans, at = [], 0
    for span, size in enumerate(plan.spans):
        spans.append(masker.mask(span, to_words(values[at : at + size], largest, plan.bits)))
        at += size
    return masker.context, spans


def upload(
    round_sum: RoundSum, node: SumNode, values: Values, spans: int | None = None, largest: int = LARGEST
) -> list[bytes]:
    """Sends a contribution, or its first spans; returns what was sent."""
    context, packed = masked(node, round_sum.plan, values, largest)
    sent = packed[:spans]
    for index, data in enumerate(sent):
        round_sum.take_span(node.name, context, index, data)
    return sent


def answer(node: SumNode, request: UnmaskRequest) -> UnmaskAnswer:
    found = node.unmask(UnmaskRequest.from_bytes(request.to_bytes()))
    return UnmaskAnswer.from_bytes(found.to_bytes())


def result(round_sum: RoundSum) -> Values:
    return np.concatenate(list(round_sum.sums()))


def plain_sum(values: Mapping[str, Values], names: Iterable[str]) -> list[int]:
    """The second opinion: Python's own integers, one by one."""
    columns = zip(*(values[name].tolist() for name in names), strict=True)
    return [sum(column) for column in columns]
