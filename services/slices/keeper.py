"""The state as it is now: decided one change after the other, on disk before anybody is told, and watched.

Changes that come in while the disk is busy are written together by the next transaction. What is decided builds on what
was decided before and is not on disk yet; should the disk refuse, all that was built on it is refused too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbitmesh.errors import CapacityError, InternalError, InvalidInputError, MeshError, TransportError
from services.runtime.logs import EventLog
from services.slices import admission
from services.slices.changes import Whole, changes, ended
from services.slices.store import Memory, Remembered, SliceStore
from services.slices.traffic import without
from services.slices.values import Admission

WAITING_MAX = 2048
"""How many changes may wait for the disk."""
REQUESTS_MAX = 4096
"""How many requests are remembered, to answer them again."""
REQUESTS_BYTES = 8 << 20
"""How many bytes of answers are kept for that."""
ENDED_MAX = 16_384
"""Of how much work that has ended it is known that it was admitted once."""
REREAD_S = 0.5
"""How long after the database could not be reached it is read again, in seconds."""
EXPIRE_MIN_S = 0.05
"""How soon after one look for work whose time is over the next one comes, in seconds."""
EXPIRE_MAX_S = 1.0
"""How late at most, in seconds."""

Decide = Callable[[Whole, int], tuple[Whole, bytes]]
"""From the state and the time, in nanoseconds since 1970, the next state and the answer; raises where it refuses."""


@dataclass(frozen=True)
class Asked:
    """The name of a request that changes something."""

    key: str
    """Who asks, and its request_id."""
    digest: str
    """Of the request: another one may not have the same name."""


class Keeper:
    """The state of one slices service.

    Args:
        store: Where it is durable.
        log: Where to say what happened.
        now_ns: The time, in nanoseconds since 1970.
    """

    def __init__(self, store: SliceStore, log: EventLog, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._log = log
        self._now_ns = now_ns
        self._durable = self._head = store.load()
        self._requests: OrderedDict[str, Remembered] = OrderedDict()
        self._request_bytes = 0
        self._ended: OrderedDict[str, Admission] = OrderedDict()
        self._remembered(*store.remembered())
        self._memory = Memory()
        self._waiting: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._unread: MeshError | None = None
        self._changed, self._promised = asyncio.Event(), asyncio.Event()

    @property
    def whole(self) -> Whole:
        """The state as it is on disk."""
        return self._durable

    def ended(self, key: str) -> Admission | None:
        """Work that was admitted once and has ended, as far as that is remembered."""
        return self._ended.get(key)

    async def change(self, decide: Decide, asked: Asked | None = None) -> bytes:
        """Decides and waits until that is durable.

        Args:
            decide: What is to happen.
            asked: The request's name; the same one again changes nothing and gets the same answer.

        Returns:
            The answer.

        Raises:
            InvalidInputError: Another request had this name.
            CapacityError: Too much waits for the disk, or the disk takes nothing.
            MeshError: What `decide` refuses.
        """
        if self._unread is not None:
            raise self._unread
        if asked is not None:
            before = self._requests.get(asked.key)
            if before is not None:
                if before.digest != asked.digest:
                    raise InvalidInputError(
                        "this request_id was used for another request; choose a new one for each",
                        reason="ALREADY_EXISTS",
                    )
                await self._written()
                return before.answer
        if len(self._waiting) >= WAITING_MAX:
            raise CapacityError(
                f"{len(self._waiting)} changes wait for the disk already; try again later",
                metadata={"waiting": len(self._waiting)},
            )
        after, answer = decide(self._head, self._now_ns())
        self._take(after)
        if asked is not None:
            self._remember(Remembered(asked.key, asked.digest, answer))
        await self._written()
        return answer

    def _take(self, after: Whole) -> None:
        if after is self._head:
            return
        for gone in ended(self._head.book, after.book):
            self._ended[gone.key] = gone
            self._memory.ended.append(gone)
        while len(self._ended) > ENDED_MAX:
            key, _ = self._ended.popitem(last=False)
            self._memory.ended_forgotten.append(key)
        self._head = Whole(after.book, without(after.totals, after.book.slices))

    def _remember(self, made: Remembered) -> None:
        self._requests[made.key] = made
        self._request_bytes += len(made.answer)
        self._memory.requests.append(made)
        while len(self._requests) > REQUESTS_MAX or self._request_bytes > REQUESTS_BYTES:
            key, gone = self._requests.popitem(last=False)
            self._request_bytes -= len(gone.answer)
            self._memory.requests_forgotten.append(key)

    async def _written(self) -> None:
        """Waits until all that was decided is on disk."""
        if self._head is self._durable and not self._memory.requests:
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._work.set()
        await mine

    async def write(self) -> None:
        """Writes what is decided, again and again, as long as this runs."""
        while True:
            await self._work.wait()
            self._work.clear()
            after, memory, waiting = self._head, self._memory, self._waiting
            self._memory, self._waiting = Memory(), []
            saving = asyncio.ensure_future(
                asyncio.to_thread(self._store.save, changes(self._durable, after), memory)
            )
            try:
                await asyncio.shield(saving)
            except InternalError:
                raise  # what is known here is not what is written: only a new process can tell
            except MeshError as error:
                await self._undo(error, waiting)
            except asyncio.CancelledError:
                # The file may not be closed under it.
                await asyncio.wait((saving,))
                raise
            else:
                self._show(after)
                for each in waiting:
                    if not each.done():
                        each.set_result(None)

    async def _undo(self, error: MeshError, waiting: list[asyncio.Future[None]]) -> None:
        """Goes back to what is on disk: all that was decided since is refused, and so is all that comes until it is
        known again which requests were carried out."""
        self._log.error("not_written", error=error)
        self._unread = error
        waiting = [*waiting, *self._waiting]
        self._head, self._memory, self._waiting = self._durable, Memory(), []
        for each in waiting:
            if not each.done():
                each.set_exception(error)
        while True:
            try:
                remembered = await asyncio.to_thread(self._store.remembered)
            except TransportError:
                await asyncio.sleep(REREAD_S)
            else:
                break
        self._remembered(*remembered)
        self._unread = None

    def _remembered(self, requests: Sequence[Remembered], gone: Sequence[Admission]) -> None:
        self._requests = OrderedDict((each.key, each) for each in requests)
        self._request_bytes = sum(len(each.answer) for each in requests)
        self._ended = OrderedDict((each.key, each) for each in gone)

    async def expire(self) -> None:
        """Gives work back whose time is over, as long as this runs."""
        while True:
            end_ns = admission.next_end_ns(self._head.book)
            wait_s = EXPIRE_MAX_S if end_ns is None else (end_ns - self._now_ns()) / 1e9
            await asyncio.sleep(min(EXPIRE_MAX_S, max(EXPIRE_MIN_S, wait_s)))
            try:
                await self.change(_expire)
            except (CapacityError, TransportError) as error:
                self._log.warning("not_expired", detail=error.message)

    # Watching.

    @property
    def next_change(self) -> asyncio.Event:
        """Set once the state on disk is another than now."""
        return self._changed

    @property
    def next_promise(self) -> asyncio.Event:
        """Set once what is promised, or a node, is another than now."""
        return self._promised

    def _show(self, after: Whole) -> None:
        before, self._durable = self._durable, after
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if (before.book.version, before.book.nodes) != (after.book.version, after.book.nodes):
            promised, self._promised = self._promised, asyncio.Event()
            promised.set()

    async def close(self) -> None:
        """Closes the store; `write` must have ended before."""
        await asyncio.to_thread(self._store.close)


def _expire(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
    book = admission.expire(whole.book, now_ns)
    return (whole if book is whole.book else Whole(book, whole.totals)), b""
