"""Programs that Ctrl-C reaches, and what they say until it has."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, sys.argv[1:])
"""
ENDED_WITHIN_S = 60.0


def interruptible(*arguments: str) -> list[str]:
    """The command line of a Python process that can be interrupted.

    Shells let what they start in the background ignore Ctrl-C, and that is inherited. It is undone in the new process,
    not between fork and exec: this process has threads of gRPC, and after a fork of them no Python should run.
    """
    return [sys.executable, "-c", _PROGRAM, sys.executable, *arguments]


def interrupted(command: Sequence[str], shown: Callable[[str], bool], *, terminal: bool = False) -> tuple[str, int]:
    """Runs a command and interrupts it once it has shown something.

    Args:
        command: As `interruptible` gives it.
        shown: Whether what it has said so far has what is waited for.
        terminal: Whether its standard output is a terminal, or else a pipe.

    Returns:
        All that it said, and its exit code.
    """
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"} if terminal else None
    stdin = theirs if terminal else None
    with subprocess.Popen(command, stdin=stdin, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said, sent = b"", False
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break  # Linux says so where the other end of a terminal is closed
            if not piece:
                break
            said += piece
            if not sent and shown(said.decode(errors="replace")):
                process.send_signal(signal.SIGINT)
                sent = True
        os.close(ours)
        return said.decode(errors="replace"), process.wait(ENDED_WITHIN_S)
