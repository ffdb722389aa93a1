"""Runs of training through the SDK, against a small real gateway that answers as each test tells it: what is sent, what
is refused before it is sent, streams that break, and weights that are not what they should be."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from orbitmesh import (
    AsyncMesh,
    CancelledError_,
    DeadlineError,
    IntegrityError,
    InvalidInputError,
    LocalTraining,
    Mesh,
    Privacy,
    SecureSums,
    TrainingContribution,
    TransportError,
    _training,
    _training_proto,
    _weights,
)
from orbitmesh._loop import LoopThread
from orbitmesh.v1 import aggregator_pb2, training_pb2
from services.aggregator import spec, store
from tests.sdk.small_aggregator import DONE, RUNNING, Giving, SmallAggregator, a_round, saying, told
from tests.sdk.small_gateway import Identities, SmallGateway, serve

WAIT_S = 60.0
VECTOR = np.random.default_rng(7).standard_normal(700_001, dtype=np.float32)


def giving(vector: np.ndarray, *, sha256: bytes | None = None, values: int | None = None, stop: int = -1) -> Giving:
    """Gives a vector in pieces of odd sizes; `stop` pieces, and then the connection is gone."""

    async def give(context: Any) -> AsyncIterator[aggregator_pb2.GetWeightsResponse]:
        data = vector.astype("<f4").tobytes()
        digest = hashlib.sha256(data).digest() if sha256 is None else sha256
        yield aggregator_pb2.GetWeightsResponse(
            values=vector.size if values is None else values, sha256=digest, rounds_done=3, data=data[:10]
        )
        for index, start in enumerate(range(10, len(data), 999_999)):
            if index == stop:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield aggregator_pb2.GetWeightsResponse(data=data[start : start + 999_999])

    return give


def listed(directory: Path) -> list[str]:
    """What a directory holds, hidden files too."""
    return sorted(each.name for each in directory.iterdir())


@pytest.fixture
async def aggregator(gateway: SmallGateway, identities: Identities) -> AsyncIterator[SmallAggregator]:
    """An aggregator behind a gateway."""
    small = SmallAggregator(aggregator_pb2.Run(name="run", state=RUNNING))
    gateway.address = ""
    server = await serve(gateway, identities.gateway, small)
    yield small
    await server.stop(None)


@pytest.fixture
async def trained(
    aggregator: SmallAggregator, gateway: SmallGateway, identities: Identities
) -> AsyncIterator[AsyncMesh]:
    """A connected client of it."""
    async with AsyncMesh.connect(gateway.address, identity=identities.client) as connected:
        yield connected


async def test_everything_that_is_asked_is_sent(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """Each argument stands in its field of the specification, and every call has another request id."""
    training = await trained.train(
        "run",
        task="digits",
        rounds=20,
        nodes=["sat-1", "sat-2"],
        strategy="fedprox",
        strategy_options={"mu": 0.1},
        local=LocalTraining(
            steps=5, batch_size=8, optimiser="adamw", lr=1e-3, momentum=0.5, weight_decay=0.1, gradient_norm=2.0,
            dtype="bf16", keep_optimiser=True,
        ),
        compression="blocks:0.25+int4",
        secure_sums=SecureSums(threshold=3, bits=6, groups=[["sat-1", "sat-2"]]),
        privacy=Privacy(unit="node", epsilon=3.0, delta=1e-6, clip=0.5, noise_multiplier=1.25),
        alpha=0.3,
        seed=9,
        quorum=2,
        cohort=4,
        patience_s=7.5,
        evaluate=False,
        slice="bulk",
    )  # fmt: skip
    assert training.name == "run"
    (request,) = aggregator.asked
    assert request.spec == training_pb2.TrainingSpec(
        task="digits", rounds=20, seed=9, alpha=0.3, strategy="fedprox", strategy_options={"mu": 0.1},
        local=training_pb2.LocalTraining(
            steps=5, batch_size=8, optimiser="adamw", lr=1e-3, momentum=0.5, weight_decay=0.1, gradient_norm=2.0,
            dtype="bf16", keep_optimiser=True,
        ),
        compression="blocks:0.25+int4",
        secure_sums=training_pb2.SecureSums(
            threshold=3, bits=6, groups=[training_pb2.SumGroup(nodes=["sat-1", "sat-2"])]
        ),
        privacy=training_pb2.Privacy(
            unit=training_pb2.PRIVACY_UNIT_NODE, epsilon=3.0, delta=1e-6, clip=0.5, noise_multiplier=1.25
        ),
        nodes=["sat-1", "sat-2"], quorum=2, patience_s=7.5, cohort=4, evaluate=False,
        slice="bulk",
    )  # fmt: skip
    await trained.train("run", task="digits", rounds=20)
    assert aggregator.asked[0].request_id != aggregator.asked[1].request_id != ""


async def test_what_is_not_asked_for_is_not_sent(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """The least request: one pass over the data, nothing hidden, no skew, all nodes, measured after every round."""
    await trained.train("run", task="digits", rounds=1)
    spec = aggregator.asked[0].spec
    assert not any(spec.HasField(name) for name in ("alpha", "secure_sums", "privacy"))
    assert (spec.local.epochs, spec.local.steps) == (1, 0)
    assert (list(spec.nodes), spec.quorum, spec.cohort, spec.evaluate, spec.slice) == ([], 0, 0, True, "")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"task": ""}, "task"),
        ({"task": 7}, "task"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 1.5}, "rounds"),
        ({"rounds": 1 << 40}, "rounds"),
        ({"nodes": []}, "nodes"),
        ({"nodes": "sat-1"}, "nodes"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "9223372036854775807"),
        ({"rounds": 1_000_001}, "1 to 1000000"),
        ({"alpha": 0.0}, "above 0"),
        ({"privacy": Privacy(unit="record", epsilon=math.nan)}, "above 0"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": "skewed"}, "alpha"),
        ({"patience_s": math.inf}, "patience_s"),
        ({"strategy_options": {"mu": math.inf}}, "mu"),
        ({"strategy_options": ["mu"]}, "strategy_options"),
        ({"local": {"epochs": 1}}, "local"),
        ({"local": LocalTraining(lr=0.0)}, "local.lr"),
        ({"local": LocalTraining(batch_size=0)}, "local.batch_size"),
        ({"local": LocalTraining(epochs=-1)}, "local.epochs"),
        ({"secure_sums": True}, "secure_sums"),
        ({"secure_sums": SecureSums(bits=0)}, "secure_sums.bits"),
        ({"secure_sums": SecureSums(groups="sat-1,sat-2")}, "secure_sums.groups"),  # type: ignore[arg-type]
        ({"secure_sums": SecureSums(groups=["sat-1", "sat-2"])}, "sat-1"),
        ({"secure_sums": SecureSums(groups=[[]])}, "group"),
        ({"privacy": 3.0}, "privacy"),
        ({"privacy": Privacy("nobody", 1.0)}, "privacy.unit"),
        ({"privacy": Privacy("node", 0.0)}, "privacy.epsilon"),
        ({"privacy": Privacy("node", 1.0, noise_multiplier=math.nan)}, "privacy.noise_multiplier"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_its_name(
    wrong: dict[str, Any], words: str, aggregator: SmallAggregator, trained: AsyncMesh
) -> None:
    """A typed error that names the argument, and nothing leaves."""
    asked: dict[str, Any] = {"name": "run", "task": "digits", "rounds": 3}
    with pytest.raises(InvalidInputError, match=words):
        await trained.train(**(asked | wrong))
    assert aggregator.asked == []


def test_what_is_refused_here_is_what_the_aggregator_refuses() -> None:
    """A message that names a range names the one that holds; a name that is good here is good there."""
    assert (_training_proto.ROUNDS_MAX, _training_proto.SEED_MAX) == (spec.ROUNDS_MAX, spec.SEED_MAX)
    for name in ("a", "run-1", "0" * 63, "Upper", "a.b", "a_b", "-a", "a" * 64, "", "a\n", "\u0663"):
        try:
            here = bool(_training_proto.run_name(name))
        except InvalidInputError:
            here = False
        assert here == bool(store.NAME.fullmatch(name)), name


async def test_a_run_is_told_as_it_is(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """Every field of the message stands in the value, with the defaults that the contract names for what is 0."""
    aggregator.run = aggregator_pb2.Run(
        name="run",
        spec=training_pb2.TrainingSpec(
            task="digits", rounds=9, strategy="fedavg", local=training_pb2.LocalTraining(epochs=2),
            privacy=training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_RECORD, epsilon=2.0), nodes=["sat-1"],
        ),
        state=aggregator_pb2.RUN_STATE_PAUSED,
        why="sat-1 is away",
        rounds_done=4,
        values=650,
        nodes=[aggregator_pb2.RunNode(
            name="sat-1", state=aggregator_pb2.RUN_NODE_STATE_GIVEN_UP, examples=100, step=3, steps=7, why="silent",
            up_bytes=11, down_bytes=12,
        )],
        rounds=[
            a_round(
                3, contributed=["sat-1"], given_up={"sat-2": "silent"}, figures={"accuracy": 0.5}, train_loss=0.0,
                sum_s=0.125,
                contributions=[aggregator_pb2.RunContribution(
                    node="sat-1", examples=100, size_bytes=11, staleness=1, down_s=1, train_s=2, wait_s=3, up_s=4
                )],
            ),
            a_round(4, done=False),
        ],
        epsilon=0.25,
    )  # fmt: skip
    training = await trained.training("run")
    status = await training.status()
    assert (status.state, status.why, status.rounds_done, status.values) == ("paused", "sat-1 is away", 4, 650)
    assert (status.began_at, status.epsilon, status.ended) == (None, 0.25, False)
    assert status.spec.local == LocalTraining(epochs=2)
    assert status.spec.privacy == Privacy(unit="record", epsilon=2.0)
    assert status.spec.secure_sums is None
    (node,) = status.nodes
    assert (node.state, node.examples, node.step, node.steps, node.why) == ("given_up", 100, 3, 7, "silent")
    assert (node.up_bytes, node.down_bytes) == (11, 12)
    third, fourth = status.rounds
    assert (third.contributed, third.given_up, third.figures) == (("sat-1",), {"sat-2": "silent"}, {"accuracy": 0.5})
    assert third.contributions == (TrainingContribution("sat-1", 100, 11, 1, 1.0, 2.0, 3.0, 4.0),)
    assert (third.sum_s, fourth.contributions) == (0.125, ())
    assert (third.train_loss, third.done_at) == (0.0, datetime(2026, 3, 1, 12, 3, tzinfo=UTC))
    assert (fourth.train_loss, fourth.done_at, fourth.up_bytes) == (None, None, 40)
    assert [run.name for run in await trained.trainings()] == ["run"]


async def test_a_handle_on_a_run_that_is_not_there_is_refused(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """Where the handle is asked for, not where it is used."""
    with pytest.raises(InvalidInputError, match="nothing") as refused:
        await trained.training("nothing")
    assert refused.value.reason == "NOT_FOUND"


async def test_a_ledger_is_told_entry_by_entry(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """What was promised, with the defaults of the contract, what was spent, and by whom."""
    ledger = await (await trained.training("run")).ledger()
    assert ledger.promised == Privacy(unit="record", epsilon=2.0, delta=1e-5, clip=1.0)
    assert (ledger.epsilon, ledger.rounds_left) == (0.75, 5)
    (entry,) = ledger.entries
    assert (entry.round, entry.node, entry.steps, entry.sample_rate) == (3, "sat-1", 4, 0.25)
    assert (entry.noise_multiplier, entry.epsilon) == (1.5, 0.75)


async def test_the_rounds_to_be_are_sent_with_a_resumption(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """None leaves them as they were, which is 0 on the wire."""
    training = await trained.training("run")
    await training.resume()
    await training.resume(rounds=40)
    assert [each.rounds for each in aggregator.asked[1:]] == [0, 40]
    with pytest.raises(InvalidInputError, match="rounds"):
        await training.resume(rounds=0)


@pytest.mark.parametrize("how", ["TRANSPORT", "DRAINING", ""], ids=["cut", "draining", "ended in good order"])
async def test_a_watch_goes_on_over_a_new_stream_and_repeats_nothing(
    how: str, aggregator: SmallAggregator, trained: AsyncMesh
) -> None:
    """Rounds that the first stream told are not told again by the second; one that changed since is."""
    aggregator.watching = [
        saying(told(RUNNING, a_round(0), a_round(1, done=False)), then=how),
        saying(
            told(RUNNING, a_round(0), a_round(1), rounds_done=2),
            told(DONE, a_round(1, figures={"loss": 1.0}), a_round(2), rounds_done=3),
        ),
    ]
    updates = [update async for update in (await trained.training("run")).watch()]
    assert [[each.index for each in update.rounds] for update in updates] == [[0, 1], [1], [1, 2]]
    assert [update.rounds_done for update in updates] == [0, 2, 3]
    assert updates[-1].state == "done"


async def test_a_watch_asks_for_the_rounds_from_where_it_is(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """After a cut only rounds that may yet change are asked for, and never those before the asked one."""
    far = _training.ROUNDS_REMEMBERED + 100
    aggregator.watching = [
        saying(told(RUNNING, a_round(1), a_round(5)), then="TRANSPORT"),
        saying(told(RUNNING, aggregator_pb2.RunRound(index=far)), then="TRANSPORT"),
        saying(told(DONE)),
    ]
    updates = [update async for update in (await trained.training("run")).watch(from_round=3)]
    assert [[each.index for each in update.rounds] for update in updates] == [[5], [far], []]
    asked = [each.from_round for each in aggregator.asked if isinstance(each, aggregator_pb2.WatchRunRequest)]
    assert asked == [3, 3, far - _training.ROUNDS_REMEMBERED + 1]


async def test_a_watch_outlives_a_restart_of_the_gateway(
    aggregator: SmallAggregator, gateway: SmallGateway, trained: AsyncMesh, identities: Identities
) -> None:
    """The server is stopped in the middle and another one starts on its port: the loop goes on to the run's end."""
    updates: list[Any] = []
    first_heard = asyncio.Event()

    async def watch(mesh: AsyncMesh) -> None:
        async for update in (await mesh.training("run")).watch():
            updates.append(update)
            first_heard.set()

    async def for_ever(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        yield told(RUNNING, a_round(0))
        await asyncio.Event().wait()

    other, place = SmallGateway(), SmallGateway()
    first = await serve(place, identities.gateway, SmallAggregator(aggregator.run, watching=[for_ever]))
    async with AsyncMesh.connect(place.address, identity=identities.client) as mesh:
        watching = asyncio.create_task(watch(mesh))
        await asyncio.wait_for(first_heard.wait(), WAIT_S)
        await first.stop(None)
        other.address = place.address
        small = SmallAggregator(aggregator.run, watching=[saying(told(DONE, a_round(0), a_round(1)))])
        second = await serve(other, identities.gateway, small)
        await asyncio.wait_for(watching, WAIT_S)
        await second.stop(None)
    assert [[each.index for each in update.rounds] for update in updates] == [[0], [1]]


async def test_a_watch_gives_up_when_nobody_answers(
    aggregator: SmallAggregator, trained: AsyncMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patience is bounded, and the error is the one that it was cut by."""
    monkeypatch.setattr(_training, "PATIENCE_S", 0.5)
    aggregator.watching = [saying(told(RUNNING), then="TRANSPORT"), saying(then="TRANSPORT")]
    training = await trained.training("run")
    with pytest.raises(TransportError, match="as the test wants it"):
        await asyncio.wait_for(training.wait(), WAIT_S)


async def test_a_watch_does_not_go_on_over_a_refusal(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """What asking again does not mend is raised at once."""
    aggregator.watching = [saying(told(RUNNING), then="NOT_FOUND")]
    with pytest.raises(InvalidInputError) as refused:
        await (await trained.training("run")).wait()
    assert refused.value.reason == "NOT_FOUND"
    assert sum(isinstance(each, aggregator_pb2.WatchRunRequest) for each in aggregator.asked) == 1


@pytest.mark.parametrize(
    ("state", "error", "reason"),
    [
        (aggregator_pb2.RUN_STATE_FAILED, InvalidInputError, "FAILED_PRECONDITION"),
        (aggregator_pb2.RUN_STATE_CANCELLED, CancelledError_, "CANCELLED"),
    ],
)
async def test_waiting_for_a_run_that_is_not_done_is_an_error(
    state: aggregator_pb2.RunState, error: type[Exception], reason: str, aggregator: SmallAggregator, trained: AsyncMesh
) -> None:
    """A run that failed or was cancelled never looks like one that is done."""
    aggregator.watching = [saying(told(RUNNING), told(state, why="the loss is not finite", rounds_done=2))]
    with pytest.raises(error, match="2 rounds") as ended:
        await (await trained.training("run")).wait()
    assert getattr(ended.value, "reason", "") == reason


async def test_waiting_has_its_own_time(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """The run goes on where the time is spent; the stream of the one who waited is given back."""
    begun, left = asyncio.Event(), asyncio.Event()

    async def for_ever(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        yield told(RUNNING)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    aggregator.watching = [for_ever]
    training, timeout_s = await trained.training("run"), 0.3
    while not begun.is_set():  # on a busy machine the time may be over before anybody was asked
        with pytest.raises(DeadlineError, match="goes on"):
            await training.wait(timeout=timeout_s)
        timeout_s *= 2
    await asyncio.wait_for(left.wait(), WAIT_S)


@pytest.mark.parametrize("how", ["wait", "watch", "weights"])
async def test_who_is_cancelled_leaves_as_asyncio_wants_it(
    how: str, aggregator: SmallAggregator, trained: AsyncMesh
) -> None:
    """`asyncio.CancelledError` comes through as it is, the stream is given back, and the mesh goes on answering."""
    begun, left = asyncio.Event(), asyncio.Event()

    async def for_ever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def telling(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        yield told(RUNNING)
        await for_ever()

    async def giving(context: Any) -> AsyncIterator[aggregator_pb2.GetWeightsResponse]:
        yield aggregator_pb2.GetWeightsResponse(values=1 << 20, sha256=bytes(32))
        await for_ever()

    aggregator.watching, aggregator.giving = [telling], [giving]
    training = await trained.training("run")

    async def watch() -> None:
        async for _ in training.watch():
            pass

    works = {"wait": training.wait, "watch": watch, "weights": training.weights}
    task = asyncio.ensure_future(works[how]())
    await asyncio.wait_for(begun.wait(), WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), WAIT_S)
    assert (await training.status()).name == "run"


async def test_a_closed_mesh_ends_its_watchers(aggregator: SmallAggregator, trained: AsyncMesh) -> None:
    """With an error of ours: the task that watched was not cancelled by anybody."""
    started = asyncio.Event()

    async def for_ever(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        yield told(RUNNING)
        started.set()
        await asyncio.Event().wait()

    aggregator.watching = [for_ever]
    waiting = asyncio.create_task((await trained.training("run")).wait())
    await asyncio.wait_for(started.wait(), WAIT_S)
    await asyncio.sleep(0.1)
    await trained.close()
    with pytest.raises(CancelledError_, match="closed"):
        await asyncio.wait_for(waiting, WAIT_S)


async def test_weights_come_whole_in_memory_and_in_a_file(
    aggregator: SmallAggregator, trained: AsyncMesh, tmp_path: Path
) -> None:
    """The vector is the one that was given, bit for bit; `numpy.load` reads the file."""
    aggregator.giving = [giving(VECTOR)]
    training = await trained.training("run")
    weights = await training.weights()
    assert weights.dtype == np.float32
    assert weights.tobytes() == VECTOR.tobytes()
    saved = await training.save_weights(tmp_path / "run.npy")
    assert np.load(saved.path, allow_pickle=False).tobytes() == VECTOR.tobytes()
    assert (saved.values, saved.rounds_done) == (VECTOR.size, 3)
    assert saved.sha256 == hashlib.sha256(VECTOR.tobytes()).hexdigest()
    assert listed(tmp_path) == ["run.npy"]


async def test_weights_that_are_cut_are_asked_for_again(
    aggregator: SmallAggregator, trained: AsyncMesh, tmp_path: Path
) -> None:
    """Also where the aggregator has gone on a round meanwhile: they are the new ones, whole."""
    training = await trained.training("run")
    aggregator.giving = [giving(VECTOR, stop=1), giving(VECTOR + 1)]
    assert (await training.weights()).tobytes() == (VECTOR + 1).tobytes()
    aggregator.giving = [giving(VECTOR, stop=1), giving(VECTOR, stop=0), giving(VECTOR + 1)]
    saved = await training.save_weights(tmp_path / "run.npy")
    assert np.load(saved.path).tobytes() == (VECTOR + 1).tobytes()
    assert listed(tmp_path) == ["run.npy"]


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (giving(VECTOR, sha256=bytes(32)), "digest"),
        (giving(VECTOR, sha256=b"short"), "digest"),
        (giving(VECTOR, values=VECTOR.size - 1), "longer"),
        (giving(VECTOR, values=0), "size"),
    ],
    ids=["other bytes", "no digest", "too many", "no size"],
)
async def test_weights_that_are_not_what_was_said_are_refused(
    give: Giving, words: str, aggregator: SmallAggregator, trained: AsyncMesh, tmp_path: Path
) -> None:
    """In memory and as a file; no file is left, and one that was there stays as it was."""
    aggregator.giving = [give]
    training = await trained.training("run")
    with pytest.raises(IntegrityError, match=words):
        await training.weights()
    (tmp_path / "run.npy").write_bytes(b"before")
    with pytest.raises(IntegrityError, match=words):
        await training.save_weights(tmp_path / "run.npy")
    assert listed(tmp_path) == ["run.npy"]
    assert (tmp_path / "run.npy").read_bytes() == b"before"


async def test_too_few_bytes_are_a_cut_not_an_end(
    aggregator: SmallAggregator, trained: AsyncMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends early in good order is asked for again, for as long as a cut one."""
    monkeypatch.setattr(_weights, "RESUME_S", 0.5)
    aggregator.giving = [giving(VECTOR, values=VECTOR.size + 1)]
    with pytest.raises(TransportError, match="4 bytes early"):
        await (await trained.training("run")).weights()


async def test_nothing_is_taken_past_the_bound(
    aggregator: SmallAggregator, trained: AsyncMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that do not fit in memory are refused by their first message, with the way out."""
    monkeypatch.setattr(_weights, "MEMORY_BYTES", VECTOR.nbytes - 1)
    aggregator.giving = [giving(VECTOR)]
    with pytest.raises(InvalidInputError, match="save_weights") as refused:
        await (await trained.training("run")).weights()
    assert refused.value.reason == "LIMIT_EXCEEDED"


async def test_a_place_that_cannot_be_written_is_named(
    aggregator: SmallAggregator, trained: AsyncMesh, tmp_path: Path
) -> None:
    """A typed error, not an OSError."""
    aggregator.giving = [giving(VECTOR)]
    with pytest.raises(InvalidInputError, match="nowhere"):
        await (await trained.training("run")).save_weights(tmp_path / "nowhere" / "run.npy")


@pytest.mark.parametrize("values", [0, 1, 9, 10**9, 10**12])
def test_the_head_of_a_file_is_numpys_own(values: int, tmp_path: Path) -> None:
    """Byte for byte what `numpy.lib.format` writes for such a vector."""
    with (tmp_path / "head").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (values,)})
    assert _weights.npy_header(values) == (tmp_path / "head").read_bytes()


@pytest.fixture
def elsewhere(identities: Identities) -> Iterator[tuple[SmallGateway, SmallAggregator]]:
    """The same on a loop in another thread, for the sync client."""
    loop = LoopThread()
    place, small = SmallGateway(), SmallAggregator(aggregator_pb2.Run(name="run", state=RUNNING))
    server = loop.run(lambda: serve(place, identities.gateway, small))
    yield place, small
    loop.run(lambda: server.stop(None))
    loop.stop()


def test_the_sync_client_trains_the_same(
    elsewhere: tuple[SmallGateway, SmallAggregator], identities: Identities, tmp_path: Path
) -> None:
    """Starts, watches, waits, reads weights; a loop that is left early leaves its stream."""
    place, small = elsewhere
    small.watching = [saying(told(RUNNING, a_round(0)), told(DONE, a_round(1)))]
    small.giving = [giving(VECTOR)]
    with Mesh.connect(place.address, identity=identities.client) as mesh:
        training = mesh.train("run", task="digits", rounds=2)
        assert [[each.index for each in update.rounds] for update in training.watch()] == [[0], [1]]
        for update in training.watch():
            assert update.state == "running"
            break
        assert training.wait().name == "run"
        assert mesh.training("run").status() == training.status()
        assert training.weights().tobytes() == VECTOR.tobytes()
        assert np.load(training.save_weights(tmp_path / "run.npy").path).size == VECTOR.size
