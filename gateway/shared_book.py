"""What a gateway writes down of its generations where several gateways share a database.

The beginning of a generation is durable before anybody is told of it. Tokens follow in batches, a moment after they
were handed out: what the last batch lacks when a gateway is killed, the stages still know, or compute again with the
same result, and the caller brings along what it was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from gateway.book import Entry, Page, entry_of, head_of
from gateway.shared import SharedStore
from orbitmesh.errors import MeshError
from services.runtime.logs import EventLog

FLUSH_S = 0.03
"""How long tokens are gathered before they are written, in seconds."""
RETRY_S = 0.3
"""How long after the database could not be reached it is tried again, in seconds."""

Closed = Callable[[], MeshError | None]


class SharedPage(Page):
    """The records of one generation.

    Args:
        book: Where it is.
        number: The generation's.
        written: How many tokens are written down already.
    """

    def __init__(self, book: SharedBook, number: str, written: int = 0) -> None:
        self._book = book
        self._number = number
        self._tokens = written
        self._removed = False

    def epoch(self, epoch: int) -> None:
        """A run is about to begin.

        Raises:
            TransportError: `NOT_LEADER`: another gateway may have taken the generation up.
        """
        self._book.check()
        self._note(b"E" + epoch.to_bytes(4, "big"))

    def _note(self, record: bytes) -> None:
        if not self._removed:
            self._book.note(self._number, record)

    def token(self, token: int) -> None:
        """A token is about to be handed out."""
        self._note(b"T" + self._tokens.to_bytes(4, "big") + token.to_bytes(4, "big"))
        self._tokens += 1

    def close(self) -> None:
        """Nothing more is written; the records stay."""

    def remove(self) -> None:
        """Nobody will ask for it any more."""
        self._removed = True
        self._book.drop(self._number)


class SharedBook:
    """The generations of the gateways of a mesh.

    Args:
        store: Where they are.
        closed: Says why this process may not lead generations; None while it may.
        log: Where to say what was left out.
    """

    def __init__(self, store: SharedStore, closed: Closed, log: EventLog) -> None:
        self._store = store
        self._closed = closed
        self._log = log
        self._progress: dict[str, list[bytes]] = {}
        self._gone: dict[str, None] = {}
        self._work = asyncio.Event()

    def begin(self, entry: Entry) -> Page:
        """Writes a new generation down; durable on return. Blocks."""
        number = f"{entry.number:016x}"
        self._store.begin(number, head_of(entry))
        return SharedPage(self, number, len(entry.tokens))

    def unfinished(self) -> Iterator[tuple[Entry, Page]]:
        """The generations whose time is not over, to go on with; the others are forgotten. Blocks."""
        for number, head, records in self._store.generations():
            try:
                entry = _entry(self._store.opened(head, number), [self._store.opened(each, number) for each in records])
            except (MeshError, ValueError, KeyError) as error:
                self._log.warning("generation_not_taken_up", generation=number, detail=str(error))
                entry = None
            if entry is None or entry.expires_at <= time.time():
                self._store.go_on({}, [number])
                continue
            yield entry, SharedPage(self, number, len(entry.tokens))

    def check(self) -> None:
        """Looks whether this process may still lead generations.

        Raises:
            TransportError: `NOT_LEADER`.
        """
        closed = self._closed()
        if closed is not None:
            raise closed

    def note(self, number: str, record: bytes) -> None:
        """Takes a record in, to be written within a moment."""
        self._progress.setdefault(number, []).append(record)
        self._work.set()

    def drop(self, number: str) -> None:
        """Forgets a generation within a moment."""
        self._gone[number] = None
        self._work.set()

    async def write(self) -> None:
        """Writes what is noted, again and again, as long as this runs; the last of it when it is cancelled.

        Raises:
            TransportError: `NOT_LEADER`: another gateway leads.
        """
        try:
            while True:
                await self._work.wait()
                await asyncio.sleep(FLUSH_S)
                try:
                    await self._flush()
                except MeshError as error:
                    if error.reason == "NOT_LEADER":
                        raise
                    self._log.warning("generations_not_written", detail=error.message)
                    await asyncio.sleep(RETRY_S)
        except asyncio.CancelledError:
            try:
                await self._flush()
            except MeshError as error:
                self._log.warning("generations_not_written", detail=error.message)
            raise

    async def _flush(self) -> None:
        self._work.clear()
        progress, gone = self._progress, self._gone
        if not progress and not gone:
            return
        self._progress, self._gone = {}, {}
        joined = {number: [b"".join(records)] for number, records in progress.items()}
        writing = asyncio.ensure_future(asyncio.to_thread(self._store.go_on, joined, list(gone)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait((writing,))
            if not writing.cancelled() and (error := writing.exception()) is not None:
                self._log.warning("generations_not_written", detail=str(error))
            raise
        except MeshError:
            self._progress = {
                number: [*progress.get(number, ()), *self._progress.get(number, ())]
                for number in {**progress, **self._progress}
            }
            self._gone = {**gone, **self._gone}
            self._work.set()
            raise


def _entry(head: bytes, records: list[bytes]) -> Entry | None:
    """A generation from its records.

    Raises:
        ValueError: They do not fit together.
    """
    entry = entry_of(head)
    if entry is None:
        return None
    for record in records:
        at = 0
        while at < len(record):
            mark, size = record[at : at + 1], 5 if record[at : at + 1] == b"E" else 9
            if mark not in (b"E", b"T") or at + size > len(record):
                raise ValueError("a record of it is neither an epoch nor a token")
            first = int.from_bytes(record[at + 1 : at + 5], "big")
            if mark == b"E":
                entry.epoch = max(entry.epoch, first)
            elif first == len(entry.tokens):
                entry.tokens.append(int.from_bytes(record[at + 5 : at + 9], "big"))
            elif first > len(entry.tokens):
                raise ValueError(f"token {len(entry.tokens)} of it is missing")
            at += size
    return entry
