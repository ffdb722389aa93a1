"""After a restart a contribution that is on disk counts once, by whichever way it came."""

from __future__ import annotations

import hashlib
import io
from contextlib import closing
from pathlib import Path

import pytest

from orbitmesh.trust import Identity, Role, init_mesh, issue
from services.aggregator.recovered import recovered
from services.aggregator.rounds import Round
from services.aggregator.spool import Spool
from services.runtime.logs import EventLog

NODES = ("sat-1", "sat-2", "sat-3", "sat-4")
OPEN = Round(index=3, cohort=NODES, quorum=3, patience_s=10.0)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    home = tmp_path_factory.mktemp("mesh")
    return issue(init_mesh(home / "ca"), Role.AGGREGATOR, "aggregator", home / "aggregator")


@pytest.fixture
def spool(tmp_path: Path, identity: Identity) -> Spool:
    return Spool(tmp_path / "run", lambda: identity)


def put(spool: Spool, node: str, *others: str, whole: bool = True) -> None:
    data = " ".join([node, *others]).encode()
    with closing(spool.open(3, node, others)) as incoming:
        incoming.add(0, data)
        if whole:
            incoming.finish(1, hashlib.sha256(data).hexdigest(), 100, dict.fromkeys(others, 50))


def ways(state: Round) -> dict[str, str]:
    """By what way each node's contribution came."""
    return {node: stored.via or node for node, stored in state.stored.items()}


def log() -> EventLog:
    return EventLog("aggregator", stream=io.StringIO())


def test_what_is_whole_counts_and_what_is_not_is_waited_for(spool: Spool) -> None:
    """A sum with all in it."""
    put(spool, "sat-1")
    put(spool, "sat-2", "sat-3")
    put(spool, "sat-4", whole=False)
    state = recovered(OPEN, spool, log())
    assert ways(state) == {"sat-1": "sat-1", "sat-2": "sat-2", "sat-3": "sat-2"} and state.waiting == ("sat-4",)
    assert all(stored.begun == 3 for stored in state.stored.values())


def test_a_sum_goes_before_what_one_in_it_sent_by_itself(spool: Spool) -> None:
    """The others in it have let go of theirs: without the sum they would be lost."""
    put(spool, "sat-1")
    put(spool, "sat-4", "sat-1", "sat-2")
    assert ways(recovered(OPEN, spool, log())) == {"sat-1": "sat-4", "sat-2": "sat-4", "sat-4": "sat-4"}


def test_of_two_sums_with_the_same_node_one_counts_also_the_next_time(spool: Spool) -> None:
    """The larger one; the other is removed, so that it cannot be found again."""
    put(spool, "sat-1", "sat-2")
    put(spool, "sat-4", "sat-2", "sat-3")
    for _ in range(2):
        state = recovered(OPEN, spool, log())
        assert ways(state) == {"sat-2": "sat-4", "sat-3": "sat-4", "sat-4": "sat-4"} and state.waiting == ("sat-1",)
    assert spool.stored(3, "sat-1") is None


def test_a_file_that_was_changed_is_asked_for_anew(spool: Spool, tmp_path: Path) -> None:
    """It is dropped, and the round waits for its node."""
    put(spool, "sat-1")
    (path,) = (tmp_path / "run").rglob("*.spans")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert recovered(OPEN, spool, log()).waiting == NODES
    assert not path.exists()
