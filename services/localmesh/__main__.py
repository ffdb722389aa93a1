"""`python -m services.localmesh --spec -`: a local mesh that lives as long as its standard input.

A line of JSON comes in: the spec. Lines of JSON go out: events, at last `ready`. Then one line in, one line out per
operation. The mesh ends, and everything of it, when the input closes or on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import Any

from orbitmesh.errors import InternalError, InvalidInputError, MeshError
from services.localmesh.mesh import LocalMesh
from services.localmesh.topology import MeshSpec

ORDERS_WAITING = 64
"""How many operations may wait for the one that is being done."""


def _tell(event: dict[str, Any]) -> None:
    # Whoever listened may be gone; then the input is closed too, and the mesh ends by that.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _failed(error: MeshError) -> dict[str, Any]:
    return {"reason": error.reason, "message": error.message, "metadata": error.metadata}


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _serve(mesh: LocalMesh, orders: asyncio.Queue[bytes]) -> None:
    _tell(await mesh.start())
    while True:
        line = await orders.get()
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidInputError("an operation is a JSON object")
            _tell({"ok": True, **await mesh.perform(request)})
        except ValueError:
            _tell({"ok": False, "error": _failed(InvalidInputError("a line is not JSON"))})
        except MeshError as error:
            _tell({"ok": False, "error": _failed(error)})


async def _listen(lines: asyncio.StreamReader, orders: asyncio.Queue[bytes]) -> None:
    while line := await lines.readline():
        await orders.put(line)


async def _live(mesh: LocalMesh, lines: asyncio.StreamReader) -> MeshError | None:
    """Serves until the input closes or a signal comes, also while the mesh is still coming up; returns a failure."""
    orders: asyncio.Queue[bytes] = asyncio.Queue(ORDERS_WAITING)
    serving = asyncio.create_task(_serve(mesh, orders))
    listening = asyncio.create_task(_listen(lines, orders))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, listening.cancel)
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    for task in (serving, listening):
        task.cancel()
    outcome, _ = await asyncio.gather(serving, listening, return_exceptions=True)
    while isinstance(outcome, BaseExceptionGroup):
        outcome = outcome.exceptions[0]
    if outcome is None or isinstance(outcome, asyncio.CancelledError):
        return None
    return outcome if isinstance(outcome, MeshError) else InternalError(f"{type(outcome).__name__}: {outcome}")


async def _main() -> int:
    lines = await _lines()
    try:
        mesh = LocalMesh(MeshSpec.parse(json.loads(await lines.readline() or b"{}")), _tell)
    except ValueError:
        _tell({"event": "failed", "error": _failed(InvalidInputError("the spec is not JSON"))})
        return 2
    except MeshError as error:
        _tell({"event": "failed", "error": _failed(error)})
        return 2
    try:
        failure = await _live(mesh, lines)
    finally:
        await mesh.stop()
    if failure is not None:
        _tell({"event": "failed", "error": _failed(failure)})
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
