"""Files that outlive a crash: whoever reads sees the old bytes or all of the new ones."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from pathlib import Path

from orbitmesh.errors import CapacityError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def no_room(error: BaseException) -> CapacityError | None:
    """What a refused write means where the disk is full, its quota or the size of a file is spent; else None."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        why = error.strerror
    elif isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        why = str(error)
    else:
        return None
    return CapacityError(
        f"there is no room to keep this ({why}), and nothing of it was kept; free some room on the disk of this "
        "service's state and try again"
    )


def write_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """Writes a file that is whole and on the disk on return, whoever else writes it at the same time.

    Args:
        path: Where; a file there is replaced.
        data: What.
        mode: Its permission bits, whatever the umask says; its owner's alone where left out.
    """
    written = made_beside(path)
    try:
        written.chmod(mode)  # before anything is in it
        written.write_bytes(data)
        put_in_place(written, path)
    finally:
        written.unlink(missing_ok=True)


def made_beside(path: Path) -> Path:
    """An empty file of another name in the same directory, for `put_in_place`: with permissions as the user's other new
    files have them."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return made


def put_in_place(written: Path, path: Path) -> None:
    """Makes a file that was written and closed the one at `path`, of the same directory; durable on return.

    Whatever a crash leaves there is the old file or the whole new one.
    """
    flush(written)
    written.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Has what was written to a file, or the names in a directory, on the disk on return."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
