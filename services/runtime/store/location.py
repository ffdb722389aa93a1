"""Where a service keeps its state, from its settings. A password comes by file and is never shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.files import read_private

DRIVER = "postgresql+psycopg"
FORMS = "sqlite:////DIR/FILE, or postgresql://USER@HOST:PORT/DATABASE"
URL_MAX_BYTES = 4096
"""The longest URL that is read from a file, in bytes."""


@dataclass(frozen=True)
class Location:
    """A SQLite file, or a database of a PostgreSQL server."""

    file: Path | None = None
    """The file; None for PostgreSQL."""
    url: URL | None = None
    """The server's address and database, password and all; None for SQLite."""

    @property
    def shared(self) -> bool:
        """Whether several processes may use it at once."""
        return self.file is None

    @property
    def shown(self) -> str:
        """For messages and logs: without a secret."""
        return str(self.file) if self.url is None else shown(self.url)

    def __repr__(self) -> str:
        return f"Location({self.shown})"

    @classmethod
    def of(cls, store: str, store_file: Path | None, default: Path) -> Location:
        """Where settings say.

        Args:
            store: A URL; empty leaves it to `store_file`, or to the default.
            store_file: A file that holds the URL, readable by its owner alone.
            default: The SQLite file where neither is given.

        Raises:
            InvalidInputError: Both are given, the URL is none, or it shows a password where others can see it.
            IdentityError: The file cannot be read, or everybody can read it.
        """
        if store and store_file is not None:
            raise InvalidInputError("--store and --store-file both say where the state is: give one of them")
        if store_file is not None:
            text = read_private(store_file, cure="write the URL of the store into it").decode("utf-8", "replace")
            return cls.parse(text.strip(), f"the URL in {store_file}")
        if not store:
            return cls(file=default)
        found = cls.parse(store, "--store")
        if found.url is not None and found.url.password is not None:
            raise InvalidInputError(
                "--store holds a password, which every user of this machine can read from the list of processes: put "
                "the URL into a file and give --store-file FILE, or the password into a file that PGPASSFILE names"
            )
        return found

    @classmethod
    def parse(cls, text: str, what: str = "the URL of the store") -> Location:
        """A location from its URL.

        Args:
            text: `sqlite:///...` or `postgresql://...`.
            what: What the text is, for messages.

        Raises:
            InvalidInputError: It is no such URL; the message does not quote it, for it may hold a password.
        """
        try:
            url = make_url(text) if len(text) <= URL_MAX_BYTES else None
        except (ArgumentError, ValueError):
            url = None
        if url is None:
            raise InvalidInputError(f"{what} is no URL; expected {FORMS}")
        if url.drivername == "sqlite" and url.database and url.database != ":memory:" and not url.host:
            return cls(file=Path(url.database))
        if url.drivername in ("postgresql", "postgres", DRIVER) and url.database:
            return cls(url=url.set(drivername=DRIVER))
        raise InvalidInputError(f"{what} begins with {url.drivername!r} or names no database; expected {FORMS}")


def shown(url: URL) -> str:
    """A URL without its password and options, as a message may have it."""
    return URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()
