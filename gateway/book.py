"""What a gateway writes down of the generations that can be taken up again: sealed files, one for each.

A record is on its way to the disk before what it says is acted upon: a token before it is handed out, an epoch before
it is used. That outlives the process; a loss of power may take the last tokens, which the caller then brings along.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orbitmesh.errors import MeshError
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import gateway_pb2
from services.journal.sealed_file import SealedReader, SealedWriter
from services.runtime.logs import EventLog

FORMAT = 1
PURPOSE = b"gateway-generation"


@dataclass
class Entry:
    """One generation as it was written down."""

    number: int
    """Its number on the nodes."""
    trace_id: str
    """32 hex digits."""
    caller: str
    """SPIFFE name of whoever asked for it."""
    request: gateway_pb2.GenerateRequest
    """What was asked."""
    prompt: list[int]
    """The prompt's tokens."""
    new_tokens: int
    """How many tokens are produced at the most."""
    began_at: float
    """When it was asked for, seconds since 1970."""
    expires_at: float
    """When its time is over, seconds since 1970."""
    tokens: list[int] = field(default_factory=list)
    """The tokens so far."""
    epoch: int = 0
    """The last run that was begun."""

    @property
    def owner(self) -> int:
        """The caller as nodes are told: a number that says whose turn it is, and not who that is."""
        return int.from_bytes(hashlib.sha256(self.caller.encode()).digest()[:8], "big")


class Page(Protocol):
    """Where one generation is written down."""

    def epoch(self, epoch: int) -> None:
        """A run is about to begin."""

    def token(self, token: int) -> None:
        """A token is about to be handed out."""

    def close(self) -> None:
        """Nothing more is written; what is written stays."""

    def remove(self) -> None:
        """Nobody will ask for it any more."""


class Pages(Protocol):
    """Where a gateway writes its generations down."""

    def begin(self, entry: Entry) -> Page:
        """Writes a new generation down; durable on return. Blocks."""

    def unfinished(self) -> Iterator[tuple[Entry, Page]]:
        """The generations to go on with. Blocks."""


class FilePage(Page):
    """The file of one generation."""

    def __init__(self, file: SealedWriter) -> None:
        self._file = file

    def epoch(self, epoch: int) -> None:
        """A run is about to begin."""
        self._file.append(b"E" + epoch.to_bytes(4, "big"))

    def token(self, token: int) -> None:
        """A token is about to be handed out."""
        self._file.append(b"T" + token.to_bytes(4, "big"))

    def close(self) -> None:
        """Nothing more is written; the file stays."""
        self._file.close()

    def remove(self) -> None:
        """Nobody will ask for it any more."""
        self._file.close()
        self._file.path.unlink(missing_ok=True)


class Book:
    """The files of one gateway.

    Args:
        directory: Where they lie.
        identities: Whose key for files protects them.
        log: Where to say what was left out.
    """

    def __init__(self, directory: Path, identities: IdentitySource, log: EventLog) -> None:
        self._directory = directory
        self._identities = identities
        self._log = log

    def begin(self, entry: Entry) -> Page:
        """Writes a new generation down; durable on return. Blocks."""
        path = self._directory / f"{entry.number:016x}.generation"
        file = SealedWriter(path, self._identities.current(), PURPOSE)
        file.append(head_of(entry), durable=True)
        return FilePage(file)

    def unfinished(self) -> Iterator[tuple[Entry, Page]]:
        """The generations whose time is not over, to go on with; the files of others are removed. Blocks."""
        for path in sorted(self._directory.glob("*.generation")):
            try:
                reader = SealedReader(path, self._identities.current(), PURPOSE)
                entry = _entry(reader)
                if entry is None or entry.expires_at <= time.time():
                    path.unlink(missing_ok=True)
                    continue
                page = FilePage(SealedWriter(path, self._identities.current(), PURPOSE, after=reader))
            except (MeshError, OSError, ValueError, KeyError) as error:
                self._log.warning("generation_not_taken_up", file=path.name, detail=str(error))
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            yield entry, page


def head_of(entry: Entry) -> bytes:
    """What is written down of a generation at its beginning."""
    head = {
        "format": FORMAT,
        "number": entry.number,
        "trace_id": entry.trace_id,
        "caller": entry.caller,
        "request": base64.b64encode(entry.request.SerializeToString()).decode(),
        "prompt": entry.prompt,
        "new_tokens": entry.new_tokens,
        "began_at": entry.began_at,
        "expires_at": entry.expires_at,
    }
    return json.dumps(head).encode()


def entry_of(record: bytes) -> Entry | None:
    """The generation that began so; None where another version wrote it.

    Raises:
        ValueError: It is no such record.
        KeyError: A part of it is missing.
    """
    head = json.loads(record)
    if head["format"] != FORMAT:
        return None
    request = gateway_pb2.GenerateRequest.FromString(base64.b64decode(head["request"]))
    new_tokens = int(head["new_tokens"])
    return Entry(
        number=int(head["number"]),
        trace_id=str(head["trace_id"]),
        caller=str(head["caller"]),
        request=request,
        prompt=[int(token) for token in head["prompt"]],
        new_tokens=new_tokens,
        began_at=float(head["began_at"]),
        expires_at=float(head["expires_at"]),
        # Those that the caller had brought along stand before those that are written down after it.
        tokens=list(request.received.ids)[:new_tokens],
    )


def _entry(records: SealedReader) -> Entry | None:
    entry = None
    for record in records:
        if entry is None:
            entry = entry_of(record)
            if entry is None:
                return None
        elif record[:1] == b"E":
            entry.epoch = int.from_bytes(record[1:], "big")
        else:
            entry.tokens.append(int.from_bytes(record[1:], "big"))
    return entry
