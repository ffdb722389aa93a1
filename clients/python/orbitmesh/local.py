"""A mesh of real processes on this machine, for trying, for tests and for demonstrations."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbitmesh._local_spec import LocalSpec, check_can_run
from orbitmesh._loop import ForkGuard
from orbitmesh.contacts import MeshClock
from orbitmesh.errors import DeadlineError, InvalidInputError, TransportError, error_for
from orbitmesh.results import LocalNode, OnProgress, Progress

START_DEADLINE_S = 120.0
"""How long a local mesh may take to start where the caller names no time, in seconds."""
ANSWER_DEADLINE_S = 90.0
"""How long the supervisor may take to do one thing, in seconds: ending a process in good order and starting it anew."""
STOP_WAIT_S = 20.0
"""How long a local mesh may take to end by itself before it is killed, in seconds."""
LINE_BYTES = 1 << 20
"""The longest line that the supervisor may say, in bytes."""
STDERR_BYTES = 16 * 1024
"""How much of the supervisor's complaints is kept for an error, in bytes."""


class AsyncLocal:
    """The processes under a local mesh: which they are, and how to break them. `AsyncMesh.local` has made it.

    Example:
        >>> async with AsyncMesh.local(nodes=4) as mesh:
        ...     await mesh.local.kill("sat-2")
    """

    def __init__(self, spec: LocalSpec, on_progress: OnProgress | None = None) -> None:
        self._spec = spec
        self._on_progress = on_progress
        self._guard = ForkGuard()
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._complaints: asyncio.Task[str] | None = None
        self._ready: Mapping[str, Any] = {}
        self._again: dict[str, Mapping[str, Any]] = {}  # what was started again: its process and address now

    @property
    def gateway(self) -> str:
        """Where the gateway listens, host:port.

        Example:
            >>> mesh.local.gateway
            '127.0.0.1:40771'
        """
        return str(self._ready.get("gateway", ""))

    @property
    def identity(self) -> Path:
        """The directory of the identity that this mesh gave its user.

        Example:
            >>> mesh.local.identity.name
            'client-local'
        """
        return Path(str(self._ready.get("identity", "")))

    @property
    def operator_identity(self) -> Path:
        """The directory of the identity that this mesh gave its operator.

        Example:
            >>> mesh.local.operator_identity.name
            'operator-local'
        """
        return Path(str(self._ready.get("operator_identity") or self._ready.get("identity", "")))

    @property
    def directory(self) -> Path:
        """Where it keeps its state.

        Example:
            >>> (mesh.local.directory / "ca").is_dir()
            True
        """
        return Path(str(self._ready.get("directory", "")))

    @property
    def pid(self) -> int:
        """The supervisor's process, 0 before the mesh has started.

        Example:
            >>> mesh.local.pid
            40310
        """
        return self._process.pid if self._process is not None else 0

    def processes(self) -> dict[str, LocalNode]:
        """The nodes' processes by name, as they were started last.

        Example:
            >>> sorted(mesh.local.processes())
            ['ground-1', 'sat-1', 'sat-2', 'sat-3']
        """
        return {
            name: LocalNode(
                name=name, pid=int(facts["pid"]), address=str(facts["address"]), facts=dict(facts)
            )
            for name, started in self._ready.get("nodes", {}).items()
            for facts in (self._again.get(name, started),)
        }

    def services(self) -> dict[str, int]:
        """The processes of the services that run once, as they were started last.

        Example:
            >>> sorted(mesh.local.services())
            ['aggregator', 'gateway', 'scheduler', 'slices']
        """
        return {
            name: int(self._again[name]["pid"]) if name in self._again else int(pid)
            for name, pid in self._ready.get("services", {}).items()
        }

    async def kill(self, node: str) -> None:
        """Kills the process of a node, or of one of the services, with SIGKILL, as a failing machine would.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.

        Raises:
            InvalidInputError: there is no node of this name.

        Example:
            >>> await mesh.local.kill("sat-2")
        """
        self._check_node(node)
        await self._ask({"op": "kill", "node": node})

    async def restart(self, node: str, *, gracefully: bool = False) -> None:
        """Kills a process with SIGKILL and starts it again: it comes back without what it held in memory, and with what
        it keeps on disk. The services that run once come back at the address they had.

        Args:
            node: A node's name, `gateway`, `scheduler`, `aggregator` or `slices`.
            gracefully: End it with SIGTERM, as an upgrade would: it gives away or ends what it has under way, for up
                to its grace of 25 s.

        Raises:
            InvalidInputError: there is no node of this name.
            TransportError: it does not come up again; the message quotes its log.

        Example:
            >>> await mesh.local.restart("sat-2")
        """
        self._check_node(node)
        self._again[node] = await self._ask({"op": "restart", "node": node, "gracefully": gracefully})

    async def cut(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Cuts the link between two nodes: what is under way is lost and nothing passes until `restore`.

        Args:
            a: A node.
            b: Another node.
            both_ways: False cuts only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> await mesh.local.cut("sat-1", "sat-2")
        """
        await self._ask_for_links("cut", a, b, both_ways)

    async def restore(self, a: str, b: str, *, both_ways: bool = True) -> None:
        """Brings a link back that was cut.

        Args:
            a: A node.
            b: Another node.
            both_ways: False restores only the direction from `a` to `b`.

        Raises:
            InvalidInputError: there is no node of one of these names, or the mesh was made without `link`.

        Example:
            >>> await mesh.local.restore("sat-1", "sat-2")
        """
        await self._ask_for_links("restore", a, b, both_ways)

    async def contact(self, a: str, b: str) -> Mapping[str, Any]:
        """Where two nodes stand to each other in the contact plan, at this moment of mesh time.

        Args:
            a: A node, `gateway`, `scheduler`, `aggregator`, `slices`, or a site of the plan.
            b: Another one.

        Returns:
            `open`; `window` (what is open: start_s, end_s, latency_ms, rate_bps, ... or None), `next` (the next
            window or None), `next_change_s` in mesh time and `next_change_in_s` in real seconds, `mesh_s`, `planned`
            (False where the plan does not speak of the pair).

        Raises:
            InvalidInputError: there is no such place, or the mesh was made without `contacts`.

        Example:
            >>> (await mesh.local.contact("sat-1", "gateway"))["open"]
            True
        """
        answer = await self._ask({"op": "contact", "a": a, "b": b})
        return dict(answer["contact"])

    async def clock(self) -> MeshClock:
        """The clock of this mesh, for which its contact plan is told.

        Raises:
            InvalidInputError: the mesh was made without `contacts`.

        Example:
            >>> clock = await mesh.local.clock()
            >>> clock.factor
            60.0
        """
        told = (await self._ask({"op": "clock"}))["clock"]
        return MeshClock(told["origin_mesh_s"], told["origin_wall_s"], told["factor"])

    async def stats(self) -> Mapping[str, Any]:
        """What the supervisor and the link emulator have counted.

        Example:
            >>> sorted(await mesh.local.stats())
            ['ok', 'relays']
        """
        return await self._ask({"op": "stats"})

    async def _start(self, timeout: float = START_DEADLINE_S) -> None:
        check_can_run()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a folder of the user's that is called `services` must not stand in for ours
            "-m",
            "services.localmesh",
            "--spec",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            # Ctrl-C in a terminal reaches the whole group: the mesh must end in order, when its stdin closes.
            start_new_session=True,
        )
        self._complaints = asyncio.create_task(_tail(self._process), name="localmesh-stderr")
        try:
            with self._spec.contacts_file() as contacts:
                async with asyncio.timeout(timeout):
                    await self._say(self._spec.to_json(contacts))
                    self._ready = await self._until_ready()
        except TimeoutError:
            await self._stop()
            raise DeadlineError(
                f"the local mesh was not ready after {timeout:g} s; allow more time or close what else "
                "computes here"
            ) from None
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if not self._ready:
            # It looks at its input only once it is up; told by a signal it ends at once.
            _signal_down(process)
        stop = asyncio.ensure_future(_end(process))
        try:
            await asyncio.shield(stop)
        except asyncio.CancelledError:
            # Given up while ending: no process may stay behind, so end it the hard way and then go.
            _signal_down(process)
            await stop
            raise
        finally:
            if self._complaints is not None:
                self._complaints.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._complaints

    async def _until_ready(self) -> Mapping[str, Any]:
        while True:
            event = await self._hear()
            if event.get("event") == "ready":
                return event
            if event.get("event") == "failed" or "error" in event:
                raise _refusal(event)
            if self._on_progress is not None:
                subject = event.get("process") or event.get("node") or event.get("what") or "local mesh"
                self._on_progress(Progress(phase=str(event.get("event", "starting")), subject=str(subject)))

    async def _ask_for_links(self, op: str, a: str, b: str, both_ways: bool) -> None:
        self._check_node(a)
        self._check_node(b)
        if self._spec.link is None and self._spec.sky is None:
            raise InvalidInputError(
                "this local mesh has no emulated links to cut; make it with link=Link(...) or contacts=..."
            )
        await self._ask({"op": op, "link": f"{a},{b}" if both_ways else f"{a}>{b}"})

    async def _ask(self, order: Mapping[str, object]) -> Mapping[str, Any]:
        self._guard.check()
        async with self._lock:
            try:
                async with asyncio.timeout(ANSWER_DEADLINE_S):
                    await self._say(order)
                    answer = await self._hear()
            except TimeoutError:
                raise DeadlineError(
                    f"the local mesh did not answer {order} within {ANSWER_DEADLINE_S:g} s"
                ) from None
        if answer.get("error") or answer.get("ok") is False:
            raise _refusal(answer)
        return answer

    def _check_node(self, node: str) -> None:
        known = {**self._ready.get("nodes", {}), **self._ready.get("services", {})}
        if node not in known:
            raise InvalidInputError(
                f"this local mesh has no node {node!r}; expected one of {', '.join(sorted(known))}"
            )

    async def _say(self, line: Mapping[str, object]) -> None:
        if self._process is None or self._process.stdin is None:
            raise TransportError("the local mesh has ended; make another")
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._ended() from None

    async def _hear(self) -> Mapping[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise TransportError("the local mesh has ended; make another")
        while raw := await self._process.stdout.readline():
            try:
                line = json.loads(raw)
            except ValueError:
                continue  # a library that prints
            if isinstance(line, dict):
                return line
        raise await self._ended()

    async def _ended(self) -> TransportError:
        said = ""
        if self._complaints is not None:
            await asyncio.wait([self._complaints], timeout=1.0)
            said = self._complaints.result()[-800:] if self._complaints.done() else ""
        return TransportError(f"the local mesh ended unexpectedly; its last words: {said or 'none'}")


def _refusal(answer: Mapping[str, Any]) -> Exception:
    error = answer.get("error")
    if isinstance(error, Mapping):
        return error_for(str(error.get("reason", "INTERNAL")), str(error.get("message", "no word")))
    return InvalidInputError(f"the local mesh refused: {error or answer}")


async def _tail(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101 - PIPE was asked for
    kept = b""
    while chunk := await process.stderr.read(4096):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    for down in (_signal_down, _kill):
        try:
            await asyncio.wait_for(process.wait(), STOP_WAIT_S)
            return
        except TimeoutError:
            down(process)
    await process.wait()


def _signal_down(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
