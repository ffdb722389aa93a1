"""Starts, watches and ends a local mesh."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from orbitmesh.errors import InternalError, InvalidInputError, TransportError
from orbitmesh.rpc import open_channel
from orbitmesh.trust import Role, init_mesh, issue, load_identity
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.links import LinksProcess, RelaySpec, Shape
from services.localmesh.children import Child
from services.localmesh.forks import SUPPORTED, Forks
from services.localmesh.sky import Sky
from services.localmesh.topology import SERVICES, MeshSpec, Way, grounds, role, ways

READY_WAIT_S = 60.0
"""How long the nodes may take to join and to measure their links."""
DRAIN_WAIT_S = 30.0
"""How long a process that is ended in good order may take: the grace of a service, and its end."""
POLL_S = 0.05
"""How often the scheduler is asked whether all have."""
IDENTITY_LIFE = timedelta(days=7)
"""How long the identities of a local mesh are good for."""
NOWHERE = "127.0.0.1:9"
"""Where a relay leads until its target listens."""
NO_CONTACT = "no contact"
"""The relay, cut for ever, that stands for all ways between places that never meet."""
EXECUTORS_IMPORT = ("services.executor.server", "services.executor.node", "services.executor.measures")
"""What every executor imports, torch and transformers with it: the process that they are forked from has it ready."""
ORDER_OF_END = ("gateway", "aggregator", "slices", "scheduler")
"""In which the services end; the executors before the last two of them."""
ANY_PORT = "127.0.0.1:0"
"""Where a service listens that is to choose a port."""

Tell = Callable[[dict[str, Any]], None]


class LocalMesh:
    """A mesh on this machine.

    Args:
        spec: What to start.
        tell: Called with events on the way up.
    """

    def __init__(self, spec: MeshSpec, tell: Tell) -> None:
        self.spec = spec
        self._tell = tell
        self._temporary = spec.directory is None
        self.directory = Path(spec.directory or tempfile.mkdtemp(prefix="orbitmesh-"))
        self._children: dict[str, Child] = {}
        self._addresses: dict[str, str] = {}
        self._links: LinksProcess | None = None
        self._forks: Forks | None = None
        self._relays: dict[tuple[str, str], str] = {}
        self._never: set[tuple[str, str]] = set()
        self._sky: Sky | None = None
        self._slices_up = asyncio.Event()

    async def start(self) -> dict[str, Any]:
        """Brings everything up; returns the event `ready`.

        Raises:
            TransportError: Where a service does not come up; its log is quoted.
        """
        if self.spec.sky is not None:
            self._sky = await asyncio.to_thread(Sky, self.spec, self.directory)
            for warning in self._sky.warnings:
                self._tell({"event": "warning", "what": warning})
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        if SUPPORTED:
            self._forks = await Forks.start(EXECUTORS_IMPORT, logs / "executors.log", self.spec.torch_threads)
        await asyncio.to_thread(self._identities)
        await self._start_links()
        self._tell({"event": "starting", "what": "scheduler"})
        await self._start_child("scheduler")
        self._tell({"event": "starting", "what": "slices, aggregator, gateway and executors"})
        async with asyncio.TaskGroup() as tasks:
            # Executors take longer than these services one after the other: the first of them wait for torch.
            tasks.create_task(self._start_children("slices", "aggregator", "gateway"))
            for name in self.spec.node_names:
                tasks.create_task(self._start_executor(name))
        self._tell({"event": "starting", "what": "measuring links"})
        await self._wait_until_joined()
        await self._launch()
        return {
            "event": "ready",
            "warnings": [] if self._sky is None else list(self._sky.warnings),
            "gateway": self._addresses["gateway"],
            "identity": str(self._identity("client", "local")),
            "operator_identity": str(self._identity("operator", "local")),
            "directory": str(self.directory),
            "nodes": {
                name: {"pid": self._children[name].process.pid, "address": self._addresses[name]}
                for name in self.spec.node_names
            },
            "services": {name: self._children[name].process.pid for name in SERVICES},
        }

    async def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        """One operation: kill, restart, cut, restore, stats, contact, clock.

        Raises:
            InvalidInputError: Where it is none of these or names what is not there.
            TransportError: Where a service does not come up again; its log is quoted.
        """
        operation = request.get("op")
        if operation in ("kill", "restart"):
            gracefully = operation == "restart" and request.get("gracefully") is True
            return await self._end(str(request.get("node")), again=operation == "restart", gracefully=gracefully)
        if operation in ("contact", "clock"):
            if self._sky is None:
                raise InvalidInputError("this mesh was started without a contact plan: there is no mesh time")
            if operation == "clock":
                return {"clock": self._sky.at_clock()}
            return {"contact": self._sky.contact(str(request.get("a")), str(request.get("b")))}
        if operation in ("cut", "restore", "stats"):
            if self._links is None:
                raise InvalidInputError("this mesh was started without links: there is nothing to cut")
            if operation == "stats":
                relays = (await self._links.request("stats"))["relays"]
                return {"relays": {name: relay for name, relay in relays.items() if name != NO_CONTACT}}
            names = self._named_links(str(request.get("link")))
            for name in names:
                await (self._links.cut(name) if operation == "cut" else self._links.restore(name))
            return {"links": names}
        raise InvalidInputError(f"unknown operation {operation!r}: kill, restart, cut, restore, stats, contact, clock")

    async def _end(self, name: str, *, again: bool, gracefully: bool) -> dict[str, Any]:
        if name not in self._children:
            raise InvalidInputError(f"there is no {name!r}; there are: {', '.join(self._children)}")
        if not gracefully:
            self._children[name].kill()
        await self._children[name].stop(DRAIN_WAIT_S)
        if again:
            await self._start_child(name)
        return {"node": name, "pid": self._children[name].process.pid, "address": self._addresses[name]}

    async def stop(self) -> None:
        """Ends everything, in the order in which work flows, and removes a temporary directory."""
        gateway, aggregator, slices, scheduler = (self._children.pop(name, None) for name in ORDER_OF_END)
        for group in ([gateway], [aggregator], list(self._children.values()), [slices], [scheduler]):
            await asyncio.gather(*(child.stop() for child in group if child is not None))
        if self._forks is not None:
            await self._forks.close()
        if self._links is not None:
            await self._links.close()
        if self._temporary:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def _identity(self, name_role: str, name: str) -> Path:
        return self.directory / "identities" / f"{name_role}-{name}"

    def _identities(self) -> None:
        ca = self.directory / "ca"
        if not (ca / "ca.pem").exists():
            init_mesh(ca, mesh="local")
        wanted = [(role(name), name) for name in self.spec.all_names]
        for name_role, name in [*wanted, ("client", "local"), ("operator", "local")]:
            issue(ca, name_role, name, self._identity(name_role, name), IDENTITY_LIFE)

    async def _start_links(self) -> None:
        found = ways(self.spec) if self._sky is None else self._sky.ways
        if not found:
            return
        self._tell({"event": "starting", "what": f"{len(found)} emulated links"})
        self._links = await LinksProcess.start()
        closed = ""
        if any(way.kind == "never" for way in found):
            closed = await self._links.add(RelaySpec(NO_CONTACT, NOWHERE))
            await self._links.cut(NO_CONTACT)
        for way in found:
            pair = (way.source, way.target)
            if way.kind == "never":
                self._never.add(pair)
            self._relays[pair] = closed if way.kind == "never" else await self._links.add(self._relay(way))

    def _relay(self, way: Way) -> RelaySpec:
        link = self.spec.link
        if way.kind == "plan" and self._sky is not None:
            return self._sky.relay(way, NOWHERE)
        if link is None:
            raise InternalError(f"{way.name} is a link of a mesh that has none")
        shape = Shape(latency_ms=link.latency_ms, rate_bps=link.rate_mbps * 1e6)
        return RelaySpec(way.name, NOWHERE, forward=shape, reverse=shape)

    async def _launch(self) -> None:
        """Lets mesh time begin and every planned link follow the plan."""
        sky, links = self._sky, self._links
        if sky is None:
            return
        self._tell({"event": "starting", "what": "mesh time"})
        await asyncio.sleep(await asyncio.to_thread(sky.prepare))
        if links is None or self.spec.sky is None:
            return
        for way in sky.ways:
            if way.kind == "plan":
                await links.schedule(
                    way.name,
                    self.spec.place(way.source),
                    self.spec.place(way.target),
                    sky.contacts_file,
                    sky.clock,
                    outage=self.spec.sky.outage,
                    ramp_s=self.spec.sky.ramp_s,
                )

    async def _start_children(self, *names: str) -> None:
        """One after the other: each knows the address of those before it."""
        for name in names:
            await self._start_child(name)

    async def _start_executor(self, name: str) -> None:
        await self._slices_up.wait()
        await self._start_child(name)

    async def _start_child(self, name: str) -> None:
        log = self.directory / "logs" / f"{name}.log"
        if self._forks is not None and (self._forks.is_warm or role(name) == "executor"):
            child = Child(name, *await self._forks.fork(self._arguments(name)), log)
        else:
            child = await Child.start(name, self._arguments(name), log, self.spec.torch_threads)
        self._children[name] = child
        self._addresses[name] = await child.address()
        if name == "slices":
            self._slices_up.set()
        for source, target in self._relays:
            if target == name and self._links is not None and (source, target) not in self._never:
                await self._links.set(f"{source}>{target}", target=self._addresses[name])

    def _arguments(self, name: str) -> list[str]:
        name_role = role(name)
        module = "gateway" if name == "gateway" else f"services.{name_role}"
        # Clients, services and executors that are joined directly keep the addresses of the services: one that is
        # started again has to be where it was.
        listen = self._addresses.get(name, ANY_PORT) if name in SERVICES else ANY_PORT
        arguments = [
            module,
            "--identity", str(self._identity(name_role, name)),
            "--listen", listen,
            "--state", str(self.directory / "state" / name),
        ]  # fmt: skip
        if self.spec.allow_faults:
            arguments.append("--allow-faults")
        if self.spec.otlp_endpoint:
            arguments += ["--otlp-endpoint", self.spec.otlp_endpoint]
        for source, target in self._relays:
            if source == name:
                arguments += ["--peers", f"{role(target)}/{target}={self._relays[source, target]}"]
        if name != "scheduler":
            arguments += ["--scheduler", self._relays.get((name, "scheduler")) or self._addresses["scheduler"]]
        if name == "gateway":
            arguments += ["--aggregator", self._addresses["aggregator"], "--slices", self._addresses["slices"]]
        if name == "aggregator":
            arguments += ["--slices", self._addresses["slices"]]
        if name == "slices":
            arguments += self._of_slices()
        if name == "scheduler" and self._sky is not None:
            arguments += ["--contacts", str(self._sky.contacts_file), "--clock", str(self._sky.clock_file)]
            for service in SERVICES:
                arguments += ["--places", f"{service}={self.spec.gateway_at}"]
        if name_role == "executor":
            kind = "ground" if name in grounds(self.spec, self._sky.plan if self._sky else None) else "satellite"
            arguments += ["--kind", kind, "--threads", str(self.spec.torch_threads)]
            arguments += ["--slices", self._relays.get((name, "slices")) or self._addresses["slices"]]
        return arguments

    def _of_slices(self) -> list[str]:
        """What leaves a node is what a link carries; light takes as long as the contact plan says, and its links carry
        what that says."""
        arguments = []
        if self.spec.link is not None:
            arguments += ["--default-bandwidth", repr(self.spec.link.rate_mbps / 1e3)]
        if self._sky is not None:
            arguments += ["--contacts", str(self._sky.contacts_file), "--clock", str(self._sky.clock_file)]
            for service in SERVICES:
                arguments += ["--places", f"{service}={self.spec.gateway_at}"]
        return arguments

    async def _wait_until_joined(self) -> None:
        identity = load_identity(self._identity("client", "local"))
        async with open_channel(self._addresses["gateway"], identity, Role.GATEWAY, "gateway") as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            missing = "nothing answered"
            try:
                async with asyncio.timeout(READY_WAIT_S):
                    while missing:
                        await asyncio.sleep(POLL_S)
                        try:
                            answer = await stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=5.0)
                        except grpc.RpcError:
                            continue
                        missing = self._missing(answer)
            except TimeoutError:
                raise TransportError(f"the mesh is not complete: {missing}; logs: {self.directory / 'logs'}") from None

    def _missing(self, answer: scheduler_pb2.ListNodesResponse) -> str:
        up = {node.name: node for node in answer.nodes if node.state == scheduler_pb2.NODE_STATE_UP}
        joining = [name for name in self.spec.node_names if (name, "scheduler") not in self._never]
        for name in joining:
            if name not in up:
                return f"{name} has not joined"
            measured = {link.peer for link in up[name].measures.links if link.up}
            lacking = {peer for peer in joining if (name, peer) not in self._never} - measured - {name}
            if lacking:
                return f"{name} has not measured its links to {', '.join(sorted(lacking))}"
        return ""

    def _named_links(self, name: str) -> list[str]:
        """One way, `a>b`, or all ways between two, with a comma between the names: `a,b`."""
        known = {f"{source}>{target}" for source, target in self._relays if (source, target) not in self._never}
        never = {f"{source}>{target}" for source, target in self._never}
        first, comma, second = name.partition(",")
        names = [f"{first}>{second}", f"{second}>{first}"] if comma else [name]
        # Nodes never dial the aggregator: between the two there is one way.
        names = [each for each in names if each in known] or names
        wrong = [each for each in names if each not in known]
        if wrong and wrong[0] in never:
            raise InvalidInputError(
                f"{wrong[0]} never have contact in the plan: there is no link", reason="FAILED_PRECONDITION"
            )
        if wrong:
            raise InvalidInputError(f"there is no link {wrong[0]!r}; links are written sat-1>sat-2, or sat-1,sat-2")
        return names
