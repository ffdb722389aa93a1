"""Messages that nobody meant to send, made from a method's descriptor: well formed, damaged, or no messages at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.frames import BYTES

FRAME_HEADER = "orbitmesh.v1.FrameHeader"
REQUEST_BYTES = 1 << 20
"""Larger ones are not sent: gRPC itself refuses those above the limit of messages."""
DEPTH = 5
"""How deep messages go: deeper fields stay empty."""

_TEXTS = (
    "", "a", "local", "gateway", "scheduler", "sat-1", "executor/sat-1", "fuzz", "nobody", "../../etc/passwd", "\x00",
    "ä" * 300, "x" * 5000, "127.0.0.1:1", "sha256:" + "0" * 64, "debug", "spiffe://orbitmesh/executor/sat-1", "{}",
    "-1", "mnist5k", "topk:0.01", "%s%n", "a/b", "urllc",
)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 3.5e38)
_KIND = FieldDescriptor
_BITS = {
    _KIND.TYPE_INT32: (-(2**31), 2**31 - 1), _KIND.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _KIND.TYPE_SFIXED32: (-(2**31), 2**31 - 1), _KIND.TYPE_UINT32: (0, 2**32 - 1),
    _KIND.TYPE_FIXED32: (0, 2**32 - 1), _KIND.TYPE_INT64: (-(2**63), 2**63 - 1),
    _KIND.TYPE_SINT64: (-(2**63), 2**63 - 1), _KIND.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _KIND.TYPE_UINT64: (0, 2**64 - 1), _KIND.TYPE_FIXED64: (0, 2**64 - 1),
}  # fmt: skip


class Maker:
    """Makes requests.

    Args:
        rng: Decides what is in them.
        texts: Names that mean something to the servers, beside those that mean nothing.
    """

    def __init__(self, rng: random.Random, texts: Sequence[str] = ()) -> None:
        self.rng = rng
        self._texts = (*_TEXTS, *texts)

    def request(self, kind: Descriptor) -> bytes:
        """The bytes of a request: well formed, damaged, or noise."""
        roll = self.rng.random()
        if roll < 0.1:
            return self.rng.randbytes(self.rng.choice((1, 2, 20, 500)))
        while len(message := self.message(kind).SerializeToString()) > REQUEST_BYTES:
            pass
        if roll < 0.4:
            change = BYTES[self.rng.choice(("flip", "overwrite", "cut", "insert"))]
            return change(self.rng, message or b"\x0a")
        return message

    def message(self, kind: Descriptor, depth: int = DEPTH) -> Message:
        """A message of a kind, with fields that may hold anything that its type allows."""
        made: Any = message_factory.GetMessageClass(kind)()
        share = self.rng.choice((0.1, 0.5, 0.9))
        for field in kind.fields:
            if self.rng.random() < share:
                self._fill(made, field, depth)
        return made  # type: ignore[no-any-return]

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            self._fill_map(getattr(made, field.name), entry)
        elif entry is not None:
            if depth > 0:
                many = self.rng.choice((0, 1, 1, 2, 3, 40 if depth == DEPTH else 4)) if field.is_repeated else 1
                target = getattr(made, field.name)
                for _ in range(many):
                    (target.add() if field.is_repeated else target).MergeFrom(self.message(entry, depth - 1))
                if not field.is_repeated:
                    target.SetInParent()
        elif field.is_repeated:
            many = range(self.rng.choice((0, 1, 1, 2, 3, 300)))
            getattr(made, field.name).extend(self._value(field) for _ in many)
        else:
            setattr(made, field.name, self._value(field))

    def _fill_map(self, target: Any, entry: Descriptor) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(self.rng.choice((0, 1, 3))):
            if value.message_type is not None:
                target[self._value(key)].MergeFrom(self.message(value.message_type, 1))
            else:
                target[self._value(key)] = self._value(value)

    def _value(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        kind = field.type
        if kind in _BITS:
            low, high = _BITS[kind]
            return min(high, max(low, rng.choice((0, 1, 2, 3, -1, 16, 1000, low, high, rng.randint(low, high)))))
        if kind in (_KIND.TYPE_FLOAT, _KIND.TYPE_DOUBLE):
            return rng.choice(_FLOATS)
        if kind == _KIND.TYPE_BOOL:
            return rng.random() < 0.5
        if kind == _KIND.TYPE_ENUM:
            known = [value.number for value in field.enum_type.values]
            return rng.choice((*known, *known, 99, -1))
        if kind == _KIND.TYPE_STRING:
            return rng.choice(self._texts)
        return self._bytes(field)

    def _bytes(self, field: FieldDescriptor) -> bytes:
        if field.name == "header" and self.rng.random() < 0.8:
            header = descriptor_pool.Default().FindMessageTypeByName(FRAME_HEADER)
            return self.message(header).SerializeToString()
        return self.rng.randbytes(self.rng.choice((0, 1, 16, 32, 300)))
