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

from orbitmesh.errors import InvalidInputError, MeshError

from services.localmesh.mesh import LocalMesh
from services.localmesh.topology import MeshSpec


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


async def _serve(mesh: LocalMesh, lines: asyncio.StreamReader) -> None:
    _tell(await mesh.start())
    while line := await lines.readline():
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidInputError("an operation is a JSON object")
            _tell({"ok": True, **await mesh.perform(request)})
        except ValueError:
            _tell({"ok": False, "error": {"reason": "INVALID_INPUT", "message": "a line is not JSON", "metadata": {}}})
        except MeshError as error:
            _tell({"ok": False, "error": _failed(error)})


async def _main() -> int:
    lines = await _lines()
    try:
        raw = json.loads(await lines.readline() or b"{}")
        mesh = LocalMesh(MeshSpec.parse(raw), _tell)
    except (ValueError, MeshError) as error:
        message = error.message if isinstance(error, MeshError) else f"the spec is not JSON: {error}"
        _tell({"event": "failed", "error": {"reason": "INVALID_INPUT", "message": message, "metadata": {}}})
        return 2
    serving = asyncio.ensure_future(_serve(mesh, lines))
    # An input that closes while the mesh is still coming up must end it as well.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    code = 0
    try:
        await serving
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
        code = 1
        wrapped = error if isinstance(error, MeshError) else MeshError(str(error))
        _tell({"event": "failed", "error": _failed(wrapped)})
    except MeshError as error:
        code = 1
        _tell({"event": "failed", "error": _failed(error)})
    finally:
        await mesh.stop()
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
