"""Files that hold keys: written whole or not at all, and closed to other users."""

from __future__ import annotations

import stat
from pathlib import Path

from orbitmesh.errors import IdentityError

PRIVATE_MODE = 0o600
"""Permission bits of a file with a secret."""
PUBLIC_MODE = 0o644
"""Permission bits of a certificate."""
DIRECTORY_MODE = 0o700
"""Permission bits of a directory that holds secrets."""
MAX_FILE_BYTES = 64 * 1024
"""Largest certificate, key or signature file that is read; a real one has under 2 KiB."""


def make_directory(path: Path) -> None:
    """Make `path` and its parents; the last one is closed to other users where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def read_public(path: Path, cure: str) -> bytes:
    """The bytes of a certificate file.

    Raises:
        IdentityError: The file is missing, unreadable or far too large; the message ends in `cure`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise IdentityError(f"there is no file {path}; {cure}", metadata={"path": path}) from None
    except OSError as error:
        raise IdentityError(
            f"cannot read {path}: {error.strerror}; {cure}", metadata={"path": path}
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise IdentityError(f"{path} has more than {MAX_FILE_BYTES} bytes: no key or certificate; {cure}")
    return data


def read_private(path: Path, cure: str) -> bytes:
    """The bytes of a key file.

    Raises:
        IdentityError: As `read_public`, or every user of the machine may read it.
    """
    data = read_public(path, cure)
    # Group access stays allowed: container platforms hand secrets to a group. `Others` never need a key.
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise IdentityError(
            f"every user of this machine may read or write the key {path}; treat it as known: issue it "
            "anew, or "
            f"where you are sure, `chmod 600 {path}`",
            metadata={"path": path},
        )
    return data
