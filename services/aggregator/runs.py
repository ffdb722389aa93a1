"""All runs of an aggregator: those that go on are led, the others are remembered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orbitmesh.errors import CapacityError, IntegrityError, InvalidInputError, MeshError, NodeLostError
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import aggregator_pb2, wire_pb2
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, StreamCall, dial
from services.aggregator.driver import ROUNDS_BYTES, RunDriver, wire_name
from services.aggregator.members import Members
from services.aggregator.places import Places
from services.aggregator.serving import Serving
from services.aggregator.spec import ROUNDS_MAX, RunSpec, check_spec, from_json
from services.aggregator.spool import Spool
from services.aggregator.store import INITIAL, NAME, RunRecord, RunStore
from services.aggregator.tasks import end_order
from services.egress import FarEgress
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.tracing import SpanSink

RUNS_AT_ONCE_MAX = 16
"""How many runs are led at a time."""
ROUNDS_CHANGING = 64
"""A round that lies further back than so many does not change any more."""
SESSION_GIVE_UP_S = 3.0
"""How long a cut session to a node is taken up again before it is dialled anew, as soon as the node is in contact."""
SESSION_WINDOW_BYTES = 2 * FRAME_BODY_BYTES
"""How much of contributions may be on its way from one node: memory here grows with nodes by this alone."""


class Runs:
    """The runs of one aggregator.

    Args:
        directory: Where everything is kept.
        identities: Who we are.
        channels: Our connections.
        members: The nodes of the mesh.
        slices: host:port of the slices service, and its name; empty where there is none.
        sinks: Where the spans of rounds go.
        log: Where to say what happened.
        egress: Gives what is sent to nodes its turn; None: it goes as it comes.
        store: What is written down; in the directory where left out.
    """

    def __init__(
        self,
        directory: Path,
        identities: IdentitySource,
        channels: ChannelPool,
        members: Members,
        slices: tuple[str, str],
        sinks: Sequence[SpanSink],
        log: EventLog,
        egress: FarEgress | None = None,
        *,
        store: RunStore | None = None,
    ) -> None:
        self._store = store or RunStore(directory)
        self._places = Places(self._store, channels, *slices, log)
        self._beginning = asyncio.Lock()
        self._identities = identities
        self._channels = channels
        self._members = members
        self._sinks = sinks
        self._log = log
        self._egress = egress
        self._drivers: dict[str, RunDriver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._unreadable: dict[str, tuple[str, str]] = {}
        self._serving = Serving(self._dial, log)

    async def restore(self) -> None:
        """Takes up every run that was going on. One whose files are damaged keeps nobody else from going on."""
        for record in await asyncio.to_thread(self._store.all):
            try:
                await self._driver(record)
            except (MeshError, OSError, ValueError, KeyError) as error:
                self._unreadable[record.name] = (wire_name(record), f"{type(error).__name__}: {error}")
                self._log.error("run_not_readable", run=record.name, error=error)
        await self._places.restore({driver.wire_name for driver in self._drivers.values() if not driver.book.ended})
        # All of them are known before the first one speaks: nodes may forget a run that is not among those that go on.
        for driver in self._drivers.values():
            if not driver.book.ended:
                self._lead(driver)

    async def start(self, request: aggregator_pb2.StartRunRequest, caller: str) -> aggregator_pb2.Run:
        """Begins a run.

        Args:
            request: What is asked.
            caller: Who asks, by SPIFFE identifier: into whose slice it may go.

        Raises:
            InvalidInputError: The specification makes no sense, the name is taken, or the slice is not active.
            IntegrityError: A run of that name is there and cannot be read.
            CapacityError: Too many runs go on, or the slice is full.
            PermissionError_: The slice is not the caller's.
        """
        if not NAME.fullmatch(request.name):
            raise InvalidInputError(
                f"{request.name[:80]!r} is no name of a run: 1 to 63 of a-z, 0-9 and -, a letter or digit first"
            )
        if not request.request_id or len(request.request_id) > 128:
            raise InvalidInputError("a request to start a run carries a request_id of 1 to 128 characters")
        known = self.get(request.name) if request.name in self._unreadable else self._drivers.get(request.name)
        if known is None or known.book.request_id != request.request_id:
            await self._members.refresh()
            spec = check_spec(request.spec, self._members.up())
            self._check_room()
            record = RunRecord(
                request.name, request.request_id, spec.to_json(), "running", "", INITIAL, {}, time.time_ns()
            )
            known = await self._begin(record, spec, caller)
        return known.message()

    async def _begin(self, record: RunRecord, spec: RunSpec, caller: str) -> RunDriver:
        """Lets a run into its slice and writes it down; one that is there by the same request is as it was."""
        # The same request twice at once asks for one place.
        async with self._beginning if spec.slice else contextlib.nullcontext():
            known = self._drivers.get(record.name)
            enters = bool(spec.slice) and (known is None or known.book.request_id != record.request_id)
            if enters:
                await self._places.enter(wire_name(record), spec.slice, spec.nodes, caller)
            try:
                record = await asyncio.to_thread(self._store.begin, record)
                known = self._drivers.get(record.name) or await self._driver(record)
            except BaseException:
                if enters:
                    await self._places.leave(wire_name(record))
                raise
            self._lead(known)
            return known

    def get(self, name: str) -> RunDriver:
        """A run.

        Raises:
            InvalidInputError: `NOT_FOUND`.
            IntegrityError: It is there, but what was written down of it cannot be read.
        """
        if name in self._unreadable:
            raise IntegrityError(
                f"the files of the run {name!r} could not be read when the aggregator started: "
                f"{self._unreadable[name][1]}; restore them and start it again, or delete the run"
            )
        found = self._drivers.get(name)
        if found is None:
            there = ", ".join(sorted(self._drivers)) or "none"
            raise InvalidInputError(f"there is no run {name[:64]!r}; there are: {there}", reason="NOT_FOUND")
        return found

    def all(self) -> list[RunDriver]:
        """Every run, by name."""
        return [self._drivers[name] for name in sorted(self._drivers)]

    async def cancel(self, name: str) -> aggregator_pb2.Run:
        """Ends a run before its last round; one that has ended stays as it is."""
        driver = self.get(name)
        if not driver.book.ended:
            await self._halt(name)
            await driver.book.say("cancelled")
        return driver.message()

    async def resume(self, name: str, rounds: int, caller: str) -> aggregator_pb2.Run:
        """Lets a run go on, if need be for more rounds than before. One that is paused begins its round anew with the
        contributions that it has: nodes that were given up are asked again.

        Args:
            name: The run.
            rounds: How many there are to be in all; 0 leaves it as it was.
            caller: Who asks, by SPIFFE identifier: into whose slice a run that has ended may go.

        Raises:
            InvalidInputError: All rounds are done and no more were asked for, or the slice is not active.
            CapacityError: Too many runs go on, or the slice is full.
            PermissionError_: The slice is not the caller's.
        """
        driver = self.get(name)
        done = driver.book.next_round
        wanted = rounds or driver.spec.message.rounds
        if not done < wanted <= ROUNDS_MAX:
            raise InvalidInputError(
                f"{name!r} has {done} rounds done; say how many there are to be in all, more than that and at most "
                f"{ROUNDS_MAX}",
                reason="FAILED_PRECONDITION",
            )
        if not driver.book.ended and not driver.book.paused and wanted == driver.spec.message.rounds:
            return driver.message()
        slice_name = driver.spec.slice
        if slice_name and not driver.book.ended:
            self._places.check_resumed(driver.wire_name, slice_name, caller)
        async with self._beginning if slice_name else contextlib.nullcontext():
            enters = bool(slice_name) and self.get(name).book.ended
            if enters:
                self._check_room()
                await self._places.enter(driver.wire_name, slice_name, driver.spec.nodes, caller)
            try:
                again = await self._again(name, wanted)
            except BaseException:
                if enters:
                    await self._places.leave(driver.wire_name)
                raise
        driver.book.changed.tell()
        self._lead(again)
        return again.message()

    async def _again(self, name: str, rounds: int) -> RunDriver:
        """A run from the disk, which goes on to that round."""
        await self._halt(name)
        self._check_room()
        spec = from_json(self.get(name).spec.to_json())
        spec.message.rounds = rounds
        await asyncio.to_thread(self._store.put_spec, name, spec.to_json())
        await asyncio.to_thread(self._store.set_state, name, "running", "")
        return await self._driver(await asyncio.to_thread(self._store.get, name))

    async def delete(self, name: str) -> aggregator_pb2.DeleteRunResponse:
        """Removes a run that has ended, here and at its nodes.

        Raises:
            InvalidInputError: `NOT_FOUND`, or `FAILED_PRECONDITION` where it goes on.
        """
        if name in self._unreadable:
            await asyncio.to_thread(self._store.remove, name)
            del self._unreadable[name]
            return aggregator_pb2.DeleteRunResponse()
        driver = self.get(name)
        if not driver.book.ended:
            raise InvalidInputError(f"{name!r} goes on: cancel it first", reason="FAILED_PRECONDITION")
        await self._halt(name)
        async with asyncio.TaskGroup() as tasks:
            told = {node: tasks.create_task(self._tell_end(node, driver)) for node in driver.spec.nodes}
        del self._drivers[name]
        await asyncio.to_thread(self._store.remove, name)
        driver.book.changed.tell()
        return aggregator_pb2.DeleteRunResponse(not_told=[node for node, task in told.items() if not task.result()])

    async def _tell_end(self, node: str, driver: RunDriver) -> bool:
        """Tells a node that a run is over for good; False where it could not be told."""
        info = end_order()
        info.run = driver.wire_name
        try:
            session = await self._dial(node)
        except MeshError:
            return False
        try:
            await session.send(wire_pb2.TransferInfo(training=info, slice=driver.spec.slice))
            await session.flush()
            return True
        except MeshError:
            return False
        finally:
            await session.close()

    async def watch(
        self, name: str, from_round: int, draining: asyncio.Event
    ) -> AsyncIterator[aggregator_pb2.Run]:
        """A run now and after every change, until it has ended; rounds are told when they are new or have changed.

        Raises:
            InvalidInputError: `NOT_FOUND`.
        """
        told: dict[int, bytes] = {}
        first = from_round
        while not draining.is_set():
            driver = self.get(name)
            version = driver.book.changed.version
            fresh, room, more = driver.message(), ROUNDS_BYTES, False
            for each in driver.book.rounds_from(first):
                said = each.SerializeToString()
                if told.get(each.index) == said:
                    continue
                room -= len(said)
                if room < 0 and fresh.rounds:
                    more = True
                    break
                told[each.index] = said
                fresh.rounds.append(each)
            # Older ones do not change any more.
            first = max(first, max(told, default=0) - ROUNDS_CHANGING)
            for index in [index for index in told if index < first]:
                del told[index]
            fresh.more_rounds = more
            yield fresh
            if more:
                continue
            if driver.book.ended and driver.book.changed.version == version:
                return
            waits = [
                asyncio.ensure_future(driver.book.changed.after(version)), asyncio.ensure_future(draining.wait())
            ]  # fmt: skip
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def predict(self, request: aggregator_pb2.PredictRequest) -> aggregator_pb2.PredictResponse:
        """What the weights of a run make of inputs.

        Raises:
            InvalidInputError: There is no such run, it has no weights yet, or its task cannot take the inputs.
            NodeLostError: No node could be asked.
        """
        driver = self.get(request.name)
        weights = driver.book.weights
        if weights is None:
            raise no_weights(request.name)
        up = set(self._members.up())
        # Those that are in contact first; a node outside the run will do where none of the run is up.
        nodes = sorted(up, key=lambda name: (name not in driver.spec.nodes, self._members.away_s(name)))
        rounds = driver.book.weights_after
        return await self._serving.predict(driver.spec.message, weights, request.inputs, nodes, rounds)

    async def close(self) -> None:
        """Stops leading; what goes on goes on after the next start."""
        await self._serving.close()
        for name in list(self._tasks):
            await self._halt(name)
        await self._places.close()
        await asyncio.to_thread(self._store.close)

    async def _driver(self, record: RunRecord) -> RunDriver:
        spec: RunSpec = from_json(record.spec)
        directory = self._store.directory(record.name)

        def spool(kind: str) -> Spool:
            return Spool(directory / kind, self._identities.current)

        driver = RunDriver(
            record, spec, self._store, spool, self._members, self._dial, self._identities, self._going_on,
            self._places, self._sinks, self._log,
        )  # fmt: skip
        await driver.load()
        self._drivers[record.name] = driver
        return driver

    def _lead(self, driver: RunDriver) -> None:
        if driver.name not in self._tasks:
            task = asyncio.create_task(driver.drive(), name=f"run {driver.name}")
            self._tasks[driver.name] = task
            task.add_done_callback(lambda done: self._over(driver.name, done))

    def _over(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # What is on disk is whole; the run can be resumed once the cause is gone.
            self._log.error("run_ended_by_a_defect", run=name, error=error)
            said = asyncio.create_task(
                self._drivers[name].book.say("failed", f"{type(error).__name__}: {error}; see the aggregator's log")
            )
            self._endings.add(said)
            said.add_done_callback(self._endings.discard)

    def _going_on(self) -> list[str]:
        unreadable = [name for name, _ in self._unreadable.values()]
        return [driver.wire_name for driver in self._drivers.values() if not driver.book.ended] + unreadable

    async def _halt(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _check_room(self) -> None:
        if len(self._tasks) >= RUNS_AT_ONCE_MAX:
            raise CapacityError(
                f"{len(self._tasks)} runs go on already: wait for one to end, or cancel one",
                metadata={"runs": len(self._tasks)},
            )

    async def _dial(self, node: str) -> Session:
        peer = self._members.address(node)
        if peer is None:
            raise NodeLostError(f"the scheduler does not know {node}: is its executor up?", metadata={"node": node})

        def open_wire() -> StreamCall:
            now = self._members.address(node) or peer
            return self._channels.exchange(Role.EXECUTOR, node, now.address, EXCHANGE, via=now.via)()

        return await dial(
            open_wire,
            self._identities,
            receiver_role=Role.EXECUTOR,
            receiver_name=node,
            give_up_after_s=SESSION_GIVE_UP_S,
            window=SESSION_WINDOW_BYTES,
            egress=None if self._egress is None else self._egress.towards(node),
        )


def no_weights(name: str) -> InvalidInputError:
    """The error for a run that has not begun."""
    return InvalidInputError(f"{name!r} has no weights yet: wait for it to begin", reason="FAILED_PRECONDITION")
