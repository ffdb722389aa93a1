"""The link emulator as a child process, spoken to from asyncio.

A process of its own keeps the emulator's clock apart from the work of the one that uses it (Python's global
lock would add milliseconds), and it ends when its stdin closes, also when its parent is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.errors import TransportError, error_for
from services.links.spec import RelaySpec

REPLY_TIMEOUT_S = 30.0
"""How long the emulator may take to start or to answer."""
MAX_REPLY_BYTES = 4 * 1024 * 1024
"""The longest answer: the statistics of all relays."""


class LinksProcess:
    """A running emulator. Use `await LinksProcess.start()`, or `async with await LinksProcess.start()`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls) -> LinksProcess:
        """Start the process and wait until it answers.

        Raises:
            TransportError: it ended or stayed silent instead.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.links",
            "--control",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_REPLY_BYTES,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
        links = cls(process)
        try:
            await links._read()
        except BaseException:
            await links.close()
            raise
        return links

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def add(self, spec: RelaySpec) -> str:
        """Start a relay; the `host:port` to connect to instead of its target."""
        return str((await self.request("add", **asdict(spec)))["listen"])

    async def set(self, name: str, **fields: object) -> None:
        """Change a relay: `forward={...}`, `reverse={...}`, `target=`, or for both ways `latency_ms=`,
        `rate_bps=`, ..."""
        await self.request("set", name=name, **fields)

    async def cut(self, name: str) -> None:
        """Reset every connection of a relay and refuse new ones until `restore`."""
        await self.request("cut", name=name)

    async def pause(self, name: str) -> None:
        """Hold all bytes of a relay until `restore`."""
        await self.request("pause", name=name)

    async def restore(self, name: str) -> None:
        """End a cut or a pause."""
        await self.request("restore", name=name)

    async def schedule(
        self,
        name: str,
        source: str,
        target: str,
        plan: ContactPlan | Path,
        clock: MeshClock,
        *,
        outage: str = "cut",
        ramp_s: float = 0.0,
    ) -> Mapping[str, Any]:
        """Let a relay follow a contact plan.

        Args:
            name: The relay.
            source: The node of the plan on the client's side.
            target: The node of the plan on the target's side.
            plan: The plan, or a file that holds it: a plan of more than some hundred contacts needs one.
            clock: Which mesh time it is.
            outage: `cut` resets connections when a window closes, `hold` keeps them and all bytes.
            ramp_s: How long the rate climbs after acquisition, mesh time in seconds.

        Returns:
            What `stats` gives, and `warnings`.

        Raises:
            InvalidInputError: The plan or another field is wrong.
        """
        return await self.request(
            "schedule",
            name=name,
            source=source,
            target=target,
            plan=_plan_field(plan),
            origin_mesh_s=clock.origin_mesh_s,
            origin_wall_s=clock.origin_wall_s,
            factor=clock.factor,
            outage=outage,
            ramp_s=ramp_s,
        )

    async def unschedule(self, name: str) -> None:
        """Let a relay follow no plan any more."""
        await self.request("unschedule", name=name)

    async def remove(self, name: str) -> None:
        """End a relay and give its port back."""
        await self.request("remove", name=name)

    async def stats(self, name: str) -> Mapping[str, Any]:
        """The fields of `RelayStats`, and `name` and `listen`."""
        return await self.request("stats", name=name)

    async def request(self, op: str, **fields: object) -> Mapping[str, Any]:
        """One control object and its result.

        Raises:
            MeshError: of the class that the emulator's reason stands for.
            TransportError: the emulator is gone.
        """
        async with self._lock:  # answers carry no order of their own: one question at a time
            stdin = self._process.stdin
            assert stdin is not None  # noqa: S101 - started with a pipe
            try:
                stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
                await stdin.drain()
            except ConnectionError as error:
                raise TransportError("the link emulator is gone; start a new one") from error
            answer = await self._read()
        if answer["ok"]:
            result: Mapping[str, Any] = answer["result"]
            return result
        failure = answer["error"]
        raise error_for(failure["reason"], failure["message"], failure["metadata"])

    async def close(self) -> None:
        """Close its stdin and wait for it to end; kill it where it does not. Safe to call twice."""
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - started with a pipe
        stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), REPLY_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def __aenter__(self) -> LinksProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - started with a pipe
        try:
            line = await asyncio.wait_for(stdout.readline(), REPLY_TIMEOUT_S)
        except TimeoutError as error:
            self._process.kill()  # a late answer would be taken for that of the next question
            raise TransportError(f"the link emulator did not answer in {REPLY_TIMEOUT_S:g} s") from error
        if not line:
            raise TransportError("the link emulator has ended; start a new one")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _plan_field(plan: ContactPlan | Path) -> object:
    return str(plan) if isinstance(plan, Path) else json.loads(plan.dump())
