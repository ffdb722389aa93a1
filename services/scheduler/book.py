"""The deployments as they are now: changed one at a time, on disk before anybody sees it, and watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from orbitmesh.errors import UnknownModelError
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.scheduler.store import DeploymentStore

Held = tuple[scheduler_pb2.Deployment, scheduler_pb2.CreateDeploymentRequest]
Mutation = Callable[[scheduler_pb2.Deployment], bool]
"""Changes a deployment in place; False where there was nothing to change."""


class Book:
    """Every deployment of one scheduler with the request behind it.

    What `get` gives is never changed in place: a change makes a new value, stores it, and only then shows it.
    """

    def __init__(self, store: DeploymentStore) -> None:
        self._store = store
        self._held: dict[str, Held] = {deployment.name: (deployment, request) for deployment, request in store.all()}
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._held)

    def all(self) -> list[Held]:
        """Every deployment with its request, by name."""
        return [self._held[name] for name in self.names()]

    def find(self, name: str) -> Held | None:
        """A deployment with its request, or None."""
        return self._held.get(name)

    def get(self, name: str) -> Held:
        """A deployment with its request.

        Raises:
            UnknownModelError: Where there is none of that name.
        """
        held = self._held.get(name)
        if held is None:
            raise UnknownModelError(
                f"there is no deployment {name!r}; there are: {', '.join(self.names()) or 'none'}",
                metadata={"deployment": name},
            )
        return held

    def claim(self, deployment: scheduler_pb2.Deployment, request: scheduler_pb2.CreateDeploymentRequest) -> None:
        """Takes a name before its deployment is durable, so that no other request takes it meanwhile."""
        deployment.version = 1
        self._held[deployment.name] = (deployment, request)

    def release(self, name: str) -> None:
        """Gives a claimed name up; what was stored stays stored."""
        self._held.pop(name, None)

    async def store(self, name: str) -> None:
        """Makes a claimed deployment durable."""
        deployment, request = self.get(name)
        async with self._writing:
            await asyncio.to_thread(self._store.put, deployment, request)
        self.wake()

    async def change(self, name: str, mutate: Mutation) -> scheduler_pb2.Deployment | None:
        """Changes a deployment; durable when it returns, and visible only from then on.

        Args:
            name: The deployment.
            mutate: Called with a copy; returns False where nothing is to change, and nothing is written then.

        Returns:
            The deployment as it is afterwards; None where it was deleted.
        """
        async with self._writing:
            held = self._held.get(name)
            if held is None:
                return None
            after = scheduler_pb2.Deployment()
            after.CopyFrom(held[0])
            if not mutate(after):
                return held[0]
            after.version += 1
            # Shielded: who asked may go away, but what is on the disk and what is shown must stay the same.
            await asyncio.shield(self._write(after, held[1]))
            return after

    async def _write(self, after: scheduler_pb2.Deployment, request: scheduler_pb2.CreateDeploymentRequest) -> None:
        await asyncio.to_thread(self._store.put, after, request)
        if after.name in self._held:
            self._held[after.name] = (after, request)
        self.wake()

    async def delete(self, name: str) -> scheduler_pb2.Deployment | None:
        """Removes a deployment, durably; returns what it was, or None where there was none.

        Raises:
            MeshError: It could not be written down, and the deployment is still there.
        """
        async with self._writing:
            held = self._held.get(name)
            # Shielded: who asked may go away, but what is on the disk and what is shown must stay the same.
            await asyncio.shield(self._remove(name))
        return None if held is None else held[0]

    async def _remove(self, name: str) -> None:
        await asyncio.to_thread(self._store.delete, name)
        self._held.pop(name, None)
        self.wake()

    # Watching.

    def wake(self) -> None:
        """Tells watchers that something may have changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changes(self, poll_s: float) -> AsyncIterator[None]:
        """Yields at once and then whenever something may have changed, at least every `poll_s` seconds."""
        while True:
            # Taken before the look, so that a change during the look is not missed.
            changed = self._changed
            yield
            try:
                async with asyncio.timeout(poll_s):
                    await changed.wait()
            except TimeoutError:
                pass

    def close(self) -> None:
        """Closes the store."""
        self._store.close()


def standby_of(deployment: scheduler_pb2.Deployment, index: int) -> scheduler_pb2.Standby | None:
    """The standby of a place, or None."""
    return next((each for each in deployment.standbys if each.stage_index == index), None)


def hand_over_of(deployment: scheduler_pb2.Deployment, index: int) -> scheduler_pb2.HandOver | None:
    """The hand-over of a place, or None."""
    return next((each for each in deployment.hand_overs if each.stage_index == index), None)


def drop_standby(deployment: scheduler_pb2.Deployment, index: int, node: str) -> bool:
    """Takes a standby out; False where it is not there."""
    kept = [each for each in deployment.standbys if (each.stage_index, each.node.name) != (index, node)]
    if len(kept) == len(deployment.standbys):
        return False
    _refill(deployment.standbys, kept)
    return True


def drop_hand_over(deployment: scheduler_pb2.Deployment, index: int) -> bool:
    """Takes a hand-over out; False where it is not there."""
    kept = [each for each in deployment.hand_overs if each.stage_index != index]
    if len(kept) == len(deployment.hand_overs):
        return False
    _refill(deployment.hand_overs, kept)
    return True


def _refill(field: Any, kept: Sequence[Any]) -> None:
    copies = [type(each)() for each in kept]
    for copy, each in zip(copies, kept, strict=True):
        copy.CopyFrom(each)
    del field[:]
    field.extend(copies)


def put_in_place(
    deployment: scheduler_pb2.Deployment,
    index: int,
    node: executor_pb2.PeerAddress,
    stage: executor_pb2.Stage | None,
) -> None:
    """Gives a place to another node; it is no standby any more, and a hand-over of the place is over.

    Args:
        deployment: Changed in place.
        index: The place.
        node: Who takes it.
        stage: What it reported of the loaded stage; None keeps what the node before reported.
    """
    deployment.pipeline[index].CopyFrom(node)
    drop_standby(deployment, index, node.name)
    drop_hand_over(deployment, index)
    deployment.plan.stages[index].node = node.name
    count = len(deployment.pipeline)
    for crossing_index, crossing in enumerate(deployment.plan.crossings):
        if crossing_index == index:
            setattr(crossing, "from", node.name)
        if (crossing_index + 1) % count == index:
            crossing.to = node.name
    if stage is not None and index < len(deployment.stages):
        deployment.stages[index].CopyFrom(stage)
