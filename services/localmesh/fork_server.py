"""`python -m services.localmesh.fork_server FD ROOM MODULE...`: imports modules once and forks services from there.

An executor spends three seconds of processor time on importing torch and transformers and half a second on everything
else; a mesh of seven on two cores waited for that in vain. This process imports what is named, starts no thread and no
gRPC, and then forks a child for every request that comes through the socket FD; the child becomes `python -m MODULE
ARGUMENTS` in all but name of its parent: standard error of its own, process group of its own, its own command line in
`ps`. The requests are JSON, one per packet: `{"arguments": ["services.executor", ...]}` with the file that is to be
standard error as ancillary data. The answers are `{"pid": 17}`, and `{"ended": 17, "code": 0}` when a child has ended.
It ends with its socket, and its children end with it.

`python -m services.localmesh.fork_server --warm FD ROOM MODULE...` imports once for many meshes: whoever connects to
the listening socket FD has such a server for himself, forked from there. The first packet is `{"environment": {...},
"directory": "/..."}` with the file that is to be standard error; the answer is `{"server": 17}`. It ends with its
parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from services.localmesh.children import die_with_parent

PACKET_BYTES = 1 << 18
"""The longest request; a command line of hundreds of links."""
ARGUMENTS_START, ARGUMENTS_END = 45, 46
"""Where /proc/PID/stat has the addresses of the command line, counted after the name."""


class Closing(Protocol):
    """What a child does not take over."""

    def close(self) -> None:
        """Lets go of it."""
        ...


def main(descriptor: int, modules: list[str]) -> None:
    """Imports, and serves until the socket closes."""
    import_all(modules)
    serve(socket.socket(fileno=descriptor))


def warm(descriptor: int, modules: list[str]) -> None:
    """Gives a server to everybody who connects, until it is ended."""
    import_all(modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who end leave nothing behind
    parent = os.getpid()
    with socket.socket(fileno=descriptor) as listener:
        while True:
            orders, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _serve_one(orders, parent)
            orders.close()


def _serve_one(orders: socket.socket, parent: int) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        packet, descriptors, _, _ = socket.recv_fds(orders, PACKET_BYTES, 1)
        if packet and os.getppid() == parent:
            told = json.loads(packet)
            os.environ.clear()
            os.environ.update(told["environment"])
            os.chdir(told["directory"])
            os.dup2(descriptors[0], 2)
            os.close(descriptors[0])
            orders.send(json.dumps({"server": os.getpid()}).encode())
            serve(orders)
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def import_all(modules: Sequence[str]) -> None:
    """Imports what children are to have."""
    # What is imported stays: the collector would look at all of it again and again, for a quarter of the time.
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        sys.exit("fork_server: an imported module has started a thread; a fork would lose it")
    gc.freeze()  # the children's collector leaves these pages alone, so they stay shared
    gc.enable()


def serve(orders: socket.socket) -> None:
    """Forks whatever is ordered until the socket closes."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = os.getpid()
    with selectors.DefaultSelector() as ready:
        ready.register(orders, selectors.EVENT_READ)
        ready.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is woken:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                    _tell_ended(orders)
                    continue
                packet, descriptors, _, _ = socket.recv_fds(orders, PACKET_BYTES, 1)
                if not packet:
                    return
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(packet)["arguments"], descriptors[0], [orders, woken, wake, ready], server)
                os.close(descriptors[0])
                orders.send(json.dumps({"pid": pid}).encode())


def _tell_ended(orders: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            orders.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(arguments: list[str], log: int, inherited: Sequence[Closing], server: int) -> NoReturn:
    """Runs a service in a process that was just forked by process `server`."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        if os.getppid() != server:
            os._exit(1)
        os.dup2(log, 2)
        os.close(log)
        for each in inherited:
            each.close()
        _show_as([sys.executable, "-m", *arguments])
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _show_as(arguments: list[str]) -> None:
    """Writes the command line over this process's own, where `ps` reads it; what does not fit is cut off."""
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    start, end = int(fields[ARGUMENTS_START]), int(fields[ARGUMENTS_END])
    text = b"".join(argument.encode() + b"\0" for argument in arguments)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    if sys.argv[1] == "--warm":
        warm(int(sys.argv[2]), sys.argv[4:])
    else:
        main(int(sys.argv[1]), sys.argv[3:])
