"""What was cut, killed or damaged goes on where it was: weights, training, contributions, residuals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orbitmesh.v1 import training_pb2
from services.executor.training import contribution
from services.executor.training.files import TRAIN as KIND
from services.executor.training.files import RunFiles
from services.executor.training.shop import digest
from services.executor.training.work import local_seed
from services.training import flat
from services.training.images import Digits
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.feedback import Residual
from services.updates.layout import Layout
from services.updates.scheme import Scheme
from services.updates.spans import SPAN_VALUES
from tests.executor.relay_mesh import Ca
from tests.executor.training.support import EVALUATE, RUN, TRAIN, aggregating, on, running, work_of
from tests.executor.training.tasks import Wide
from tests.runtime.conftest import until

WIDE = work_of("test-wide")


def weights_of(seed: int) -> np.ndarray:
    return flat.flatten(Wide().model(seed))


def delta_of(weights: np.ndarray, round_index: int = 0, task: Digits | None = None, steps: int = 2) -> np.ndarray:
    """What the node computes in a round, by the training itself."""
    task = task or Wide()
    plan = LocalPlan(steps=steps, seed=local_seed(7, round_index, 0))
    return train_locally(task, task.shard(0, 4, seed=7), weights, plan).delta


async def test_only_what_is_lacking_of_a_contribution_is_sent_again(ca: Ca, tmp_path: Path) -> None:
    """Ordered again with spans that are held already, the node sends the others; also another process of it, from its
    disk and without training again."""
    weights = weights_of(7)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(WIDE)
        whole = await agg.train(WIDE, weights)
    assert sorted(whole.spans) == [0, 1, 2]
    async with running(ca, tmp_path) as node:
        for held in (0, 1, 2, 3):
            async with aggregating(ca, node) as agg:
                await agg.order(TRAIN, on(WIDE, weights, held_spans=held))
                rest = await agg.contribution(held)
                assert rest.info == whole.info and agg.heard[0] == "contribution"
                assert rest.spans == {index: whole.spans[index] for index in range(held, 3)}


async def test_weights_go_on_where_they_were_cut(ca: Ca, tmp_path: Path) -> None:
    """A node that was started anew after a part of the weights asks for the rest only, and trains on all of them."""
    weights = weights_of(99)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(WIDE)
        await agg.order(TRAIN, on(WIDE, weights))
        assert (await agg.next("have")).have.spans == 0
        await agg.give_weights(weights, 0, 2)
        part = tmp_path / "training" / RUN / f"{digest(weights).hex()}.part"
        await until(lambda: part.exists() and part.stat().st_size == 2 * SPAN_VALUES * 4)
    with part.open("ab") as file:
        file.write(b"half a span that a crash left")
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.order(TRAIN, on(WIDE, weights))
        assert (await agg.next("have")).have.spans == 2
        await agg.give_weights(weights, 2)
        found = await agg.contribution()
    np.testing.assert_array_equal(found.full("fp32", weights.size), delta_of(weights))


async def test_damaged_weights_are_asked_for_again_three_times(ca: Ca, tmp_path: Path) -> None:
    """Weights whose SHA-256 is another are thrown away and asked for from the first span; after three times the round
    is refused, and the order may be given anew."""
    weights, wrong = weights_of(99), weights_of(98)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(WIDE)
        await agg.order(TRAIN, on(WIDE, weights))
        for _ in range(3):
            assert (await agg.next("have")).have.spans == 0
            await agg.give_weights(wrong, 0)
        await agg.refused("DIGEST_MISMATCH")
        found = await agg.train(WIDE, weights)
    np.testing.assert_array_equal(found.full("fp32", weights.size), delta_of(weights))


async def test_weights_that_were_damaged_on_disk_are_asked_for_again(ca: Ca, tmp_path: Path) -> None:
    """A byte that changed on the node's disk between two processes is found before it is trained on."""
    weights = weights_of(99)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(WIDE)
        await agg.order(EVALUATE, on(WIDE, weights))
        await agg.next("have")
        await agg.give_weights(weights, 0)
        await agg.next("evaluated")
    path = tmp_path / "training" / RUN / f"{digest(weights).hex()}.weights"
    data = bytearray(path.read_bytes())
    data[100_000] ^= 1
    path.write_bytes(data)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        found = await agg.train(WIDE, weights)
        assert agg.heard[0] == "have"
    np.testing.assert_array_equal(found.full("fp32", weights.size), delta_of(weights))


async def test_a_damaged_contribution_is_made_again(ca: Ca, tmp_path: Path) -> None:
    """A contribution that changed on disk is not sent: the round is trained again, with the same bytes; of top-k, too,
    whose residual goes back to before the round."""
    weights, work = weights_of(7), work_of("test-wide", compression="topk:0.01")
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        first = await agg.train(work, weights)
    path = RunFiles(tmp_path / "training" / RUN).contribution_path(KIND, 0)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        second = await agg.train(work, weights)
    assert second.spans == first.spans


async def test_an_order_that_is_repeated_starts_nothing_twice(ca: Ca, tmp_path: Path) -> None:
    """While it trains, the same order is answered with all the weights, and one contribution follows."""
    work = work_of("test-slow", local=training_pb2.LocalTraining(steps=60))
    weights = flat.flatten(Digits().model(7))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        for _ in range(3):
            await agg.order(TRAIN, on(work, weights))
            assert (await agg.next("have")).have.spans == 1
        async with aggregating(ca, node) as newer:
            await newer.order(TRAIN, on(work, weights))
            assert (await newer.next("have")).have.spans == 1
            found = await newer.contribution()
            await newer.order(EVALUATE, on(work, weights))
            await newer.next("have", passing=())
        assert len(node.named("round_trained")) == 1
    assert found.info.steps == 60


async def test_a_newer_order_stops_the_one_before(ca: Ca, tmp_path: Path) -> None:
    """An order for another round ends the training that is under way; only the newer contribution comes."""
    work = work_of("test-slow", local=training_pb2.LocalTraining(steps=9_000))
    weights, next_weights = flat.flatten(Digits().model(7)), flat.flatten(Digits().model(8))
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        await agg.order(TRAIN, on(work, weights), 0)
        assert (await agg.next("have")).have.spans == 1
        await agg.next("progress", passing=())
        await agg.order(TRAIN, on(work, next_weights, overrides='{"steps": 2}'), 1)
        have = await agg.next("have")
        assert (have.round, have.have.spans) == (1, 0)
        await agg.give_weights(next_weights, 0, round_index=1)
        assert (await agg.next("contribution")).round == 1


async def test_training_goes_on_from_its_checkpoint(ca: Ca, tmp_path: Path) -> None:
    """A node that is stopped in a long round goes on where it was, and contributes what it would have without."""
    work = work_of("test-slow", local=training_pb2.LocalTraining(steps=130))
    weights = flat.flatten(Digits().model(7))
    checkpoint = tmp_path / "training" / RUN / "train-0.checkpoint"
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        await agg.order(TRAIN, on(work, weights))
        await until(checkpoint.exists)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        found = await agg.train(work, weights)
        assert 100 in [each["resumed_at"] for each in node.named("round_trained")]
    task = Digits()
    plan = LocalPlan(steps=130, seed=local_seed(7, 0, 0))
    delta = train_locally(task, task.shard(0, 4, seed=7), weights, plan).delta
    np.testing.assert_array_equal(found.full("fp32", weights.size), delta)
    assert not checkpoint.exists()


def residual_of(tmp_path: Path, task: Digits | None = None) -> Residual:
    model = (task or Wide()).model(7)
    layout = Layout.of({name: one.numpy() for name, one in flat.floating(model).items()})
    return Residual(RunFiles(tmp_path / "training" / RUN).residual, layout)


@pytest.mark.parametrize("compression", ["topk:0.01", "topk:0.1+int4"])
async def test_what_compression_leaves_out_comes_later(compression: str, ca: Ca, tmp_path: Path) -> None:
    """Over rounds that count, that are refused, and that never left the node, what was decoded of those that counted,
    and the residual, are all that the node has trained."""
    work, weights = work_of("test-wide", compression=compression), weights_of(7)
    total, counted = np.zeros(weights.size), np.zeros(weights.size)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        for round_index, outcome in enumerate(["stored", "refused", "stored", "not told", "stored"]):
            found = await agg.train(work, weights, round_index)
            total += delta_of(weights, round_index)
            if outcome == "refused":
                refused = training_pb2.TrainingRefusal(reason="STALE_ROUND", message="the round is over")
                for _ in range(2):
                    await agg.send(round_index=round_index, refused=refused)
            else:
                counted += found.decoded(compression, weights.size, round_index)
            if outcome == "stored":
                await agg.send(round_index=round_index, stored=training_pb2.ContributionStored())
    left = residual_of(tmp_path).carried(5)
    np.testing.assert_allclose(counted + left, total, atol=1e-6)
    assert np.abs(left).max() > 1e-5


async def test_values_that_wait_for_their_turn_are_kept_by_half(ca: Ca, tmp_path: Path) -> None:
    """With blocks a round's update has half of what the round before left out; dense int8 keeps nothing, and is right
    on average."""
    work, weights = work_of("test-wide", compression="blocks:0.25+fp32"), weights_of(7)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        left = np.zeros(weights.size, np.float32)
        for round_index in range(3):
            found = await agg.train(work, weights, round_index)
            await agg.send(round_index=round_index, stored=training_pb2.ContributionStored())
            corrected = delta_of(weights, round_index) + np.float32(0.5) * left
            decoded = found.decoded("blocks:0.25+fp32", weights.size, round_index)
            chosen = decoded != 0
            assert 0.2 < np.mean(chosen) < 0.3
            np.testing.assert_array_equal(decoded[chosen], corrected[chosen])
            left = corrected - decoded
        dense = work_of("test-wide", compression="int8")
        async with aggregating(ca, node, run="dense") as other:
            await other.join(dense)
            decoded = (await other.train(dense, weights)).decoded("int8", weights.size, 0)
    np.testing.assert_array_equal(residual_of(tmp_path).carried(3), left)
    assert not (tmp_path / "training" / "dense" / "residual").exists()
    error = decoded - delta_of(weights)
    assert 0 < np.abs(error).max() < np.abs(decoded).max() / 100
    assert abs(error.mean()) < 4.5 * error.std() / np.sqrt(error.size)


async def test_momenta_outlive_a_crash_beside_their_contribution(
    ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node ends, and cannot say anything more to its disk, as soon as its contribution has its name: the next round
    is the one of a node to which nothing happened."""
    local = training_pb2.LocalTraining(steps=4, optimiser="adamw", lr=0.01, keep_optimiser=True)
    work, weights = work_of(local=local), flat.flatten(Digits().model(99))
    found = []
    for state in (tmp_path / "calm", tmp_path / "struck"):
        async with running(ca, state) as node, aggregating(ca, node) as agg:
            await agg.join(work)
            if state.name == "struck":
                monkeypatch.setattr(contribution, "put_in_place", named_and_gone)
                await agg.order(TRAIN, on(work, weights))
                await agg.give_weights(weights, (await agg.next("have")).have.spans)
                await agg.next("refused")
                monkeypatch.undo()
        async with running(ca, state) as node, aggregating(ca, node) as agg:
            if state.name == "struck":
                await agg.order(TRAIN, on(work, weights))
                await agg.contribution()
                assert agg.heard[0] == "contribution"
            else:
                await agg.train(work, weights)
            await agg.send(round_index=0, stored=training_pb2.ContributionStored())
            found.append(await agg.train(work, weights, 1))
    assert found[0].spans == found[1].spans


def named_and_gone(written: Path, path: Path) -> None:
    """What is left by a disk that takes a name and nothing after it."""
    written.replace(path)
    raise OSError("the disk is gone")


async def test_a_contribution_that_never_left_does_not_count(ca: Ca, tmp_path: Path) -> None:
    """Where contact ended before the last span was sent, and the next order is for a later round, the residual takes
    back what was encoded, also in a node that was started anew."""
    local = training_pb2.LocalTraining(steps=100)
    work, weights = work_of("test-slow", compression="topk:0.01", local=local), flat.flatten(Digits().model(7))
    async with running(ca, tmp_path) as node:
        async with aggregating(ca, node) as agg:
            await agg.join(work)
            await agg.order(TRAIN, on(work, weights))
            await agg.next("have")
        # The session is over two seconds before there is a contribution: nobody hears of it.
        await until(RunFiles(tmp_path / "training" / RUN).contribution_path(KIND, 0).exists)
    assert not RunFiles(tmp_path / "training" / RUN).is_told(0)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        found = await agg.train(work, weights, 1)
    left = residual_of(tmp_path, Digits()).carried(2)
    total = delta_of(weights, 0, Digits(), 100) + delta_of(weights, 1, Digits(), 100)
    np.testing.assert_allclose(found.decoded("topk:0.01", weights.size, 1) + left, total, atol=1e-6)


async def test_fewer_values_are_sent_where_a_contact_is_short(ca: Ca, tmp_path: Path) -> None:
    """With room for a quarter of what top-k would send, the contribution fits, and the rest is left for later."""
    work, weights = work_of("test-wide", compression="topk:0.1"), weights_of(7)
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.join(work)
        whole = await agg.train(work, weights, 0)
        await agg.send(round_index=0, refused=training_pb2.TrainingRefusal(reason="STALE_ROUND"))
        size = sum(len(data) for data in whole.spans.values())
        work.payload_bytes = size // 4
        fitted = await agg.train(work, weights, 1)
    assert size // 5 < sum(len(data) for data in fitted.spans.values()) <= size // 4
    decoded = fitted.decoded("topk:0.1", weights.size, 1)
    total = delta_of(weights, 0) + delta_of(weights, 1)
    np.testing.assert_allclose(decoded + residual_of(tmp_path).carried(2), total, atol=1e-6)
    assert Scheme.parse("topk:0.1").top_count(weights.size) > 2 * np.count_nonzero(decoded)
