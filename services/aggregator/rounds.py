"""One round of a training run as pure transitions: who is to contribute, who has, who will not, and what follows.

A round is OPEN while contributions come in. It becomes READY when nobody more is waited for and enough have come, or
STUCK when nobody more is waited for and too few have: then it says why, keeps what it has, and opens again when a node
that was given up comes back. A READY round becomes DONE when its sum is in the model.

Time is counted in seconds of contact without progress, node by node: a node that is out of sight loses none, and none
is lost while bytes arrive. Everything that is told comes as one of the events below; the state is a value that can be
written down, and a process that starts anew goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from orbitmesh.errors import InvalidInputError

COHORT_MAX = 1024
"""How many nodes a round may have."""


class Phase(Enum):
    """Where a round stands."""

    OPEN = "open"
    READY = "ready"
    STUCK = "stuck"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Stored:
    """A contribution that is durable."""

    digest: str
    """SHA-256 of its encoded spans, hex."""
    examples: int
    """How many examples it was computed from: its weight in the mean."""
    size_bytes: int
    """Its encoded spans."""
    begun: int = 0
    """The round whose weights it began from; another than that of the sum where a strategy takes late ones."""
    others: Mapping[str, int] = field(default_factory=dict)
    """The further nodes whose contributions are in it, with their examples: it is a sum that was made on the way."""
    via: str = ""
    """The node in whose sum it came, which has the digest and the size of all; empty where it came by itself."""

    def parts(self, node: str) -> dict[str, Stored]:
        """What each node has contributed with it, `node` being the one that sent it."""
        found = {node: self}
        for name, examples in self.others.items():
            found[name] = replace(self, examples=examples, size_bytes=0, others={}, via=node)
        return found


@dataclass(frozen=True, slots=True)
class Arrived:
    """A contribution became durable; where it is a sum that was made on the way, those of all nodes in it at once."""

    node: str
    round_index: int
    stored: Stored


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A node will not contribute: it refused, or what it sent was refused."""

    node: str
    round_index: int
    reason: str
    """A key of the table of reasons."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A contribution that is durable was looked at beside the others and is not taken."""

    node: str
    round_index: int
    reason: str
    """A key of the table of reasons."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a node moved, or it trained on."""

    node: str


@dataclass(frozen=True, slots=True)
class Contact:
    """A node was in contact for so long since it was last told of, in seconds."""

    node: str
    contact_s: float


@dataclass(frozen=True, slots=True)
class Summed:
    """The sum of a READY round is durable in the model."""

    round_index: int


Event = Arrived | GivenUp | Rejected | Progress | Contact | Summed


@dataclass(frozen=True)
class Round:
    """A round's state."""

    index: int
    """Which, from 0."""
    cohort: tuple[str, ...]
    """The nodes that were asked, in order."""
    quorum: int
    """How many contributions it takes at the least."""
    patience_s: float
    """Seconds of contact without progress after which a node is given up."""
    stored: Mapping[str, Stored] = field(default_factory=lambda: MappingProxyType({}))
    """The contributions that are durable, by node."""
    given_up: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The nodes that are not waited for, with the reason."""
    idle_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Seconds of contact without progress, by node."""
    done: bool = False
    """Whether its sum is in the model."""
    enough: int = 0
    """Contributions with which it closes though others are still awaited; 0 where it waits for all."""

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= len(self.cohort) <= COHORT_MAX or len({*self.cohort}) != len(self.cohort):
            raise InvalidInputError(
                f"a round takes 1 to {COHORT_MAX} different nodes and a quorum of at most as many, not "
                f"{len(self.cohort)} nodes ({len({*self.cohort})} different) and a quorum of {self.quorum}"
            )

    @property
    def waiting(self) -> tuple[str, ...]:
        """The nodes that may still contribute, in order."""
        return tuple(node for node in self.cohort if node not in self.stored and node not in self.given_up)

    @property
    def phase(self) -> Phase:
        """Where it stands; follows from the rest."""
        if self.done:
            return Phase.DONE
        if self.enough and len(self.stored) >= max(self.enough, self.quorum):
            return Phase.READY
        if self.waiting:
            return Phase.OPEN
        return Phase.READY if len(self.stored) >= self.quorum else Phase.STUCK

    @property
    def why_stuck(self) -> str:
        """What is missing, for people; empty where nothing is."""
        if self.phase is not Phase.STUCK:
            return ""
        lost = ", ".join(f"{node} ({reason})" for node, reason in self.given_up.items())
        return f"round {self.index} has {len(self.stored)} contributions and needs {self.quorum}; given up: {lost}"


def advance(state: Round, event: Event) -> Round:
    """The state after an event.

    A contribution that comes again is no news; what comes for a round that is done changes nothing, so that whoever
    repeats an event after a crash is safe.

    Raises:
        InvalidInputError: `STALE_ROUND` for another round; `NOT_IN_COHORT`; `CONTRIBUTION_REPLAYED` where a node
            contributes something else than before, or a sum holds what has come by another way.
    """
    match event:
        case Arrived(node, index, stored):
            _check(state, node, index)
            return _arrived(state, node, stored)
        case GivenUp(node, index, reason):
            _check(state, node, index)
            if state.done or node in state.stored:
                return state
            return replace(state, given_up=MappingProxyType({**state.given_up, node: reason}))
        case Rejected(node, index, reason):
            _check(state, node, index)
            return _rejected(state, node, reason)
        case Progress(node):
            return _progressed(state, node)
        case Contact(node, contact_s):
            return _in_contact(state, node, contact_s)
        case Summed(index):
            if index != state.index or state.phase not in (Phase.READY, Phase.DONE):
                raise InvalidInputError(f"round {state.index} is {state.phase.value}: no sum of round {index} is due")
            return replace(state, done=True)


def _check(state: Round, node: str, index: int) -> None:
    if index != state.index:
        raise InvalidInputError(
            f"{node} speaks of round {index}; the run is in round {state.index}",
            reason="STALE_ROUND",
            metadata={"node": node, "round": index, "current": state.index},
        )
    if node not in state.cohort:
        raise InvalidInputError(
            f"{node} is not in the cohort of round {index}", reason="NOT_IN_COHORT", metadata={"node": node}
        )


def _arrived(state: Round, node: str, stored: Stored) -> Round:
    parts = stored.parts(node)
    if all(state.stored.get(each) == part for each, part in parts.items()):
        return state
    for each in parts:
        _check(state, each, state.index)
        if each in state.stored:
            how = "something else" if each == node else f"by another way than in the sum of {node}"
            raise InvalidInputError(
                f"{each} has contributed to round {state.index} already, {how}",
                reason="CONTRIBUTION_REPLAYED",
                metadata={"node": each, "round": state.index},
            )
    if state.phase in (Phase.READY, Phase.DONE):
        # The sum may be under way without it: counting it now would make the sum depend on timing.
        raise InvalidInputError(
            f"round {state.index} is closed: {node} came too late",
            reason="STALE_ROUND",
            metadata={"node": node, "round": state.index, "current": state.index},
        )
    for each, part in parts.items():
        if part.examples <= 0:
            raise InvalidInputError(f"{each} contributes {part.examples} examples; at least one is needed")
    given_up = {each: reason for each, reason in state.given_up.items() if each not in parts}
    return replace(
        state,
        stored=MappingProxyType({**state.stored, **parts}),
        given_up=MappingProxyType(given_up),
    )


def _rejected(state: Round, node: str, reason: str) -> Round:
    if state.done or node not in state.stored:
        return state
    whole = state.stored[node].via or node  # nobody can take a single part out of a sum
    gone = [each for each, stored in state.stored.items() if whole in (each, stored.via)]
    kept = {each: stored for each, stored in state.stored.items() if each not in gone}
    given_up = MappingProxyType({**state.given_up, **dict.fromkeys(gone, reason)})
    return replace(state, stored=MappingProxyType(kept), given_up=given_up)


def _progressed(state: Round, node: str) -> Round:
    if node not in state.cohort or state.phase in (Phase.READY, Phase.DONE):
        return state
    idle_s = {each: spent for each, spent in state.idle_s.items() if each != node}
    # A node that was given up and moves again is waited for again, unless it was refused for what it sent.
    given_up = {each: why for each, why in state.given_up.items() if each != node or why != "DEADLINE"}
    return replace(state, idle_s=MappingProxyType(idle_s), given_up=MappingProxyType(given_up))


def _in_contact(state: Round, node: str, contact_s: float) -> Round:
    if contact_s < 0:
        raise InvalidInputError(f"contact lasts {contact_s} s: it cannot be negative")
    if node not in state.waiting:
        return state
    spent = state.idle_s.get(node, 0.0) + contact_s
    state = replace(state, idle_s=MappingProxyType({**state.idle_s, node: spent}))
    if spent <= state.patience_s:
        return state
    return replace(state, given_up=MappingProxyType({**state.given_up, node: "DEADLINE"}))


def to_json(state: Round) -> dict[str, object]:
    """The state as JSON takes it, to be written down."""
    return {
        "index": state.index,
        "cohort": list(state.cohort),
        "quorum": state.quorum,
        "patience_s": state.patience_s,
        "stored": {node: asdict(each) for node, each in state.stored.items()},
        "given_up": dict(state.given_up),
        "idle_s": dict(state.idle_s),
        "done": state.done,
        "enough": state.enough,
    }


def from_json(written: Mapping[str, Any]) -> Round:
    """What `to_json` wrote down.

    Raises:
        InvalidInputError: It is something else.
    """
    try:
        return Round(
            index=int(written["index"]),
            cohort=tuple(written["cohort"]),
            quorum=int(written["quorum"]),
            patience_s=float(written["patience_s"]),
            stored=MappingProxyType({node: Stored(**each) for node, each in written["stored"].items()}),
            given_up=MappingProxyType(dict(written["given_up"])),
            idle_s=MappingProxyType({node: float(spent) for node, spent in written["idle_s"].items()}),
            done=bool(written["done"]),
            enough=int(written["enough"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"this is no round as it was written down: {type(error).__name__}: {error}") from None
