"""The supervisor's side of the fork server: services that start from modules which are already imported."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path

from orbitmesh.errors import TransportError
from services.localmesh.children import LINE_BYTES, child_environment, die_with_parent

ROOM_BYTES = 8192
"""Room in the server's command line for those that its children show."""
PACKET_BYTES = 4096
"""The longest answer of the server."""
SUPPORTED = sys.platform == "linux"
"""Whether processes can be forked and watched in this way; elsewhere every service starts on its own."""


class ForkedProcess:
    """A child of the fork server, used as one would `asyncio.subprocess.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # By number alone a signal could strike whoever got the number next. None: it has ended already.
        self._handle: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def ended(self, code: int) -> None:
        """Notes its end."""
        if not self._ended.done():
            self._ended.set_result(code)
            if self._handle is not None:
                os.close(self._handle)

    def kill(self) -> None:
        """SIGKILL."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    async def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        return await asyncio.shield(self._ended)

    def _send(self, number: int) -> None:
        if self._handle is not None and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


class Forks:
    """A running fork server. Use `await Forks.start(...)`."""

    def __init__(self, process: asyncio.subprocess.Process, orders: socket.socket, log: Path) -> None:
        self._process = process
        self._orders = orders
        self._log = log
        self._asked: deque[asyncio.Future[ForkedProcess]] = deque()
        self._sending = asyncio.Lock()
        self._running: dict[int, ForkedProcess] = {}
        self._reader = asyncio.create_task(self._read(), name="fork server")

    @classmethod
    async def start(cls, modules: tuple[str, ...], log: Path, threads: int) -> Forks:
        """Starts the server; it imports `modules` while the caller goes on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs, log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.localmesh.fork_server",
                str(theirs.fileno()),
                "-" * ROOM_BYTES,
                *modules,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env=child_environment(threads),
                preexec_fn=die_with_parent,
            )
        return cls(process, ours, log)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    async def fork(self, arguments: list[str]) -> tuple[ForkedProcess, asyncio.StreamReader]:
        """A child that runs `python -m ARGUMENTS`, and its standard error.

        Raises:
            TransportError: Where the server has ended; names its log.
        """
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[ForkedProcess] = loop.create_future()
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb"), contextlib.ExitStack() as stack:
            ours = stack.enter_context(os.fdopen(reading, "rb"))
            # One after the other: answers come in the order of the questions.
            async with self._sending:
                await self._send(json.dumps({"arguments": arguments}).encode(), writing)
                self._asked.append(asked)
            process = await asked
            stream = asyncio.StreamReader(LINE_BYTES)
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), ours)
            stack.pop_all()  # the transport closes it
        return process, stream

    async def _send(self, order: bytes, log: int) -> None:
        loop = asyncio.get_running_loop()
        while not self._reader.done():
            try:
                socket.send_fds(self._orders, [order], [log])
                return
            except BlockingIOError:
                # While the server still imports, the orders of a large mesh fill the socket.
                room = asyncio.Event()
                loop.add_writer(self._orders, room.set)
                waiting = asyncio.ensure_future(room.wait())
                try:
                    await asyncio.wait([waiting, self._reader], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
                    loop.remove_writer(self._orders)
            except OSError:
                break
        raise self._gone()

    async def close(self) -> None:
        """Ends the server, and with it whichever child still runs."""
        with contextlib.suppress(OSError):  # it has ended already
            self._orders.shutdown(socket.SHUT_RDWR)
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while packet := await loop.sock_recv(self._orders, PACKET_BYTES):
                answer = json.loads(packet)
                if "pid" in answer:
                    process = self._running[answer["pid"]] = ForkedProcess(answer["pid"])
                    asked = self._asked.popleft()
                    if asked.done():  # nobody waits for it any more
                        process.kill()
                    else:
                        asked.set_result(process)
                else:
                    self._running.pop(answer["ended"]).ended(answer["code"])
        except OSError:
            pass
        finally:
            self._orders.close()
            for process in self._running.values():
                process.ended(-signal.SIGKILL)
            for asked in self._asked:
                if not asked.done():
                    asked.set_exception(self._gone())

    def _gone(self) -> TransportError:
        return TransportError(f"the process that executors are forked from has ended; see its log {self._log}")
