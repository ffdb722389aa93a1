"""What a node does beside its work: it keeps measuring its links, whatever happens to the connections."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import executor_pb2
from services.executor.measures import Machine
from services.executor.membership import Membership
from services.executor.node import ExecutorNode
from services.executor.settings import ExecutorSettings
from services.runtime.logs import EventLog
from tests.executor.relay_mesh import Node, node


async def test_a_link_is_measured_although_its_connection_is_retired_between_probes(tmp_path: Path) -> None:
    """Peers move and certificates are renewed at any moment: a probe goes over the connection that is there by then."""
    ca = init_mesh(tmp_path / "ca")
    for name in ("near", "far"):
        issue(ca, Role.EXECUTOR, name, tmp_path / name)
    settings = ExecutorSettings(
        identity=tmp_path / "near", listen="127.0.0.1:0", state=tmp_path / "state", scheduler="127.0.0.1:9"
    )
    machine = Machine(cores=1, memory_bytes=1 << 30, flops=1e9, memory_bandwidth=1e9, accelerators=())
    measuring = ExecutorNode(settings, IdentitySource(settings.identity), machine, EventLog("near"))
    async with node(tmp_path / "far") as far:
        peer = executor_pb2.PeerAddress(role=Role.EXECUTOR, name="far", address=far.hop.address)
        retiring = asyncio.create_task(retire_after_each_probe(measuring, far))
        await Membership(measuring, "127.0.0.1:9")._measure(peer)
        retiring.cancel()
        (link,) = measuring.links.messages({"far"})
        assert (link.peer, link.up) == ("far", True)
        await measuring.close()


async def retire_after_each_probe(measuring: ExecutorNode, far: Node) -> None:
    seen = 0
    while True:
        if len(far.probes) > seen:
            seen = len(far.probes)
            measuring.channels.renew(Role.EXECUTOR, "far")
        await asyncio.sleep(0)
