"""Runs with secrets that this node has let go of: it does not join them again.

Keys that are made anew, or an account of noise that begins at nothing, would reveal what the first ones hid.
"""

from __future__ import annotations

import json
from pathlib import Path

from orbitmesh.durable import write_durably
from orbitmesh.errors import IntegrityError, InvalidInputError

NAMES_MAX = 4096
"""Names that are remembered at most; the oldest are given up first."""


class Forgotten:
    """The names of such runs, on disk. Blocks.

    Args:
        path: The file; made with the first name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, None] | None = None

    def add(self, name: str) -> None:
        """Writes a name down; durable on return."""
        names = self._read()
        names.pop(name, None)
        names[name] = None
        self._names = dict.fromkeys(list(names)[-NAMES_MAX:])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, json.dumps(list(self._names)).encode())

    def check(self, name: str) -> None:
        """Refuses to join a run that was let go of.

        Raises:
            InvalidInputError: This node took part in it.
            IntegrityError: The file is damaged.
        """
        if name in self._read():
            raise InvalidInputError(
                f"this node took part in the run {name} and has let go of its keys and of its account of privacy: "
                "fresh ones would reveal what those hid; begin a new run",
                reason="FAILED_PRECONDITION",
            )

    def _read(self) -> dict[str, None]:
        if self._names is None:
            self._names = dict.fromkeys(self._load())
        return self._names

    def _load(self) -> list[str]:
        if not self._path.exists():
            return []
        try:
            names = json.loads(self._path.read_bytes())
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise IntegrityError(
                f"{self._path.name} is damaged, which says what runs this node must not join again: restore it, or "
                "remove it where no run with privacy or secure sums was ever ended here"
            )
        return names
