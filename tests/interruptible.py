"""Programs that Ctrl-C reaches."""

from __future__ import annotations

import sys

_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, sys.argv[1:])
"""


def interruptible(*arguments: str) -> list[str]:
    """The command line of a Python process that can be interrupted.

    Shells let what they start in the background ignore Ctrl-C, and that is inherited. It is undone in the new process,
    not between fork and exec: this process has threads of gRPC, and after a fork of them no Python should run.
    """
    return [sys.executable, "-c", _PROGRAM, sys.executable, *arguments]
