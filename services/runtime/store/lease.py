"""One holder at a time, by the clock of the database, whatever the clocks of the processes say."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Double, Engine, literal_column, select, update

from orbitmesh.errors import TransportError
from services.runtime.store.database import Database
from services.runtime.store.layout import LEASES

LEASE_S = 3.0
"""For how long a lease is held once it was taken or renewed, in seconds."""
_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}


@dataclass(frozen=True)
class Standing:
    """What one look at a lease found."""

    held: bool
    """Whether this process holds it."""
    holder: str
    """Who does, in words."""


class Lease:
    """A name that at most one process holds. Every change of holder has a number of its own, the epoch: what a holder
    writes is fenced by it, so one that was stopped and wakes up late writes nothing.

    Blocks; for one thread, but for `fence` and `valid`.

    Args:
        database: Where it is kept, beside what it protects.
        name: The lease.
        holder: Who this process is, for those that ask.
        lasts_s: For how long it is held once renewed, in seconds.
    """

    def __init__(self, database: Database, name: str, holder: str, lasts_s: float = LEASE_S) -> None:
        self._database = database
        self._name = name
        self.holder = holder
        self._lasts_s = lasts_s
        self._engine: Engine = database.beside()
        self._epoch = 0
        self._valid_until_s = 0.0

    @property
    def epoch(self) -> int:
        """The number under which this process holds it, or held it last; 0 where it never did."""
        return self._epoch

    @property
    def valid(self) -> bool:
        """Whether nobody else can hold it at this moment, by this process's own clock."""
        return time.monotonic() < self._valid_until_s

    def take(self) -> Standing:
        """Takes it where nobody holds it.

        Raises:
            TransportError: The database cannot be reached.
        """
        asked_s = time.monotonic()
        mine = LEASES.c.name == self._name
        with self._database.using(self._engine) as connection:
            now: ColumnElement[float] = literal_column(_CLOCKS[connection.dialect.name], Double())
            look = select(LEASES.c.holder, LEASES.c.expires_at, now).where(mine)
            row = connection.execute(look).one_or_none()
            if row is not None and row[1] >= row[2]:
                return Standing(False, row[0])
            if row is None:
                # Two that come first at once: the second finds the row that the first has made.
                fresh = {"name": self._name, "holder": "", "epoch": 0, "expires_at": 0.0}
                connection.execute(self._database.insert(LEASES).on_conflict_do_nothing(), fresh)
            # Waits for every transaction that the holder before had fenced and not ended.
            row = connection.execute(look.with_for_update()).one()
            held = row[1] < row[2]
            if not held:
                return Standing(False, row[0])
            self._epoch = connection.execute(
                update(LEASES)
                .where(mine)
                .values(holder=self.holder, epoch=LEASES.c.epoch + 1, expires_at=now + self._lasts_s)
                .returning(LEASES.c.epoch)
            ).scalar_one()
        self._valid_until_s = asked_s + self._lasts_s
        return Standing(True, self.holder)

    def renew(self) -> Standing:
        """Holds it for longer, also where it has run out and nobody else took it.

        Raises:
            TransportError: The database cannot be reached: whether it is held is not known.
        """
        asked_s = time.monotonic()
        with self._database.using(self._engine) as connection:
            now: ColumnElement[float] = literal_column(_CLOCKS[connection.dialect.name], Double())
            mine = LEASES.c.name == self._name
            changed = connection.execute(
                update(LEASES).where(mine, LEASES.c.epoch == self._epoch).values(expires_at=now + self._lasts_s)
            )
            held = changed.rowcount == 1
            holder = connection.execute(select(LEASES.c.holder).where(mine)).scalar_one_or_none() or ""
        self._valid_until_s = asked_s + self._lasts_s if held else 0.0
        return Standing(held, holder)

    def release(self) -> None:
        """Lets another take it at once.

        Raises:
            TransportError: The database cannot be reached; then it runs out by itself.
        """
        self._valid_until_s = 0.0
        with self._database.using(self._engine) as connection:
            connection.execute(
                update(LEASES)
                .where(LEASES.c.name == self._name, LEASES.c.epoch == self._epoch)
                .values(expires_at=0.0)
            )

    def fence(self, connection: Connection) -> None:
        """Looks, within a transaction that writes, whether this process is still the last that took the lease. The row
        stays locked until the transaction ends: who takes the lease meanwhile waits for it.

        Raises:
            TransportError: `NOT_LEADER`: another took it. Nothing of the transaction may be written.
        """
        found = connection.execute(
            # The weakest lock that keeps `take` waiting; the renewals of this process do not wait for it.
            select(LEASES.c.epoch, LEASES.c.holder)
            .where(LEASES.c.name == self._name)
            .with_for_update(read=True, key_share=True)
        ).one_or_none()
        if found is None or found[0] != self._epoch:
            self._valid_until_s = 0.0
            raise not_leader(found[1] if found is not None else "")

    def close(self) -> None:
        """Closes its connection."""
        if self._database.location.shared:
            self._engine.dispose()


def not_leader(leader: str) -> TransportError:
    """The error of a process that does not lead: another is to be asked."""
    return TransportError(
        f"this process does not lead; {leader or 'nobody at the moment'} does: ask there, or try again",
        reason="NOT_LEADER",
        metadata={"leader": leader},
    )
