"""How any service becomes a process: settings, event loop, exit code."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from orbitmesh.errors import InvalidInputError, MeshError
from services.runtime.config import load_config
from services.runtime.status import as_mesh_error

PROBE_BYTES = 4096
"""What is written into the state directory to see that it can be: a block of most file systems."""


def run_service(name: str, description: str, settings: type[Any], run: Callable[[Any], Awaitable[None]]) -> int:
    """Reads the settings, runs the service and returns the exit code: 0 ended in order, 1 failed, 2
    misconfigured."""
    try:
        given = load_config(settings, prog=f"python -m {name}", description=description)
        state = getattr(given, "state", None)
        if isinstance(state, Path):
            check_state(state)
        asyncio.run(_run(run, given))
    except (MeshError, OSError, ExceptionGroup) as error:
        meant = as_mesh_error(error)
        if meant is None and isinstance(error, OSError):
            meant = MeshError(f"{_about(error)}; make that possible, or change the settings")
        if meant is None:
            raise
        sys.stderr.write(f"{name}: {meant.message}\n")
        return 2 if isinstance(meant, InvalidInputError) else 1
    return 0


def check_state(directory: Path) -> None:
    """Makes the directory of a service's state where it is not there, and sees that it holds what is written to it.

    Raises:
        InvalidInputError: It cannot be made, written to, or has no room; the message says what to do.
    """
    probe = directory / f".probe-{secrets.token_hex(6)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("xb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"cannot keep anything in the state directory {directory}: {_about(error)}; give --state a directory "
            "that this user may write to and that has room: in a container, a volume"
        ) from error


def _about(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


async def _run(run: Callable[[Any], Awaitable[None]], settings: Any) -> None:
    await run(settings)


def ways_table(peers: tuple[str, ...]) -> dict[str, str]:
    """Settings of the form `role/name=host:port` as a table.

    Raises:
        InvalidInputError: Where an entry has another form.
    """
    table = {}
    for entry in peers:
        peer, equals, way = entry.partition("=")
        if not equals or "/" not in peer or ":" not in way:
            raise InvalidInputError(f"--peers takes role/name=host:port, not {entry!r}")
        table[peer] = way
    return table
