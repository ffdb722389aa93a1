"""What a service says about itself: one JSON line an event, on stderr.

An event is a name and fields. Secrets and what users wrote never get in: fields of such names are refused,
bytes are shown as their size, and what looks like a private key is cut out of any text.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import IntEnum
from typing import TextIO

from orbitmesh.errors import MeshError

TEXT_MAX_CHARS = 2048
"""Longest text of one field, in characters."""
TRACEBACK_MAX_CHARS = 16_384
"""Longest traceback, in characters; its end is kept."""

OWN_FIELDS = frozenset({"at", "level", "service", "event"})
"""What every line says of itself."""
FORBIDDEN_FIELDS = frozenset(
    {
        "prompt",
        "text",
        "completion",
        "token_ids",
        "tokens",
        "key",
        "secret",
        "password",
        "private_key",
        "tensor",
    }
)
"""Names of fields that hold secrets or what users wrote; an event with one is a defect."""


_TRACE: ContextVar[str] = ContextVar("orbitmesh_log_trace", default="")


def log_trace(trace_id: str) -> None:
    """From here on the lines of this task, and of tasks that it starts, carry the trace that it works for."""
    _TRACE.set(trace_id)


class Level(IntEnum):
    """How much an event matters; the numbers are those of `logging`."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class EventLog:
    """Writes events as JSON lines. May be used from any thread.

    Args:
        service: The role and name that every line carries, for instance `executor/sat-1`.
        level: Events below it are dropped.
        stream: Where lines go; the process's stderr where left out.
    """

    def __init__(self, service: str, *, level: Level = Level.INFO, stream: TextIO | None = None) -> None:
        self.service = service
        self.level = level
        self._stream = stream
        self._lock = threading.Lock()

    def debug(self, event: str, **fields: object) -> None:
        """Something that only its author wants to see."""
        self.write(Level.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Something that happened as it should."""
        self.write(Level.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that an operator may have to look at."""
        self.write(Level.WARNING, event, fields)

    def error(self, event: str, *, error: BaseException | None = None, **fields: object) -> None:
        """Something that failed; with the traceback where it was not an error that we raise on purpose."""
        if isinstance(error, MeshError):
            fields |= {"reason": error.reason, "message": error.message}
        elif error is not None:
            fields["traceback"] = "".join(traceback.format_exception(error))
        self.write(Level.ERROR, event, fields)

    def write(self, level: Level, event: str, fields: Mapping[str, object]) -> None:
        """One line.

        Raises:
            ValueError: A field is named for what must not be logged, or as what every line has.
        """
        own = OWN_FIELDS.intersection(fields)
        if own:
            raise ValueError(f"every log line has its own {', '.join(sorted(own))}; name the field otherwise")
        bad = FORBIDDEN_FIELDS.intersection(fields)
        if bad:
            raise ValueError(
                f"a log line must not carry {', '.join(sorted(bad))}; log a size or an identifier"
            )
        if level < self.level:
            return
        line: dict[str, object] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level.name.lower(),
            "service": self.service,
            "event": event,
        }
        line |= {name: _plain(name, value) for name, value in fields.items()}
        if _TRACE.get():
            line.setdefault("trace_id", _TRACE.get())
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with self._lock:
            stream = self._stream or sys.stderr
            stream.write(text)
            stream.flush()


class LoggingBridge(logging.Handler):
    """Turns what libraries say by `logging` (asyncio's lost exceptions, gRPC's complaints) into events."""

    def __init__(self, log: EventLog, level: Level = Level.WARNING) -> None:
        super().__init__(level)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record of a library."""
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        level = Level.ERROR if record.levelno >= Level.ERROR else Level.WARNING
        self._log.write(level, "library", fields)


def bridge_logging(log: EventLog, level: Level = Level.WARNING) -> LoggingBridge:
    """Make `log` the only place that `logging` writes to; for a process's `main`."""
    bridge = LoggingBridge(log, level)
    logging.basicConfig(handlers=[bridge], level=level, force=True)
    return bridge


def _plain(name: str, value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(key): _plain(name, each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(name, each) for each in value]
    text = str(value)
    if "PRIVATE KEY-----" in text:
        return "<cut out: it held a private key>"
    if name == "traceback":
        return text[-TRACEBACK_MAX_CHARS:]
    return text if len(text) <= TEXT_MAX_CHARS else text[: TEXT_MAX_CHARS - 1] + "…"
