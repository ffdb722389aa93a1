"""Differential privacy at real nodes: which noise is there, that it is drawn once, and what breaks no promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from orbitmesh.trust import load_identity
from orbitmesh.v1 import training_pb2
from services.executor.training.files import TRAIN as KIND
from services.executor.training.files import RunFiles
from services.executor.training.records import binding_of
from services.executor.training.secrets import RunSecrets
from services.executor.training.shop import digest
from services.executor.training.work import local_seed
from services.privacy.accountant import epsilon, noise_for
from services.privacy.events import Release, RoundEvent
from services.privacy.record_level import RecordPlan, train_privately
from services.privacy.rounding import rounded_norm
from services.training import flat
from services.training.examples import Examples
from services.training.images import Digits
from services.training.local import train_locally
from services.training.plan import LocalPlan
from services.updates.integers import to_integers
from tests.executor.relay_mesh import Ca
from tests.executor.training.summing import BITS, NAMES, SCALE, UNMASK, other_survivors, summing
from tests.executor.training.support import JOIN, RUN, TRAIN, Aggregator, aggregating, on, running, work_of

TASK = Digits()
WEIGHTS = flat.flatten(TASK.model(7))
OTHER = flat.flatten(TASK.model(8))
CLIP = 0.5
CLIP_STEPS = 1_000.0
PROMISED = 3
ROUNDS = 3
EPSILON = 4.0
NODE_NOISE = noise_for(EPSILON, 1e-5, ROUNDS)
EXAMPLES = len(TASK.shard(0, 4, seed=7))
RECORD_STEPS = math.ceil(EXAMPLES / 32)
RECORD_NOISE = noise_for(EPSILON, 1e-5, ROUNDS * RECORD_STEPS, 32 / EXAMPLES)


def node_privacy(**fields: float) -> training_pb2.Privacy:
    given = {"epsilon": EPSILON, "clip": CLIP, "noise_multiplier": NODE_NOISE} | fields
    return training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_NODE, **given)


def record_privacy(**fields: float) -> training_pb2.Privacy:
    given = {"epsilon": EPSILON, "clip": CLIP, "noise_multiplier": RECORD_NOISE} | fields
    return training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_RECORD, **given)


def record_work(index: int = 0, **spec: object) -> training_pb2.TrainingWork:
    local = training_pb2.LocalTraining(epochs=1)
    return work_of(index=index, **{"local": local, "privacy": record_privacy()} | spec)


# Nodes.


def largest() -> int:
    """The words that an aggregator plans: the longest vector and seventeen deviations of one share of noise."""
    steps = rounded_norm(CLIP_STEPS, WEIGHTS.size, 65_536)
    return math.ceil(steps + 17 * math.sqrt(((NODE_NOISE * steps) ** 2 + 4) / PROMISED + 1))


async def test_the_noise_of_the_sum_is_what_was_promised(ca: Ca, tmp_path: Path) -> None:
    """The unmasked sum is that of the clipped updates plus discrete noise: without bias, and of the variance of as many
    shares as there are nodes; each node alone has far less than its update says."""
    scale = CLIP / CLIP_STEPS
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size, largest())
        for name in NAMES:
            found = await made.contribute(name, WEIGHTS, round_sum, scale=scale, promised=PROMISED)
            assert not found.info.HasField("loss")
        total = await made.unmask(round_sum)
    clipped = np.zeros(WEIGHTS.size)
    for index in range(len(NAMES)):
        plan = LocalPlan(steps=2, seed=local_seed(7, 0, index))
        delta = train_locally(TASK, TASK.shard(index, 4, seed=7), WEIGHTS, plan).delta.astype(np.float64)
        clipped += delta * min(1.0, CLIP / np.linalg.norm(delta)) / scale
    noise = total - clipped
    steps = rounded_norm(CLIP_STEPS, WEIGHTS.size, 65_536)
    expected = NODE_NOISE * steps * math.sqrt(len(NAMES) / PROMISED)
    # 4,810 values: the deviation of the estimate is 1 %, that of the mean expected / 69.
    assert np.std(noise) == pytest.approx(expected, rel=0.05)
    assert abs(np.mean(noise)) < 4.5 * expected / math.sqrt(WEIGHTS.size)
    assert np.linalg.norm(clipped) < np.linalg.norm(noise)


async def test_one_step_over_all_examples_hides_each_by_the_noise_of_all(ca: Ca, tmp_path: Path) -> None:
    """The unmasked sum is that of all examples' clipped gradients, found one by one with autograd, plus noise sized for
    what one example adds; each node's account has it, and no single contribution says a loss or a release."""
    scale, noise = CLIP / 4_000, noise_for(EPSILON, 1e-5, ROUNDS)
    clip_steps = CLIP / scale + math.sqrt(WEIGHTS.size)
    privacy = record_privacy(noise_multiplier=noise)
    one_step = training_pb2.LocalTraining(steps=1, lr=0.5)
    async with summing(ca, tmp_path, privacy=privacy, local=one_step) as made:
        await made.set_up()
        share = math.sqrt((noise * clip_steps) ** 2 / PROMISED + 1)
        round_sum = made.begin(0, WEIGHTS.size, math.ceil(EXAMPLES * clip_steps + 17 * share))
        for name in NAMES:
            found = await made.contribute(name, WEIGHTS, round_sum, scale=scale, promised=PROMISED)
            assert not found.info.HasField("loss") and not found.info.release
        total = await made.unmask(round_sum)
        (event,) = secrets_of(ca, tmp_path, NAMES[0]).ledger or ()
        assert (event.node, event.steps, event.sample_rate) == (NAMES[0], 1, 1.0)
    expected = np.zeros(WEIGHTS.size)
    for index in range(len(NAMES)):
        expected -= clipped_one_by_one(TASK.shard(index, 4, seed=7)) / scale
    found_noise = total - expected
    deviation = noise * clip_steps * math.sqrt(len(NAMES) / PROMISED)
    assert np.std(found_noise) == pytest.approx(deviation, rel=0.05)
    assert abs(np.mean(found_noise)) < 4.5 * deviation / math.sqrt(WEIGHTS.size)


def clipped_one_by_one(shard: Examples) -> np.ndarray:
    """The sum of clipped gradients, an example after the other."""
    model = TASK.model(0)
    flat.load_flat(model, WEIGHTS)
    total = np.zeros(WEIGHTS.size)
    for row in range(len(shard)):
        model.zero_grad()
        TASK.loss(model, shard.span(row, row + 1)).backward()
        gradient = np.concatenate([one.grad.double().reshape(-1).numpy() for one in model.parameters()])
        total += gradient * min(1.0, CLIP / np.linalg.norm(gradient))
    return total


async def test_the_noise_of_a_round_is_drawn_once(ca: Ca, tmp_path: Path) -> None:
    """A contribution that is made again, by a node that was started anew, has the same bytes; the next round has other
    noise on the same weights."""
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        name, scale = NAMES[0], CLIP / CLIP_STEPS
        round_sum = made.begin(0, WEIGHTS.size, largest())
        first = await made.contribute(name, WEIGHTS, round_sum, scale=scale, promised=PROMISED)
        await made.start(name)
        RunFiles(tmp_path / name / "training" / RUN).contribution_path(KIND, 0).unlink()
        work = made.ordered(name, WEIGHTS, round_sum, scale=scale, promised=PROMISED)
        again = await made.aggs[name].train(work, WEIGHTS)
        assert again.spans == first.spans
        secrets = secrets_of(ca, tmp_path, name)
        assert len({secrets.round_seed("node", index) for index in range(100)}) == 100
        assert secrets.round_seed("node", 0) != secrets.round_seed("record", 0)
        assert not RunFiles(tmp_path / name / "training" / RUN).residual.exists()


async def test_a_sum_with_less_noise_than_promised_is_not_unmasked(ca: Ca, tmp_path: Path) -> None:
    """Noise was sized for three survivors of a threshold of three; where it was sized for four, three do not do."""
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size, largest())
        for name in NAMES:
            await made.contribute(name, WEIGHTS, round_sum, scale=CLIP / CLIP_STEPS, promised=4)
        request = round_sum.close()
        await made.refused(NAMES[0], "TOO_FEW_SURVIVORS", UNMASK, other_survivors(request, *NAMES[:3]))
        await made.start(NAMES[1])
        await made.refused(NAMES[1], "TOO_FEW_SURVIVORS", UNMASK, other_survivors(request, *NAMES[1:]))
        assert (await made.unmask(round_sum)).size == WEIGHTS.size


@pytest.mark.parametrize(
    ("noise", "sums", "reason"),
    [
        (0.0, {}, "PRIVACY_SPENT"),
        (-1.0, {}, "INVALID_INPUT"),
        (float("nan"), {}, "INVALID_INPUT"),
        (0.01, {}, "PRIVACY_SPENT"),
        (NODE_NOISE, {"survivors_promised": 0}, "INVALID_INPUT"),
        (NODE_NOISE, {"survivors_promised": 5}, "INVALID_INPUT"),
        (NODE_NOISE, {"scale": 0.0}, "INVALID_INPUT"),
        (NODE_NOISE, {"scale": 1e-9}, "INVALID_INPUT"),
    ],
)
async def test_orders_that_would_break_the_promise_are_refused(
    noise: float, sums: dict[str, float], reason: str, ca: Ca, tmp_path: Path
) -> None:
    """No noise or too little of it, noise for more survivors than there are, and steps that leave it no room: nothing
    is made, and a right order after it is followed."""
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        name, round_sum = NAMES[0], made.begin(0, WEIGHTS.size, largest())
        work = made.ordered(name, WEIGHTS, round_sum, scale=CLIP / CLIP_STEPS, promised=PROMISED)
        work.spec.privacy.noise_multiplier = noise
        for field, value in sums.items():
            setattr(work.sums, field, value)
        await made.aggs[name].order(TRAIN, work)
        await made.aggs[name].next("have")
        await made.aggs[name].refused(reason)
        assert not list((tmp_path / name / "training" / RUN).glob("*.contribution*"))
        right = made.begin(0, WEIGHTS.size, largest())
        await made.contribute(name, WEIGHTS, right, scale=CLIP / CLIP_STEPS, promised=PROMISED)


async def test_a_promise_is_not_taken_back(ca: Ca, tmp_path: Path) -> None:
    """An order that leaves privacy or sums out, or has another clip or epsilon, is refused: the run was joined with
    them; and privacy of nodes without sums is not joined at all."""
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        agg, round_sum = made.aggs[NAMES[0]], made.begin(0, WEIGHTS.size, largest())
        for change in ("privacy", "secure_sums", "clip", "epsilon"):
            work = made.ordered(NAMES[0], WEIGHTS, round_sum, promised=PROMISED)
            if change in ("privacy", "secure_sums"):
                work.spec.ClearField(change)
            else:
                setattr(work.spec.privacy, change, 100.0)
            await agg.order(TRAIN, work)
            await agg.refused("FAILED_PRECONDITION")
        other = Aggregator(agg.session, "without-sums")
        await other.order(JOIN, work_of(privacy=node_privacy()))
        await other.refused("FAILED_PRECONDITION")


async def test_the_promise_ends_with_its_budget(ca: Ca, tmp_path: Path) -> None:
    """After as many rounds as the noise pays for a node refuses the next, whatever the aggregator counts; told again,
    a round costs nothing."""
    async with summing(ca, tmp_path, privacy=node_privacy()) as made:
        await made.set_up()
        name = NAMES[0]
        for round_index in range(ROUNDS):
            for _ in range(2):
                round_sum = made.begin(round_index, WEIGHTS.size, largest())
                await made.contribute(name, WEIGHTS, round_sum, scale=CLIP / CLIP_STEPS, promised=PROMISED)
                await made.start(name)
                RunFiles(tmp_path / name / "training" / RUN).drop_contribution(KIND, round_index)
        round_sum = made.begin(ROUNDS, WEIGHTS.size, largest())
        work = made.ordered(name, WEIGHTS, round_sum, scale=CLIP / CLIP_STEPS, promised=PROMISED)
        await made.aggs[name].order(TRAIN, work, ROUNDS)
        await made.aggs[name].next("have")
        refusal = await made.aggs[name].refused("PRIVACY_SPENT")
        assert "epsilon 4" in refusal.message and float(refusal.metadata["spent"]) <= EPSILON


# Records.


def secrets_of(ca: Ca, root: Path, name: str) -> RunSecrets:
    identity = load_identity(ca.path(f"executor/{name}"))
    return RunSecrets.load(RunFiles(root / name / "training" / RUN).secrets, lambda: identity, RUN)


def privately(seed: bytes, plan: LocalPlan, weights: np.ndarray = WEIGHTS, index: int = 0) -> np.ndarray:
    """The second opinion: DP-SGD called directly, with the node's own secret."""
    model, shard = TASK.model(3), TASK.shard(index, 4, seed=7)
    flat.load_flat(model, weights)
    records = RecordPlan(CLIP, RECORD_NOISE, len(shard), 32, plan.total_steps(len(shard)))

    def loss(of: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return TASK.loss(of, Examples(*batch))

    optimiser = torch.optim.SGD(model.parameters(), lr=plan.lr, momentum=plan.momentum)
    train_privately(model, loss, (shard.inputs, shard.targets), records, optimiser, seed)
    return flat.flatten(model) - weights


async def test_a_contribution_that_hides_records_is_dp_sgd(
    ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what DP-SGD gives with the node's secret seed; with what it released, and without any loss."""
    seeds = []
    original = RunSecrets.round_seed

    def seen(self: RunSecrets, purpose: str, round_index: int, binding: bytes = b"") -> bytes:
        seeds.append(original(self, purpose, round_index, binding))
        return seeds[-1]

    monkeypatch.setattr(RunSecrets, "round_seed", seen)
    work = record_work(local=training_pb2.LocalTraining(epochs=1, lr=0.1, momentum=0.5))
    async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
        await agg.join(work)
        found = await agg.train(work, WEIGHTS)
    delta = privately(seeds[0], LocalPlan(epochs=1, lr=0.1, momentum=0.5))
    np.testing.assert_array_equal(found.full("fp32", WEIGHTS.size), delta)
    event = RoundEvent.from_json(json.loads(found.info.release))
    assert event == RoundEvent(0, "sat-1", RECORD_STEPS, 32 / EXAMPLES, RECORD_NOISE, CLIP)
    assert not found.info.HasField("loss") and found.info.steps == RECORD_STEPS
    secrets = secrets_of(ca, tmp_path, "sat-1")
    assert secrets.ledger is not None and list(secrets.ledger) == [event]
    assert len(seeds[0]) == 32 and seeds[0] not in RunFiles(tmp_path / "sat-1" / "training" / RUN).secrets.read_bytes()


async def test_progress_tells_no_loss_where_privacy_is_promised(ca: Ca, tmp_path: Path) -> None:
    """Every progress of a private round has steps and no loss; that of a plain one has both."""
    for work, has_loss in ((record_work(local=training_pb2.LocalTraining(steps=60)), False), (_slow(), True)):
        async with running(ca, tmp_path / str(has_loss)) as node, aggregating(ca, node) as agg:
            await agg.join(work)
            await agg.order(TRAIN, on(work, WEIGHTS))
            await agg.next("have")
            told = []
            while (info := (await agg.receive()).info.training).HasField("progress"):
                told.append(info.progress)
            assert told and all(one.steps == 60 for one in told)
            assert any(one.HasField("loss") for one in told) is has_loss


def _slow() -> training_pb2.TrainingWork:
    return work_of("test-slow", local=training_pb2.LocalTraining(steps=60))


async def test_noise_that_hides_records_is_never_used_twice(ca: Ca, tmp_path: Path) -> None:
    """The same round again has the same bytes, also after a restart; on other weights, or with another plan, it has
    other noise and is counted as another attempt, until the budget is spent."""
    work = record_work()
    path = RunFiles(tmp_path / "sat-1" / "training" / RUN).contribution_path(KIND, 0)
    found = []
    for order in (on(work, WEIGHTS), on(work, WEIGHTS), on(work, OTHER), on(work, OTHER, overrides='{"lr": 0.1}')):
        path.unlink(missing_ok=True)
        async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
            await agg.join(work)
            weights = OTHER if order.weights.sha256 == on(work, OTHER).weights.sha256 else WEIGHTS
            await agg.order(TRAIN, order)
            await agg.give_weights(weights, (await agg.next("have")).have.spans)
            found.append(await agg.contribution())
    assert found[0].spans == found[1].spans and found[0].info.release == found[1].info.release
    attempts = [RoundEvent.from_json(json.loads(one.info.release)).attempt for one in found]
    assert attempts == [0, 0, 1, 2]
    path.unlink()
    async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
        await agg.order(TRAIN, on(work, OTHER, overrides='{"lr": 0.2}'))
        await agg.next("have")
        await agg.refused("PRIVACY_SPENT")
    ledger = secrets_of(ca, tmp_path, "sat-1").ledger
    spent = epsilon([Release(RECORD_NOISE, 32 / EXAMPLES, RECORD_STEPS)] * 3, 1e-5)
    assert ledger is not None and ledger.epsilon() == pytest.approx(spent) and spent <= EPSILON


@pytest.mark.parametrize("compression", ["topk:0.1", "int8"])
async def test_what_hides_records_is_compressed_as_any_update(compression: str, ca: Ca, tmp_path: Path) -> None:
    """Compression comes after the noise and costs no privacy; a killed node makes the same contribution again."""
    work = record_work(compression=compression)
    async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
        await agg.join(work)
        first = await agg.train(work, WEIGHTS)
    RunFiles(tmp_path / "sat-1" / "training" / RUN).contribution_path(KIND, 0).unlink()
    async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
        second = await agg.train(work, WEIGHTS)
    assert first.spans == second.spans


async def test_records_are_hidden_in_sums_too(ca: Ca, tmp_path: Path) -> None:
    """With secure sums each node's noisy update is what it adds, weighted by its examples."""
    async with summing(ca, tmp_path, privacy=record_privacy(), local=training_pb2.LocalTraining(epochs=1)) as made:
        await made.set_up()
        round_sum = made.begin(0, WEIGHTS.size)
        expected = np.zeros(WEIGHTS.size, np.int64)
        for name in NAMES:
            found = await made.contribute(name, WEIGHTS, round_sum)
            event = RoundEvent.from_json(json.loads(found.info.release))
            assert event.node == name and event.noise == RECORD_NOISE
            index = NAMES.index(name)
            delta = privately(record_seed(ca, tmp_path, name), LocalPlan(epochs=1), index=index)
            expected += to_integers(delta * np.float32(found.info.examples / 400), SCALE, BITS, None)[0]
        np.testing.assert_array_equal(await made.unmask(round_sum), expected)


def record_seed(ca: Ca, root: Path, name: str) -> bytes:
    """The seed of a node's first round, from its sealed state."""
    index = NAMES.index(name)
    examples = len(TASK.shard(index, 4, seed=7))
    plan = LocalPlan(epochs=1, seed=local_seed(7, 0, index))
    records = RecordPlan(CLIP, RECORD_NOISE, examples, 32, plan.total_steps(examples))
    return secrets_of(ca, root, name).round_seed("record", 0, binding_of(digest(WEIGHTS), plan, records))


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (record_work(task="test-mixing"), "UNSUPPORTED_MODEL"),
        (record_work(privacy=training_pb2.Privacy(epsilon=2)), "INVALID_INPUT"),
        (record_work(privacy=record_privacy(epsilon=0)), "INVALID_INPUT"),
        (record_work(local=training_pb2.LocalTraining(epochs=1, keep_optimiser=True)), "FAILED_PRECONDITION"),
        (record_work(local=training_pb2.LocalTraining(epochs=1, gradient_norm=1)), "FAILED_PRECONDITION"),
        (record_work(local=training_pb2.LocalTraining(epochs=1, dtype="bf16")), "FAILED_PRECONDITION"),
        (work_of(compression="topk:0.1", secure_sums=training_pb2.SecureSums()), "SCHEME_INVALID"),
        (work_of(secure_sums=training_pb2.SecureSums(bits=25)), "INVALID_INPUT"),
    ],
)
async def test_promises_that_cannot_be_kept_are_not_joined(
    work: training_pb2.TrainingWork, reason: str, ca: Ca, tmp_path: Path
) -> None:
    """What does not go together is refused before the node takes part; no secrets are left behind."""
    async with running(ca, tmp_path) as node, aggregating(ca, node) as agg:
        await agg.order(JOIN, work)
        await agg.refused(reason)
    assert not list((tmp_path / "training").glob("*"))


@pytest.mark.parametrize(
    ("noise", "overrides"), [(0.0, ""), (float("nan"), ""), (-1.0, ""), (RECORD_NOISE, '{"prox_mu": 0.1}')]
)
async def test_records_are_not_trained_on_without_noise(noise: float, overrides: str, ca: Ca, tmp_path: Path) -> None:
    """An order without noise, or with what clipping does not cover, is refused, and nothing is released by it."""
    work = record_work()
    async with running(ca, tmp_path / "sat-1") as node, aggregating(ca, node) as agg:
        await agg.join(work)
        order = on(work, WEIGHTS, overrides=overrides)
        order.spec.privacy.noise_multiplier = noise
        await agg.order(TRAIN, order)
        await agg.next("have")
        await agg.refused("FAILED_PRECONDITION")
    ledger = secrets_of(ca, tmp_path, "sat-1").ledger
    assert ledger is not None and len(ledger) == 0
