"""Builds a pack in a process of its own: the SDK stays free of torch, and giving up is killing the process.

Run as `python -m orbitmesh._packing`: one JSON line `{"source": .., "dest": .., "name": .., "dtype": ..}` on
stdin, JSON lines on stdout.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from orbitmesh.errors import MeshError


def main() -> int:
    """Reads the order, builds the pack, and says how far it is."""
    # Being told to end must unwind: the builder removes what it has half written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    order = json.loads(sys.stdin.readline())
    last = -1.0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal last
        # Not more than a hundred lines: the reader parses each of them.
        if total and (done == total or done / total - last >= 0.01):
            last = done / total
            _say({"file": name, "done": done, "total": total})

    try:
        from orbitmesh.pack.builder import build_pack

        source = str(order["source"])
        build_pack(
            source,
            Path(order["dest"]),
            name=order.get("name") or Path(source).name,
            dtype=order.get("dtype") or "float32",
            progress=progress,
        )
    except MeshError as error:
        _say({"error": {"reason": error.reason, "message": error.message, "metadata": error.metadata}})
        return 1
    except ImportError as error:
        _say({"error": {"reason": "FAILED_PRECONDITION", "message": str(error), "metadata": {}}})
        return 1
    _say({"built": order["dest"]})
    return 0


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
