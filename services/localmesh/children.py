"""One service as a child process: its log kept, its address awaited, its end certain."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Protocol

from orbitmesh.errors import InternalError, TransportError

LISTEN_WAIT_S = 60.0
"""How long a service may take to listen."""
TERMINATE_WAIT_S = 5.0
"""How long a service may take to drain before it is killed."""
LINES_KEPT = 20
"""Lines of its log that an error quotes."""
LINE_BYTES = 1 << 20
"""The longest line of a log."""
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Linux ends the child when its parent is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C at a terminal goes to the supervisor alone; it ends its children in order.
    os.setpgrp()


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a service whose computations take `threads` threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "GRPC_VERBOSITY": "NONE"}


class Process(Protocol):
    """What is asked of a process, whoever its parent is."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its exit code; None while it runs."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def terminate(self) -> None:
        """SIGTERM."""
        ...

    async def wait(self) -> int:
        """Waits for its end."""
        ...


class Child:
    """A service that was started.

    Args:
        name: The service's name.
        process: Its process.
        said: What it writes to its standard error.
        log: The file that keeps that.
    """

    def __init__(self, name: str, process: Process, said: asyncio.StreamReader, log: Path) -> None:
        self.name = name
        self.process = process
        self._said = said
        self._log = log
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"log of {name}")

    @classmethod
    async def start(cls, name: str, arguments: list[str], log: Path, threads: int) -> Child:
        """Starts `python -m ARGUMENTS`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env=child_environment(threads),
            preexec_fn=die_with_parent,
        )
        if process.stderr is None:
            raise InternalError("a child was started without a pipe for its log")
        return cls(name, process, process.stderr, log)

    async def address(self) -> str:
        """host:port where it listens.

        Raises:
            TransportError: Where it ended first or took too long; quotes its log.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._address), LISTEN_WAIT_S)
        except TimeoutError:
            raise self._failure(f"did not listen within {LISTEN_WAIT_S:.0f} s") from None

    def kill(self) -> None:
        """SIGKILL: no drain, no goodbye."""
        if self.process.returncode is None:
            self.process.kill()

    async def stop(self, patience_s: float = TERMINATE_WAIT_S) -> None:
        """SIGTERM, then after `patience_s` seconds SIGKILL."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), patience_s)
            except TimeoutError:
                self.process.kill()
        await self.process.wait()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        with self._log.open("ab") as log:
            while line := await self._said.readline():
                log.write(line)
                log.flush()
                text = line.decode("utf-8", "replace").rstrip()
                self._lines.append(text)
                self._look_for_address(text)
        await self.process.wait()
        if not self._address.done():
            self._address.set_exception(self._failure(f"ended with code {self.process.returncode}"))
            self._address.exception()  # it is not lost: whoever asks gets it; nobody asking is no fault

    def _look_for_address(self, text: str) -> None:
        if self._address.done() or not text.startswith("{"):
            return
        try:
            event = json.loads(text)
        except ValueError:
            return
        if event.get("event") == "listening":
            self._address.set_result(event["address"])

    def _failure(self, what: str) -> TransportError:
        quoted = "\n  ".join(self._lines)
        return TransportError(f"{self.name} {what}; the end of its log {self._log}:\n  {quoted}")
