"""Sums made on the way, between real nodes: what a head sends is the sum of its group to the bit, through restarts and
cuts; whom it takes a contribution of, and what becomes of one that it does not take."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2
from services.executor.training import delivering
from services.executor.training.files import RunFiles
from services.executor.training.work import local_seed
from services.securesum import RoundSum
from services.securesum.packing import lane, pack
from services.training import flat
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.integers import to_integers
from services.updates.spans import span_slice
from tests.executor.relay_mesh import Ca
from tests.executor.training.summing import BITS, NAMES, SCALE, Summing, summing
from tests.executor.training.support import RUN, TRAIN, Aggregator, aggregating, on, running, work_of
from tests.executor.training.tasks import Wide
from tests.runtime.conftest import until

HEAD, MEMBERS, ALONE = NAMES[0], NAMES[1:3], NAMES[3]
TASK = Wide()
WEIGHTS = flat.flatten(TASK.model(7))
SPANS = 3
SPEC: dict[str, Any] = {
    "task": "test-wide",
    "secure_sums": training_pb2.SecureSums(bits=BITS, groups=[training_pb2.SumGroup(nodes=NAMES[:3])]),
}
PASSING = ("progress", "collected", "have")


def plain_sum() -> np.ndarray:
    """The sum of the integers that each node has by itself."""
    total = np.zeros(WEIGHTS.size, np.int64)
    for index in range(len(NAMES)):
        shard = TASK.shard(index, len(NAMES), seed=7)
        delta = train_locally(TASK, shard, WEIGHTS, LocalPlan(steps=2, seed=local_seed(7, 0, index))).delta
        for span in range(SPANS):
            where = span_slice(span, WEIGHTS.size)
            total[where] += to_integers(delta[where] * np.float32(len(shard) / 400), SCALE, BITS, None)[0]
    return total


def address(made: Summing, name: str) -> str:
    return f"127.0.0.1:{made.nodes[name].host.port}"


async def order(made: Summing, name: str, round_sum: RoundSum, **group: Any) -> None:
    """Orders the round of a node, gives it what it lacks of the weights, and waits until it has trained: torch's random
    numbers are the process's own, and here several nodes are in one."""
    work = made.ordered(name, WEIGHTS, round_sum)
    work.MergeFrom(training_pb2.TrainingWork(**group))
    agg, index = made.aggs[name], round_sum.plan.round_index
    await agg.order(TRAIN, work, index)
    have = (await agg.next("have", passing=PASSING)).have
    await agg.give_weights(WEIGHTS, have.spans, round_index=index)
    await until(lambda: f"train-{index}.contribution" in files(made.root, name))


def to_head(made: Summing) -> dict[str, Any]:
    return {"deliver_to": training_pb2.GroupHead(name=HEAD, address=address(made, HEAD))}


def files(root: Path, name: str) -> list[str]:
    """What a node keeps of the round beside its checkpoints."""
    return sorted(path.name for path in (root / name / "training" / RUN).glob("train-0.*"))


async def take_sum(made: Summing, round_sum: RoundSum, members: tuple[str, ...]) -> training_pb2.ContributionInfo:
    """The head's contribution, into the sum."""
    info = (await made.aggs[HEAD].next("contribution", passing=PASSING)).contribution
    assert [part.node for part in info.summed] == sorted(members)
    for span, data in (await made.aggs[HEAD].spans(0, info.spans)).items():
        round_sum.take_span(HEAD, info.sums_context, span, data, members)
    return info


async def test_a_head_sends_the_sum_of_its_group_also_after_it_was_started_anew(ca: Ca, tmp_path: Path) -> None:
    """What a member has brought is on the head's disk and not brought again; one upload of three spans leaves it,
    says whose it is, and unmasks to the plain sum. All keep what they have until the aggregator says stored."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        await order(made, HEAD, round_sum, collect=MEMBERS)
        await order(made, MEMBERS[0], round_sum, **to_head(made))
        await until(lambda: f"train-0.from-{MEMBERS[0]}" in files(tmp_path, HEAD))
        await made.start(HEAD)
        work = made.ordered(HEAD, WEIGHTS, round_sum)
        work.collect.extend(MEMBERS)
        await made.aggs[HEAD].order(TRAIN, work)
        said = (await made.aggs[HEAD].next("collected", passing=PASSING)).collected
        assert MEMBERS[0] in said.nodes and MEMBERS[1] not in said.nodes
        await order(made, MEMBERS[1], round_sum, **to_head(made))
        info = await take_sum(made, round_sum, MEMBERS)
        assert [part.examples for part in info.summed] == [len(TASK.shard(n, 4, seed=7)) for n in (1, 2)]
        assert info.spans == SPANS and all(part.steps == 2 for part in info.summed)
        await made.contribute(ALONE, WEIGHTS, round_sum)
        assert all("train-0.contribution" in files(tmp_path, name) for name in NAMES)
        for name in NAMES:
            assert "contribution" not in made.aggs[name].heard or name in (HEAD, ALONE)
            await made.aggs[name].send(stored=training_pb2.ContributionStored())
        np.testing.assert_array_equal(await made.unmask(round_sum), plain_sum())
        for name in NAMES:
            await until(lambda name=name: not files(tmp_path, name))  # type: ignore[misc]


async def test_a_sum_is_made_anew_without_whoever_the_next_order_leaves_out(ca: Ca, tmp_path: Path) -> None:
    """As often as it is asked; the parts that are left are the same bytes."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        await order(made, HEAD, round_sum, collect=MEMBERS)
        for name in MEMBERS:
            await order(made, name, round_sum, **to_head(made))
        first = (await made.aggs[HEAD].next("contribution", passing=PASSING)).contribution
        await made.aggs[HEAD].spans(0, first.spans)
        work = made.ordered(HEAD, WEIGHTS, round_sum)
        work.collect.extend(MEMBERS[:1])
        await made.aggs[HEAD].order(TRAIN, work)
        await take_sum(made, round_sum, MEMBERS[:1])
        # Whom it leaves out is told to bring its contribution by itself.
        await made.aggs[MEMBERS[1]].order(TRAIN, made.ordered(MEMBERS[1], WEIGHTS, round_sum))
        info = (await made.aggs[MEMBERS[1]].next("contribution", passing=PASSING)).contribution
        for span, data in (await made.aggs[MEMBERS[1]].spans(0, info.spans)).items():
            round_sum.take_span(MEMBERS[1], info.sums_context, span, data)
        await made.contribute(ALONE, WEIGHTS, round_sum)
        np.testing.assert_array_equal(await made.unmask(round_sum), plain_sum())


async def test_what_is_damaged_on_a_heads_disk_is_not_in_its_sum(ca: Ca, tmp_path: Path) -> None:
    """The head says what it has left; what is brought again is in the sum."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        await order(made, HEAD, round_sum, collect=MEMBERS)
        await order(made, MEMBERS[0], round_sum, **to_head(made))
        path = RunFiles(tmp_path / HEAD / "training" / RUN).collected(0, MEMBERS[0])
        await until(path.exists)
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        await order(made, MEMBERS[1], round_sum, **to_head(made))
        said = {MEMBERS[0]}
        while MEMBERS[1] not in said or MEMBERS[0] in said:
            said = {*(await made.aggs[HEAD].next("collected", passing=PASSING)).collected.nodes}
        work = made.ordered(MEMBERS[0], WEIGHTS, round_sum)
        work.MergeFrom(training_pb2.TrainingWork(**to_head(made)))
        await made.aggs[MEMBERS[0]].order(TRAIN, work)
        await take_sum(made, round_sum, MEMBERS)
        await made.contribute(ALONE, WEIGHTS, round_sum)
        np.testing.assert_array_equal(await made.unmask(round_sum), plain_sum())


class Peer:
    """Another node's word to a head."""

    def __init__(self, peer: Aggregator, round_sum: RoundSum, seed: int = 0) -> None:
        rng, plan = np.random.default_rng(seed), round_sum.plan
        words = [rng.integers(0, 1 << plan.bits, size, np.uint64).astype(lane(plan.bits)) for size in plan.spans]
        self.spans = [pack(each, plan.bits) for each in words]
        self.peer = peer

    async def announce(self, round_index: int = 0, **wrong: Any) -> None:
        said = {"examples": 9, "spans": SPANS, "sha256": hashlib.sha256(b"".join(self.spans)).digest(), **wrong}
        await self.peer.send(round_index=round_index, contribution=training_pb2.ContributionInfo(**said))

    async def bring(self, *indexes: int) -> None:
        for index in indexes:
            await self.peer.send(self.spans[index], update=training_pb2.SpanInfo(index=index))


async def test_a_cut_contribution_goes_on_behind_its_last_span_and_another_in_its_place_is_refused(
    ca: Ca, tmp_path: Path
) -> None:
    """Whole and durable it is acknowledged, as often as it is announced; what is not what was announced is dropped."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        await order(made, HEAD, round_sum, collect=MEMBERS)
        async with aggregating(ca, made.nodes[HEAD], f"executor/{MEMBERS[0]}") as peer:
            await Peer(peer, round_sum).announce()
            assert (await peer.next("held")).held.spans == 0
            await Peer(peer, round_sum).bring(0)
        await until(lambda: f"train-0.from-{MEMBERS[0]}.part" in files(tmp_path, HEAD))
        async with aggregating(ca, made.nodes[HEAD], f"executor/{MEMBERS[0]}") as peer:
            one = Peer(peer, round_sum)
            await one.announce()
            assert (await peer.next("held")).held.spans == 1
            await one.bring(0, 1, 2)
            await peer.next("stored")
            await one.announce()
            await peer.next("stored")
            await Peer(peer, round_sum, 1).announce()
            await peer.refused("CONTRIBUTION_REPLAYED")
        async with aggregating(ca, made.nodes[HEAD], f"executor/{MEMBERS[1]}") as peer:
            other = Peer(peer, round_sum)
            for _ in range(2):
                await other.announce(sha256=bytes(32))
                assert (await peer.next("held")).held.spans == 0
                await other.bring(0, 1, 2)
                await peer.refused("DIGEST_MISMATCH")


async def test_a_head_takes_nothing_that_it_was_not_told_to_collect(ca: Ca, tmp_path: Path) -> None:
    """Of nobody before its order, of nobody else, in no other round, nothing of another size; and nobody but its
    aggregator orders. Nothing of it is kept."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        async with aggregating(ca, made.nodes[HEAD], f"executor/{MEMBERS[0]}") as peer:
            one = Peer(peer, round_sum)
            await one.announce()
            await peer.refused("FAILED_PRECONDITION")
            await order(made, HEAD, round_sum, collect=MEMBERS[:1])
            for round_index in (1, 7):
                await one.announce(round_index)
                await peer.refused("STALE_ROUND")
            await one.bring(0)
            await peer.refused("FAILED_PRECONDITION")
            for wrong in ({"spans": 2}, {"spans": 1 << 31}):
                await one.announce(**wrong)
                await peer.refused("UPDATE_MALFORMED")
            for wrong in ({"examples": 0}, {"summed": [training_pb2.SummedContribution(node=ALONE, examples=5)]}):
                await one.announce(**wrong)
                await peer.refused("INVALID_INPUT")
            await one.announce()
            await peer.next("held")
            await one.bring(1)
            await peer.refused("INVALID_INPUT")
            await peer.send(one.spans[0][:-1], update=training_pb2.SpanInfo(index=0))
            await peer.refused("INVALID_INPUT")
            await peer.order(TRAIN, made.ordered(HEAD, WEIGHTS, round_sum))
            await peer.refused("ROLE_NOT_ALLOWED")
        for title in (f"executor/{MEMBERS[1]}", f"executor/{ALONE}", "executor/stranger"):
            async with aggregating(ca, made.nodes[HEAD], title) as peer:
                await Peer(peer, round_sum).announce()
                await peer.refused("NOT_IN_COHORT")
        async with aggregating(ca, made.nodes[HEAD], f"executor/{MEMBERS[0]}", run="other.1") as peer:
            await Peer(peer, round_sum).announce()
            await peer.refused("FAILED_PRECONDITION")
        assert not [name for name in files(tmp_path, HEAD) if "from" in name]


async def test_a_head_that_cannot_write_says_so_and_serves_the_others(ca: Ca, tmp_path: Path) -> None:
    """A directory stands where the file should be: whoever brings that contribution is refused, and nobody else."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        await order(made, HEAD, round_sum, collect=MEMBERS)
        RunFiles(tmp_path / HEAD / "training" / RUN).collected(0, f"{MEMBERS[0]}.part").mkdir()
        for name, answers in ((MEMBERS[0], False), (MEMBERS[1], True)):
            async with aggregating(ca, made.nodes[HEAD], f"executor/{name}") as peer:
                one = Peer(peer, round_sum)
                await one.announce()
                await peer.next("held")
                await one.bring(0)
                if not answers:
                    assert name in (await peer.refused("INTERNAL")).message
                    continue
                await one.bring(1, 2)
                await peer.next("stored")


@pytest.mark.parametrize("case", ["not there", "refuses"])
async def test_a_contribution_that_no_head_takes_goes_to_the_aggregator(
    case: str, ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node says that it is there meanwhile."""
    monkeypatch.setattr(delivering, "REACH_S", 1.5)
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum, member = made.begin(0, WEIGHTS.size), MEMBERS[0]
        head = training_pb2.GroupHead(name=HEAD, address="127.0.0.1:9")
        if case == "refuses":
            await order(made, HEAD, round_sum, collect=MEMBERS[1:])
            head.address = address(made, HEAD)
        await order(made, member, round_sum, deliver_to=head)
        found = await made.aggs[member].contribution()
        assert found.info.sums_context == round_sum.context and len(found.spans) == SPANS
        assert "progress" in made.aggs[member].heard


async def test_an_order_that_names_another_group_or_an_unmasked_run_is_refused(ca: Ca, tmp_path: Path) -> None:
    """A node joined with its group in the terms of the run, and holds to that."""
    async with summing(ca, tmp_path, **SPEC) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        head = training_pb2.GroupHead(name=HEAD)
        for name, group in (
            (MEMBERS[0], {"deliver_to": training_pb2.GroupHead(name=ALONE)}),
            (MEMBERS[0], {"deliver_to": training_pb2.GroupHead(name=MEMBERS[0])}),
            (MEMBERS[0], {"deliver_to": head, "collect": MEMBERS[1:]}),
            (HEAD, {"collect": [ALONE]}),
            (HEAD, {"collect": [MEMBERS[0], MEMBERS[0]]}),
            (ALONE, {"deliver_to": head}),
        ):
            work = made.ordered(name, WEIGHTS, round_sum)
            work.MergeFrom(training_pb2.TrainingWork(**group))
            await made.aggs[name].order(TRAIN, work)
            await made.aggs[name].refused("NOT_IN_COHORT")
    async with running(ca, tmp_path / "plain") as node, aggregating(ca, node) as agg:
        await agg.join(work_of("test-wide"))
        await agg.order(TRAIN, on(work_of("test-wide"), WEIGHTS, collect=[MEMBERS[0]]))
        await agg.refused("FAILED_PRECONDITION")
