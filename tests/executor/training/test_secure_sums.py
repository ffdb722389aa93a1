"""Secure sums with real nodes: the sum is the plain one to the bit, and what a node refuses, also after a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2
from services.executor.training.files import TRAIN as KIND
from services.executor.training.files import RunFiles
from services.executor.training.work import local_seed, rounding_seed
from services.securesum import OfferMessage, UnmaskRequest
from services.securesum.fields import join_fields, split_fields
from services.training import flat
from services.training.images import Digits
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.blocks import shared_indices
from services.updates.feedback import Residual
from services.updates.integers import from_integers, to_integers
from services.updates.layout import Layout
from tests.executor.relay_mesh import Ca
from tests.executor.training.summing import (
    BITS,
    KEY,
    NAMES,
    OFFER,
    OFFERS,
    ROSTER,
    SCALE,
    UNMASK,
    other_survivors,
    summing,
)
from tests.executor.training.support import JOIN, RUN, TRAIN, aggregating, on, running, work_of

TASK = Digits()
WEIGHTS = flat.flatten(TASK.model(7))
LAYOUT = Layout.of({name: one.numpy() for name, one in flat.floating(TASK.model(7)).items()})


def trained(name: str, round_index: int = 0, weights: np.ndarray = WEIGHTS) -> tuple[np.ndarray, np.float32]:
    """What a node computes by itself: its delta, and what it is weighted with."""
    index = NAMES.index(name)
    shard = TASK.shard(index, 4, seed=7)
    plan = LocalPlan(steps=2, seed=local_seed(7, round_index, index))
    return train_locally(TASK, shard, weights, plan).delta, np.float32(len(shard) / 400)


def residual(root: Path, name: str) -> Residual:
    return Residual(RunFiles(root / name / "training" / RUN).residual, LAYOUT)


async def test_the_sum_is_the_plain_one_to_the_bit(ca: Ca, tmp_path: Path) -> None:
    """Over rounds with all nodes and with one that vanished, the unmasked sum is that of the integers that each node
    has by itself; what was cut off and rounded is in the next round."""
    left = {name: np.zeros(WEIGHTS.size, np.float32) for name in NAMES}
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        for round_index, survivors in enumerate([NAMES, NAMES[:3], NAMES]):
            round_sum = made.begin(round_index, WEIGHTS.size)
            expected = np.zeros(WEIGHTS.size, np.int64)
            for name in survivors:
                await made.contribute(name, WEIGHTS, round_sum)
                await made.aggs[name].send(round_index=round_index, stored=training_pb2.ContributionStored())
                delta, weight = trained(name, round_index)
                corrected = delta + left[name]
                integers, _ = to_integers(corrected * weight, SCALE, BITS, None)
                left[name] = corrected - from_integers(integers, SCALE) / weight
                expected += integers
            np.testing.assert_array_equal(await made.unmask(round_sum), expected)
            assert np.abs(expected).max() > 10
        for name in NAMES:
            np.testing.assert_array_equal(residual(tmp_path, name).carried(3), left[name])


async def test_blocks_are_summed_where_their_turn_is(ca: Ca, tmp_path: Path) -> None:
    """With shared blocks a quarter of the values is sent, rounded by chance, with half of what was left out before; the
    sum is the plain one of these."""
    left = {name: np.zeros(WEIGHTS.size, np.float32) for name in NAMES}
    async with summing(ca, tmp_path, compression="blocks:0.25") as made:
        await made.set_up()
        for round_index in range(2):
            chosen = shared_indices(round_index, 4, 0, WEIGHTS.size)
            round_sum = made.begin(round_index, WEIGHTS.size, scheme="blocks:0.25")
            expected = np.zeros(chosen.size, np.int64)
            for name in NAMES:
                await made.contribute(name, WEIGHTS, round_sum)
                delta, weight = trained(name, round_index)
                left[name] = delta + np.float32(0.5) * left[name]
                rng = np.random.default_rng([rounding_seed(RUN, round_index, name), 0])
                integers, _ = to_integers(left[name][chosen] * weight, SCALE, BITS, rng)
                left[name][chosen] -= from_integers(integers, SCALE) / weight
                expected += integers
            np.testing.assert_array_equal(await made.unmask(round_sum), expected)


async def test_a_node_that_is_started_anew_is_the_same_in_the_sum(ca: Ca, tmp_path: Path) -> None:
    """Started anew after its contribution, a node sends the same bytes again, and after the sum was closed it gives its
    share; the sum is as if nothing had been."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        first = {name: await made.contribute(name, WEIGHTS, round_sum) for name in NAMES}
        await made.start(NAMES[0])
        await made.aggs[NAMES[0]].order(TRAIN, made.ordered(NAMES[0], WEIGHTS, round_sum))
        assert (await made.aggs[NAMES[0]].contribution()).spans == first[NAMES[0]].spans
        # Also where its contribution is lost and has to be made again.
        await made.start(NAMES[1])
        RunFiles(tmp_path / NAMES[1] / "training" / RUN).contribution_path(KIND, 0).unlink()
        again = await made.aggs[NAMES[1]].train(made.ordered(NAMES[1], WEIGHTS, round_sum), WEIGHTS)
        assert again.spans == first[NAMES[1]].spans
        await made.start(NAMES[2])
        found = await made.unmask(round_sum, NAMES[:3])
    expected = np.sum([to_integers(d * w, SCALE, BITS, None)[0] for d, w in map(trained, NAMES)], axis=0)
    np.testing.assert_array_equal(found, expected)


async def test_a_second_update_in_a_round_is_refused(ca: Ca, tmp_path: Path) -> None:
    """Ordered to train on other weights in a round that it has masked, or to add to a sum in other steps, a node
    refuses, also when it was started anew; the first contribution is still the one that it gives."""
    other = flat.flatten(TASK.model(8))
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        name = NAMES[0]
        first = await made.contribute(name, WEIGHTS, round_sum)
        for _ in range(2):
            agg = made.aggs[name]
            await agg.order(TRAIN, made.ordered(name, other, round_sum))
            await agg.give_weights(other, (await agg.next("have")).have.spans)
            await agg.refused("CONTRIBUTION_REPLAYED")
            await made.start(name)
        RunFiles(tmp_path / name / "training" / RUN).contribution_path(KIND, 0).unlink()
        await made.aggs[name].order(TRAIN, made.ordered(name, WEIGHTS, round_sum, scale=SCALE / 2))
        await made.aggs[name].next("have")
        await made.aggs[name].refused("CONTRIBUTION_REPLAYED")
        again = await made.aggs[name].train(made.ordered(name, WEIGHTS, round_sum), WEIGHTS)
        assert again.spans == first.spans


async def test_a_round_is_unmasked_once(ca: Ca, tmp_path: Path) -> None:
    """The same request gets the same answer; one with other survivors is refused, also after a restart; and who has
    answered contributes no more."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        for name in NAMES[:3]:
            await made.contribute(name, WEIGHTS, round_sum)
        request = round_sum.close()
        answer = await made.ask(NAMES[0], UNMASK, request.to_bytes())
        for _ in range(2):
            assert await made.ask(NAMES[0], UNMASK, request.to_bytes()) == answer
            await made.refused(NAMES[0], "UNMASK_REFUSED", UNMASK, other_survivors(request, *NAMES))
            await made.start(NAMES[0])
        await made.refused(NAMES[1], "TOO_FEW_SURVIVORS", UNMASK, other_survivors(request, *NAMES[:2]))
        await made.ask(NAMES[3], UNMASK, request.to_bytes())
        await made.aggs[NAMES[3]].order(TRAIN, made.ordered(NAMES[3], WEIGHTS, round_sum))
        await made.aggs[NAMES[3]].next("have")
        await made.aggs[NAMES[3]].refused("STALE_ROUND")


async def test_what_did_not_count_is_sent_later(ca: Ca, tmp_path: Path) -> None:
    """A masked contribution that was refused, or that a sum was made without, is all residual afterwards."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        for name in NAMES[:3]:
            await made.contribute(name, WEIGHTS, round_sum)
        # The last node's is complete at the node, and never added.
        late = await made.aggs[NAMES[3]].train(made.ordered(NAMES[3], WEIGHTS, round_sum), WEIGHTS)
        assert late.info.sums_context == round_sum.context
        await made.unmask(round_sum)
        refused = training_pb2.TrainingRefusal(reason="STALE_ROUND", message="late")
        round_sum = made.begin(1, WEIGHTS.size)
        await made.contribute(NAMES[2], WEIGHTS, round_sum)
        await made.aggs[NAMES[2]].send(round_index=1, refused=refused)
        await made.ask(NAMES[2], OFFERS)
    deltas = [trained(NAMES[2], index)[0] for index in range(2)]
    np.testing.assert_allclose(residual(tmp_path, NAMES[3]).carried(1), trained(NAMES[3])[0], atol=1e-7)
    integers, _ = to_integers(deltas[0] * trained(NAMES[2])[1], SCALE, BITS, None)
    sent = from_integers(integers, SCALE) / trained(NAMES[2])[1]
    np.testing.assert_allclose(residual(tmp_path, NAMES[2]).carried(2), deltas[0] - sent + deltas[1], atol=1e-7)


async def test_a_node_that_lost_its_secrets_makes_no_others(ca: Ca, tmp_path: Path) -> None:
    """Without its sealed state, or with one that was changed or is of another node, it neither trains nor gives a key,
    and joining again does not help; ending the run does."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        name = NAMES[0]
        secrets = RunFiles(tmp_path / name / "training" / RUN).secrets
        kept = secrets.read_bytes()
        foreign = RunFiles(tmp_path / NAMES[1] / "training" / RUN).secrets.read_bytes()
        flipped = bytes((kept[0], *kept[1:-1], kept[-1] ^ 1))
        for content in (None, foreign, flipped, kept[:-1], b""):
            await made.start(name)
            secrets.unlink() if content is None else secrets.write_bytes(content)
            agg = made.aggs[name]
            await agg.order(TRAIN, made.ordered(name, WEIGHTS, round_sum))
            await agg.refused("FAILED_PRECONDITION")
            await agg.order(JOIN, made.work(name))
            await agg.refused("FAILED_PRECONDITION")
            for kind in (KEY, OFFER, UNMASK):
                await made.refused(name, "FAILED_PRECONDITION", kind)
        secrets.write_bytes(kept)
        await made.start(name)
        await made.contribute(name, WEIGHTS, round_sum)
        assert kept.count(b"run_private") == 0


async def test_nothing_leaves_unmasked(ca: Ca, tmp_path: Path) -> None:
    """An order without a sum, for another round's, another model's, or with words too narrow, is refused before the
    node trains."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        name, agg = NAMES[0], made.aggs[NAMES[0]]
        sums = {
            "FAILED_PRECONDITION": on(made.work(name), WEIGHTS),
            "LAYOUT_MISMATCH": made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size - 1)),
            "INVALID_INPUT": made.ordered(name, WEIGHTS, made.begin(1, WEIGHTS.size)),
        }
        narrow = made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size, largest=3))
        promised = made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size), promised=3)
        none = made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size))
        none.sums.examples_reference = 0
        cases = [*sums.items(), *(("INVALID_INPUT", work) for work in (narrow, promised, none))]
        garbage = made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size))
        garbage.sums.plan = b"no plan"
        for scale in (0.0, -1.0, float("nan"), float("inf")):
            cases.append(("INVALID_INPUT", made.ordered(name, WEIGHTS, made.begin(0, WEIGHTS.size), scale=scale)))
        for reason, work in [*cases, ("INVALID_INPUT", garbage)]:
            await agg.order(TRAIN, work)
            await agg.next("have")
            await agg.refused(reason)
        assert (await made.contribute(name, WEIGHTS, made.begin(0, WEIGHTS.size))).info.spans == 1


@pytest.mark.parametrize("kind", [KEY, ROSTER, OFFER, OFFERS, UNMASK, 77])
@pytest.mark.parametrize("body", [b"", b"\x00\x00\x00\x05no", b"\x00\x00\x00\x02no", bytes(100)])
async def test_messages_that_make_no_sense_are_refused(kind: int, body: bytes, ca: Ca, tmp_path: Path) -> None:
    """Whatever is in it, a message of secure sums out of turn is answered or refused by type, and a right one after it
    is taken; in a run without sums all are refused."""
    secure = work_of(secure_sums=training_pb2.SecureSums())
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.send(body, sums=training_pb2.SumsInfo(kind=kind))
        await agg.refused("FAILED_PRECONDITION")
        await agg.join(secure)
        await agg.send(body, sums=training_pb2.SumsInfo(kind=kind))
        info = (await agg.receive()).info.training
        if info.HasField("sums"):
            assert kind in (KEY, OFFERS)
            if kind == OFFERS and body:
                await agg.next("refused")
        else:
            assert info.refused.reason in ("INVALID_INPUT", "FAILED_PRECONDITION")
        await agg.send(sums=training_pb2.SumsInfo(kind=KEY))
        await agg.next("sums", passing=("refused",))
        async with aggregating(ca, node, run="plain") as plain:
            await plain.join(work_of())
            await plain.send(body, sums=training_pb2.SumsInfo(kind=kind))
            await plain.refused("FAILED_PRECONDITION")


async def test_an_offer_that_is_not_proven_keeps_no_other_out(ca: Ca, tmp_path: Path) -> None:
    """Of offers on the way one that was changed is refused, the others are held; a box that does not open costs only
    this node's share."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        collector, identity = made.collector, made.identity
        for name in NAMES:
            body = await made.ask(name, OFFER, b"", 64)
            collector.add_offer(OfferMessage.from_bytes(body), identity.ca, datetime.now(UTC))
        held = set(split_fields(await made.ask(NAMES[0], OFFERS), "held"))
        relayed = list(collector.relay(NAMES[0], held))
        signed = [one.signed.to_bytes() for one in relayed]
        signed[0] = signed[0][:60] + bytes([signed[0][60] ^ 1]) + signed[0][61:]
        boxes = [relayed[0].box, bytes(len(relayed[1].box)), relayed[2].box]
        parts = [part for pair in zip(signed, boxes, strict=True) for part in pair]
        now_held = set(split_fields(await made.ask(NAMES[0], OFFERS, join_fields(*parts)), "held"))
        await made.aggs[NAMES[0]].next("refused")
        assert now_held == held | {relayed[1].digest, relayed[2].digest}
        assert made.nodes[NAMES[0]].named("box_not_opened")


async def test_a_roster_below_the_agreed_threshold_is_refused(ca: Ca, tmp_path: Path) -> None:
    """A node holds to the threshold that it joined with: fewer nodes must not be enough to unmask."""
    async with summing(ca, tmp_path, secure_sums=training_pb2.SecureSums(threshold=4)) as made:
        with pytest.raises(AssertionError, match="threshold of 4"):
            await made.set_up(threshold=3)


async def test_a_request_that_is_not_of_the_cohort_is_refused(ca: Ca, tmp_path: Path) -> None:
    """Survivors that nobody knows are refused, and the right request after it is answered."""
    async with summing(ca, tmp_path) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        for name in NAMES:
            await made.contribute(name, WEIGHTS, round_sum)
        request = round_sum.close()
        strangers = UnmaskRequest(request.plan, (*NAMES, "sat-9")).to_bytes()
        await made.refused(NAMES[0], "NOT_IN_COHORT", UNMASK, strangers)
        assert (await made.unmask(round_sum)).size == WEIGHTS.size
