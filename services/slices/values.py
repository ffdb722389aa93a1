"""What the state of all slices and nodes is made of. Nothing here is ever changed in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from orbitmesh.errors import InvalidInputError
from services.slices.amounts import NOTHING, Amounts, plus
from services.slices.persistent import Order, Table
from services.slices.templates import Profile

Floors = Mapping[str, Mapping[str, float]]
"""By place, then node: there and back by light at least, in ms; infinity where nothing ever leads there. Where there is
no entry the floor is 0."""


@dataclass(frozen=True)
class Node:
    """A node as slices see it."""

    capacity: Amounts
    """What it has in all."""
    absent: bool = False
    """Whether nothing new may be promised there: it is out of reach, or wants no new work."""


@dataclass(frozen=True)
class Reserved:
    """What a slice has on one node."""

    served: float
    """The part of its traffic that is served there, 0 to 1."""
    amounts: Amounts
    """What is reserved."""
    traffic: float = 1.0
    """How much of the traffic of its profile that is for: `served` is a part of this."""

    @property
    def load(self) -> float:
        """The part of its profile's traffic that is served there."""
        return self.served * self.traffic


class State(StrEnum):
    """How a slice is."""

    DEFINED = "defined"
    ACTIVE = "active"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class Admission:
    """Work that was admitted to a slice."""

    key: str
    """Who asked and its request_id: unique in the mesh."""
    slice: str
    """Which slice."""
    nodes: tuple[str, ...]
    """Where it runs."""
    amounts: Amounts
    """What it has on each of them."""
    until_ns: int
    """When it is given back by itself, in nanoseconds since 1970."""
    digest: str
    """Of the request, so that another one under the same name is noticed."""


@dataclass(frozen=True)
class Promise:
    """What was promised to a tenant."""

    name: str
    """The slice's name."""
    tenant: str
    """Whose it is."""
    profile: Profile
    """What it is to be, merged with its template."""
    state: State
    """How it is."""
    reserved: Mapping[str, Reserved]
    """What it has, by node."""
    version: int
    """The state's version that changed it last."""
    changed_ns: int
    """When that was, in nanoseconds since 1970."""


@dataclass(frozen=True)
class Slice:
    """A slice with the work that is admitted to it."""

    promise: Promise
    """What was promised."""
    admissions: Table[Admission] = field(default_factory=Table)
    """By key."""
    order: Order = field(default_factory=Order)
    """The same by the time of their end."""
    used: Mapping[str, Amounts] = field(default_factory=lambda: MappingProxyType({}))
    """What they have together, by node."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.promise.name

    @property
    def reserved(self) -> Mapping[str, Reserved]:
        """What it has, by node."""
        return self.promise.reserved


@dataclass(frozen=True)
class Book:
    """The whole state."""

    mark: str
    """Chosen when the state began: etags of another life of this service are stale here."""
    version: int = 0
    """Counts changes of slices; admissions do not count."""
    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))
    """The nodes by name."""
    slices: Mapping[str, Slice] = field(default_factory=lambda: MappingProxyType({}))
    """The slices by name."""
    where: Table[str] = field(default_factory=Table)
    """The slice of each admission, by its key."""

    @property
    def etag(self) -> str:
        """What `apply` has to name."""
        return f"{self.mark}-{self.version}"

    def etag_of(self, promise: Promise) -> str:
        """What a change of that slice has to name."""
        return f"{self.mark}-{promise.version}"

    def get(self, name: str) -> Slice:
        """A slice.

        Raises:
            InvalidInputError: `NOT_FOUND`.
        """
        found = self.slices.get(name)
        if found is None:
            raise InvalidInputError(
                f"there is no slice {name[:63]!r}", reason="NOT_FOUND", metadata={"slice": name[:63]}
            )
        return found

    def reserved(self) -> dict[str, Amounts]:
        """What is reserved on each node, added up anew."""
        found: dict[str, Amounts] = {}
        for each in self.slices.values():
            for node, part in each.reserved.items():
                found[node] = plus(found.get(node, NOTHING), part.amounts)
        return found

    def with_slices(self, changed: Iterable[Slice], gone: Iterable[str] = ()) -> Book:
        """With these in place of those of the same names, and without those that are gone."""
        slices = dict(self.slices)
        slices.update((each.name, each) for each in changed)
        for name in gone:
            slices.pop(name, None)
        return replace(self, slices=MappingProxyType(slices))
