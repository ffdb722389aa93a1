"""What the parts of `bench/recovery.py` share: listening with a blow in between, the gateway's log, a whole mesh."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc

from orbitmesh import Mesh
from orbitmesh.rpc import channel_options
from orbitmesh.trust import Role, load_identity
from orbitmesh.trust.names import dns_name
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc

PROMPT = [5, 17, 33, 98, 250, 7, 41, 63]
NAME = "bench"
WHOLE_WAIT_S = 120.0
"""How long a mesh may take until every place has its node and its standby again."""
WARM_UP_TOKENS = 16
"""An answer after a deployment that is not counted."""
POLL_S = 0.1
"""How often that is asked."""
ANSWER_S = 180.0
"""How long an answer may take."""
NOTICED = frozenset({"generation_troubled", "stage_silent", "session_ended"})
"""The gateway's log lines by which it says that a node is gone."""


@dataclass
class Heard:
    """What a client was given, and when. Times in seconds of the wall clock, as it stood at the start."""

    ids: list[int] = field(default_factory=list)
    """The tokens, in order."""
    at_s: list[float] = field(default_factory=list)
    """When each came."""
    positions: list[int] = field(default_factory=list)
    """Their positions."""
    blow_s: float = 0.0
    """When the blow was dealt."""
    trace_id: str = ""
    """Of the generation."""

    @property
    def gaps_s(self) -> list[float]:
        """The times between tokens."""
        return [after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False)]

    @property
    def median_gap_s(self) -> float:
        """The usual time of a token."""
        return statistics.median(self.gaps_s)

    def longest_gap_s(self, since_s: float = 0.0) -> float:
        """The longest time between two tokens of which the second came after `since_s`."""
        return max(gap for gap, at_s in zip(self.gaps_s, self.at_s[1:], strict=True) if at_s >= since_s)


class Walls:
    """The wall clock as it stands now, carried on by the monotonic one: log lines and arrivals on one clock."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Seconds since 1970."""
        return time.monotonic() + self._ahead_s


def listen(
    mesh: Mesh,
    tokens: int,
    *,
    prompt: Sequence[int] = PROMPT,
    blow_at: int = -1,
    blow: Callable[[], object] | None = None,
    enough: Callable[[Heard], bool] | None = None,
    name: str = NAME,
    timeout_s: float = ANSWER_S,
) -> Heard:
    """Reads an answer, token by token; deals `blow` when token number `blow_at` is here; stops where it is `enough`."""
    heard, wall = Heard(), Walls()
    generation = mesh.generate(name, prompt=list(prompt), max_new_tokens=tokens, ignore_end=True, timeout=timeout_s)
    for number, token in enumerate(generation):
        heard.at_s.append(wall.now_s())
        heard.ids.append(token.id)
        heard.positions.append(token.position)
        if number == blow_at and blow is not None:
            heard.blow_s = wall.now_s()
            blow()
        if enough is not None and enough(heard):
            break
    heard.trace_id = generation.trace_id
    return heard


class GatewayLog:
    """What a process of a mesh wrote to its log from now on."""

    def __init__(self, mesh: Mesh, process: str = "gateway") -> None:
        self._path = mesh.local.directory / "logs" / f"{process}.log"
        self._start = self._path.stat().st_size

    def events(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Each line as (seconds since 1970, fields)."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            for raw in file.read().decode("utf-8", "replace").splitlines():
                if raw.startswith("{") and raw.endswith("}"):
                    line = json.loads(raw)
                    yield datetime.fromisoformat(line["at"]).timestamp(), line

    def first(self, *events: str, **fields: object) -> tuple[float, dict[str, Any]] | None:
        """The first line of one of these events with these fields."""
        for at_s, line in self.events():
            if line["event"] in events and all(line.get(key) == value for key, value in fields.items()):
                return at_s, line
        return None


@contextmanager
def _scheduler(mesh: Mesh) -> Iterator[scheduler_pb2_grpc.SchedulerServiceStub]:
    identity = load_identity(mesh.local.identity)
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.tls_key_pem, identity.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", dns_name(Role.GATEWAY, "gateway"))]
    with grpc.secure_channel(mesh.local.gateway, credentials, options=options) as channel:
        yield scheduler_pb2_grpc.SchedulerServiceStub(channel)


def described(mesh: Mesh, name: str = NAME) -> scheduler_pb2.Deployment:
    """A deployment as the scheduler holds it, standbys and all."""
    with _scheduler(mesh) as stub:
        answer = stub.GetDeployment(scheduler_pb2.GetDeploymentRequest(name=name), timeout=10.0)
    held: scheduler_pb2.Deployment = answer.deployment
    return held


def pipeline_of(mesh: Mesh, name: str = NAME) -> list[str]:
    """The nodes that serve now, in order."""
    return [node.name for node in described(mesh, name).pipeline]


def is_whole(mesh: Mesh, name: str = NAME) -> bool:
    """Whether every node is up, where the deployment thinks it is, and every place has a standby that is loaded."""
    addresses = {node.name: node.address for node in mesh.nodes() if node.state == "up"}
    held = described(mesh, name)
    if len(addresses) < len(mesh.local.processes()) or held.state != scheduler_pb2.DEPLOYMENT_STATE_READY:
        return False
    if held.failure or held.hand_overs or any(addresses[node.name] != node.address for node in held.pipeline):
        return False
    ready = {each.stage_index for each in held.standbys if each.ready and each.node.name in addresses}
    return ready == set(range(len(held.pipeline)))


def until_whole(mesh: Mesh, name: str = NAME) -> float:
    """Waits until the mesh could bear the loss of any node; returns how long that took, in seconds."""
    began_s = time.monotonic()
    problem: Exception | None = None
    while time.monotonic() < began_s + WHOLE_WAIT_S:
        try:
            if is_whole(mesh, name):
                return time.monotonic() - began_s
        except Exception as error:  # a service that was killed is not back yet
            problem = error
        time.sleep(POLL_S)
    raise SystemExit(
        f"the mesh did not get whole again within {WHOLE_WAIT_S:.0f} s ({problem}); {described(mesh, name)}"
    )


def fresh(mesh: Mesh, model: str, stages: int, name: str = NAME) -> list[str]:
    """Sees to a deployment whose places are on nodes of their own, all with a standby on another one; returns them.

    After a loss the node that stood by for every place serves one and still stands by for the others: the next loss
    would leave it with two. So the model is deployed anew then.
    """
    names = [each.name for each in mesh.deployments()]
    if name in names:
        until_whole(mesh, name)
        held = described(mesh, name)
        serving = [node.name for node in held.pipeline]
        if len({*serving}) == stages and not {each.node.name for each in held.standbys} & {*serving}:
            return serving
        mesh.delete(name)
    mesh.deploy(model, name=name, stages=stages, standbys=1, work_s=1.0)
    until_whole(mesh, name)
    listen(mesh, WARM_UP_TOKENS, name=name)
    serving = pipeline_of(mesh, name)
    if len({*serving}) < stages:
        raise SystemExit(f"the scheduler put {stages} stages on {serving}")
    return serving


def round_trips_s(mesh: Mesh, trace_id: str) -> dict[str, float]:
    """The best round trip of a call from the gateway to each node, as the gateway measured it."""
    return {each.node: 2 * each.uncertainty_s for each in mesh.explain(trace_id).clock_offsets}


def row_s(mesh: Mesh, trace_id: str, what: str, place: str | None = None) -> float:
    """The time of the rows of a breakdown that are named so."""
    rows = mesh.explain(trace_id).rows
    return sum(row.total_s for row in rows if row.what == what and place in (None, row.place))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
