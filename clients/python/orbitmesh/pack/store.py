"""Files kept by their content: where a pack's bytes live on a gateway and on a node, also while they are arriving.

A file under way is `<sha256>.part`; what it holds is durable, so a transfer that was cut goes on from there, also
after a restart. It takes its final name only when its hash is right.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from orbitmesh.durable import put_in_place
from orbitmesh.errors import IntegrityError, InvalidInputError, PackError

HASH_CHUNK_BYTES = 1 << 20
"""How much of a file is hashed at once."""


class ContentStore:
    """Content-addressed files below one directory; its methods block and may be called from any thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def path(self, sha256: bytes) -> Path | None:
        """Where the complete file is; None where it is not here."""
        path = self.directory / _name(sha256)
        return path if path.is_file() else None

    def held_path(self, sha256: bytes) -> Path | None:
        """Where the bytes of a file are, complete or not; None where none is here."""
        found = (self.path(sha256), self._part(sha256))
        return next((path for path in found if path is not None and path.is_file()), None)

    def held_bytes(self, sha256: bytes) -> int:
        """How many bytes of a file that is not complete are here."""
        part = self._part(sha256)
        return part.stat().st_size if part.is_file() else 0

    def append(self, sha256: bytes, offset: int, data: bytes | bytearray | memoryview, size_bytes: int) -> bool:
        """Adds a piece; returns True when the file is now complete and its hash right.

        Raises:
            InvalidInputError: Where the piece does not begin where the last one ended, or goes past the size.
            PackError: Where the complete file is not what its name says; it is then thrown away.
        """
        with self._lock:
            if self.path(sha256) is not None:
                return True
            held = self.held_bytes(sha256)
            if offset != held:
                raise InvalidInputError(
                    f"a piece of {_name(sha256)[:12]} begins at {offset}, but {held} bytes are here",
                    reason="FAILED_PRECONDITION",
                    metadata={"held_bytes": held},
                )
            if offset + len(data) > size_bytes:
                raise InvalidInputError(f"a piece of {_name(sha256)[:12]} goes past its {size_bytes} bytes")
            part = self._part(sha256)
            with part.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if held + len(data) < size_bytes:
                return False
            self._finish(part, sha256)
            return True

    def complete(self, sha256: bytes, size_bytes: int) -> bool:
        """Whether the whole file is here; puts it together where all its bytes are.

        Whoever wrote its last piece may be at it, or have ended before. Bytes that are wrong are thrown away.
        """
        with self._lock:
            if self.path(sha256) is not None:
                return True
            part = self._part(sha256)
            if not part.is_file() or part.stat().st_size < size_bytes:
                return False
            try:
                self._finish(part, sha256)
            except PackError:
                return False
            return True

    def read(self, sha256: bytes, offset: int, count: int) -> bytes:
        """Reads a piece of a complete file.

        Raises:
            IntegrityError: Where the file is not here.
        """
        path = self.path(sha256)
        if path is None:
            raise IntegrityError(f"file {_name(sha256)[:12]} is not here", reason="NOT_FOUND")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)

    def place(self, sha256: bytes, target: Path) -> None:
        """Makes a complete file appear under another name on the same disk."""
        path = self.path(sha256)
        if path is None:
            raise IntegrityError(f"file {_name(sha256)[:12]} is not here", reason="NOT_FOUND")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.unlink()
        os.link(path, target)

    def discard(self, sha256: bytes) -> None:
        """Throws a file away, complete or not: the way back from a damaged one."""
        with self._lock:
            (self.directory / _name(sha256)).unlink(missing_ok=True)
            self._part(sha256).unlink(missing_ok=True)

    def _part(self, sha256: bytes) -> Path:
        return self.directory / f"{_name(sha256)}.part"

    def _finish(self, part: Path, sha256: bytes) -> None:
        found = hash_file(part)
        if found != sha256:
            part.unlink()
            raise PackError(
                f"the bytes that arrived for {_name(sha256)[:12]} hash to {found.hex()[:12]}; they were thrown away: "
                "send the file again"
            )
        put_in_place(part, self.directory / _name(sha256))


def hash_file(path: Path) -> bytes:
    """The SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
    return digest.digest()


def _name(sha256: bytes) -> str:
    if len(sha256) != 32:
        raise InvalidInputError(f"a file is named by the 32 bytes of its SHA-256, not by {len(sha256)} bytes")
    return sha256.hex()
