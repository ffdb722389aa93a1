"""A PostgreSQL server of the tests' own, from the system's packages: in a temporary directory, on a socket there."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

START_S = 60.0
"""How long it may take to come up; far above what it takes."""
USER = "orbitmesh"


def binaries() -> Path | None:
    """Where postgres and initdb are; None where they are not installed."""
    found = shutil.which("postgres")
    if found is not None and (Path(found).resolve().parent / "initdb").exists():
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None


class Server:
    """A running server."""

    def __init__(self, directory: Path, where: Path) -> None:
        self.directory = directory
        self._where = where
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        # A server refuses to run as root.
        self._as = {"user": _somebody(), "extra_groups": []} if os.geteuid() == 0 else {}

    def create(self) -> None:
        """Makes its files."""
        if self._as:
            shutil.chown(self.directory, self._as["user"])
        data = str(self.directory / "data")
        how = ["--no-sync", "--auth=trust", f"--username={USER}", "--locale=C", "--encoding=UTF8", "--no-instructions"]
        made = subprocess.run(
            [self._where / "initdb", *how, data], cwd=self.directory, capture_output=True, check=False, **self._as
        )
        assert made.returncode == 0, made.stderr.decode()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = {
            "unix_socket_directories": str(self.directory), "listen_addresses": "", "fsync": "off",
            "max_connections": "80", "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._where / "postgres", "-D", str(self.directory / "data"), *flags],
                cwd=self.directory, stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        give_up = time.monotonic() + START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres")):
                return
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < give_up, (self.directory / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it at once; what was committed stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)
            self._process = None

    def url(self, name: str) -> str:
        """A database's URL."""
        return f"postgresql://{USER}@/{name}?host={self.directory}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{os.getpid()}x{next(self._numbers)}"
        self.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def dump(self, name: str) -> bytes:
        """All that a database holds, as pg_dump writes it."""
        dumped = subprocess.run(
            [self._where / "pg_dump", "--host", str(self.directory), "--username", USER, name],
            capture_output=True, check=True,
        )  # fmt: skip
        return dumped.stdout

    def ask(self, question: str) -> object:
        """The first value of an answer; None where there is none."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            row = connection.execute(question).fetchone()  # type: ignore[arg-type]
        return None if row is None else row[0]

    def run(self, statement: str | sql.Composed, name: str = "postgres") -> None:
        """Carries out one statement."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server for as long as this lasts; skips the test where PostgreSQL is not installed."""
    where = binaries()
    if where is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql (Debian) lets this test run")
    directory = Path(tempfile.mkdtemp(prefix="ompg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    server = Server(directory, where)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _somebody() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody here")
