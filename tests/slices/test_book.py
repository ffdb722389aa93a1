"""The state of slices under any order of changes, against a plain recount and a model of what was granted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orbitmesh.errors import CapacityError, InfeasiblePlanError, InvalidInputError, MeshError, NodeLostError
from services.slices import admission, book
from services.slices.amounts import UNIT, Amounts, exact
from services.slices.optimiser.problem import Demand
from services.slices.resources import NAMES as RESOURCES
from services.slices.resources import Resources, Share
from services.slices.templates import Profile
from services.slices.values import Book, Node, Reserved, State
from tests.slices.recount import contents, over_commitments, reserved

NODES = {
    "node-1": exact(Resources(16, 2, 64, 40)),
    "node-2": exact(Resources(8, 0, 32, 10)),
    "node-3": exact(Resources(1, 0, 2, 0.1)),
}
NAMES = ("a", "b", "c", "d")
SECOND = 10**9


def mesh(**more: Node) -> Book:
    """A state with nodes and no slices."""
    return book.seen(Book("mark"), {name: Node(has) for name, has in NODES.items()} | more)


def defined(state: Book, name: str = "a", tenant: str = "ann", **fields: Any) -> Book:
    """The state with one more slice."""
    profile = Profile(**({"resources": {"CPU": 4.0, "MemoryGB": 8.0}, "max_number_of_ues": 5} | fields))
    return book.define(state, name, tenant, profile, "", 0)


def row(name: str, node: str, served: float, **amounts: float) -> book.Wanted:
    """A row of an allocation."""
    return book.Wanted(name, node, Reserved(served, exact(Resources.of(amounts))))


def applied(state: Book, *rows: book.Wanted) -> Book:
    """The state with this allocation."""
    return book.apply(state, rows, state.etag, {}, 1)


def admitted(
    state: Book, name: str, key: str, until_s: int = 100, now_s: int = 0, nodes: Any = (), **amounts: float
) -> Book:
    """The state with one more piece of work."""
    after, _ = admission.admit(
        state, name, exact(Resources.of(amounts)), nodes, key, "digest", until_s * SECOND, now_s * SECOND
    )
    return after


ACTIVE = applied(defined(mesh()), row("a", "node-1", 1.0, CPU=4, MemoryGB=8))


def test_nothing_is_reserved_before_an_allocation_is_applied() -> None:
    """A slice that is written down takes nothing from anybody, however large it is."""
    state = defined(mesh(), resources={"CPU": 1e6})
    assert state.reserved() == {}
    assert state.slices["a"].promise.state is State.DEFINED


def test_two_that_decide_on_the_same_state_cannot_both_be_carried_out() -> None:
    """The first change wins, the second hears that it is stale, and nothing of what it wanted is there."""
    state = defined(defined(mesh(), "a"), "b")
    first = applied(state, row("a", "node-1", 1.0, CPU=4, MemoryGB=8))
    with pytest.raises(InvalidInputError) as stale:
        book.apply(first, [row("b", "node-1", 1.0, CPU=4, MemoryGB=8)], state.etag, {}, 2)
    assert stale.value.reason == "STALE_ETAG"
    assert stale.value.metadata["etag"] == first.etag
    assert first.slices["b"].reserved == {}


def test_an_etag_of_another_life_of_the_service_is_stale() -> None:
    """A state that was begun anew has other etags, also where it had as many changes."""
    state, other = defined(mesh()), defined(book.seen(Book("other"), mesh().nodes))
    assert state.version == other.version
    with pytest.raises(InvalidInputError) as stale:
        book.apply(other, [row("a", "node-1", 1.0, CPU=4, MemoryGB=8)], state.etag, {}, 2)
    assert stale.value.reason == "STALE_ETAG"


@pytest.mark.parametrize(
    ("rows", "reason", "said"),
    [
        ([], "INVALID_INPUT", "empty"),
        ([("z", "node-1", 1.0, {"CPU": 4})], "NOT_FOUND", "no slice"),
        ([("a", "node-9", 1.0, {"CPU": 4})], "NOT_FOUND", "no node"),
        ([("a", "node-1", 1.5, {"CPU": 4})], "INVALID_INPUT", "0 to 1"),
        ([("a", "node-1", math.nan, {"CPU": 4})], "INVALID_INPUT", "0 to 1"),
        ([("a", "node-1", 1.0, {"CPU": 4})] * 2, "INVALID_INPUT", "two rows"),
        ([("a", "node-1", 0.0, {})], "INVALID_INPUT", "nothing anywhere"),
        ([("a", "node-1", 1.0, {"CPU": 3, "MemoryGB": 8})], "SLICES_INFEASIBLE", "CPU 3"),
        ([("a", "node-1", 1.0, {"CPU": 17, "MemoryGB": 8})], "SLICES_INFEASIBLE", "max"),
        ([("a", "node-1", 0.3, {"CPU": 2, "MemoryGB": 4})], "SLICES_INFEASIBLE", "least_served"),
        ([("a", n, 0.5, {"CPU": 2, "MemoryGB": 4}) for n in ("node-1", "node-2")], "SLICES_INFEASIBLE", "nodes_max"),
        ([("b", "node-2", 1.0, {"CPU": 4, "MemoryGB": 8})], "SLICES_INFEASIBLE", "may not be on"),
        ([("c", "node-2", 1.0, {"CPU": 4, "MemoryGB": 8})], "LATENCY_BELOW_FLOOR", "25.000 ms"),
        ([("c", "node-3", 1.0, {"CPU": 4, "MemoryGB": 8})], "LATENCY_BELOW_FLOOR", "never reached"),
    ],
)
def test_an_allocation_that_breaks_a_slices_own_terms_is_refused_whole(rows: Any, reason: str, said: str) -> None:
    """Each kind of it has its reason, names what is wrong, and changes nothing of the rest of the allocation."""
    state = defined(mesh(), "a", least_served=0.5)
    state = defined(state, "b", nodes=("node-1",))
    state = defined(state, "c", latency_ms=20.0, place="berlin")
    floors = {"berlin": {"node-1": 7.3, "node-2": 25.0, "node-3": math.inf}}
    good = row("c", "node-1", 1.0, CPU=4, MemoryGB=8)
    wanted = [row(name, node, served, **amounts) for name, node, served, amounts in rows]
    before = contents(state)
    with pytest.raises(MeshError) as refused:
        book.apply(state, [*wanted, good] if wanted and rows[0][0] != "c" else wanted, state.etag, floors, 1)
    assert refused.value.reason == reason
    assert said in refused.value.message
    assert contents(state) == before


def test_a_node_is_not_promised_twice_and_the_refusal_says_what_is_lacking() -> None:
    """To the last millionth: what fits is promised, a millionth more is not."""
    state = defined(defined(mesh(), "a"), "b")
    state = applied(state, row("a", "node-1", 1.0, CPU=10, MemoryGB=8))
    with pytest.raises(InfeasiblePlanError) as full:
        applied(state, row("b", "node-1", 1.0, CPU=6 + 1 / UNIT, MemoryGB=8))
    assert full.value.reason == "SLICES_INFEASIBLE"
    assert (full.value.metadata["node"], full.value.metadata["resource"]) == ("node-1", "CPU")
    assert float(full.value.metadata["lacking"]) == 1 / UNIT
    assert over_commitments(applied(state, row("b", "node-1", 1.0, CPU=6, MemoryGB=8))) == []


def test_slices_can_change_places_in_one_step() -> None:
    """An allocation is judged as a whole: each takes what the other leaves."""
    state = defined(defined(mesh(), "a"), "b", resources={"CPU": 4.0})
    state = applied(state, row("a", "node-1", 1.0, CPU=12, MemoryGB=8), row("b", "node-2", 1.0, CPU=8))
    state = applied(state, row("a", "node-2", 1.0, CPU=8, MemoryGB=8), row("b", "node-1", 1.0, CPU=16))
    assert over_commitments(state) == []


def test_what_is_admitted_to_a_slice_stays_with_it() -> None:
    """Neither an allocation nor a smaller size nor a release takes it away."""
    state = admitted(ACTIVE, "a", "k", CPU=3)
    with pytest.raises(InvalidInputError) as moved:
        applied(state, row("a", "node-2", 1.0, CPU=4, MemoryGB=8))
    with pytest.raises(InvalidInputError) as shrunk:
        book.resize(state, "a", {"CPU": 2.0}, {}, state.etag_of(state.slices["a"].promise), {}, 2)
    with pytest.raises(InvalidInputError) as released:
        book.release(state, "a", state.etag_of(state.slices["a"].promise), False, 2)
    assert {each.value.reason for each in (moved, shrunk, released)} == {"SLICE_IN_USE"}
    assert over_commitments(state) == []


def test_a_slice_that_drains_takes_no_work_and_ends_with_the_last_of_it() -> None:
    """Then its name and its share are free again."""
    state = admitted(admitted(ACTIVE, "a", "k", CPU=1), "a", "l", until_s=50, CPU=1)
    state = book.release(state, "a", state.etag_of(state.slices["a"].promise), True, 2)
    with pytest.raises(InvalidInputError) as refused:
        admitted(state, "a", "m", CPU=1)
    assert refused.value.reason == "FAILED_PRECONDITION"
    state = admission.withdraw(state, "k")
    assert state.slices["a"].promise.state is State.RELEASING
    state = admission.expire(state, 50 * SECOND)
    assert state.slices == {}
    assert len(state.where) == 0
    assert defined(state, "a").slices["a"].promise.state is State.DEFINED


def test_work_goes_on_for_longer_and_never_for_less() -> None:
    """Also in a slice that drains; what has ended is to be admitted anew, and the same refusal meets what never was."""
    state = admitted(ACTIVE, "a", "k", until_s=50, CPU=1)
    state = book.release(state, "a", state.etag_of(state.slices["a"].promise), True, 2)
    state, held = admission.renew(state, "k", 90 * SECOND, 40 * SECOND)
    assert held.until_ns == 90 * SECOND
    state, held = admission.renew(state, "k", 70 * SECOND, 60 * SECOND)
    assert held.until_ns == 90 * SECOND
    assert admission.next_end_ns(state) == 90 * SECOND
    assert admission.expire(state, 89 * SECOND) is state
    assert over_commitments(state) == []
    for key in ("k", "never"):
        with pytest.raises(InvalidInputError) as refused:
            admission.renew(state, key, 200 * SECOND, 90 * SECOND)
        assert refused.value.reason == "NOT_FOUND"
    assert admission.expire(state, 90 * SECOND).slices == {}


def test_a_resize_keeps_what_is_served_and_has_to_fit_beside_the_others() -> None:
    """The optimiser's own formula says what has to be reserved for the same part of the traffic."""
    state = defined(ACTIVE, "b", resources={"CPU": 8.0}, shares={"CPU": Share(0, 0.25, 1)})
    state = applied(state, row("b", "node-1", 0.5, CPU=4))
    etag = state.etag_of(state.slices["b"].promise)
    fits = book.resize(state, "b", {"CPU": 24.0}, {}, etag, {}, 2)
    demand = Demand("b", Resources(cpu=24), {"CPU": Share(0, 0.25, 1)})
    assert fits.slices["b"].reserved["node-1"].amounts == exact(demand.reserved(Resources(16, 2, 64, 40), 0.5))
    assert over_commitments(fits) == []
    with pytest.raises(InfeasiblePlanError) as full:
        book.resize(state, "b", {"CPU": 24.1}, {}, etag, {}, 2)
    assert full.value.metadata["resource"] == "CPU"
    assert book.resize(state, "b", {"CPU": 1.0}, {}, etag, {}, 2).slices["b"].reserved["node-1"].amounts[0] == 4 * UNIT


def test_a_refused_admission_says_what_is_free_and_when_there_is_room() -> None:
    """The earliest end that frees enough, not the earliest of all."""
    state = admitted(ACTIVE, "a", "k", until_s=30, CPU=1)
    state = admitted(state, "a", "l", until_s=60, CPU=2)
    with pytest.raises(CapacityError) as full:
        admitted(state, "a", "m", CPU=3)
    assert full.value.reason == "SLICE_FULL"
    assert float(full.value.metadata["free_CPU"]) == 1
    assert int(full.value.metadata["free_at_ns"]) == 60 * SECOND
    assert int(full.value.metadata["retry_after_ms"]) == 60_000
    assert "1970-01-01T00:01:00.000" in full.value.message
    assert admitted(state, "a", "m", until_s=90, now_s=60, CPU=3).slices["a"].admissions.get("m") is not None


def test_the_number_of_ues_is_a_bound_of_its_own() -> None:
    """Work that needs nothing is counted too."""
    state = ACTIVE
    for index in range(5):
        state = admitted(state, "a", f"k{index}", until_s=10 + index)
    with pytest.raises(CapacityError) as full:
        admitted(state, "a", "one-more")
    assert (full.value.reason, full.value.metadata["free_at_ns"]) == ("SLICE_FULL", str(10 * SECOND))


def test_what_never_fits_is_not_worth_a_retry() -> None:
    """More than the slice has in all is another refusal than more than it has now."""
    with pytest.raises(InfeasiblePlanError) as never:
        admitted(ACTIVE, "a", "k", CPU=5)
    assert not never.value.retryable


def test_work_without_a_node_goes_where_most_is_left() -> None:
    """Of two nodes the emptier one."""
    state = applied(
        defined(mesh(), nodes_max=2),
        *(row("a", node, 0.5, CPU=4, MemoryGB=4) for node in ("node-1", "node-2")),
    )
    state = admitted(state, "a", "k", nodes=["node-1"], CPU=1)
    state = admitted(state, "a", "l", CPU=1)
    found = state.slices["a"].admissions.get("l")
    assert found is not None
    assert found.nodes == ("node-2",)


def test_a_node_that_vanishes_keeps_what_is_promised_there_and_gets_nothing_new() -> None:
    """Until it is back: reservations and work stay, new ones are refused."""
    state = admitted(ACTIVE, "a", "k", CPU=1)
    away = book.seen(defined(state, "b"), {"node-2": Node(NODES["node-2"])})
    assert away.nodes["node-1"].absent
    assert "node-3" not in away.nodes
    assert away.slices["a"] == state.slices["a"]
    with pytest.raises(InfeasiblePlanError):
        applied(away, row("b", "node-1", 1.0, CPU=4, MemoryGB=8))
    with pytest.raises(NodeLostError):
        admitted(away, "a", "l", CPU=1)
    back = book.seen(away, {name: Node(has) for name, has in NODES.items()})
    assert admitted(back, "a", "l", CPU=1).slices["a"].admissions.get("l") is not None


def test_a_node_that_came_back_smaller_takes_nothing_more_and_can_be_relieved() -> None:
    """What was promised stays promised; a change may only make it less."""
    state = defined(ACTIVE, "b", resources={"CPU": 1.0})
    small: Amounts = (2 * UNIT, 0, 64 * UNIT, 0)
    state = book.seen(state, {"node-1": Node(small), "node-2": Node(NODES["node-2"])})
    with pytest.raises(InfeasiblePlanError):
        applied(state, row("b", "node-1", 1.0, CPU=1))
    relieved = applied(state, row("a", "node-2", 1.0, CPU=4, MemoryGB=8))
    assert over_commitments(applied(relieved, row("b", "node-1", 1.0, CPU=1))) == []


class AnyOrder(RuleBasedStateMachine):
    """Operators, nodes and work in any order. `granted` is what the test itself knows of what was granted."""

    @initialize()
    def begin(self) -> None:
        """A mesh with two slices that have something already."""
        state = defined(defined(mesh(), "a", resources={"CPU": 4.0, "MemoryGB": 0.7}, nodes_max=2), "b")
        a = [row("a", node, 0.5, CPU=2, MemoryGB=0.35) for node in ("node-1", "node-2")]
        self.state = applied(state, *a, row("b", "node-1", 1.0, CPU=4, MemoryGB=8))
        self.now_ns = 0
        self.count = 0
        self.allowed: dict[str, tuple[int, ...]] = dict(NODES)
        self.work: dict[str, tuple[str, tuple[str, ...], Amounts, int]] = {}
        self.kept: list[tuple[Book, dict[str, object]]] = []

    def attempt(self, change: Any) -> bool:
        """Carries a change out, or sees that its refusal left everything as it was."""
        before = contents(self.state)
        try:
            after = change(self.state)
        except MeshError:
            assert contents(self.state) == before
            return False
        if len(self.kept) < 8:
            self.kept.append((self.state, before))
        self.state = after
        return True

    def active(self) -> list[str]:
        return sorted(name for name, held in self.state.slices.items() if held.promise.state is State.ACTIVE)

    def etag(self, name: str) -> str:
        held = self.state.slices.get(name)
        return "" if held is None else self.state.etag_of(held.promise)

    @rule(
        name=st.sampled_from(NAMES), again=st.booleans(), cpu=st.sampled_from([0.1, 0.3, 4.0, 10.0]),
        spread=st.integers(1, 3), ues=st.integers(2, 6), least=st.sampled_from([0.0, 0.5]),
        minimum=st.sampled_from([0.0, 0.1, 0.6]),
    )  # fmt: skip
    def define(self, name: str, again: bool, cpu: float, spread: int, ues: int, least: float, minimum: float) -> None:
        profile = Profile(
            resources={"CPU": cpu, "MemoryGB": 0.7}, shares={"CPU": Share(0.0, minimum, 0.9)}, nodes_max=spread,
            max_number_of_ues=ues, least_served=least,
        )  # fmt: skip
        etag = self.etag(name) if again else ""
        self.attempt(lambda state: book.define(state, name, "ann", profile, etag, self.now_ns))

    @precondition(lambda self: self.state.slices)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        rows = []
        for name in data.draw(st.sets(st.sampled_from(sorted(self.state.slices)), min_size=1, max_size=2)):
            profile = self.state.slices[name].promise.profile
            demand = Demand(name, profile.need, profile.shares)
            nodes = data.draw(st.sets(st.sampled_from(["node-1", "node-2"]), min_size=1, max_size=profile.nodes_max))
            served = data.draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])) / len(nodes)
            for node in sorted(nodes):
                there = self.state.nodes.get(node, Node(NODES[node]))
                needed = exact(demand.reserved(Resources(*(each / UNIT for each in there.capacity)), served))
                more = data.draw(st.sampled_from([0, 0, 0, 4 * UNIT, -UNIT]))
                amounts = (max(0, needed[0] + more), needed[1], needed[2], needed[3])
                rows.append(book.Wanted(name, node, Reserved(served, amounts)))
        self.attempt(lambda state: book.apply(state, rows, state.etag, {}, self.now_ns))

    @rule(name=st.sampled_from(NAMES), cpu=st.sampled_from([0.1, 0.3, 1.0, 4.0, 11.0]))
    def resize(self, name: str, cpu: float) -> None:
        etag = self.etag(name)
        self.attempt(lambda state: book.resize(state, name, {"CPU": cpu}, {}, etag, {}, self.now_ns))

    @rule(name=st.sampled_from(NAMES), drain=st.booleans())
    def release(self, name: str, drain: bool) -> None:
        etag = self.etag(name)
        if self.now_ns % (3 * SECOND) == 0:
            self.attempt(lambda state: book.release(state, name, etag, drain, self.now_ns))

    @precondition(lambda self: self.active())
    @rule(
        data=st.data(), cpu=st.sampled_from([0, 100_000, 700_000, 1_300_000, 2_100_000]), lasts=st.integers(3, 12),
        nodes=st.sampled_from([(), (), ("node-1",), ("node-1", "node-2")]),
    )  # fmt: skip
    def admit(self, data: st.DataObject, cpu: int, lasts: int, nodes: tuple[str, ...]) -> None:
        name = data.draw(st.sampled_from(self.active()))
        self.count += 1
        key, amounts, until_ns = f"k{self.count}", (cpu, 0, 0, 0), self.now_ns + lasts * SECOND
        made = []

        def change(state: Book) -> Book:
            after, admission_made = admission.admit(state, name, amounts, nodes, key, "d", until_ns, self.now_ns)
            made.append(admission_made)
            return after

        if self.attempt(change):
            self.work[key] = (name, made[0].nodes, amounts, until_ns)
            # Admission gives back first what is over in that slice.
            self.work = {k: v for k, v in self.work.items() if v[0] != name or v[3] > self.now_ns}

    @precondition(lambda self: self.work)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.work)))
        assert self.attempt(lambda state: admission.withdraw(state, key))
        del self.work[key]

    @precondition(lambda self: self.work)
    @rule(data=st.data(), lasts=st.integers(1, 12))
    def renew(self, data: st.DataObject, lasts: int) -> None:
        key, until_ns = data.draw(st.sampled_from(sorted(self.work))), self.now_ns + lasts * SECOND
        assert self.attempt(lambda state: admission.renew(state, key, until_ns, self.now_ns)[0])
        name, nodes, amounts, before_ns = self.work[key]
        self.work[key] = (name, nodes, amounts, max(before_ns, until_ns))

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND
        assert self.attempt(lambda state: admission.expire(state, self.now_ns))
        self.work = {key: each for key, each in self.work.items() if each[3] > self.now_ns}

    @rule(
        gone=st.sampled_from([set(), set(), {"node-2"}, {"node-1", "node-3"}]),
        halved=st.sampled_from([set(), set(), {"node-1"}, {"node-1", "node-2"}]),
    )
    def nodes(self, gone: set[str], halved: set[str]) -> None:
        now = {
            name: Node(tuple(each // 2 for each in has) if name in halved else has)  # type: ignore[arg-type]
            for name, has in NODES.items()
            if name not in gone
        }
        assert self.attempt(lambda state: book.seen(state, now))

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        """A node that came back smaller may keep what was promised there, and less and less of it."""
        there = reserved(self.state)
        for name, node in self.state.nodes.items():
            most = [int(there[name, each] * UNIT) for each in RESOURCES]
            had = self.allowed.get(name, node.capacity)
            self.allowed[name] = tuple(
                max(has, min(one, other)) for has, one, other in zip(node.capacity, had, most, strict=True)
            )
        assert over_commitments(self.state, self.allowed) == []

    @invariant()
    def the_work_is_what_was_granted(self) -> None:
        found = {
            each.key: (name, each.nodes, each.amounts, each.until_ns)
            for name, held in self.state.slices.items()
            for each in held.admissions.values()
        }
        assert found == self.work
        assert {key: self.state.where.get(key) for key in self.work} == {key: v[0] for key, v in self.work.items()}
        assert len(self.state.where) == len(self.work)

    def teardown(self) -> None:
        """States of before were not changed by what came after."""
        for state, was in self.kept:
            assert contents(state) == was


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
