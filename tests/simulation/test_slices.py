"""Work that arrives at and leaves slices in a seeded order, while operators change them: nothing is promised twice."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from orbitmesh.errors import MeshError
from services.slices import admission, book
from services.slices.amounts import Amounts, exact
from services.slices.fitting import demand_of
from services.slices.resources import Resources, Share
from services.slices.templates import Profile
from services.slices.values import Book, Node, Reserved
from tests.simulation.seeds import run_seeds

SEEDS = 3
EVENTS = 10_000
SECOND = 10**9
SHAPES = {
    "ground": Resources(16, 2, 64, 40),
    "edge": Resources(8, 1, 32, 10),
    "sat-1": Resources(2, 0, 8, 0.1),
    "sat-2": Resources(2, 0, 8, 0.1),
}


@dataclass
class Ledger:
    """What the world outside was told, and added up by itself: integers by name, never the book's sums."""

    reserved: dict[str, dict[str, Amounts]] = field(default_factory=dict)
    """By slice, node."""
    work: dict[str, tuple[str, tuple[str, ...], Amounts, int]] = field(default_factory=dict)
    """By key: slice, nodes, amounts, until."""

    def over_commitments(self) -> list[str]:
        """What was promised twice."""
        found = []
        on_node: Counter[tuple[str, int]] = Counter()
        for mine in self.reserved.values():
            for node, amounts in mine.items():
                on_node.update({(node, index): amount for index, amount in enumerate(amounts)})
        for (node, index), amount in on_node.items():
            if amount > exact(SHAPES[node])[index]:
                found.append(f"{node} {index}: {amount}")
        in_slice: Counter[tuple[str, str, int]] = Counter()
        for name, nodes, amounts, _ in self.work.values():
            for node in nodes:
                in_slice.update({(name, node, index): amount for index, amount in enumerate(amounts)})
        for (name, node, index), amount in in_slice.items():
            if amount > self.reserved[name].get(node, (0, 0, 0, 0))[index]:
                found.append(f"{name} on {node} {index}: {amount}")
        return found


class World:
    """One story."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.state = book.seen(Book("mark"), {name: Node(exact(has)) for name, has in SHAPES.items()})
        self.told = Ledger()
        self.met: Counter[str] = Counter()

    def run(self, events: int) -> None:
        """So many arrivals, departures and changes."""
        for index in range(events):
            self.now_ns += self.random.randrange(SECOND)
            kind = self.random.choices(["arrive", "leave", "expire", "operate"], [60, 25, 10, 5])[0]
            try:
                getattr(self, kind)(index)
                self.met[kind] += 1
            except MeshError as error:
                self.met[error.reason] += 1
            if index % 50 == 0 or index == events - 1:
                assert self.told.over_commitments() == []
                self.compare()

    def arrive(self, index: int) -> None:
        """Work comes."""
        name = f"slice-{self.random.randrange(6)}"
        size = self.random.choice([0.01, 0.1, 0.3, 0.7])
        amounts = exact(Resources(size, 0, size * 2, size / 100))
        nodes = self.random.choice([(), (), ("ground",), ("ground", "edge"), ("sat-1",)])
        until_ns = self.now_ns + self.random.randrange(1, 200 * SECOND)
        self.state, made = admission.admit(
            self.state, name, amounts, nodes, f"k{index}", "d", until_ns, self.now_ns
        )
        for key, each in list(self.told.work.items()):
            if each[0] == name and each[3] <= self.now_ns:
                del self.told.work[key]
        self.told.work[f"k{index}"] = (name, made.nodes, amounts, until_ns)

    def leave(self, _: int) -> None:
        """Work ends early, some of it twice."""
        if self.told.work:
            key = self.random.choice(list(self.told.work))
            for _ in range(self.random.choice([1, 2])):
                self.state = admission.withdraw(self.state, key)
            self._forget([key])

    def expire(self, _: int) -> None:
        """Time passes."""
        self.state = admission.expire(self.state, self.now_ns)
        self._forget([key for key, each in self.told.work.items() if each[3] <= self.now_ns])

    def _forget(self, keys: list[str]) -> None:
        for key in keys:
            del self.told.work[key]
        for name in list(self.told.reserved):
            if name not in self.state.slices:
                # It was being released, and this was the last of its work.
                assert not any(each[0] == name for each in self.told.work.values())
                del self.told.reserved[name]

    def operate(self, _: int) -> None:
        """An operator defines, allocates, resizes or releases."""
        name = f"slice-{self.random.randrange(6)}"
        held = self.state.slices.get(name)
        if held is None:
            profile = Profile(
                resources={"CPU": self.random.choice([0.5, 2.0, 6.0]), "MemoryGB": 3.0, "BandwidthGbps": 0.05},
                shares={"CPU": Share(0, self.random.choice([0, 0.1]), 0.9)},
                nodes_max=3, max_number_of_ues=self.random.choice([5, 40]),
            )  # fmt: skip
            self.state = book.define(self.state, name, "ann", profile, "", self.now_ns)
            self.allocate([name])
            return
        etag = self.state.etag_of(held.promise)
        what = self.random.choice(["allocate", "allocate", "resize", "release"])
        if what == "resize":
            more = {"CPU": self.random.choice([0.5, 2.0, 6.0, 9.0])}
            self.state = book.resize(self.state, name, more, {}, etag, {}, self.now_ns)
            self._learn(name)
        elif what == "release":
            self.state = book.release(self.state, name, etag, self.random.random() < 0.5, self.now_ns)
            if name not in self.state.slices:
                del self.told.reserved[name]
                assert not any(each[0] == name for each in self.told.work.values())
        else:
            self.allocate(self.random.sample(sorted(self.state.slices), k=min(2, len(self.state.slices))))

    def allocate(self, names: list[str]) -> None:
        """New places for some slices, what they need or a little more."""
        for name in names:
            self.told.reserved.setdefault(name, {})
        rows = []
        for name in names:
            nodes = self.random.sample(sorted(SHAPES), k=self.random.choice([1, 2, 3]))
            demand = demand_of(self.state.slices[name].promise, {})
            for node in nodes:
                needed = exact(demand.reserved(SHAPES[node], 1 / len(nodes)))
                rows.append(book.Wanted(name, node, Reserved(1 / len(nodes), needed)))
        self.state = book.apply(self.state, rows, self.state.etag, {}, self.now_ns)
        for name in names:
            self._learn(name)

    def _learn(self, name: str) -> None:
        """What an operator is told of a slice."""
        self.told.reserved[name] = {node: part.amounts for node, part in self.state.slices[name].reserved.items()}

    def compare(self) -> None:
        """What was told is what is kept."""
        kept: dict[str, dict[str, Amounts]] = defaultdict(dict)
        for name, held in self.state.slices.items():
            kept[name] = {node: part.amounts for node, part in held.reserved.items()}
        assert kept == self.told.reserved
        work = {
            each.key: (name, each.nodes, each.amounts, each.until_ns)
            for name, held in self.state.slices.items()
            for each in held.admissions.values()
        }
        assert work == self.told.work
        for held in self.state.slices.values():
            for node, amounts in held.used.items():
                mine = [each.amounts for each in held.admissions.values() if node in each.nodes]
                assert amounts == tuple(map(sum, zip((0, 0, 0, 0), *mine, strict=True)))


def test_ten_thousand_arrivals_and_departures_promise_nothing_twice() -> None:
    """In the ledger of those who were told, which knows nothing of the book's sums; and no story is idle."""
    met: Counter[str] = Counter()

    def story(seed: int) -> None:
        world = World(seed)
        world.run(EVENTS)
        met.update(world.met)

    ran = run_seeds(story, SEEDS)
    assert met["arrive"] > 500 * ran
    assert met["SLICE_FULL"] > 100 * ran
    assert met["operate"] > 30 * ran
    assert met["SLICES_INFEASIBLE"] > 10 * ran


def test_the_ledger_sees_what_is_promised_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a book that promises whatever is asked, the same story fails."""
    monkeypatch.setattr(admission, "covers", lambda there, needed: True)
    with pytest.raises(AssertionError):
        World(1).run(EVENTS)
