"""The supervisor's side of the fork server: services that start from modules which are already imported."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

from orbitmesh.errors import TransportError
from services.localmesh.children import LINE_BYTES, child_environment, die_with_parent

ROOM_BYTES = 8192
"""Room in the server's command line for those that its children show."""
PACKET_BYTES = 4096
"""The longest answer of the server."""
WARM = "ORBITMESH_WARM"
"""The environment variable that names the socket of a process from which many meshes are forked."""
CONNECTIONS_WAITING = 64
"""How many of them may ask it at the same time."""
WARM_WAIT_S = 60.0
"""How long that may take to answer, in seconds: it may still import."""
EVERYTHING = (
    "gateway.server", "services.scheduler.server", "services.slices.server", "services.aggregator.server",
    "services.executor.server", "services.executor.node", "services.executor.measures",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What such a process imports: all services of a local mesh."""
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


class WarmServer:
    """A fork server that was itself forked from one that many meshes use."""

    returncode: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def terminate(self) -> None:
        """SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    async def wait(self) -> int:
        """Waits for its end; what it ended with is not to be had."""
        if self.returncode is None:
            ended, loop = asyncio.Event(), asyncio.get_running_loop()
            loop.add_reader(self._handle, ended.set)
            await ended.wait()
            loop.remove_reader(self._handle)
            os.close(self._handle)
            self.returncode = 0
        return self.returncode


class Forks:
    """A running fork server. Use `await Forks.start(...)`."""

    def __init__(self, process: asyncio.subprocess.Process | WarmServer, orders: socket.socket, log: Path) -> None:
        self._process = process
        self._orders = orders
        self._log = log
        self._asked: deque[asyncio.Future[ForkedProcess]] = deque()
        self._sending = asyncio.Lock()
        self._running: dict[int, ForkedProcess] = {}
        self._reader = asyncio.create_task(self._read(), name="fork server")

    @classmethod
    async def start(cls, modules: tuple[str, ...], log: Path, threads: int) -> Forks:
        """Starts the server; it imports `modules` while the caller goes on. Where the environment names one that has
        everything ready, and computes with as many threads, it is forked from that."""
        if os.environ.get(WARM) and threads == 1:
            return await cls._of_warm(os.environ[WARM], log)
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

    @classmethod
    async def _of_warm(cls, path: str, log: Path) -> Forks:
        orders, loop = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), asyncio.get_running_loop()
        orders.setblocking(False)
        try:
            async with asyncio.timeout(WARM_WAIT_S):
                await loop.sock_connect(orders, path)
                told = {"environment": child_environment(1), "directory": str(Path.cwd())}
                with log.open("ab") as errors:
                    socket.send_fds(orders, [json.dumps(told).encode()], [errors.fileno()])
                answer = json.loads(await loop.sock_recv(orders, PACKET_BYTES) or b"{}")
                return cls(WarmServer(answer["server"]), orders, log)
        except (OSError, KeyError, TimeoutError) as error:
            orders.close()
            raise TransportError(
                f"nothing is forked at {path}, which {WARM} names ({error!r}): start it, or unset that"
            ) from None

    @property
    def is_warm(self) -> bool:
        """Whether it has the modules of every service, not only what executors import."""
        return isinstance(self._process, WarmServer)

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


def start_warm(path: Path, log: Path) -> subprocess.Popen[bytes]:
    """A process at the socket `path` that meshes whose environment names it are forked from; it ends with its parent.

    Args:
        path: Where it listens, in a directory that is only ours.
        log: Gets what it writes to its standard error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, log.open("ab") as errors:
        listener.bind(str(path))
        listener.listen(CONNECTIONS_WAITING)
        return subprocess.Popen(
            [
                sys.executable, "-m", "services.localmesh.fork_server",
                "--warm", str(listener.fileno()), "-" * ROOM_BYTES, *EVERYTHING,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[listener.fileno()],
            env=child_environment(1),
            preexec_fn=die_with_parent,
        )  # fmt: skip
