"""What a scheduler measures: the nodes by the state of their leases, the deployments by theirs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from orbitmesh.v1 import scheduler_pb2
from services.runtime.metrics import Labels, Metrics
from services.scheduler.deployments import Deployments
from services.scheduler.registry import Registry

_NODE_STATES = {
    scheduler_pb2.NODE_STATE_UP: "up",
    scheduler_pb2.NODE_STATE_DRAINING: "draining",
    scheduler_pb2.NODE_STATE_LOST: "lost",
}


def offer(metrics: Metrics, registry: Registry, deployments: Deployments) -> None:
    """Adds it to the figures of the process."""

    def nodes() -> Iterable[tuple[float, Labels]]:
        now_s = time.monotonic()
        found = Counter(registry.state(record, now_s) for record in registry.all())
        return [(found[state], {"state": name}) for state, name in _NODE_STATES.items()]

    def by_state() -> Iterable[tuple[float, Labels]]:
        found = Counter(deployments.message(name).state for name in deployments.names())
        return [
            (count, {"state": scheduler_pb2.DeploymentState.Name(state).removeprefix("DEPLOYMENT_STATE_").lower()})
            for state, count in found.items()
        ]

    metrics.gauge("nodes", "{node}", "Nodes, by whether their lease holds.", nodes)
    metrics.gauge("deployments", "{deployment}", "Deployments, by state.", by_state)
