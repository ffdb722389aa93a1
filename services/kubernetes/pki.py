"""`python -m services.kubernetes.pki`: the mesh's certificate authority and its identities, kept in secrets.

Made once; run again, it renews identities with less than half of their life left and leaves the rest. The authority is
durable before anything is issued from it, and of two jobs at once one goes on with what the other has made.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orbitmesh.cli.main import main as orbitmesh
from orbitmesh.errors import InvalidInputError, MeshError, TransportError
from orbitmesh.trust.files import PRIVATE_MODE, make_directory
from orbitmesh.trust.names import parse_identity_name
from services.kubernetes.secrets import ACCOUNT, ConflictError, Secrets

CA_SECRET = "mesh-ca"  # noqa: S105
"""The secret with the authority's key: nothing mounts it."""
ATTEMPTS = 5
"""How often a secret that somebody else writes too is tried."""
IDENTITIES_MAX = 200
"""The most identities in one secret: it holds at most 1 MiB."""
_RANGE = re.compile(r"^(?P<stem>.*?)(?P<first>\d+)\.\.(?P<last>\d+)$")


@dataclass(frozen=True)
class Entry:
    """One secret and whose identities it holds."""

    secret: str
    """Its name."""
    names: tuple[str, ...]
    """role/name, one or many."""
    many: bool
    """Whether its files carry the name: `executor-0.tls.key` and not `tls.key`."""


def parse_entry(text: str) -> Entry:
    """An entry of `--secrets`: `SECRET=ROLE/NAME`, or `SECRET=ROLE/NAME-0..15` for sixteen in one secret.

    Raises:
        InvalidInputError: It is none.
    """
    secret, equals, named = text.partition("=")
    if not secret or not equals:
        raise InvalidInputError(f"--secrets takes SECRET=ROLE/NAME or SECRET=ROLE/NAME-0..15, not {text[:80]!r}")
    found = _RANGE.match(named)
    if found is None:
        parse_identity_name(named)
        return Entry(secret, (named,), False)
    first, last = int(found["first"]), int(found["last"])
    if not 0 <= last - first < IDENTITIES_MAX:
        raise InvalidInputError(f"{named} are {last - first + 1} identities; one secret holds 1 to {IDENTITIES_MAX}")
    names = tuple(f"{found['stem']}{number}" for number in range(first, last + 1))
    for each in names:
        parse_identity_name(each)
    return Entry(secret, names, True)


class Pki:
    """Keeps the secrets of one mesh.

    Args:
        secrets: Where they are.
        work: A directory in memory; keys are in it while the job runs.
        mesh: The mesh's name.
        days: How long identities live.
    """

    def __init__(self, secrets: Secrets, work: Path, mesh: str, days: float) -> None:
        self._secrets = secrets
        self._ca = work / "ca"
        self._identities = work / "identities"
        self._mesh = mesh
        self._days = days
        make_directory(work)

    def authority(self) -> None:
        """Have the authority here, the one that is kept.

        Raises:
            MeshError: It cannot be had or kept.
        """
        for _ in range(ATTEMPTS):
            files, _version = self._secrets.read(CA_SECRET)
            if files:
                _replace(self._ca, files)
                _run("pki", "init", str(self._ca), "--mesh", self._mesh, "--keep")
                return
            _replace(self._ca, {})
            self._ca.rmdir()
            _run("pki", "init", str(self._ca), "--mesh", self._mesh)
            try:
                self._secrets.write(CA_SECRET, _files(self._ca), "")
            except ConflictError:
                continue  # another job was first: its authority is the mesh's
            return
        raise _contended(CA_SECRET)

    def keep(self, entry: Entry) -> bool:
        """Issue or renew what a secret holds, where that is due.

        Returns:
            Whether the secret was written.

        Raises:
            MeshError: It cannot be issued or kept.
        """
        for _ in range(ATTEMPTS):
            before, version = self._secrets.read(entry.secret)
            after: dict[str, bytes] = {}
            for named in entry.names:
                prefix = f"{named.partition('/')[2]}." if entry.many else ""
                directory = self._identities / named
                own = {key.removeprefix(prefix): value for key, value in before.items() if key.startswith(prefix)}
                _replace(directory, own)
                _run("pki", "issue", str(self._ca), named, "--out", str(directory), "--days", str(self._days), "--keep")
                after |= {f"{prefix}{name}": data for name, data in _files(directory).items()}
            # What is no longer asked for is kept: a pod that still runs may need it.
            if before | after == before:
                return False
            try:
                self._secrets.write(entry.secret, before | after, version)
            except ConflictError:
                continue
            return True
        raise _contended(entry.secret)


def _replace(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory that holds these files and no other."""
    make_directory(directory)
    for path in directory.iterdir():
        path.unlink()
    for name, data in files.items():
        path = directory / name
        path.touch(mode=PRIVATE_MODE)
        path.write_bytes(data)


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _run(*words: str) -> None:
    if orbitmesh([*words, "--json"]) != 0:
        raise InvalidInputError(f"`orbitmesh {' '.join(words)}` failed: see the line above", reason="INVALID_ARGUMENT")


def _contended(secret: str) -> TransportError:
    return TransportError(f"the secret {secret} was changed {ATTEMPTS} times meanwhile; end the other job, then again")


def build_parser() -> argparse.ArgumentParser:
    """Its command line."""
    parser = argparse.ArgumentParser(prog="python -m services.kubernetes.pki", description=__doc__)
    parser.add_argument("--secrets", nargs="+", required=True, metavar="SECRET=ROLE/NAME", help="what is kept where")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="a directory in memory, for this job")
    parser.add_argument("--mesh", default="orbitmesh", help="the mesh's name (%(default)s)")
    parser.add_argument("--days", type=float, default=30, help="how long identities live (%(default)s)")
    parser.add_argument("--api", default="https://kubernetes.default.svc", help="the cluster's API (%(default)s)")
    parser.add_argument("--account", type=Path, default=ACCOUNT, metavar="DIR", help="the pod's account (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 0 where all is there, 1 where not, 2 where the command line is wrong."""
    given = build_parser().parse_args(argv)
    try:
        entries = [parse_entry(each) for each in given.secrets]
        keeper = Pki(Secrets(given.api, given.account), given.work, given.mesh, given.days)
        keeper.authority()
        for entry in entries:
            written = keeper.keep(entry)
            sys.stderr.write(f"{entry.secret}: {'written' if written else 'kept'}\n")
    except InvalidInputError as error:
        sys.stderr.write(f"services.kubernetes.pki: {error.message}\n")
        return 2
    except MeshError as error:
        sys.stderr.write(f"services.kubernetes.pki: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
