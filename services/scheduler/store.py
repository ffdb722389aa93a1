"""What the scheduler has acknowledged, durable before it was: deployments, and which request made them."""

from __future__ import annotations

from sqlalchemy import Column, LargeBinary, MetaData, Table, Text, delete, select

from orbitmesh.v1 import scheduler_pb2
from services.runtime.store import Database, Layout, Location

TABLES = MetaData()
DEPLOYMENTS = Table(
    "deployments",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("load_request", LargeBinary, nullable=False),
)
LAYOUT = Layout("scheduler", TABLES)


class DeploymentStore:
    """Deployments. Blocks; safe from any thread.

    Args:
        location: Where.

    Raises:
        MeshError: It cannot be opened.
    """

    def __init__(self, location: Location) -> None:
        self.database = Database(location, LAYOUT)
        self._put = self.database.upsert(DEPLOYMENTS, "name")

    def put(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
    ) -> None:
        """Writes a deployment and the request behind it; durable on return."""
        row = {
            "name": deployment.name,
            "request_id": request.request_id,
            "record": deployment.SerializeToString(),
            "load_request": request.SerializeToString(),
        }
        with self.database.transaction() as connection:
            connection.execute(self._put, row)

    def delete(self, name: str) -> None:
        """Removes a deployment; durable on return."""
        with self.database.transaction() as connection:
            connection.execute(delete(DEPLOYMENTS).where(DEPLOYMENTS.c.name == name))

    def all(self) -> list[tuple[scheduler_pb2.Deployment, scheduler_pb2.CreateDeploymentRequest]]:
        """Every deployment with the request behind it, by name."""
        with self.database.reading() as connection:
            rows = connection.execute(select(DEPLOYMENTS.c.record, DEPLOYMENTS.c.load_request)).all()
        held = [
            (
                scheduler_pb2.Deployment.FromString(record),
                scheduler_pb2.CreateDeploymentRequest.FromString(request),
            )
            for record, request in rows
        ]
        return sorted(held, key=lambda each: each[0].name)

    def close(self) -> None:
        """Closes it."""
        self.database.close()
