"""What the scheduler has acknowledged, on disk before it was: deployments, and which request made them."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from orbitmesh.v1 import scheduler_pb2

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    record BLOB NOT NULL,
    load_request BLOB NOT NULL
);
"""


class DeploymentStore:
    """Deployments in SQLite (write-ahead log, every commit synced). Blocks; safe from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    def put(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
    ) -> None:
        """Writes a deployment and the request behind it; durable on return."""
        with self._lock:
            self._db.execute(
                "INSERT INTO deployments (name, request_id, record, load_request) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET request_id = excluded.request_id, record = excluded.record, "
                "load_request = excluded.load_request",
                (deployment.name, request.request_id, deployment.SerializeToString(), request.SerializeToString()),
            )

    def delete(self, name: str) -> None:
        """Removes a deployment; durable on return."""
        with self._lock:
            self._db.execute("DELETE FROM deployments WHERE name = ?", (name,))

    def all(self) -> list[tuple[scheduler_pb2.Deployment, scheduler_pb2.CreateDeploymentRequest]]:
        """Every deployment with the request behind it, by name."""
        with self._lock:
            rows = self._db.execute("SELECT record, load_request FROM deployments ORDER BY name").fetchall()
        return [
            (
                scheduler_pb2.Deployment.FromString(record),
                scheduler_pb2.CreateDeploymentRequest.FromString(request),
            )
            for record, request in rows
        ]

    def close(self) -> None:
        """Closes the file."""
        self._db.close()
