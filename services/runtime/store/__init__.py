"""What a service has acknowledged: SQLite on its own disk, or PostgreSQL for several processes, behind one interface.

    Location       where: a file, or a PostgreSQL server; its secrets never leave it
    Layout      which tables, and how those of an earlier version become them
    Database    transactions, durable on return, fenced where a lease must hold
    Lease       one holder at a time, by the database's clock
"""

from services.runtime.store.database import Database
from services.runtime.store.layout import Layout
from services.runtime.store.lease import Lease, Standing
from services.runtime.store.location import Location

__all__ = ["Database", "Layout", "Lease", "Location", "Standing"]
