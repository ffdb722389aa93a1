"""Training on a mesh of real processes through the SDK."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from orbitmesh import InvalidInputError, Link, Mesh, TransportError

WAIT_S = 60.0


def until(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds, which it must do at some time."""
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def listed(mesh: Mesh) -> list[str] | None:
    """The names of the runs; None where the aggregator is out of reach."""
    try:
        return [run.name for run in mesh.trainings(timeout=5)]
    except TransportError:
        return None


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Two satellites and a ground node, with emulated links."""
    with Mesh.local(nodes=3, link=Link(latency_ms=2, rate_mbps=1000)) as local:
        yield local


def test_a_local_mesh_has_an_aggregator_that_comes_back_where_it_was(mesh: Mesh) -> None:
    """Killed, it is a typed error worth a retry; started again, the gateway finds it without being told."""
    assert mesh.trainings() == []
    pid = mesh.local.services()["aggregator"]
    mesh.local.kill("aggregator")
    with pytest.raises(TransportError) as away:
        mesh.trainings(timeout=5)
    assert away.value.retryable
    mesh.local.restart("aggregator")
    assert mesh.local.services()["aggregator"] != pid
    until(lambda: listed(mesh) == [], "the gateway reaches it again")


def test_the_aggregators_links_are_emulated_as_the_gateways(mesh: Mesh) -> None:
    """It has one to each satellite, which can be cut and restored by the names of both ends; none to its own place."""
    relays = mesh.local.stats()["relays"]
    assert {name for name in relays if "aggregator" in name} == {"aggregator>sat-1", "aggregator>sat-2"}
    mesh.local.cut("aggregator", "sat-1")
    assert mesh.local.stats()["relays"]["aggregator>sat-1"]["state"] == "cut"
    mesh.local.restore("sat-1", "aggregator")
    assert mesh.local.stats()["relays"]["aggregator>sat-1"]["state"] == "up"
    with pytest.raises(InvalidInputError, match="no link"):
        mesh.local.cut("aggregator", "ground-1")
