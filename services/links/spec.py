"""What a relay is told: its name, where it listens, where it leads, and what its two directions are like."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orbitmesh.errors import InvalidInputError, TransportError
from services.links.shaper import SHAPE_FIELDS, Shape

_MEDIA = ("forward_medium", "reverse_medium")
_SPEC_FIELDS = frozenset({"name", "listen", "target", "forward", "reverse", *_MEDIA})


@dataclass(frozen=True)
class RelaySpec:
    """One emulated link."""

    name: str
    """What the link is called, for instance `sat-1>sat-2`."""
    target: str
    """`host:port` of the process behind the link; `[host]:port` for IPv6. Looked up when the relay starts."""
    listen: str = "127.0.0.1:0"
    """`host:port` to listen on; port 0 lets the system choose."""
    forward: Shape = field(default_factory=Shape)
    """The direction from the client to the target."""
    reverse: Shape = field(default_factory=Shape)
    """The direction from the target to the client."""
    forward_medium: str = ""
    """What the forward rate is spent on: relays of one process that name the same medium share it; empty: its own."""
    reverse_medium: str = ""
    """The same for the reverse direction; the way back of one relay may be the way there of another."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInputError(f"name is {self.name!r}; expected some text such as 'sat-1>sat-2'")
        if split_address("target", self.target)[1] == 0:
            raise InvalidInputError(f"target is {self.target!r}; a target needs a port from 1 to 65535")
        split_address("listen", self.listen)
        for which, medium in zip(_MEDIA, (self.forward_medium, self.reverse_medium), strict=True):
            if not isinstance(medium, str):
                raise InvalidInputError(f"{which} is {medium!r:.80}; expected the name of a medium")

    @classmethod
    def parse(cls, fields: Mapping[str, object], base: RelaySpec | None = None) -> RelaySpec:
        """A spec from JSON fields over `base`.

        `forward` and `reverse` are objects with the fields of `Shape`; the same fields at the top hold for
        both directions, under what the objects say.

        Raises:
            InvalidInputError: a field is missing, unknown, of the wrong type, or out of range.
        """
        unknown = sorted(set(fields) - _SPEC_FIELDS - set(SHAPE_FIELDS))
        if unknown:
            known = ", ".join(sorted(_SPEC_FIELDS | set(SHAPE_FIELDS)))
            raise InvalidInputError(f"unknown field {unknown[0]!r}; a relay has {known}")
        both = {name: fields[name] for name in SHAPE_FIELDS if name in fields}
        shapes = {}
        for direction in ("forward", "reverse"):
            own = fields.get(direction, {})
            if not isinstance(own, Mapping):
                raise InvalidInputError(f'{direction} is {own!r}; expected an object such as {{"latency_ms": 20}}')
            shapes[direction] = Shape.parse({**both, **own}, getattr(base, direction) if base else None)
        texts: dict[str, Any] = {
            "name": fields.get("name", base.name if base else None),
            "target": fields.get("target", base.target if base else None),
            "listen": fields.get("listen", base.listen if base else "127.0.0.1:0"),
            **{name: fields.get(name, getattr(base, name) if base else "") for name in _MEDIA},
        }
        return cls(**texts, forward=shapes["forward"], reverse=shapes["reverse"])  # which checks the types


def split_address(what: str, address: object) -> tuple[str, int]:
    """The host and port of `host:port`.

    Raises:
        InvalidInputError: it is something else.
    """
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidInputError(f"{what} is {address!r}; expected host:port such as 127.0.0.1:5000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def resolve(address: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The first socket address that `host:port` stands for; may wait for the name service.

    Raises:
        TransportError: the name is unknown.
    """
    host, port = split_address("address", address)
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise TransportError(f"the host of {address} is not known: {error}; check the name or wait for it") from error
    return family, found
