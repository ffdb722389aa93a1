"""Every method of every process of a mesh, found by reflection, called with requests that nobody meant to send.

What may come of it: an answer, or a status whose `ErrorInfo` names a reason of the table that is no defect. What may
not: UNKNOWN, INTERNAL, a traceback in a log, a process that ends, memory that grows.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import psutil
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from orbitmesh.errors import REASONS
from orbitmesh.rpc import _error_info, channel_options, keep_status, open_channel
from orbitmesh.trust import Identity, Role, issue
from orbitmesh.trust.names import dns_name
from services.runtime.authz import ADMIN_SERVICES, OPS, REFLECTION, roles_for
from tests.fuzz.messages import Maker

CALL_S = 0.5
"""How long a call may go on; those that would go on for ever are ended so."""
AT_ONCE = 16
"""Calls at a time."""
ANSWERS = 20
"""Messages of an answer that are read."""
GRPC_OWN = ADMIN_SERVICES - {OPS}
"""Services that gRPC's own packages answer: their refusals carry a code and no `ErrorInfo`."""
DEFECTS = ("Traceback (most recent", '"call_defect"', "was never retrieved", "was never awaited", "Unexpected [")
"""What a log holds where something went wrong that nobody meant."""


@dataclass(frozen=True)
class Server:
    """A process that answers."""

    role: Role
    name: str
    address: str
    pid: int
    log: Path


@dataclass(frozen=True)
class Method:
    """One method of one process, and as whom it is called."""

    server: Server
    service: str
    descriptor: MethodDescriptor
    role: Role

    @property
    def full(self) -> str:
        return f"/{self.service}/{self.descriptor.name}"

    @property
    def title(self) -> str:
        return f"{self.server.role.value} {self.full}"


@dataclass
class Outcomes:
    """What came of the calls."""

    calls: Counter[str] = field(default_factory=Counter)
    """By process and method."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """By reason, `OK`, or the code of gRPC's own services."""
    wrong: list[str] = field(default_factory=list)
    """What must not be, with all that is needed to do it again."""


def methods_of(server: Server, identities: dict[Role, Identity]) -> Iterator[Method]:
    """What a process offers, as it says by reflection, each as a role that may call it."""
    me = identities[Role.OPERATOR]
    credentials = grpc.ssl_channel_credentials(me.ca_pem, me.tls_key_pem, me.tls_cert_pem)
    options = [*channel_options(), ("grpc.ssl_target_name_override", dns_name(server.role, server.name))]
    with grpc.secure_channel(server.address, credentials, options=options) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for service in database.get_services():
            # gRPC's package knows the messages of reflection under their older name only.
            known = REFLECTION[1] if service == REFLECTION[0] else service
            for method in pool.FindServiceByName(known).methods:
                role = min(roles_for(f"/{service}/{method.name}") & identities.keys())
                yield Method(server, service, method, role)


def identities_of(ca: Path, directory: Path) -> dict[Role, Identity]:
    """One identity of each role, named `fuzz`."""
    return {role: issue(ca, role, "fuzz", directory / role.value) for role in Role}


class Caller:
    """Calls methods of many processes.

    Args:
        identities: As whom.
        outcomes: Takes what came of it.
    """

    def __init__(self, identities: dict[Role, Identity], outcomes: Outcomes) -> None:
        self._identities = identities
        self._outcomes = outcomes
        self._channels: dict[tuple[str, Role], grpc.aio.Channel] = {}

    def channel(self, server: Server, role: Role) -> grpc.aio.Channel:
        key = (server.address, role)
        if key not in self._channels:
            self._channels[key] = open_channel(server.address, self._identities[role], server.role, server.name)
        return self._channels[key]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(self, method: Method, requests: Sequence[bytes], timeout_s: float = CALL_S) -> str:
        """One call; gives its outcome."""
        self._outcomes.calls[method.title] += 1
        outcome = "OK"
        try:
            await self._exchange(method, requests, timeout_s)
        except grpc.RpcError as error:
            outcome = self._judge(method, error, requests)
        self._outcomes.outcomes[outcome] += 1
        return outcome

    async def _exchange(self, method: Method, requests: Sequence[bytes], timeout_s: float) -> None:
        channel, kind = self.channel(method.server, method.role), method.descriptor
        if not kind.client_streaming and not kind.server_streaming:
            await channel.unary_unary(method.full)(requests[0], timeout=timeout_s)
            return
        if not kind.client_streaming:
            call = channel.unary_stream(method.full)(requests[0], timeout=timeout_s)
        else:
            call = keep_status(channel.stream_stream(method.full)(_each(requests), timeout=timeout_s))
        for _ in range(ANSWERS):
            if await call.read() is grpc.aio.EOF:
                code = await call.code()
                if code is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(
                        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                    )
                return
        call.cancel()

    def _judge(self, method: Method, error: grpc.RpcError, requests: Sequence[bytes]) -> str:
        code, info = error.code(), _error_info(error.trailing_metadata() or ())
        bad = code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
        outcome = code.name if info is None else info[0]
        if info is not None:
            bad = bad or info[0] not in REASONS or info[0] == "INTERNAL"
        elif code is not grpc.StatusCode.DEADLINE_EXCEEDED and method.service not in GRPC_OWN:
            bad = True
        if bad:
            sent = ", ".join(request.hex()[:2000] for request in requests)
            told = f"{code.name} {outcome}: {error.details()}"
            self._outcomes.wrong.append(f"{method.title} as {method.role.value}: {told}; sent {sent}")
        return outcome


async def _each(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


@asynccontextmanager
async def calling(identities: dict[Role, Identity], outcomes: Outcomes) -> AsyncIterator[Caller]:
    """A caller for as long as the block runs."""
    caller = Caller(identities, outcomes)
    try:
        yield caller
    finally:
        await caller.close()


async def fuzz_rpcs(
    methods: Sequence[Method], identities: dict[Role, Identity], each: int, seed: int, outcomes: Outcomes,
    texts: Sequence[str] = (),
) -> None:  # fmt: skip
    """Calls every method some times.

    Args:
        methods: Which.
        identities: As whom.
        each: How often each.
        seed: Of what is sent.
        outcomes: Takes what came of it.
        texts: Names that mean something to the servers.
    """
    rng = random.Random(seed)
    maker = Maker(rng, texts)
    order = [method for method in methods for _ in range(each)]
    rng.shuffle(order)
    left = iter(order)

    async def work(caller: Caller) -> None:
        for method in left:
            many = rng.choice((0, 1, 2, 4)) if method.descriptor.client_streaming else 1
            await caller.call(method, [maker.request(method.descriptor.input_type) for _ in range(many)])

    async with calling(identities, outcomes) as caller, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work(caller))


def defects_in(log: Path, start: int = 0) -> list[str]:
    """Lines of a log that tell of what nobody meant."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line for line in lines if any(sign in line for sign in DEFECTS) or _error_event(line)]


def _error_event(line: str) -> bool:
    try:
        return json.loads(line).get("level") == "error"
    except (ValueError, AttributeError):
        return False


def memory_of(server: Server) -> int:
    """What a process holds, in bytes."""
    return int(psutil.Process(server.pid).memory_info().rss)


def runs(server: Server) -> bool:
    """Whether a process is there."""
    try:
        process = psutil.Process(server.pid)
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
