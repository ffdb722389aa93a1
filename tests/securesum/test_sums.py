"""Whole sums, with nodes that vanish: always the plain integer sum over the survivors, or an error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import pytest

from orbitmesh.errors import InvalidInputError
from services.securesum import PartialSum, RoundPlan, RoundSum, SumCollector, SumNode, UnmaskAnswer, spans_of, word_bits
from services.updates.spans import SPAN_VALUES
from tests.securesum.support import (
    BITS,
    LARGEST,
    People,
    Values,
    answer,
    hand_out,
    join_all,
    make_nodes,
    make_values,
    masked,
    offer_all,
    plain_sum,
    result,
    seeded,
    upload,
)

SPANS = (5, 3)


def subsets(names: Sequence[str], least: int) -> Iterator[tuple[str, ...]]:
    for size in range(least, len(names) + 1):
        yield from combinations(names, size)


def killed(node: SumNode) -> SumNode:
    """What a restart makes of a node: its state through JSON."""
    return SumNode.from_state(json.loads(json.dumps(node.to_state())))


def killed_sum(round_sum: RoundSum) -> RoundSum:
    return RoundSum.from_state(round_sum.roster, json.loads(json.dumps(round_sum.to_state())))


def test_sum_of_eight_nodes_is_the_plain_sum_in_every_round(people: People) -> None:
    """Eight nodes, several rounds under one set-up, vectors of more than a span: every sum is exact."""
    names = people.first(8)
    nodes = make_nodes(people, names, 1)
    collector = join_all(people, nodes)
    offer_all(people, collector, nodes, 1, rounds=3)
    for round_index in range(3):
        values = make_values(names, SPAN_VALUES + 77, round_index)
        round_sum = collector.begin_round(round_index, names, spans_of(SPAN_VALUES + 77), BITS)
        for name in names:
            upload(round_sum, nodes[name], values[name])
        request = round_sum.close()
        assert [round_sum.take_answer(answer(nodes[name], request)) for name in names[:6]] == [False] * 5 + [True]
        assert result(round_sum).tolist() == plain_sum(values, names)


def outcomes(
    round_sum: RoundSum,
    nodes: Mapping[str, SumNode],
    values: Mapping[str, Values],
    senders: Sequence[str],
) -> int:
    """Closes the sum and tries every set of senders as those who answer; returns how many were enough."""
    request = round_sum.close()
    answers = {name: answer(nodes[name], request) for name in senders}
    expected, enough = plain_sum(values, senders), 0
    for answering in subsets(senders, 0):
        again = copy.deepcopy(round_sum)
        for name in answering:
            again.take_answer(answers[name])
        if len(answering) >= round_sum.roster.threshold:
            assert again.ready
            assert result(again).tolist() == expected
            enough += 1
        else:
            assert not again.ready
            with pytest.raises(InvalidInputError) as caught:
                result(again)
            assert caught.value.reason == "TOO_FEW_SURVIVORS"
    return enough


@pytest.mark.parametrize(("count", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 4)])
def test_every_pattern_of_vanishing_nodes(people: People, count: int, threshold: int) -> None:
    """Each node vanishes before sharing, before sending, in the middle of sending, before answering, or not at all:
    the sum is the plain one over those who sent, or too few are left and the error says so."""
    names = people.first(count)
    values = make_values(names, sum(SPANS), count)
    enough = 0
    for sharers in subsets(names, threshold):
        nodes = make_nodes(people, names, count)
        collector = join_all(people, nodes, threshold)
        offer_all(people, collector, nodes, count, rounds=1, sharers=sharers)
        fresh = {name: node.to_state() for name, node in nodes.items()}
        for senders in subsets(sharers, threshold):
            nodes = {name: SumNode.from_state(state) for name, state in fresh.items()}
            round_sum = collector.begin_round(0, sharers, SPANS, BITS)
            halves = {}
            for place, name in enumerate(sharers):
                if name in senders:
                    upload(round_sum, nodes[name], values[name])
                elif place % 2:
                    halves[name] = upload(round_sum, nodes[name], values[name], spans=1)
            for name, sent in halves.items():
                round_sum.withdraw(name, lambda sent=sent: iter(sent))
            enough += outcomes(round_sum, nodes, values, senders)
    # Everyone who answers has sent, who has sent has shared: each node is in one of four states.
    patterns = [
        states for states in product(range(4), repeat=count) if sum(state == 3 for state in states) >= threshold
    ]
    assert enough == len(patterns)


@pytest.mark.parametrize(
    ("count", "seed"), [*((8, seed) for seed in range(12)), (32, 0), pytest.param(32, 1, marks=pytest.mark.soak)]
)
def test_random_nodes_vanish_and_restart(people: People, count: int, seed: int) -> None:
    """Nodes vanish anywhere and everybody is killed between any two steps: sums stay exact."""
    rng = seeded(f"{count} {seed}")
    names = people.first(count)
    nodes = make_nodes(people, names, seed)
    collector = join_all(people, nodes)
    threshold = 2 * count // 3 + 1
    sharers = sorted(rng.sample(names, rng.randint(threshold, count)))
    offer_all(people, collector, nodes, seed, sharers=sharers)
    bits = word_bits(LARGEST, count)
    for round_index in range(2):
        collector = SumCollector.from_state(json.loads(json.dumps(collector.to_state())))
        values = make_values(names, sum(SPANS), seed)
        round_sum = collector.begin_round(round_index, sharers, SPANS, bits)
        survivors = sorted(rng.sample(sharers, rng.randint(threshold, len(sharers))))
        for name in rng.sample(survivors, len(survivors)):
            node = nodes[name] = killed(nodes[name])
            context, spans = masked(node, round_sum.plan, values[name])
            for index in range(len(spans)):
                # What is sent again after a restart is the same.
                node = nodes[name] = killed(node)
                assert masked(node, round_sum.plan, values[name]) == (context, spans)
                round_sum.take_span(name, context, index, spans[index])
                round_sum = killed_sum(round_sum)
        request = round_sum.close()
        for name in rng.sample(names, threshold):
            nodes[name] = killed(nodes[name])
            first = answer(nodes[name], request)
            nodes[name] = killed(nodes[name])
            assert answer(nodes[name], request) == first
            round_sum.take_answer(first)
            round_sum = killed_sum(round_sum)
        assert result(round_sum).tolist() == plain_sum(values, survivors)


def test_nodes_that_never_sent_may_unmask(people: People) -> None:
    """Of six nodes four send; one of those vanishes, and the two that did not send answer in its place."""
    names = people.first(6)
    nodes = make_nodes(people, names, 3)
    collector = join_all(people, nodes, 4)
    offer_all(people, collector, nodes, 3)
    values = make_values(names, sum(SPANS), 3)
    round_sum = collector.begin_round(0, names, SPANS, BITS)
    for name in names[:4]:
        upload(round_sum, nodes[name], values[name])
    request = round_sum.close()
    for name in names[2:]:
        round_sum.take_answer(answer(nodes[name], request))
    assert result(round_sum).tolist() == plain_sum(values, names[:4])


def test_sums_made_on_the_way(people: People) -> None:
    """Three of six nodes are added up before they reach the aggregator, which is killed in between: the sum is exact,
    and none of the three counts by another way as well."""
    names = people.first(6)
    nodes = make_nodes(people, names, 12)
    collector = join_all(people, nodes, 4)
    offer_all(people, collector, nodes, 12)
    values = make_values(names, sum(SPANS), 12)
    round_sum = collector.begin_round(0, names, SPANS, BITS)
    sent = {name: masked(nodes[name], round_sum.plan, values[name])[1] for name in names[:5]}
    sink, *others = names[:3]
    for span in range(len(SPANS)):
        partial = PartialSum(round_sum.plan, span)
        for name in names[:3]:
            partial.add(sent[name][span])
        round_sum.take_span(sink, round_sum.context, span, partial.packed(), tuple(others))
        round_sum = killed_sum(round_sum)
    for again in (sink, *others):
        with pytest.raises(InvalidInputError) as caught:
            round_sum.take_span(again, round_sum.context, 0, sent[again][0])
        assert caught.value.reason == "CONTRIBUTION_REPLAYED"
    for name in names[3:5]:
        for span in range(len(SPANS)):
            with pytest.raises(InvalidInputError, match="once"):
                round_sum.take_span(name, round_sum.context, span, sent[name][span], (sink,))
            round_sum.take_span(name, round_sum.context, span, sent[name][span])
    request = round_sum.close()
    assert request.survivors == tuple(names[:5])
    for name in names[1:5]:
        round_sum.take_answer(answer(nodes[name], request))
    assert result(round_sum).tolist() == plain_sum(values, names[:5])


def test_too_few_contributions_reveal_nothing(people: People) -> None:
    """Below the threshold the sum does not close; a request that says otherwise is refused by each node, and a late
    contribution still makes the sum."""
    names = people.first(4)
    nodes = make_nodes(people, names, 4)
    collector = join_all(people, nodes, 3)
    offer_all(people, collector, nodes, 4)
    values = make_values(names, sum(SPANS), 4)
    round_sum = collector.begin_round(0, names, SPANS, BITS)
    for name in names[:2]:
        upload(round_sum, nodes[name], values[name])
    with pytest.raises(InvalidInputError) as caught:
        round_sum.close()
    assert caught.value.reason == "TOO_FEW_SURVIVORS"
    upload(round_sum, nodes[names[2]], values[names[2]])
    request = round_sum.close()
    for name in names[1:]:
        round_sum.take_answer(answer(nodes[name], request))
    assert result(round_sum).tolist() == plain_sum(values, names[:3])


def test_a_second_offer_carries_later_rounds(people: People) -> None:
    """When the rounds of an offer are used up a further offer is enough: no second set-up; retired rounds are over."""
    names = people.first(4)
    nodes = make_nodes(people, names, 5)
    collector = join_all(people, nodes)
    offer_all(people, collector, nodes, 5, rounds=1)
    assert collector.sharers(1) == ()
    with pytest.raises(InvalidInputError, match="offered no secrets"):
        collector.begin_round(1, names, SPANS, BITS)
    assert {node.offered_until for node in nodes.values()} == {1}
    offer_all(people, collector, nodes, 6, first_round=1, rounds=1)
    for node in nodes.values():
        node.retire(1)
    collector.retire(1)
    with pytest.raises(InvalidInputError) as caught:
        nodes[names[0]].contribute(old_plan(collector, names), bytes(32))
    assert caught.value.reason == "STALE_ROUND"
    values = make_values(names, sum(SPANS), 5)
    round_sum = collector.begin_round(1, names, SPANS, BITS)
    for name in names:
        upload(round_sum, nodes[name], values[name])
    request = round_sum.close()
    for name in names:
        round_sum.take_answer(answer(nodes[name], request))
    assert result(round_sum).tolist() == plain_sum(values, names)


def old_plan(collector: SumCollector, names: list[str]) -> RoundPlan:
    assert collector.roster is not None
    return RoundPlan(collector.roster.digest, 0, BITS, SPANS, tuple(names))


def test_an_offer_that_was_not_sent_is_made_again(people: People) -> None:
    """A node killed between storing and sending makes the same offer and boxes, and peers accept them."""
    names = people.first(3)
    nodes = make_nodes(people, names, 7)
    collector = join_all(people, nodes)
    name = names[0]
    draw = seeded(7).randbytes
    first = nodes[name].offer(people.identities[name], 0, draw, people.now, 3)
    again = killed(nodes[name]).offer(people.identities[name], 0, draw, people.now, 3)
    assert (again.signed.body, again.boxes) == (first.signed.body, first.boxes)
    collector.add_offer(first, people.ca, people.now)
    collector.add_offer(again, people.ca, people.now)
    hand_out(people, collector, nodes)
    assert all(len(node.held_offers()) == 1 for node in nodes.values())


def test_a_box_that_does_not_open_costs_one_share(people: People) -> None:
    """A peer whose box was damaged takes part without that share, and the sum is made from the others'."""
    names = people.first(4)
    nodes = make_nodes(people, names, 8)
    collector = join_all(people, nodes, 3)
    rng = seeded(8)
    for name in names:
        message = nodes[name].offer(people.identities[name], 0, rng.randbytes, people.now, 1)
        collector.add_offer(message, people.ca, people.now)
    for name in names:
        for relayed in collector.relay(name):
            spoilt = name == names[1] and relayed.signed.body.find(names[0].encode()) >= 0
            nodes[name].take_offer(relayed.signed, None if spoilt else relayed.box, people.ca, people.now)
    values = make_values(names, sum(SPANS), 8)
    round_sum = collector.begin_round(0, names, SPANS, BITS)
    for name in names:
        upload(round_sum, nodes[name], values[name])
    request = round_sum.close()
    answers = {name: answer(nodes[name], request) for name in names}
    assert set(answers[names[1]].shares) == set(names[1:])
    assert [round_sum.take_answer(answers[name]) for name in names] == [False, False, False, True]
    assert result(round_sum).tolist() == plain_sum(values, names)


@pytest.mark.parametrize("about", [0, 4])
def test_one_wrong_answer_is_left_out_and_without_spare_ones_refused(people: People, about: int) -> None:
    """A node that gives another share of one secret, of a survivor or of a vanished node, is found out: never a wrong
    sum."""
    names = people.first(5)
    nodes = make_nodes(people, names, 9)
    collector = join_all(people, nodes, 4)
    offer_all(people, collector, nodes, 9)
    values = make_values(names, sum(SPANS), 9)
    round_sum = collector.begin_round(0, names, SPANS, BITS)
    for name in names[:4]:
        upload(round_sum, nodes[name], values[name])
    request = round_sum.close()
    for place, name in enumerate(names[:4]):
        found = answer(nodes[name], request)
        if place == 2:
            share = found.shares[names[about]]
            # A bit in the middle of the private key: clamping would hide some at its ends.
            lie = share[:16] + bytes([share[16] ^ 1]) + share[17:]
            found = UnmaskAnswer(name, found.context, {**found.shares, names[about]: lie})
        round_sum.take_answer(found)
    assert round_sum.ready
    with pytest.raises(Exception, match="committed") as caught:
        result(round_sum)
    assert getattr(caught.value, "reason", "") == "SHARES_WRONG"
    round_sum.take_answer(answer(nodes[names[4]], request))
    assert result(round_sum).tolist() == plain_sum(values, names[:4])
