"""Files of records that only the node that wrote them can read, and that tell a torn end from a changed byte.

A file is a row of segments; each begins where a process opened it to append. A segment carries a fresh key, so that no
nonce is ever used twice whatever a crash left behind. It is wrapped to the node's own key for files (HPKE,
`orbitmesh.trust`), which outlives the node's certificates.

    file    = segment*
    segment = b"OMSF" | u32 size | wrapped key | record*
    record  = b"r" | u32 size | AES-256-GCM(nonce = record's number in 12 bytes, data = purpose | number and offset of
              its segment)

A segment is bound to where it begins, so that none of the records before it can be taken out.

A crash tears at most the end of the file: the torn part is left out, and cut off by whoever appends next. Any other
damage is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orbitmesh.errors import SealError
from orbitmesh.trust import Identity, unwrap_key, wrap_key

MAGIC = b"OMSF"
RECORD = b"r"
KEY_BYTES = 32
NONCE_BYTES = 12
RECORD_MAX_BYTES = 1 << 30
"""The largest record that is written or believed, in bytes."""
_SIZE = struct.Struct(">I")


class SealedWriter:
    """Appends records to a file.

    Args:
        path: The file; made where it is not there, appended to where it is.
        identity: Whose key for files protects it.
        purpose: What the file is for; a file of another purpose does not open.
        after: What read the file, where it is there already: the new segment goes behind the last whole record.
    """

    def __init__(self, path: Path, identity: Identity, purpose: bytes, after: SealedReader | None = None) -> None:
        self.path = path
        key = os.urandom(KEY_BYTES)
        self._cipher = AESGCM(key)
        whole = after.whole_bytes if after is not None else 0
        self._bound = _bound(purpose, after.segments if after is not None else 0, whole)
        self._number = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        self._file: BinaryIO = path.open("r+b", buffering=0)
        self._file.truncate(whole)
        self._file.seek(whole)
        wrapped = wrap_key(key, identity.rest_private.public_key(), self._bound)
        _write_all(self._file, MAGIC + _SIZE.pack(len(wrapped)) + wrapped)

    def append(self, data: bytes | memoryview, *, durable: bool = False) -> None:
        """Writes a record: it outlives the process on return, and a loss of power where `durable`."""
        sealed = self._cipher.encrypt(self._number.to_bytes(NONCE_BYTES, "big"), data, self._bound)
        self._number += 1
        _write_all(self._file, RECORD + _SIZE.pack(len(sealed)) + sealed)
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SealedReader:
    """Reads the records of a file that this node wrote. `segments` and `whole_bytes` say how far it was whole.

    Args:
        path: The file.
        identity: Whose key for files protects it.
        purpose: What it is for.
    """

    def __init__(self, path: Path, identity: Identity, purpose: bytes) -> None:
        self._path = path
        self._identity = identity
        self._purpose = purpose
        self.segments = 0
        self.whole_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        """The records in order.

        Raises:
            SealError: The file is of another node or purpose, or was changed.
        """
        self.segments = self.whole_bytes = 0
        cipher, bound, number = None, b"", 0
        with self._path.open("rb") as file:
            while mark := file.read(1):
                if mark == RECORD and cipher is not None:
                    sealed = _sized(file)
                    if sealed is None:
                        return
                    try:
                        data = cipher.decrypt(number.to_bytes(NONCE_BYTES, "big"), sealed, bound)
                    except InvalidTag:
                        raise self._damaged(f"record {number} of segment {self.segments - 1} does not open") from None
                    number += 1
                    self.whole_bytes = file.tell()
                    yield data
                elif (mark + file.read(3)) == MAGIC:
                    wrapped = _sized(file)
                    if wrapped is None:
                        return
                    bound = _bound(self._purpose, self.segments, self.whole_bytes)
                    cipher = AESGCM(unwrap_key(wrapped, self._identity.rest_private, bound))
                    self.segments += 1
                    number = 0
                    self.whole_bytes = file.tell()
                elif file.read(1):
                    raise self._damaged("neither a record nor a segment begins where one should")
                else:
                    return

    def _damaged(self, what: str) -> SealError:
        return SealError(
            f"{self._path.name} was changed after this node wrote it: {what}; remove the file to go on without it"
        )


def _bound(purpose: bytes, segment: int, offset: int) -> bytes:
    return b"orbitmesh/v1/sealed-file\x00" + purpose + b"\x00" + segment.to_bytes(4, "big") + offset.to_bytes(8, "big")


def _sized(file: BinaryIO) -> bytes | None:
    """A size and as many bytes; None where the file ends before."""
    head = file.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    if size > RECORD_MAX_BYTES:
        raise SealError(f"a record claims {size} bytes, more than {RECORD_MAX_BYTES}: the file was changed")
    data = file.read(size)
    return data if len(data) == size else None


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
