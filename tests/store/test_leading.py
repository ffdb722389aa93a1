"""Two schedulers over one PostgreSQL, real processes: one leads, and the other when it is gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh.errors import TransportError
from orbitmesh.rpc import map_rpc_error, mapped_errors, open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.runtime.store import Location
from services.scheduler.server import SERVICE
from services.scheduler.store import DeploymentStore
from tests.postgres import Server, running
from tests.store.processes import PATIENCE_S, Process, health, plain_channel, until

grpc = pytest.importorskip("grpc")


class Pair:
    """Two schedulers of one name, each with keys of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        init_mesh(directory / "ca")
        self.user: Identity = issue(directory / "ca", Role.OPERATOR, "olga", directory / "olga")
        self.all: list[Process] = []

    def start(self) -> Process:
        name = f"scheduler-{len(self.all)}"
        issue(self.directory / "ca", Role.SCHEDULER, "scheduler", self.directory / name)
        process = Process(
            "services.scheduler", self.directory / f"{name}.log", "--identity", str(self.directory / name),
            "--listen", "127.0.0.1:0", "--state", str(self.directory / "state" / name), "--store", self.url,
        )  # fmt: skip
        self.all.append(process)
        return process

    def end(self) -> None:
        """Ends every process."""
        for process in self.all:
            process.end()

    def names(self, address: str) -> list[str]:
        """The deployments, as whoever leads says."""

        async def ask() -> list[str]:
            async with open_channel(address, self.user, Role.SCHEDULER, "scheduler") as channel:
                stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
                with mapped_errors():
                    request = scheduler_pb2.ListDeploymentsRequest()
                    answer = await stub.ListDeployments(request, timeout=PATIENCE_S)
            return [each.name for each in answer.deployments]

        return asyncio.run(ask())


@pytest.fixture
def pair(tmp_path: Path, postgres: Server) -> Iterator[Pair]:
    made = Pair(tmp_path, postgres.fresh())
    keep(made)
    yield made
    made.end()


def keep(pair: Pair) -> None:
    """Has a deployment in the database."""
    store = DeploymentStore(Location.parse(pair.url))
    failed = scheduler_pb2.Deployment(name="kept", state=scheduler_pb2.DEPLOYMENT_STATE_FAILED)
    store.put(failed, scheduler_pb2.CreateDeploymentRequest(name="kept", request_id="r"))
    store.close()


def two(pair: Pair) -> tuple[Process, Process, str]:
    """The leader, the standby, and the address of both."""
    leader = pair.start()
    leader.wait_for("leads")
    standby = pair.start()
    standby.wait_for("stands_by")
    until(lambda: len(leader.events("listening")) == 2, "the leader listens")
    return leader, standby, f"{standby.address},{leader.address}"


def test_one_leads_and_the_other_says_who(pair: Pair) -> None:
    """Health knows them apart; the standby refuses with a typed error that may be tried again; a caller that knows both
    addresses reaches the leader every time; when the leader is asked to stop, the other leads at once."""
    leader, standby, both = two(pair)
    assert health(leader.address, pair.user, Role.SCHEDULER, SERVICE) == "SERVING"
    assert health(standby.address, pair.user, Role.SCHEDULER, SERVICE) == "NOT_SERVING"
    with plain_channel(standby.address, pair.user, Role.SCHEDULER) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListDeployments(scheduler_pb2.ListDeploymentsRequest(), timeout=PATIENCE_S)
        error = map_rpc_error(refused.value)
        assert isinstance(error, TransportError) and error.retryable
        assert (error.reason, error.metadata["leader"]) == ("NOT_LEADER", leader.address)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.WatchDeployments(scheduler_pb2.WatchDeploymentsRequest(), timeout=PATIENCE_S))
        assert map_rpc_error(refused.value).reason == "NOT_LEADER"
    for _ in range(8):
        assert pair.names(both) == ["kept"]
    leader.signal(signal.SIGTERM)
    assert leader.wait() == 0
    standby.wait_for("leads")
    until(lambda: answers(pair, both), "the other answers")
    assert health(standby.address, pair.user, Role.SCHEDULER, SERVICE) == "SERVING"
    standby.signal(signal.SIGTERM)
    assert standby.wait() == 0


def answers(pair: Pair, address: str) -> bool:
    try:
        return pair.names(address) == ["kept"]
    except TransportError as error:
        assert error.retryable
        return False


def test_a_leader_that_is_killed_is_followed(pair: Pair) -> None:
    """What it had acknowledged is there; one that is started in its place stands by."""
    leader, standby, both = two(pair)
    leader.kill()
    until(lambda: answers(pair, both), "the other leads")
    assert standby.leads
    third = pair.start()
    third.wait_for("stands_by")
    assert not third.leads


def test_a_leader_that_was_stopped_writes_nothing_when_it_wakes_up(pair: Pair) -> None:
    """SIGSTOP, another leads, SIGCONT: a call that had reached the old one meanwhile is refused, what it would have
    deleted is there, and it ends with a line that says why."""
    leader, standby, both = two(pair)
    with plain_channel(leader.address, pair.user, Role.SCHEDULER) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stub.ListDeployments(scheduler_pb2.ListDeploymentsRequest(), timeout=PATIENCE_S)
        leader.signal(signal.SIGSTOP)
        late = stub.DeleteDeployment.future(
            scheduler_pb2.DeleteDeploymentRequest(name="kept"), timeout=PATIENCE_S
        )
        standby.wait_for("leads")
        leader.signal(signal.SIGCONT)
        with pytest.raises(grpc.RpcError) as refused:
            late.result()
        assert map_rpc_error(refused.value).retryable
    assert leader.wait() == 1
    assert f"{standby.address} does" in leader.log.splitlines()[-1]
    until(lambda: answers(pair, both), "the other answers")


def test_a_standby_that_is_asked_to_stop_stops(pair: Pair) -> None:
    """It never led, and takes nothing along."""
    leader, standby, _ = two(pair)
    standby.signal(signal.SIGTERM)
    assert standby.wait() == 0
    assert not standby.leads
    assert pair.names(leader.address) == ["kept"]


def test_one_leads_again_when_the_database_was_away(tmp_path: Path) -> None:
    """While it is away nothing is answered as if it were there, and nobody ends for it; afterwards one of the two
    leads, and what was there is there."""
    with running() as server:
        pair = Pair(tmp_path, server.fresh())
        try:
            keep(pair)
            leader, standby, both = two(pair)
            server.stop()
            leader.wait_for("lease_not_renewed")
            standby.wait_for("lease_out_of_reach")
            until(lambda: not answers(pair, leader.address), "the leader's own clock ends its lease")
            assert leader.running and standby.running
            server.start()
            until(lambda: answers(pair, both), "one of them leads")
        finally:
            pair.end()


@pytest.mark.parametrize(
    ("store", "code", "words"),
    [
        ("postgresql://ann:geheim@127.0.0.1/mesh", 2, "--store-file"),
        ("mysql://127.0.0.1/mesh", 2, "postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://ann@127.0.0.1:1/mesh", 1, "cannot be reached"),
    ],
)
def test_a_store_that_cannot_be_used_ends_the_start_with_one_line(
    tmp_path: Path, store: str, code: int, words: str
) -> None:
    """It says what is wrong and what to do, and no secret."""
    pair = Pair(tmp_path, store)
    process = pair.start()
    assert process.wait() == code
    lines = process.log.splitlines()
    assert len(lines) == 1 and words in lines[0] and "geheim" not in lines[0]
