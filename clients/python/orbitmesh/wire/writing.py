"""Writing on one connection without a task: the first step of a write is made where it is asked for.

A decode step's message would otherwise wait for a task to be woken, and its sender for another one. What a
transport's `write` waits for resumes it by callback.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Protocol

from orbitmesh.errors import TransportError
from orbitmesh.wire.records import CutError, Wire


class Source(Protocol):
    """Where a writer finds what to write."""

    def next_message(self) -> bytes | None:
        """The next message, None where there is none now."""

    def written(self) -> None:
        """The transport took the message that was asked for last."""

    def rest(self) -> bool:
        """There is nothing to write for now; True where nothing will follow at all."""


class Writer:
    """Writes the messages of a source on a connection, one after the other.

    Args:
        wire: The connection.
        source: Where messages come from.
        loop: The event loop.
    """

    __slots__ = ("_closed", "_coroutine", "_finishing", "_loop", "_source", "_wire", "busy", "over")

    def __init__(self, wire: Wire, source: Source, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._source = source
        self._loop = loop
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._finishing = False
        self._closed = False
        self.busy = False
        self.over: asyncio.Future[None] = loop.create_future()

    def pump(self) -> None:
        """Writes what there is to write, as far as the transport takes it at once; its callbacks write the rest."""
        while not self.busy and not self._closed:
            message = self._source.next_message()
            if message is not None:
                coroutine = self._wire.write(message)
            elif self._source.rest():
                self._finishing = True
                coroutine = self._wire.finish()
            else:
                return
            self.busy = True
            self._coroutine = coroutine
            self._step(coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a write until it waits for something, as the event loop runs a task."""
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            if self._finishing:
                self._end(None)
            else:
                self.busy = False
                self._source.written()
        except asyncio.CancelledError:
            self._end(CutError(TransportError("the call was given up")))
        except Exception as error:
            self._end(error)
        else:
            if awaited is None:
                self._loop.call_soon(self._resume)
            else:
                awaited._asyncio_future_blocking = False  # says that its result is waited for by callback
                awaited.add_done_callback(self._resume)

    def _resume(self, awaited: asyncio.Future[Any] | None = None) -> None:
        if self._coroutine is not None and not self._closed:
            self._step(self._coroutine)
            self.pump()
        elif awaited is not None and not awaited.cancelled():
            awaited.exception()  # of a write that was given up: nobody else asks

    def _end(self, error: Exception | None) -> None:
        self._closed = True
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)
            self.over.exception()  # whoever carries the connection asks; where nobody does, that is no defect

    def fail(self, error: Exception) -> None:
        """Ends the connection with an error, whatever is being written."""
        self._end(error)

    def close(self) -> None:
        """Gives up the write that is under way, if one is; nothing more is written."""
        self._closed = True
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            with contextlib.suppress(ValueError):  # it runs at this moment; it is dropped after its step
                coroutine.close()
        if not self.over.done():
            self.over.cancel()
