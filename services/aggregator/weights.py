"""Weights as they are sent: spans of a vector in a file, named by their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from orbitmesh.v1 import training_pb2
from services.aggregator.store import Weights, as_bytes
from services.updates.spans import span_count, span_slice, spans


@dataclass(frozen=True)
class SentWeights:
    """Weights that nodes train on."""

    values: Weights
    """Shape (d,), float32; may be a file mapped into memory."""
    sha256: bytes
    """Of all of them, little-endian."""

    @property
    def spans(self) -> int:
        """How many spans they have."""
        return span_count(self.values.size)

    def span(self, index: int) -> bytes:
        """The bytes of one span. May read from disk."""
        return bytes(as_bytes(self.values[span_slice(index, self.values.size)]))

    def info(self) -> training_pb2.WeightsInfo:
        """What names them."""
        return training_pb2.WeightsInfo(values=self.values.size, sha256=self.sha256)


def named(values: Weights) -> SentWeights:
    """Weights with their digest. Reads all of them."""
    digest = hashlib.sha256()
    for _, where in spans(values.size):
        digest.update(as_bytes(values[where]))
    return SentWeights(values, digest.digest())
