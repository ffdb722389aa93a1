"""Who of a group adds up the masked contributions of the others: the head, chosen anew in every round.

What a head is told to collect is exactly what its sum has to hold: where less can be had (a node was given up, or has
sent its contribution by itself), it is told so, and makes the sum anew. A group whose head is given up gets another
one. Nothing here is written down: after a restart heads are chosen again, and nodes bring again what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.aggregator.rounds import Round

GROUP_MAX = 64
"""How many nodes a group may have: so many sessions its head takes part in, and so many files it keeps."""

Rank = Callable[[str], tuple[float, ...]]
"""How good a head a node would be now; the least is the best."""


@dataclass
class _Sum:
    """One group's sum of a round."""

    head: str
    collect: tuple[str, ...]
    """Whose contributions the head is to add to its own, in order."""
    held: set[str] = field(default_factory=set)
    """Whose contributions it has; itself once its own is ready."""
    ever: set[str] = field(default_factory=set)
    """Whose it has had."""
    lost: set[str] = field(default_factory=set)
    """Whose it has had and lost, at some time."""


class Groups:
    """The groups of one run, in the round that is open.

    Args:
        groups: The nodes of each.
        rank: Who would be the best head.
    """

    def __init__(self, groups: Sequence[Sequence[str]], rank: Rank) -> None:
        self._groups = [tuple(group) for group in groups]
        self._rank = rank
        self._round = -1
        self._sums: dict[int, _Sum | None] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def plan(self, state: Round) -> None:
        """Chooses heads, and what each collects, as the round is now. What is chosen stays as long as it can."""
        if state.index != self._round:
            self._round, self._sums = state.index, {}
        for number, group in enumerate(self._groups):
            waiting = [node for node in group if node in state.waiting]
            if number not in self._sums:
                self._sums[number] = self._begin(waiting)
            elif (held := self._sums[number]) is not None:
                if held.head in state.given_up:
                    # Whoever comes back after it was given up brings its contribution by itself.
                    self._sums[number] = self._begin([node for node in held.collect if node in waiting])
                else:
                    held.collect = tuple(node for node in held.collect if node in waiting)

    def _begin(self, nodes: Sequence[str]) -> _Sum | None:
        if len(nodes) < 2:
            return None
        head = min(nodes, key=self._rank)
        return _Sum(head, tuple(node for node in nodes if node != head))

    def head_of(self, node: str) -> str:
        """Who adds a node's contribution to its own; empty where the node sends it by itself."""
        return next((each.head for each in self._open() if node in each.collect), "")

    def collect(self, node: str) -> tuple[str, ...]:
        """Whose contributions a node is to add to its own."""
        return next((each.collect for each in self._open() if each.head == node), ())

    def differs(self, work: training_pb2.TrainingWork, node: str) -> bool:
        """Whether a node was told something else than what holds now."""
        return (work.deliver_to.name, tuple(work.collect)) != (self.head_of(node), self.collect(node))

    def collected(self, head: str, nodes: Collection[str]) -> tuple[bool, list[str]]:
        """A head has these contributions; whether there are some that it never had, and whose it has lost for the
        first time: they have to bring them again."""
        for each in self._open():
            if each.head == head:
                each.held = {node for node in nodes if node == head or node in each.collect}
                is_more = not each.held <= each.ever
                each.ever |= each.held
                lost = [node for node in each.collect if node in each.ever - each.held - each.lost]
                each.lost |= {*lost}
                return is_more, lost
        return False, []

    def rests(self, node: str, state: Round, attached: Callable[[str], bool]) -> bool:
        """Whether a node has done what it can and others are waited for: a member whose contribution is with its
        head, a head that is reached, has its own and lacks another's."""
        for each in self._open():
            if node in each.collect and node in each.held:
                return each.head in state.waiting
            if node == each.head and node in each.held and not each.held >= set(each.collect):
                return attached(node)
        return False

    def _open(self) -> list[_Sum]:
        return [each for each in self._sums.values() if each is not None and each.collect]


def tell(work: training_pb2.TrainingWork, groups: Groups, node: str, address: Callable[[str], str]) -> None:
    """Writes into an order what a node does in its group.

    Args:
        work: The order.
        groups: Who is who.
        node: Whose order it is.
        address: host:port of a node.
    """
    work.ClearField("deliver_to")
    del work.collect[:]
    head = groups.head_of(node)
    if head:
        work.deliver_to.name, work.deliver_to.address = head, address(head)
    work.collect.extend(groups.collect(node))


def is_outdated(work: training_pb2.TrainingWork, node: str, info: training_pb2.ContributionInfo) -> bool:
    """Whether what a node announces answers an order that it was given before the one that holds: the sum of other
    nodes of its group than are to be in it. What it makes after the present order is on its way.

    Raises:
        InvalidInputError: `NOT_IN_COHORT`, a node is in it that is not of the sender's group.
    """
    named = [part.node for part in info.summed]
    group = next((set(each.nodes) for each in work.spec.secure_sums.groups if node in each.nodes), set[str]())
    strangers = set(named) - (group - {node})
    if strangers or len(set(named)) < len(named):
        raise InvalidInputError(
            f"{node} sends a sum with {', '.join(sorted(strangers)) or 'a node twice'}: it holds nodes of the sender's "
            "own group, each once",
            reason="NOT_IN_COHORT",
        )
    return set(named) != set(work.collect)


def examples_of(info: training_pb2.ContributionInfo) -> Mapping[str, int]:
    """The further nodes in a contribution, with their examples."""
    return {part.node: part.examples for part in info.summed}


def check_groups(sums: training_pb2.SecureSums, nodes: Collection[str]) -> None:
    """Refuses groups that make no sense.

    Raises:
        InvalidInputError: A group is too small or too large, names a node that is not in the run, or one that is in
            another group.
    """
    seen: set[str] = set()
    for group in sums.groups:
        if not 2 <= len(group.nodes) <= GROUP_MAX:
            raise InvalidInputError(
                f"a group has {len(group.nodes)} nodes; expected 2 to {GROUP_MAX}: one of them adds up the others'"
            )
        for name in group.nodes:
            if name not in nodes:
                raise InvalidInputError(f"a group names {name[:64]!r}, which is not a node of the run")
            if name in seen:
                raise InvalidInputError(f"{name} is named twice in groups; a node is in one group, once")
            seen.add(name)
