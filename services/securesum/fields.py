"""Byte strings in a row, each behind its length: the one encoding of whatever is signed, hashed or sent here.

Two different rows never give the same bytes, so a hash of the bytes names the row.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode

from orbitmesh.errors import InvalidInputError

LENGTH_BYTES = 4
"""Size of a length, in bytes."""
FIELDS_MAX = 1 << 16
"""The most fields that one message is believed to have."""
NUMBER_BYTES = 8
"""Size of a number, in bytes."""


def join_fields(*fields: bytes) -> bytes:
    """The fields as one byte string."""
    return b"".join(len(field).to_bytes(LENGTH_BYTES, "big") + field for field in fields)


def split_fields(data: bytes, what: str, count: int | None = None) -> list[bytes]:
    """What `join_fields` was given.

    Args:
        data: The bytes.
        what: How the message is called in an error.
        count: How many fields there must be; any number up to `FIELDS_MAX` where left out.

    Raises:
        InvalidInputError: The bytes are no row of fields, or of another number of them.
    """
    fields: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + LENGTH_BYTES
        end = begin + int.from_bytes(data[at:begin], "big")
        if begin > len(data) or end > len(data) or len(fields) == FIELDS_MAX:
            raise InvalidInputError(f"{what} is cut or no message of this kind; send it again")
        fields.append(data[begin:end])
        at = end
    if count is not None and len(fields) != count:
        raise InvalidInputError(f"{what} has {len(fields)} fields where {count} were expected; send it again")
    return fields


def number(value: int) -> bytes:
    """A number of 0 to 2^64 - 1 as a field."""
    return value.to_bytes(NUMBER_BYTES, "big")


def read_number(field: bytes, what: str) -> int:
    """The number in a field.

    Raises:
        InvalidInputError: The field is of another size.
    """
    if len(field) != NUMBER_BYTES:
        raise InvalidInputError(f"{what} holds a number of {len(field)} bytes, not {NUMBER_BYTES}; send it again")
    return int.from_bytes(field, "big")


def read_text(field: bytes, what: str) -> str:
    """The text in a field.

    Raises:
        InvalidInputError: The field is no UTF-8.
    """
    try:
        return field.decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{what} holds a name that is no UTF-8; send it again") from None


def to_text(data: bytes) -> str:
    """Bytes as base64, for a state that JSON holds."""
    return b64encode(data).decode("ascii")


def digest(label: bytes, *fields: bytes) -> bytes:
    """SHA-256 over the fields under a label: 32 bytes that name them, for this use alone."""
    return hashlib.sha256(join_fields(b"orbitmesh/v1/secure-sum/" + label, *fields)).digest()
