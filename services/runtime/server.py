"""How any service of the mesh starts and stops: one mTLS server with health, reflection and channelz,
drained on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2

from orbitmesh.errors import IdentityError, MeshError, TransportError
from orbitmesh.limits import MESSAGE_BYTES
from orbitmesh.rpc import (
    KEEPALIVE_INTERVAL_MS,
    KEEPALIVE_TIMEOUT_MS,
    METADATA_BYTES,
    SEVERAL_INTERVAL_MS,
    ChannelOption,
)
from orbitmesh.trust.identity import Identity, IdentitySource
from services.runtime.admin import CLOSE_GRACE_S, NO_SIDE_PORTS, SidePorts, add_admin, listen_on
from services.runtime.authz import ALLOWED, HEALTH, OPS, Table, check_complete
from services.runtime.drain import CALLS_IN_FLIGHT, InFlight
from services.runtime.faults import Faults
from services.runtime.interceptors import Gate
from services.runtime.logs import EventLog
from services.runtime.metrics import Metrics, Telemetry
from services.runtime.ops import ProcessOps
from services.runtime.probe import ProbePort
from services.runtime.process_metrics import offer_process

DRAIN_GRACE_S = 25.0
"""How long calls under way may go on once the service drains, in seconds; below the 30 s of container
platforms."""
STREAMS_PER_CONNECTION = 1024
"""The most calls at a time on one connection."""
PING_INTERVAL_MIN_MS = SEVERAL_INTERVAL_MS // 2
"""Peers that probe an idle connection more often than this are cut off, in milliseconds."""
CA_LOOK_INTERVAL_S = 1.0
"""How often calls look whether the identity was renewed, in seconds; handshakes always look."""

SERVER_OPTIONS: tuple[ChannelOption, ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    # Two processes on one port would share the calls in silence; the second one must fail instead.
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 1),
)

Adder = Callable[[Any, Any], None]
DrainHook = Callable[[], Awaitable[None]]
Closed = Callable[[], MeshError | None]
"""Why nothing is answered; None where calls are."""


class ServiceHost:
    """One service process's gRPC server.

    Args:
        identity: The identity directory, or a source over it; renewals are taken without a restart.
        listen: `host:port`; port 0 takes a free one.
        log: Where events go; stderr where left out.
        allowed: Which roles may call which methods.
        calls_in_flight: The most calls at a time.
        options: gRPC server options on top of `SERVER_OPTIONS`.
        interceptors: Interceptors that run inside the gate: they see calls that were let in.
        telemetry: Where metrics go; nowhere where left out.
        side: Where it listens besides.
        faults: Whether operators may break this process on purpose.

    Raises:
        IdentityError: The identity cannot be used.
        InvalidInputError: An address is none.
    """

    def __init__(
        self,
        identity: IdentitySource | Path | str,
        *,
        listen: str = "127.0.0.1:0",
        log: EventLog | None = None,
        allowed: Table = ALLOWED,
        calls_in_flight: int = CALLS_IN_FLIGHT,
        options: Sequence[ChannelOption] = (),
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        telemetry: Telemetry | None = None,
        side: SidePorts = NO_SIDE_PORTS,
        faults: bool = False,
    ) -> None:
        self._source = (
            identity
            if isinstance(identity, IdentitySource)
            else IdentitySource(identity, on_refused=self._renewal_refused)
        )
        self.log = log or EventLog(self.identity.title)
        self._listen = listen
        self._allowed = allowed
        self._side = side
        self._services: list[str] = []
        self._not_served: list[str] = []
        self.closed: Closed = _open
        """Why no call but those of operators is answered at this moment; None while they are."""
        self._hooks: list[DrainHook] = []
        self._leave_hooks: list[DrainHook] = []
        self._own: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
        self._stop = asyncio.Event()
        self._stopped = False
        self.in_flight = InFlight(calls_in_flight)
        self._health = health.aio.HealthServicer()
        self._probe = ProbePort(side.probe, self._health) if side.probe else None
        self.metrics = Metrics(self.identity.title, telemetry)
        """What this process counts and measures; services add theirs."""
        offer_process(self.metrics, self.in_flight, lambda: self.identity.not_after)
        gate = Gate(
            self._newest_ca, self.in_flight, self.log, allowed=allowed, metrics=self.metrics,
            closed=lambda: self.closed(), meet=lambda: self.faults.meet(),
        )  # fmt: skip
        self.server = grpc.aio.server(interceptors=[gate, *interceptors], options=[*SERVER_OPTIONS, *options])
        # A gate of its own: calls that fill the one port leave the other free.
        apart = Gate(self._newest_ca, self.in_flight, self.log, allowed=allowed)
        self._ops_server = grpc.aio.server(interceptors=[apart], options=SERVER_OPTIONS) if side.ops else None
        self.faults = Faults(faults, self.log)
        """What breaks this process on purpose."""
        self.ops = ProcessOps(self._source, self.log, self.in_flight, self.faults)
        """What operators are told of this process; a gateway puts another one in its place before `start`."""
        self.port = 0
        self.probe_port = 0
        """Where health is answered in plain text; 0 where it is not."""
        self.ops_port = 0
        """Where operators are answered apart from users; 0 where they are not."""

    def _newest_ca(self) -> bytes:
        return self._source.current(CA_LOOK_INTERVAL_S).ca_pem

    @property
    def identity(self) -> Identity:
        """Who this service is, as renewed last."""
        return self._source.current()

    @property
    def draining(self) -> asyncio.Event:
        """Set once the service drains: long streams watch it and come to a good end."""
        return self.in_flight.draining

    def add(self, service: str, adder: Adder, servicer: object) -> None:
        """Offer a service.

        Args:
            service: Its full name, for instance `orbitmesh.v1.SchedulerService`.
            adder: The generated `add_..._to_server`.
            servicer: What answers.
        """
        own = self._own.get(service, {})
        if own:
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, own),))
        adder(servicer, self.server)
        if own:
            self.server.add_registered_method_handlers(service, own)
        self._services.append(service)

    def add_closed(self, service: str) -> None:
        """Name a service that this process does not answer: health says NOT_SERVING, and `closed` says why.

        Args:
            service: Its full name.
        """
        self._not_served.append(service)
        self.server.add_generic_rpc_handlers((_Nothing(service),))

    def add_stream(self, service: str, method: str, handler: grpc.RpcMethodHandler) -> None:
        """Answer one method by a handler of its own, with its own reading and writing of messages.

        Call it before `add` for the same service: of generic handlers gRPC asks the first, of registered ones the
        last, and its generated code adds both.

        Args:
            service: The service's full name.
            method: The method's name in it.
            handler: What answers.
        """
        self._own.setdefault(service, {})[method] = handler

    def on_leave(self, hook: DrainHook) -> None:
        """Run `hook` when draining begins, while calls are still taken in: it gives away what this process has."""
        self._leave_hooks.append(hook)

    def on_drain(self, hook: DrainHook) -> None:
        """Run `hook` when no new calls are taken in any more, before those under way are waited for."""
        self._hooks.append(hook)

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            InternalError: A method of an added service has no row in the authorization table.
            TransportError: The address cannot be listened on.
        """
        check_complete([*self._services, HEALTH, OPS], self._allowed)
        for server in filter(None, (self.server, self._ops_server)):
            add_admin(server, self._health, self.ops, self._services)
        self.port = listen_on(self.server, self._listen, self._source, self._show_renewal)
        if self._ops_server is not None:
            self.ops_port = listen_on(self._ops_server, self._side.ops, self._source)
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        for service in self._not_served:
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.server.start()
        if self._ops_server is not None:
            await self._ops_server.start()
        if self._probe is not None:
            try:
                self.probe_port = await self._probe.start()
            except TransportError:
                await self._stop_servers(0)
                raise
        if self.metrics.port:
            self.log.info("metrics_offered", port=self.metrics.port)
        return self.port

    async def set_serving(self, service: str, serving: bool) -> None:
        """Say by health whether a service can answer; a drained one stays NOT_SERVING."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    def request_stop(self) -> None:
        """Ask `run_until_stopped` to drain and return. Idempotent."""
        self._stop.set()

    async def run_until_stopped(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Serve until SIGTERM, SIGINT or `request_stop`, then drain; a second signal cuts the draining
        short."""
        loop = asyncio.get_running_loop()
        hurry = asyncio.Event()

        def on_signal() -> None:
            (hurry if self._stop.is_set() else self._stop).set()

        signals = (signal.SIGTERM, signal.SIGINT)
        for each in signals:
            loop.add_signal_handler(each, on_signal)
        try:
            await self._stop.wait()
            async with asyncio.TaskGroup() as group:
                drained = group.create_task(self.drain(grace_s))
                hurried = group.create_task(hurry.wait())
                await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
                if not drained.done():
                    drained.cancel()
                hurried.cancel()
            if not self._stopped:
                await self._close()
        except BaseException:
            # What this process does beside the server failed, or it leads no more: nothing is answered from now on.
            self._stopped = True
            await self._stop_servers(None)
            raise
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    async def drain(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Stop in order: say NOT_SERVING, give away what can be, take no new calls, let those under way end, close.
        Idempotent.

        Args:
            grace_s: How long the hooks and the calls under way may take together, in seconds.
        """
        if self._stopped:
            return
        deadline = asyncio.get_running_loop().time() + grace_s
        await self._health.enter_graceful_shutdown()
        self.log.info("draining", calls_in_flight=self.in_flight.count, grace_s=grace_s)
        await self._run(self._leave_hooks, deadline)
        self.in_flight.draining.set()
        await self._run(self._hooks, deadline)
        idle = await self.in_flight.wait_idle(max(0.0, deadline - asyncio.get_running_loop().time()))
        if not idle:
            self.log.warning("drain_grace_spent", calls_in_flight=self.in_flight.count)
        await self._close()

    async def _run(self, hooks: Sequence[DrainHook], deadline: float) -> None:
        for hook in hooks:
            try:
                async with asyncio.timeout_at(deadline):
                    await hook()
            except TimeoutError:
                self.log.warning("drain_grace_spent", hook=getattr(hook, "__qualname__", "hook"))
            except Exception as error:
                self.log.error("drain_hook_failed", error=error)

    async def _close(self) -> None:
        self._stopped = True
        await self._stop_servers(CLOSE_GRACE_S if self.in_flight.count == 0 else 0)
        if self._probe is not None:
            await self._probe.close()
        # On a thread: what is read at last is read on this loop.
        await asyncio.to_thread(self.metrics.close)
        self.log.info("stopped")

    async def _stop_servers(self, grace_s: float | None) -> None:
        servers = (self.server, self._ops_server)
        await asyncio.gather(*(server.stop(grace_s) for server in servers if server is not None))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain(CLOSE_GRACE_S if kind is not None else DRAIN_GRACE_S)

    def _show_renewal(self, newest: Identity) -> None:
        self.log.info("identity_renewed", not_after=newest.not_after.isoformat())

    def _renewal_refused(self, error: IdentityError) -> None:
        self.log.warning("identity_renewal_refused", reason=error.reason, message=error.message)


def _open() -> MeshError | None:
    """Calls are answered."""


class _Nothing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands for the methods of a service that is not answered, so that the gate sees their callers."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        if not handler_call_details.method.startswith(self._prefix):
            return None
        # Streams both ways, as which any call can be taken in.
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, requests: Any, context: Any) -> None:
        raise TransportError("this process does not answer this service", reason="NOT_LEADER")
