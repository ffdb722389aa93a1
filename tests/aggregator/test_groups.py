"""Who adds up for whom: one head for each group, who stays it as long as it can, and what it is to collect."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.aggregator.groups import Groups, is_outdated, tell
from services.aggregator.rounds import Arrived, Contact, GivenUp, Progress, Round, Stored, advance

PLANE, OTHER = ("sat-1", "sat-2", "sat-3"), ("sat-4", "sat-5")
NODES = (*PLANE, *OTHER, "ground-1")
OPEN = Round(index=2, cohort=NODES, quorum=4, patience_s=5.0)


def ranked(*best: str) -> Any:
    """Those that are named are the best heads, in that order; the others follow in theirs."""
    return lambda node: (float(best.index(node)) if node in best else 9.0,)


def made(*best: str, state: Round = OPEN) -> Groups:
    groups = Groups([PLANE, OTHER], ranked(*best))
    groups.plan(state)
    return groups


def works(groups: Groups) -> dict[str, tuple[str, list[str]]]:
    """What every node is told."""
    found = {}
    for node in NODES:
        work = training_pb2.TrainingWork(collect=["old"])
        tell(work, groups, node, lambda name: f"{name}:1")
        assert not work.HasField("deliver_to") or work.deliver_to.address == f"{work.deliver_to.name}:1"
        assert not groups.differs(work, node)
        found[node] = (work.deliver_to.name, list(work.collect))
    return found


def test_the_best_of_each_group_is_its_head_and_the_others_bring_theirs_to_it() -> None:
    """A node in no group sends by itself; the first of equals is the head."""
    assert works(made("sat-2")) == {
        "sat-1": ("sat-2", []), "sat-2": ("", ["sat-1", "sat-3"]), "sat-3": ("sat-2", []),
        "sat-4": ("", ["sat-5"]), "sat-5": ("sat-4", []), "ground-1": ("", []),
    }  # fmt: skip


def test_a_head_stays_while_others_become_better() -> None:
    """Until the next round."""
    groups = made("sat-2")
    groups._rank = ranked("sat-3")
    groups.plan(OPEN)
    assert groups.collect("sat-2") == ("sat-1", "sat-3")
    groups.plan(Round(index=3, cohort=NODES, quorum=4, patience_s=5.0))
    assert groups.collect("sat-3") == ("sat-1", "sat-2")


def test_who_is_given_up_or_has_come_by_itself_is_not_collected_and_who_comes_back_sends_by_itself() -> None:
    """What has been left out of a sum is not put into it again."""
    groups, state = made("sat-1"), advance(OPEN, Contact("sat-2", 6.0))
    groups.plan(state)
    assert groups.collect("sat-1") == ("sat-3",)
    state = advance(state, Progress("sat-2"))
    groups.plan(state)
    assert (groups.collect("sat-1"), groups.head_of("sat-2")) == (("sat-3",), "")
    groups.plan(advance(state, Arrived("sat-3", 2, Stored("0", 5, 5))))
    assert groups.collect("sat-1") == ()


def test_a_head_that_is_given_up_has_another_in_its_place_as_long_as_there_are_two() -> None:
    """The last one sends by itself."""
    groups, state = made("sat-1"), advance(OPEN, GivenUp("sat-1", 2, "DEADLINE"))
    groups.plan(state)
    assert works(groups)["sat-3"] == ("sat-2", []) and works(groups)["sat-2"] == ("", ["sat-3"])
    groups.plan(advance(state, GivenUp("sat-2", 2, "DEADLINE")))
    assert works(groups)["sat-3"] == ("", [])


def test_a_group_of_which_one_node_is_asked_sends_by_itself() -> None:
    """There is nothing to add."""
    state = Round(index=2, cohort=("sat-1", "sat-4", "sat-5"), quorum=3, patience_s=5.0)
    assert works(made(state=state))["sat-1"] == ("", [])


def test_who_has_done_what_it_can_loses_no_patience() -> None:
    """A member whose contribution is with its head while that is waited for; a head that is reached and lacks others'
    while its own is ready."""
    groups = made("sat-1")

    def resting(state: Round = OPEN, *, attached: bool = True) -> list[str]:
        return [node for node in NODES if groups.rests(node, state, lambda _: attached)]

    assert resting() == []
    assert groups.collected("sat-1", ["sat-2"]) == (True, []) and resting() == ["sat-2"]
    assert groups.collected("sat-1", ["sat-2", "sat-1"]) == (True, []) and resting() == ["sat-1", "sat-2"]
    assert groups.collected("sat-1", ["sat-2", "sat-1"]) == (False, []), "no news"
    assert groups.collected("sat-1", ["sat-1", "sat-2", "sat-5", "sat-9"]) == (False, []), "not its group"
    assert groups.collected("sat-3", ["sat-2"]) == (False, []), "no head"
    assert resting(attached=False) == ["sat-2"]
    assert groups.collected("sat-1", PLANE) == (True, []) and resting() == ["sat-2", "sat-3"]
    given_up = MappingProxyType({"sat-1": "DEADLINE"})
    assert resting(Round(2, NODES, 4, 5.0, given_up=given_up)) == []


def test_what_a_head_has_lost_is_brought_again_and_getting_it_back_is_no_news() -> None:
    """Once: a head that loses and finds things in turns gains no patience by it."""
    groups = made("sat-1")
    assert groups.collected("sat-1", ["sat-1", "sat-2"]) == (True, [])
    for lost in (["sat-2"], []):
        assert groups.collected("sat-1", ["sat-1"]) == (False, lost)
        assert not groups.rests("sat-2", OPEN, lambda _: True)
        assert groups.collected("sat-1", ["sat-1", "sat-2"]) == (False, [])
        assert groups.rests("sat-2", OPEN, lambda _: True)


def test_a_sum_of_other_nodes_than_ordered_is_of_an_older_order_and_strangers_are_refused() -> None:
    """The order that holds is answered by what comes next; nobody speaks for another group."""
    groups = [training_pb2.SumGroup(nodes=PLANE), training_pb2.SumGroup(nodes=OTHER)]
    spec = training_pb2.TrainingSpec(secure_sums=training_pb2.SecureSums(groups=groups))
    work = training_pb2.TrainingWork(spec=spec, collect=["sat-2", "sat-3"])

    def outdated(*names: str, sender: str = "sat-1") -> bool:
        parts = [training_pb2.SummedContribution(node=name) for name in names]
        return is_outdated(work, sender, training_pb2.ContributionInfo(summed=parts))

    assert not outdated("sat-3", "sat-2")
    assert outdated("sat-2") and outdated()
    for named in (("sat-4",), ("sat-2", "sat-2"), ("sat-1",), ("sat-9",)):
        with pytest.raises(InvalidInputError) as refused:
            outdated(*named)
        assert refused.value.reason == "NOT_IN_COHORT"
