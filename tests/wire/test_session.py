"""Sessions over connections in memory that lose, cut, double, swap and damage what they carry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from orbitmesh.errors import IntegrityError, InvalidInputError, MeshError, NodeLostError, TransportError
from orbitmesh.trust import Identity, init_mesh, issue
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.carrying import REFUSALS
from orbitmesh.wire.dialler import Dialler
from orbitmesh.wire.frames import FRAME_CREDIT_BYTES, parse_header, split_message
from orbitmesh.wire.records import SessionEndError
from orbitmesh.wire.seal import TAG_BYTES
from orbitmesh.wire.session import Session, open_sessions
from tests.wire.memory_wire import Faults, Network, Pipe
from tests.wire.virtual_time import simulate

WINDOW = 2 << 20
DAMAGE = Faults(cut=0.02, corrupt=0.03, duplicate=0.03, drop=0.03, swap=0.03)


@dataclass(frozen=True)
class Mesh:
    one: Identity
    two: Identity


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    home = tmp_path_factory.mktemp("identities")
    return Mesh(issue(ca, "executor", "sat-1", home / "1"), issue(ca, "executor", "sat-2", home / "2"))


@dataclass
class World:
    network: Network
    acceptor: SessionAcceptor
    session: Session


@asynccontextmanager
async def connected(
    mesh: Mesh,
    on_session: Callable[[Session], Coroutine[Any, Any, None]],
    *,
    seed: int = 0,
    faults: Faults | None = None,
    window: int = WINDOW,
    give_up_after_s: float = 30.0,
    idle_s: float = 30.0,
) -> AsyncIterator[World]:
    acceptor = SessionAcceptor(mesh.two, on_session, window=window, idle_s=idle_s)
    network = Network(acceptor, mesh.one.spiffe, seed, faults)
    session = await Dialler(
        network.open,
        mesh.one,
        receiver_role="executor",
        receiver_name="sat-2",
        give_up_after_s=give_up_after_s,
        window=window,
        jitter=random.Random(seed).random,
    ).start()
    try:
        yield World(network, acceptor, session)
    finally:
        await session.close()
        await network.stop()


def blob(tag: int) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=tag))


def content(seed: int, tag: int) -> bytes:
    """The data of a transfer: mostly small, some of several frames."""
    rng = random.Random(seed * 1000 + tag)
    size = rng.choice([0, 1, 7, 300, 5_000, 70_000, 1 << 20, (1 << 20) + 1, 2_500_000])
    return rng.randbytes(size)


async def settled(check: Callable[[], bool]) -> None:
    """Waits until `check` holds."""
    async with asyncio.timeout(60):
        while not check():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


async def both_ways(mesh: Mesh, seed: int, faults: Faults, count: int = 12) -> World:
    """Sends `count` transfers each way over a bad connection; each must arrive once, whole and in order."""
    arrived: list[tuple[int, bytes]] = []
    back: list[tuple[int, bytes]] = []

    async def on_session(session: Session) -> None:
        async def answer() -> None:
            for tag in range(count):
                await session.send(blob(tag), content(seed + 1, tag))

        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            async for received in session:
                arrived.append((received.info.blob.tag, bytes(received.data)))

    async with connected(mesh, on_session, seed=seed, faults=faults, window=4 << 20) as world:

        async def collect() -> None:
            for _ in range(count):
                received = await world.session.receive()
                back.append((received.info.blob.tag, bytes(received.data)))

        async with asyncio.TaskGroup() as group:
            group.create_task(collect())
            for tag in range(count):
                await world.session.send(blob(tag), content(seed, tag))
        await world.session.flush()
        await settled(lambda: len(arrived) == count)
        assert arrived == [(tag, content(seed, tag)) for tag in range(count)], f"seed {seed}"
        assert back == [(tag, content(seed + 1, tag)) for tag in range(count)], f"seed {seed}"
        for pipe in world.network.pipes:
            written = pipe.first_of_dialler
            if written:
                # A new connection starts where the receiver stopped: nothing acknowledged is sent again.
                assert written == list(range(written[0], written[0] + len(written))), f"seed {seed}"
                assert written[0] == max(pipe.accepted_from, 0), f"seed {seed}"
        return world


@pytest.mark.parametrize("seed", range(12))
def test_cuts_lose_and_repeat_nothing(mesh: Mesh, seed: int) -> None:
    """Cut at random points, every transfer arrives once, in order; nothing acknowledged is sent again."""
    simulate(both_ways(mesh, seed, Faults(cut=0.08)))


@pytest.mark.parametrize("seed", range(12))
def test_damage_on_the_way_is_refused_and_sent_again(mesh: Mesh, seed: int) -> None:
    """Flipped bits, lost, doubled and swapped frames never reach the application; the frames come again."""
    simulate(both_ways(mesh, 1000 + seed, DAMAGE))


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_gives_the_same_run_every_time(mesh: Mesh, seed: int) -> None:
    """Two runs of a seed write the same frames on the same connections and take the same virtual time."""

    async def run() -> tuple[float, list[list[int]], int]:
        world = await both_ways(mesh, 2000 + seed, DAMAGE)
        stats = world.session.stats
        written = [pipe.first_of_dialler for pipe in world.network.pipes]
        return asyncio.get_running_loop().time(), written, stats.resent_bytes

    first, second = simulate(run()), simulate(run())
    assert first == second
    assert len(first[1]) > 1, "nothing went wrong in it"


def test_random_cuts_do_happen(mesh: Mesh) -> None:
    """The simulation is not idle: over the seeds above there are cuts, and frames written again."""
    worlds = [simulate(both_ways(mesh, seed, Faults(cut=0.15), count=6)) for seed in range(3)]
    assert sum(world.session.stats.resumes for world in worlds) > 3


async def test_a_sender_waits_for_a_receiver_that_does_not_take(mesh: Mesh) -> None:
    """What waits at either end is bounded by the window; once the receiver takes, everything arrives."""
    fits = WINDOW // (60_000 + TAG_BYTES + FRAME_CREDIT_BYTES)
    go = asyncio.Event()
    taken: list[int] = []

    async def on_session(session: Session) -> None:
        await go.wait()
        async for received in session:
            taken.append(len(received.data))

    async with connected(mesh, on_session) as world:
        sending = [asyncio.ensure_future(world.session.send(blob(n), bytes(60_000))) for n in range(60)]
        await settled(lambda: sum(each.done() for each in sending) >= fits)
        for _ in range(200):
            await asyncio.sleep(0)
        receiver = world.acceptor.sessions[0]
        assert receiver.stats.received_bytes <= WINDOW
        assert world.session.stats.sent_bytes <= WINDOW
        assert sum(each.done() for each in sending) == fits
        go.set()
        reports = await asyncio.gather(*sending)
        await settled(lambda: len(taken) == 60)
        assert max(report.credit_ns for report in reports) > 0


async def test_a_transfer_that_is_on_the_way_is_listed_with_what_it_waits_for(mesh: Mesh) -> None:
    """As long as it is, at both ends, and by the process's list of sessions; not before and not after."""
    go = asyncio.Event()

    async def on_session(session: Session) -> None:
        await go.wait()
        async for received in session:
            del received

    async with connected(mesh, on_session) as world:
        session = world.session
        assert session in open_sessions() and session.sending == []
        # Nobody takes these: there is no credit left for what follows.
        full = [asyncio.ensure_future(session.send(blob(0), bytes(60_000))) for _ in range(WINDOW // 60_000)]
        sending = asyncio.ensure_future(session.send(blob(7), bytes(3 * WINDOW)))
        await settled(lambda: bool(session.sending) and session.sending[-1].waits_for == "credit")
        told = session.sending[-1]
        assert (told.info.blob.tag, told.total_bytes) == (7, 3 * WINDOW) and told.done_bytes < WINDOW
        receiver = world.acceptor.sessions[0]
        assert receiver in open_sessions()
        go.set()
        await asyncio.gather(sending, *full)
        assert session.sending == []
        await session.flush()
        assert receiver.receiving == 0 and session.unacknowledged_bytes == 0
    assert session not in open_sessions()


async def test_small_transfers_pass_a_huge_one(mesh: Mesh) -> None:
    """Frames of many transfers interleave: a small one sent during a huge one arrives before it."""
    order: list[int] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            order.append(received.info.blob.tag)

    async with connected(mesh, on_session, window=4 << 20) as world:
        huge = asyncio.ensure_future(world.session.send(blob(0), bytes(30 << 20)))
        await settled(lambda: world.session.stats.sent_frames > 2)
        await world.session.send(blob(1), b"small")
        assert not huge.done()
        await huge
        await settled(lambda: len(order) == 2)
        assert order == [1, 0]


async def test_a_cancelled_send_is_dropped_by_the_receiver(mesh: Mesh) -> None:
    """Half a transfer is never delivered: the receiver is told to drop it and the session goes on."""
    arrived: list[int] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            arrived.append(received.info.blob.tag)

    async with connected(mesh, on_session, window=4 << 20) as world:
        huge = asyncio.ensure_future(world.session.send(blob(0), bytes(60 << 20)))
        await settled(lambda: world.session.stats.sent_frames > 4)
        huge.cancel()
        with pytest.raises(asyncio.CancelledError):
            await huge
        await world.session.send(blob(1), b"after")
        await world.session.flush()
        await settled(lambda: arrived == [1])
        inbox = world.acceptor.sessions[0]._receiver.inbox
        assert (inbox.partial_transfers, inbox._partial_bytes) == (0, 0)


async def test_the_end_arrives_after_everything(mesh: Mesh) -> None:
    """A session closed in order ends at the other side once all was received, and cannot be used any more."""
    seen: list[int] = []
    ended = asyncio.Event()

    async def on_session(session: Session) -> None:
        async for received in session:
            seen.append(received.info.blob.tag)
        with pytest.raises(SessionEndError):
            await session.receive()
        ended.set()

    async with connected(mesh, on_session) as world:
        for tag in range(5):
            await world.session.send(blob(tag), b"x")
        await world.session.close()
        await asyncio.wait_for(ended.wait(), 60)
        assert seen == list(range(5))
        with pytest.raises(TransportError, match="closed"):
            await world.session.send(blob(9))
        await settled(lambda: not world.acceptor.sessions)


async def test_an_acceptor_that_returns_closes_the_session(mesh: Mesh) -> None:
    """What the accepting side sent before its end is received first."""

    async def on_session(session: Session) -> None:
        await session.send(blob(3), b"last words")

    async with connected(mesh, on_session) as world:
        assert bytes((await world.session.receive()).data) == b"last words"
        with pytest.raises(SessionEndError):
            await world.session.receive()


async def test_a_receiver_that_was_restarted_is_a_lost_node(mesh: Mesh) -> None:
    """A session that the other end does not know any more fails with NodeLostError for all its users."""

    async def on_session(session: Session) -> None:
        async for _ in session:
            pass

    async with connected(mesh, on_session, idle_s=0.1) as world:
        await world.session.send(blob(0), b"x")
        await world.session.flush()
        world.network.acceptor = SessionAcceptor(mesh.two, on_session)
        world.network.pipes[-1].cut()
        with pytest.raises(NodeLostError):
            await world.session.receive()
        with pytest.raises(NodeLostError):
            await world.session.send(blob(1), b"y")
        await settled(lambda: not world.acceptor.sessions)


@pytest.mark.parametrize("returns", [True, False])
async def test_a_session_whose_first_answer_is_lost_is_served_or_given_up(mesh: Mesh, returns: bool) -> None:
    """Cut just as it was accepted, a session runs once its peer comes back, and is dropped where it does not."""
    served: list[int] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            served.append(received.info.blob.tag)

    # Short where both are to give up alone: a machine that stands still for that long must not decide it.
    patience_s = 30.0 if returns else 0.1
    acceptor = SessionAcceptor(mesh.two, on_session, window=WINDOW, idle_s=patience_s)
    network = Network(acceptor, mesh.one.spiffe, 0)
    note = network.note

    def cut_at_accept(pipe: Pipe, side: int, message: bytes) -> None:
        note(pipe, side, message)
        if side == 1 and pipe is network.pipes[0] and parse_header(split_message(message)[0]).HasField("accept"):
            network.unreachable = not returns
            pipe.cut()

    network.note = cut_at_accept  # type: ignore[method-assign]
    session = await Dialler(
        network.open,
        mesh.one,
        receiver_role="executor",
        receiver_name="sat-2",
        give_up_after_s=2 * patience_s,
        window=WINDOW,
    ).start()
    await settled(lambda: len(acceptor.sessions) == 1)
    if returns:
        await session.send(blob(5), b"x")
        await settled(lambda: served == [5])
        await session.close()
    else:
        with pytest.raises(TransportError):
            await session.receive()
    await settled(lambda: not acceptor.sessions)
    await network.stop()


async def test_a_peer_that_stays_away_is_given_up_at_both_ends(mesh: Mesh) -> None:
    """The dialler gives up after its time, the acceptor after its own; both say so with a typed error."""
    failed: list[MeshError] = []

    async def on_session(session: Session) -> None:
        try:
            async for _ in session:
                pass
        except MeshError as error:
            failed.append(error)

    async with connected(mesh, on_session, give_up_after_s=0.15, idle_s=0.1) as world:
        await world.session.send(blob(0), b"x" * 100)
        await world.session.flush()
        await settled(lambda: not world.acceptor.sessions[0]._receiver.waiting)
        world.network.unreachable = True
        world.network.pipes[-1].cut()
        with pytest.raises(TransportError, match="could not be taken up again"):
            await world.session.receive()
        await settled(lambda: not world.acceptor.sessions)
        assert [error.reason for error in failed] == ["NODE_LOST"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_acceptor_that_closes_waits_for_nobody_who_is_cut_off(mesh: Mesh, when: str) -> None:
    """A session without a connection cannot be taken up again then: it ends at once, also where the connection breaks
    as the acceptor closes."""
    ended: list[int] = []

    async def on_session(session: Session) -> None:
        try:
            async for _ in session:
                pass
        finally:
            ended.append(1)

    async def run() -> float:
        async with connected(mesh, on_session) as world:
            await world.session.send(blob(0), b"x")
            await world.session.flush()
            world.network.unreachable = True
            pipe = world.network.pipes[-1]
            if when == "before":
                pipe.cut()
                await settled(lambda: not world.acceptor.sessions[0].attached)
            else:
                world.network.put = lambda queue, message: None  # type: ignore[method-assign]
                asyncio.get_running_loop().call_later(0.1, pipe.cut)
            began_s = asyncio.get_running_loop().time()
            await world.acceptor.close()
            assert world.acceptor.sessions == []
            return asyncio.get_running_loop().time() - began_s

    assert simulate(run()) <= (0.0 if when == "before" else 0.1)
    assert ended == [1]


async def _tampered(
    mesh: Mesh,
    edit: Callable[[wire_pb2.FrameHeader, bytes], bytes],
    send: Callable[[Session], Coroutine[Any, Any, Any]],
) -> tuple[MeshError, MeshError]:
    """How a session fails at both ends where `edit` changes every data frame of the dialler."""
    at_acceptor: asyncio.Future[MeshError] = asyncio.get_running_loop().create_future()

    async def on_session(session: Session) -> None:
        try:
            await session.receive()
        except MeshError as error:
            at_acceptor.set_result(error)
            return
        at_acceptor.set_result(MeshError("a damaged transfer was delivered"))

    async with connected(mesh, on_session) as world:
        put = world.network.put

        def edited(queue: Any, message: bytes) -> None:
            header = parse_header(split_message(message)[0])
            put(queue, edit(header, message) if header.HasField("data") else message)

        world.network.put = edited  # type: ignore[method-assign]
        await asyncio.gather(send(world.session), return_exceptions=True)
        with pytest.raises(MeshError) as at_dialler:
            await world.session.receive()
        assert len(world.network.pipes) == REFUSALS
        return at_dialler.value, await asyncio.wait_for(at_acceptor, 60)


async def test_a_frame_that_is_damaged_every_time_fails_the_session_at_both_ends(mesh: Mesh) -> None:
    """The third refusal of a frame is final, with one reason at both ends; nothing is delivered."""

    def flip(header: wire_pb2.FrameHeader, message: bytes) -> bytes:
        return message[:-1] + bytes((message[-1] ^ 1,))

    async def send(session: Session) -> None:
        await session.send(blob(0), b"x" * 1000)

    dialler, acceptor = await _tampered(mesh, flip, send)
    assert dialler.reason == acceptor.reason == "SEAL_BROKEN"


async def test_a_decompression_bomb_fails_the_session_without_allocating(mesh: Mesh) -> None:
    """A body that decodes to more than its authenticated size is refused at both ends, at once."""
    from orbitmesh.wire import sending as module

    bomb = b"\x01" + __import__("zstandard").ZstdCompressor().compress(bytes(50 << 20))
    original = module.encode_frame
    errors: list[MeshError] = []

    async def on_session(session: Session) -> None:
        try:
            await session.receive()
        except MeshError as error:
            errors.append(error)

    async with connected(mesh, on_session) as world:
        module.encode_frame = lambda codec, data, dtype: (bomb, 0)
        try:
            await asyncio.gather(world.session.send(blob(0), bytes(1000), codec=2), return_exceptions=True)
            with pytest.raises(IntegrityError) as raised:
                await world.session.receive()
        finally:
            module.encode_frame = original
        assert raised.value.reason == "DECOMPRESSION_BOMB"
        await settled(lambda: bool(errors))
        assert errors[0].reason == "DECOMPRESSION_BOMB"


@pytest.mark.parametrize("codec", [2, 3])
async def test_lossless_codecs_bring_every_bit_back(mesh: Mesh, codec: int) -> None:
    """Large and small tensors, coded in threads or in place, arrive in the order they were sent."""
    got: list[bytes] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            got.append(bytes(received.data))

    rng = random.Random(codec)
    sent = [rng.randbytes(4 * count) for count in (10, 600_000, 3, 300_000, 20_000)]
    async with connected(mesh, on_session) as world:
        for data in sent:
            tensor = wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[len(data) // 4])
            await world.session.send(wire_pb2.TransferInfo(tensor=tensor), data, codec=codec)
        await settled(lambda: len(got) == len(sent))
    assert got == sent


async def test_wrong_sizes_are_refused_before_anything_is_sent(mesh: Mesh) -> None:
    """A tensor whose bytes do not fit its shape is the caller's mistake; the session goes on."""

    async def on_session(session: Session) -> None:
        async for received in session:
            await session.send(received.info, received.data)

    async with connected(mesh, on_session) as world:
        tensor = wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[2, 3])
        with pytest.raises(InvalidInputError, match="24 bytes"):
            await world.session.send(wire_pb2.TransferInfo(tensor=tensor), bytes(23))
        await world.session.send(wire_pb2.TransferInfo(tensor=tensor), bytes(24))
        assert len((await world.session.receive()).data) == 24
