"""Who is in a local mesh, and which ways lead from one to another."""

from __future__ import annotations

import pytest

from orbitmesh.errors import InvalidInputError
from services.localmesh.topology import SERVICES, MeshSpec, ways

LINK = {"latency_ms": 20, "rate_mbps": 100}


def spec(**more: object) -> MeshSpec:
    return MeshSpec.parse({"nodes": 3, "link": LINK} | more)


def test_every_service_stands_at_the_ground_node_and_reaches_satellites_late() -> None:
    """Each of them that dials nodes has a relay to each satellite; none has one to the node beside it, or to another
    service."""
    found = {way.name for way in ways(spec())}
    dialling = set(SERVICES) - {"slices"}
    assert {f"{service}>{sat}" for service in dialling for sat in ("sat-1", "sat-2")} <= found
    assert not {f"{service}>ground-1" for service in SERVICES} & found
    assert not {f"{one}>{other}" for one in SERVICES for other in SERVICES} & found


def test_no_relay_stands_where_nobody_dials() -> None:
    """Satellites call the gateway, the scheduler and who keeps the slices; the aggregator calls them."""
    found = {way.name for way in ways(spec())}
    assert {"sat-1>gateway", "sat-1>scheduler", "sat-1>slices", "aggregator>sat-1"} <= found
    assert not any(name.endswith(">aggregator") or name.startswith("slices>") for name in found)


def test_services_move_with_the_gateway() -> None:
    """Where the gateway stands beside a satellite, only that one is near to them."""
    found = {way.name for way in ways(spec(gateway_at="sat-2"))}
    assert {"aggregator>sat-1", "aggregator>ground-1"} <= found
    assert "aggregator>sat-2" not in found


@pytest.mark.parametrize("name", SERVICES)
def test_no_node_takes_the_name_of_a_service(name: str) -> None:
    """A kill by name would not know which is meant."""
    with pytest.raises(InvalidInputError, match=name):
        spec(node_names=["sat-1", name])
