"""What an aggregator that lies, or a node that is not who it says, is refused; and what the aggregator sees."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orbitmesh.errors import IdentityError, InvalidInputError, MeshError, PermissionError_, SealError
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
    colluders_tolerated,
    default_threshold,
    to_words,
)
from services.securesum.keys import KEY_PURPOSE, sign_message, signed_key
from services.securesum.packing import unpack
from services.securesum.roster import smallest_sum
from services.securesum.sharing import Offer
from services.updates.spans import SPAN_VALUES
from tests.securesum.support import (
    BITS,
    UPDATE_DIGEST,
    People,
    answer,
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

SPANS = (4,)


class Mesh:
    """Five nodes with offers for two rounds, threshold 4."""

    def __init__(self, people: People) -> None:
        self.people = people
        self.names = people.first(5)
        self.nodes = make_nodes(people, self.names, 20)
        self.collector = join_all(people, self.nodes, 4)
        offer_all(people, self.collector, self.nodes, 20)
        self.values = make_values(self.names, sum(SPANS), 20)

    def begin(self, round_index: int = 0, count: int = 5) -> RoundSum:
        return self.collector.begin_round(round_index, self.names[:count], SPANS, BITS)


@pytest.fixture
def mesh(people: People) -> Mesh:
    return Mesh(people)


def reason_of(work: Callable[[], object], kind: type[MeshError] = MeshError) -> str:
    with pytest.raises(kind) as caught:
        work()
    return caught.value.reason


def test_a_swapped_key_is_refused_by_every_node(people: People) -> None:
    """An aggregator that puts its own key under a node's name, signed by another node or not at all, gets nowhere."""
    names = people.first(3)
    nodes = make_nodes(people, names, 21)
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    keys = {name: nodes[name].key(people.identities[name], people.now) for name in names}
    body = signed_key(people.identities[names[1]], "run-1", own, people.now).body
    for forged in (
        Signed(body, b""),
        Signed(body, keys[names[1]].signature),
        signed_by_another(people, names[2], body),
        signed_key(people.identities[names[1]], "run-0", own, people.now),
    ):
        message = RosterMessage("run-1", 3, 0, (keys[names[0]], forged, keys[names[2]]))
        for node in nodes.values():
            assert reason_of(lambda n=node, m=message: n.join(m, people.ca, people.now), IdentityError) == (
                "MASK_KEY_UNPROVEN"
            )
            assert node.roster is None
        collector = SumCollector("run-1")
        assert reason_of(lambda c=collector, f=forged: c.add_key(f, people.ca, people.now)) == "MASK_KEY_UNPROVEN"


def signed_by_another(people: People, name: str, body: bytes) -> Signed:
    return sign_message(people.identities[name], body, KEY_PURPOSE, people.now)


def test_a_node_knows_its_own_key(people: People) -> None:
    """A roster with a key that this very node once signed, but has no longer, is refused by it."""
    names = people.first(3)
    nodes = make_nodes(people, names, 22)
    older = make_nodes(people, names, "older")
    keys = [nodes[name].key(people.identities[name], people.now) for name in names[:2]]
    keys.append(older[names[2]].key(people.identities[names[2]], people.now))
    message = RosterMessage("run-1", 3, 0, tuple(keys))
    assert reason_of(lambda: nodes[names[2]].join(message, people.ca, people.now)) == "MASK_KEY_UNPROVEN"


def test_a_second_roster_is_refused(mesh: Mesh) -> None:
    """A node has one roster per run, so nobody can be added to it later."""
    message = mesh.collector.roster_message()
    smaller = replace(message, keys=message.keys[:4], threshold=3)
    node = mesh.nodes[mesh.names[0]]
    assert reason_of(lambda: node.join(smaller, mesh.people.ca, mesh.people.now)) == "FAILED_PRECONDITION"
    node.join(message, mesh.people.ca, mesh.people.now)


def test_a_forged_offer_is_refused(people: People) -> None:
    """Round keys changed on the way, an offer of another run, and a box of another peer: each with its reason."""
    names = people.first(3)
    nodes = make_nodes(people, names, 23)
    join_all(people, nodes)
    one, two = nodes[names[0]], nodes[names[1]]
    message = one.offer(people.identities[names[0]], 0, seeded(23).randbytes, people.now, 2)
    offer = Offer.from_bytes(message.signed.body)
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    changed = Signed(replace(offer, round_keys=(own, own)).to_bytes(), message.signed.signature)
    box = message.boxes[names[1]]
    assert reason_of(lambda: two.take_offer(changed, box, people.ca, people.now)) == "MASK_KEY_UNPROVEN"
    for wrong in (message.boxes[names[2]], box[:-1], b"", bytes([box[0] ^ 1]) + box[1:]):
        with pytest.raises(SealError):
            two.take_offer(message.signed, wrong, people.ca, people.now)
    others = make_nodes(people, names, 24, run="run-2")
    join_all(people, others, run="run-2")
    assert reason_of(
        lambda: others[names[1]].take_offer(message.signed, box, people.ca, people.now), IdentityError
    ) == "MASK_KEY_UNPROVEN"
    two.take_offer(message.signed, box, people.ca, people.now)


def test_a_node_that_lost_its_secrets_is_not_talked_into_them(mesh: Mesh) -> None:
    """Its own earlier offer, rightly signed, is refused by a node that no longer knows what is behind it."""
    name = mesh.names[0]
    state = {**mesh.nodes[name].to_state(), "offers": [], "seeds": {}, "secrets": {}}
    node = SumNode.from_state(state)
    stored = [OfferMessage.from_bytes(base64.b64decode(text)) for text in mesh.collector.to_state()["offers"]]
    own = next(one.signed for one in stored if Offer.from_bytes(one.signed.body).node == name)
    take = lambda: node.take_offer(own, None, mesh.people.ca, mesh.people.now)  # noqa: E731
    assert reason_of(take, IdentityError) == "MASK_KEY_UNPROVEN"
    assert node.to_state() == state


def test_rounds_have_one_offer_of_each_node(mesh: Mesh) -> None:
    """A second set of secrets for a round would let each of them be asked for by one kind of share."""
    name, people = mesh.names[0], mesh.people
    twin = SumNode.from_state({**mesh.nodes[name].to_state(), "offers": [], "seeds": {}, "secrets": {}})
    second = twin.offer(people.identities[name], 1, seeded("second").randbytes, people.now, 2)
    assert reason_of(lambda: mesh.collector.add_offer(second, people.ca, people.now)) == "ALREADY_EXISTS"
    for peer in mesh.names[1:]:
        box = second.boxes[peer]
        assert reason_of(lambda p=peer, b=box: mesh.nodes[p].take_offer(second.signed, b, people.ca, people.now)) == (
            "ALREADY_EXISTS"
        )
    node = mesh.nodes[name]
    assert reason_of(lambda: node.offer(people.identities[name], 1, seeded(1).randbytes, people.now, 2)) == (
        "ALREADY_EXISTS"
    )


def test_double_unmask_is_refused(mesh: Mesh) -> None:
    """Asked again with a node once as survivor and once as vanished, each node answers the first request only, also
    after a restart: the two kinds of share of one node and round never leave the same holder."""
    round_sum = mesh.begin()
    for name in mesh.names:
        upload(round_sum, mesh.nodes[name], mesh.values[name])
    request = round_sum.close()
    lie = UnmaskRequest(round_sum.plan, tuple(mesh.names[:4]))
    for name in mesh.names:
        first = answer(mesh.nodes[name], request)
        assert reason_of(lambda n=name: answer(mesh.nodes[n], lie), PermissionError_) == "UNMASK_REFUSED"
        restarted = SumNode.from_state(mesh.nodes[name].to_state())
        assert reason_of(lambda r=restarted: answer(r, lie)) == "UNMASK_REFUSED"
        assert answer(restarted, request) == first
        # And nothing is left to give: the state holds no share of that round any more.
        assert all("0" not in shares for _, shares in restarted.to_state()["offers"])
        assert "0" not in restarted.to_state()["secrets"]


def test_other_cohorts_told_to_other_nodes_give_noise_and_no_shares(mesh: Mesh) -> None:
    """Two nodes told different cohorts: their masks do not cancel, and each refuses to unmask the other's round."""
    whole, part = mesh.begin(count=5), mesh.begin(count=4)
    assert whole.context != part.context
    first, second = mesh.names[0], mesh.names[1]
    masked(mesh.nodes[first], whole.plan, mesh.values[first])
    masked(mesh.nodes[second], part.plan, mesh.values[second])
    request = UnmaskRequest(part.plan, tuple(mesh.names[:4]))
    assert reason_of(lambda: answer(mesh.nodes[first], request), PermissionError_) == "UNMASK_REFUSED"
    assert reason_of(
        lambda: answer(mesh.nodes[second], UnmaskRequest(whole.plan, tuple(mesh.names))), PermissionError_
    ) == "UNMASK_REFUSED"
    context, spans = masked(mesh.nodes[second], part.plan, mesh.values[second])
    assert reason_of(lambda: whole.take_span(second, context, 0, spans[0])) == "STALE_ROUND"


def test_a_round_masks_one_update(mesh: Mesh) -> None:
    """Another update under the same masks would reveal how the two differ; the same one again is fine."""
    plan = mesh.begin().plan
    node = mesh.nodes[mesh.names[0]]
    node.contribute(plan, UPDATE_DIGEST)
    node = SumNode.from_state(node.to_state())
    node.contribute(plan, UPDATE_DIGEST)
    assert reason_of(lambda: node.contribute(plan, b"\x01" * 32)) == "CONTRIBUTION_REPLAYED"
    assert reason_of(lambda: node.contribute(mesh.begin(count=4).plan, UPDATE_DIGEST)) == "CONTRIBUTION_REPLAYED"


def test_replayed_messages_are_refused(mesh: Mesh) -> None:
    """A span twice, a contribution or an answer of another round, a second answer, a contribution after the end."""
    round_sum = mesh.begin()
    sent = {name: upload(round_sum, mesh.nodes[name], mesh.values[name]) for name in mesh.names[:4]}
    name = mesh.names[0]
    replay = sent[name][0]
    assert reason_of(lambda: round_sum.take_span(name, round_sum.context, 0, replay)) == "CONTRIBUTION_REPLAYED"
    other = mesh.begin(1)
    assert reason_of(lambda: other.take_span(name, round_sum.context, 0, replay)) == "STALE_ROUND"
    stranger = "sat-031"
    assert reason_of(lambda: round_sum.take_span(stranger, round_sum.context, 0, replay)) == "NOT_IN_COHORT"
    request = round_sum.close()
    late = masked(mesh.nodes[mesh.names[4]], round_sum.plan, mesh.values[mesh.names[4]])
    assert reason_of(lambda: round_sum.take_span(mesh.names[4], late[0], 0, late[1][0])) == "STALE_ROUND"
    first = answer(mesh.nodes[name], request)
    round_sum.take_answer(first)
    round_sum.take_answer(first)
    share = first.shares[name]
    altered = replace(first, shares={**first.shares, name: bytes(len(share))})
    assert reason_of(lambda: round_sum.take_answer(altered)) == "CONTRIBUTION_REPLAYED"
    assert reason_of(lambda: round_sum.take_answer(replace(first, node=stranger))) == "NOT_IN_COHORT"
    assert reason_of(lambda: round_sum.take_answer(replace(first, node=mesh.names[1], context=bytes(32)))) == (
        "STALE_ROUND"
    )
    for peer in mesh.names[1:4]:
        round_sum.take_answer(answer(mesh.nodes[peer], request))
    assert result(round_sum).tolist() == plain_sum(mesh.values, mesh.names[:4])


def test_a_late_node_does_not_mask_for_a_round_that_it_unmasked(mesh: Mesh) -> None:
    """Whoever has answered for a round as vanished contributes nothing to it any more."""
    round_sum = mesh.begin()
    for name in mesh.names[:4]:
        upload(round_sum, mesh.nodes[name], mesh.values[name])
    late = mesh.nodes[mesh.names[4]]
    answer(late, round_sum.close())
    assert reason_of(lambda: late.contribute(round_sum.plan, UPDATE_DIGEST)) == "STALE_ROUND"


def test_requests_that_reveal_too_much_are_refused(mesh: Mesh) -> None:
    """Fewer survivors than the threshold, strangers among them, one twice, a cohort that is too small."""
    plan = mesh.begin().plan
    node = mesh.nodes[mesh.names[0]]
    names = mesh.names
    before = node.to_state()
    for survivors, reason in (
        (names[:3], "TOO_FEW_SURVIVORS"),
        (names[:1], "TOO_FEW_SURVIVORS"),
        ([*names[:4], "sat-031"], "NOT_IN_COHORT"),
        ([*names[:3], names[2]], "INVALID_INPUT"),
        (names[::-1], "INVALID_INPUT"),
    ):
        assert reason_of(lambda s=tuple(survivors): node.unmask(UnmaskRequest(plan, s))) == reason
    small = replace(plan, cohort=tuple(names[:3]))
    assert reason_of(lambda: node.contribute(small, UPDATE_DIGEST)) == "TOO_FEW_SURVIVORS"
    assert reason_of(lambda: node.unmask(UnmaskRequest(small, small.cohort))) == "TOO_FEW_SURVIVORS"
    assert node.to_state() == before


@pytest.mark.parametrize("change", [{"bits": 3}, {"spans": ()}, {"spans": (SPAN_VALUES + 1,)}, {"roster_digest": b""}])
def test_senseless_plans_are_refused(mesh: Mesh, change: dict[str, object]) -> None:
    """Widths and sizes out of range, and a plan for another roster."""
    plan = replace(mesh.begin().plan, **change)
    assert reason_of(lambda: mesh.nodes[mesh.names[0]].contribute(plan, UPDATE_DIGEST)) == "INVALID_INPUT"


def test_an_unfinished_contribution_has_to_go(people: People) -> None:
    """A part of a contribution blocks the end of the round, goes only against the same bytes, and leaves no trace."""
    mesh = Mesh(people)
    round_sum = mesh.collector.begin_round(0, mesh.names, (2, 2), BITS)
    for name in mesh.names[:4]:
        upload(round_sum, mesh.nodes[name], mesh.values[name])
    sent = upload(round_sum, mesh.nodes[mesh.names[4]], mesh.values[mesh.names[4]], spans=1)
    assert round_sum.unfinished == (mesh.names[4],)
    assert reason_of(round_sum.close) == "FAILED_PRECONDITION"
    for wrong in ([], [bytes(len(sent[0]))], sent * 2):
        assert reason_of(lambda w=wrong: round_sum.withdraw(mesh.names[4], lambda: w)) == "DIGEST_MISMATCH"
    round_sum.withdraw(mesh.names[4], lambda: sent)
    request = round_sum.close()
    for name in mesh.names[:4]:
        round_sum.take_answer(answer(mesh.nodes[name], request))
    assert result(round_sum).tolist() == plain_sum(mesh.values, mesh.names[:4])


def test_what_the_aggregator_sees_is_noise(mesh: Mesh) -> None:
    """A masked contribution of all the same values: its words are spread evenly (chi-square under the 99.99 % bound),
    agree with the plain ones no more often than chance, and share nothing with the same values in the next round."""
    count = SPAN_VALUES
    largest = 127
    plain = to_words(np.full(count, largest), largest, BITS)
    seen = []
    for round_index in range(2):
        plan = mesh.collector.begin_round(round_index, mesh.names, (count,), BITS).plan
        data = mesh.nodes[mesh.names[0]].contribute(plan, UPDATE_DIGEST).mask(0, plain)
        seen.append(unpack(data, count, BITS))
    classes = 1 << BITS
    for words in (*seen, (seen[0] - seen[1]) % classes):
        counts = np.bincount(words, minlength=classes)
        expected = count / classes
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # The mean of chi-square is its degrees of freedom, 2,047; its standard deviation is the root of twice that.
        assert abs(chi_square - (classes - 1)) < 4 * (2 * (classes - 1)) ** 0.5
        assert int((words == plain).sum()) < 80
    assert int((seen[0] == seen[1]).sum()) < 80


def test_a_sum_short_of_one_answer_is_noise(mesh: Mesh) -> None:
    """Three of four needed shares: the accumulator's words are not the sum, and the secrets cannot be put together."""
    round_sum = mesh.collector.begin_round(0, mesh.names, (SPAN_VALUES,), BITS)
    values = make_values(mesh.names, SPAN_VALUES, 5)
    for name in mesh.names:
        upload(round_sum, mesh.nodes[name], values[name])
    request = round_sum.close()
    for name in mesh.names[:3]:
        round_sum.take_answer(answer(mesh.nodes[name], request))
    assert reason_of(lambda: result(round_sum), InvalidInputError) == "TOO_FEW_SURVIVORS"


def learnable(nodes: int, threshold: int, colluders: int) -> int:
    """By trying every lie: the fewest honest nodes over which a sum can be had when all nodes are in the round.

    Each honest node is told some survivors, at least `threshold` of all; the first `colluders` nodes give everything.
    """
    everyone = range(nodes)
    honest = range(colluders, nodes)
    lists = [set(chosen) for size in range(threshold, nodes + 1) for chosen in combinations(everyone, size)]
    best = nodes - colluders
    for told in product(lists, repeat=len(honest)):
        opened = {n for n in honest if sum(n in one for one in told) + colluders >= threshold}
        keys = {n for n in honest if sum(n not in one for one in told) + colluders >= threshold}
        if opened & keys:
            return 1
        if opened and opened | keys == set(honest):
            best = min(best, len(opened))
    return best


@pytest.mark.parametrize(
    ("nodes", "threshold", "colluders"),
    [(2, 2, 0), (3, 2, 0), (3, 3, 0), (3, 3, 1), (4, 3, 0), (4, 3, 1), (4, 4, 2), (5, 4, 0), (5, 4, 1), (5, 4, 2)],
)
def test_no_lie_gets_a_smaller_sum_than_promised(nodes: int, threshold: int, colluders: int) -> None:
    """The promised size of a sum is never above what the best of all possible lies reaches."""
    assert smallest_sum(nodes, threshold, nodes, colluders) <= learnable(nodes, threshold, colluders)


def test_default_threshold_bears_lies_without_colluders_for_every_size() -> None:
    """Two thirds and one: the smallest cohort hides at least two honest nodes, from 3 to 200 nodes."""
    for nodes in range(3, 201):
        threshold = default_threshold(nodes)
        assert colluders_tolerated(nodes, threshold, threshold) >= 0
    assert [colluders_tolerated(8, 6, cohort) for cohort in (6, 7, 8)] == [2, 2, 3]


def test_a_cohort_that_hides_nobody_is_refused(people: People) -> None:
    """Two of three nodes with a threshold of two: the node that was left out and one that was not asked yet would open
    the third one's contribution if told of another cohort. No node masks for such a plan."""
    names = people.first(3)
    nodes = make_nodes(people, names, 31)
    collector = join_all(people, nodes, 2)
    offer_all(people, collector, nodes, 31)
    assert [smallest_sum(3, 2, cohort, 0) for cohort in (2, 3)] == [1, 2]
    assert reason_of(lambda: collector.begin_round(0, names[:2], SPANS, BITS)) == "TOO_FEW_SURVIVORS"
    plan = replace(collector.begin_round(0, names, SPANS, BITS).plan, cohort=tuple(names[:2]))
    assert reason_of(lambda: nodes[names[0]].contribute(plan, UPDATE_DIGEST)) == "TOO_FEW_SURVIVORS"


def test_a_threshold_that_protects_nobody_is_refused(people: People) -> None:
    """Half of the nodes can unmask one sum and the other half another: refused by the collector and by every node."""
    names = people.first(4)
    nodes = make_nodes(people, names, 30)
    collector = SumCollector("run-1")
    for name in names:
        collector.add_key(nodes[name].key(people.identities[name], people.now), people.ca, people.now)
    for threshold in (0, 1, 2, 5):
        assert reason_of(lambda t=threshold: collector.close_roster(people.ca, people.now, t, 0)) == "INVALID_INPUT"
    message = replace(collector.close_roster(people.ca, people.now), threshold=2, colluders=0)
    assert reason_of(lambda: nodes[names[0]].join(message, people.ca, people.now)) == "INVALID_INPUT"


@pytest.mark.parametrize(
    "parse",
    [
        Signed.from_bytes,
        OfferMessage.from_bytes,
        Offer.from_bytes,
        RosterMessage.from_bytes,
        RoundPlan.from_bytes,
        UnmaskRequest.from_bytes,
        UnmaskAnswer.from_bytes,
    ],
)
def test_damaged_messages_are_refused(mesh: Mesh, parse: Callable[[bytes], object]) -> None:
    """Whatever is cut from a message or flipped in it, the answer is a typed error or another message."""
    plan = mesh.begin().plan
    offer = mesh.collector.to_state()["offers"][0]
    rng = seeded(str(parse))
    wholes = [
        base64.b64decode(offer),
        OfferMessage.from_bytes(base64.b64decode(offer)).signed.body,
        mesh.collector.roster_message().to_bytes(),
        UnmaskRequest(plan, plan.cohort).to_bytes(),
        plan.to_bytes(),
        UnmaskAnswer("a", bytes(32), {"b": bytes(36)}).to_bytes(),
    ]
    for whole in wholes:
        for _ in range(40):
            data = bytearray(whole[: rng.randint(0, len(whole))])
            for _ in range(rng.randint(0, 3)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                parse(bytes(data))
            except InvalidInputError:
                continue
