"""How any service becomes a process: settings, event loop, exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from orbitmesh.errors import InvalidInputError, MeshError
from services.runtime.config import load_config
from services.runtime.status import as_mesh_error


def run_service(name: str, description: str, settings: type[Any], run: Callable[[Any], Awaitable[None]]) -> int:
    """Reads the settings, runs the service and returns the exit code: 0 ended in order, 1 failed, 2
    misconfigured."""
    try:
        given = load_config(settings, prog=f"python -m {name}", description=description)
        asyncio.run(_run(run, given))
    except InvalidInputError as error:
        sys.stderr.write(f"{name}: {error.message}\n")
        return 2
    except MeshError as error:
        sys.stderr.write(f"{name}: {error.message}\n")
        return 1
    except ExceptionGroup as group:
        meant = as_mesh_error(group)
        if meant is None:
            raise
        sys.stderr.write(f"{name}: {meant.message}\n")
        return 1
    return 0


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
