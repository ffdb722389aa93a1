"""A round's weights on their way to a node: a file that grows span by span and counts once its SHA-256 is right.

    SHA256.part       what has come, raw float32, little-endian
    SHA256.weights    all of it, checked

What a crash leaves of a part is good for as many spans as it is long; if its end is not what was sent, the SHA-256
finds out, and all of it is asked for again.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from orbitmesh.durable import put_in_place
from orbitmesh.pack.store import hash_file
from services.updates.spans import SPAN_VALUES, Floats, span_count, span_length

VALUE_BYTES = 4
_SPAN_BYTES = SPAN_VALUES * VALUE_BYTES


class WeightsFile:
    """The weights of one SHA-256. Blocks; one user at a time.

    Args:
        directory: Where its file is.
        values: How many there are.
        sha256: What they are.
    """

    def __init__(self, directory: Path, values: int, sha256: bytes) -> None:
        self.values = values
        self.sha256 = sha256
        self.spans = span_count(values)
        self._part = directory / f"{sha256.hex()}.part"
        self._whole = directory / f"{sha256.hex()}.weights"
        self._checked = False

    @property
    def held(self) -> int:
        """How many spans are here; all of them only where the whole was checked."""
        if self._is_whole():
            return self.spans
        size = self._part.stat().st_size if self._part.exists() else 0
        return min(size // _SPAN_BYTES, self.spans - 1)

    def take(self, index: int, data: memoryview) -> bool:
        """Appends the span that comes next.

        Returns:
            Whether it was the last, and `finish` can tell whether all of it is right.
        """
        self._part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(index * _SPAN_BYTES)
            file.seek(index * _SPAN_BYTES)
            file.write(data)
        return index + 1 == self.spans

    def span_bytes(self, index: int) -> int:
        """How long a span is, in bytes; raises InvalidInputError where there is none of that number."""
        return span_length(index, self.values) * VALUE_BYTES

    def finish(self) -> bool:
        """Compares the SHA-256 of what came. Where it is another, all of it is thrown away."""
        if hash_file(self._part) != self.sha256:
            self._part.unlink()
            return False
        put_in_place(self._part, self._whole)
        self._checked = True
        return True

    def read(self) -> Floats:
        """All of them, float32 of shape (values,).

        Raises:
            OSError: They are not here.
        """
        return np.fromfile(self._whole, "<f4").astype(np.float32, copy=False)

    def drop_others(self) -> None:
        """Removes all other weights of the directory."""
        for pattern in ("*.part", "*.weights"):
            for path in self._part.parent.glob(pattern):
                if path not in (self._part, self._whole):
                    path.unlink(missing_ok=True)

    def _is_whole(self) -> bool:
        if not self._checked and self._whole.exists():
            # It may have been damaged since the process that wrote it.
            self._checked = hash_file(self._whole) == self.sha256
            if not self._checked:
                self._whole.unlink()
        return self._checked
