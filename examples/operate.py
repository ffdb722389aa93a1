"""What an operator looks at: nodes, links, deployments, processes, what is on the way; and a log level changed.

    python examples/operate.py
    python examples/operate.py gateway.example:7443 ~/.orbitmesh/operator     # an identity of the role operator

The same by grpcurl, line by line: docs/ops.md.
"""

from __future__ import annotations

import asyncio
import sys

from _mesh import mesh_of

from orbitmesh.rpc import open_channel
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc


async def look(address: str, identity: str) -> None:
    """Asks the gateway, which asks the others."""
    async with open_channel(address, load_identity(identity), Role.GATEWAY, None) as channel:
        ops = ops_pb2_grpc.OpsServiceStub(channel)
        topology = await ops.GetTopology(ops_pb2.GetTopologyRequest(), timeout=20)
        for node in topology.nodes:
            print(f"  {node.name:<10} {node.kind:<10} {node.state:<6} load {node.load:.2f}")
        print(f"  {len(topology.links)} links, {len(topology.deployments)} deployments")
        for process in ("gateway/gateway", *(f"executor/{node.name}" for node in topology.nodes)):
            about = await ops.GetProcess(ops_pb2.GetProcessRequest(process=process), timeout=20)
            print(f"  {about.process}: up {about.up_s:.0f} s, {about.memory_bytes >> 20} MiB, log {about.log_level}")
        running = await ops.ListGenerations(ops_pb2.ListGenerationsRequest(), timeout=20)
        print(f"  {len(running.generations)} generations under way")
        level = await ops.SetLogLevel(ops_pb2.SetLogLevelRequest(level="debug"), timeout=20)
        await ops.SetLogLevel(ops_pb2.SetLogLevelRequest(level=level.before), timeout=20)
        print(f"  the gateway's log was at {level.before}, said more for a moment, and is at {level.before} again")


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments) as mesh:
        status = mesh.status()
        print(f"{status.name} runs {status.version}, the scheduler is {'up' if status.scheduler_up else 'away'}")
        address, identity = arguments if arguments else (mesh.local.gateway, str(mesh.local.operator_identity))
        asyncio.run(look(address, identity))


if __name__ == "__main__":
    main(sys.argv[1:])
