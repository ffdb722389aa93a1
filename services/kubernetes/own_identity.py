"""`python -m services.kubernetes.own_identity`: hands a pod of a StatefulSet its own identity and no other's.

A template of pods names one secret for all of them. It holds the files of every pod's identity, each called
`NAME.FILE` (`executor-0.tls.key`). This program, in a container beside the one that uses the keys, writes those of one
name to a directory that the two share: once (`--every 0`), or again whenever the secret was renewed. It imports
nothing but the standard library: a pod pays for it in memory as long as it lives.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

FILES_MAX = 16
"""The most files that one identity has."""
FILE_BYTES_MAX = 64 * 1024
"""The largest file that is copied, in bytes."""
MODE = 0o600
"""Permission bits of what is written."""


class MissingError(Exception):
    """The secret has nothing for that name, or something that is no identity."""


def take(secret: Path, name: str) -> dict[str, bytes]:
    """The files of one identity.

    Args:
        secret: The directory that the secret is mounted on.
        name: Whose.

    Raises:
        MissingError: There are none, too many, or one is too large.
        OSError: The directory cannot be read.
    """
    prefix = f"{name}."
    found = {}
    for path in secret.iterdir():
        if path.name.startswith(prefix):
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
            if len(data) > FILE_BYTES_MAX:
                raise MissingError(f"{path} has more than {FILE_BYTES_MAX} bytes: no key and no certificate")
            found[path.name.removeprefix(prefix)] = data
    if not found:
        raise MissingError(
            f"{secret} has no identity {name!r}: have the job pki issue it (--secrets identities-executor=...)"
        )
    if len(found) > FILES_MAX:
        raise MissingError(f"{secret} has {len(found)} files for {name!r}; an identity has at most {FILES_MAX}")
    return found


def hand(files: dict[str, bytes], to: Path) -> bool:
    """Write what has changed, each file at once, keys before their certificates, as issuing does.

    Args:
        files: Names and bytes.
        to: The directory.

    Returns:
        Whether anything has changed.

    Raises:
        OSError: It cannot be written.
    """
    changed = False
    for name in sorted(files, key=lambda each: (each.endswith(".pem") and each != "ca.pem", each)):
        target = to / name
        if target.exists() and target.read_bytes() == files[name]:
            continue
        new = to / f".{name}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
            file.write(files[name])
        new.replace(target)
        changed = True
    return changed


def build_parser() -> argparse.ArgumentParser:
    """Its command line."""
    parser = argparse.ArgumentParser(prog="python -m services.kubernetes.own_identity", description=__doc__)
    parser.add_argument("--secret", required=True, type=Path, metavar="DIR", help="where the secret is mounted")
    parser.add_argument("--name", required=True, help="whose identity")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where it goes")
    parser.add_argument("--every", type=float, default=0, metavar="SECONDS", help="look again; 0 looks once")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 after its end, 1 where the first copy fails, 2 where the command line is wrong."""
    given = build_parser().parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    first = True
    while True:
        try:
            if hand(take(given.secret, given.name), given.to):
                sys.stderr.write(f"the identity of {given.name} is handed over\n")
        except (MissingError, OSError) as error:
            # A secret that is being replaced is whole again at the next look.
            sys.stderr.write(f"{error}\n")
            if first:
                return 1
        first = False
        if given.every <= 0 or stop.wait(given.every):
            return 0


if __name__ == "__main__":
    sys.exit(main())
