"""How the state of all slices and nodes changes. Pure.

A transition takes a state and gives the next one, or raises and has changed nothing: there is nothing to undo, and what
was decided on one state can be compared with another. Admissions change it in `admission`; what fits is in `fitting`.

What holds in every state, whatever is asked: on each node the reservations of all slices together are at most its
capacity, unless the node itself came back with less; and the admissions of a slice on a node are at most what is
reserved for it there. All of it in whole millionths (`amounts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from orbitmesh.errors import CapacityError, InvalidInputError
from orbitmesh.trust.names import check_name
from services.slices.amounts import NOTHING, Amounts, plus
from services.slices.fitting import check_kept, check_node, reservations, resized
from services.slices.resources import Share
from services.slices.templates import Profile, merged
from services.slices.values import Book, Floors, Node, Promise, Reserved, Slice, State

SLICES_MAX = 400
"""The most slices: all of them are told in one message."""
PER_TENANT_MAX = 128
"""The most slices of one tenant."""
NODES_MAX = 256
"""The most nodes."""
NAMED_NODES_MAX = 64
"""The most nodes that one profile names."""
SPREAD_MAX = 16
"""On how many nodes one slice may be at most."""
PLACE_MAX_CHARS = 63
"""The longest name of a place."""


def check_etag(given: str, now: str, what: str) -> None:
    """Lets a change pass that was decided on what is there.

    Raises:
        InvalidInputError: No etag was given, or `STALE_ETAG`.
    """
    if not given:
        raise InvalidInputError(f"the change of {what} names no etag; read it first and name the one that it had")
    if given != now:
        raise InvalidInputError(
            f"somebody else has changed {what} meanwhile: it has etag {now}, and the change was decided on "
            f"{given[:80]!r}; read it again and decide anew",
            reason="STALE_ETAG",
            metadata={"etag": now},
        )


def define(book: Book, name: str, tenant: str, profile: Profile, etag: str, now_ns: int) -> Book:
    """Writes down what a slice is to be.

    Args:
        book: The state.
        name: The slice's name.
        tenant: Whose it is.
        profile: As it was asked for; what it does not say comes from its template.
        etag: Empty for a new slice; that of the one to be changed.
        now_ns: The time, in nanoseconds since 1970.

    Raises:
        InvalidInputError: A name or the profile makes no sense; `ALREADY_EXISTS`, `NOT_FOUND`, `STALE_ETAG`; or
            `SLICE_IN_USE`, something is reserved for it already.
        CapacityError: There are too many.
    """
    check_name(name)
    check_name(tenant)
    full = merged(profile)
    check_bounds(full)
    held = book.slices.get(name)
    if not etag:
        if held is not None:
            raise InvalidInputError(
                f"there is a slice {name!r} already: choose another name, or give the etag of that one to change it",
                reason="ALREADY_EXISTS",
                metadata={"slice": name},
            )
        _check_room(book, tenant)
    else:
        held = book.get(name)
        check_etag(etag, book.etag_of(held.promise), f"slice {name!r}")
        if held.promise.state is not State.DEFINED:
            raise InvalidInputError(
                f"slice {name!r} is {held.promise.state}: what it has is reserved; resize it, or release it first",
                reason="SLICE_IN_USE",
                metadata={"slice": name},
            )
    version = book.version + 1
    promise = Promise(name, tenant, full, State.DEFINED, MappingProxyType({}), version, now_ns)
    return replace(book.with_slices([Slice(promise)]), version=version)


def check_bounds(profile: Profile) -> None:
    """Refuses profiles that are larger than any that is kept.

    Raises:
        InvalidInputError: `LIMIT_EXCEEDED`, or a name that is none.
    """
    for what, value, most in (
        ("nodes", len(profile.nodes), NAMED_NODES_MAX),
        ("nodes_max", profile.nodes_max, SPREAD_MAX),
        ("characters of place", len(profile.place), PLACE_MAX_CHARS),
    ):
        if value > most:
            raise InvalidInputError(
                f"the profile has {value} {what}; expected at most {most}", reason="LIMIT_EXCEEDED"
            )
    for node in profile.nodes:
        check_name(node)
    if len(set(profile.nodes)) < len(profile.nodes):
        raise InvalidInputError("the profile names a node twice; give each once")


def _check_room(book: Book, tenant: str) -> None:
    own = sum(each.promise.tenant == tenant for each in book.slices.values())
    if len(book.slices) >= SLICES_MAX or own >= PER_TENANT_MAX:
        raise CapacityError(
            f"there are {len(book.slices)} slices, {own} of them of {tenant!r}; at most {SLICES_MAX} and "
            f"{PER_TENANT_MAX} are kept: release some",
            metadata={"slices": len(book.slices), "of_tenant": own},
        )


@dataclass(frozen=True)
class Wanted:
    """One row of an allocation that is to hold."""

    slice: str
    """Which slice."""
    node: str
    """Which node."""
    reserved: Reserved
    """What it gets there."""


def apply(book: Book, wanted: Sequence[Wanted], etag: str, floors: Floors, now_ns: int) -> Book:
    """Makes an allocation the one that holds, whole or not at all; slices that it does not name keep what they have.

    Args:
        book: The state.
        wanted: All that each named slice gets.
        etag: Of the state that it was decided on.
        floors: There and back by light.
        now_ns: The time, in nanoseconds since 1970.

    Raises:
        InvalidInputError: `STALE_ETAG`, `NOT_FOUND`; a row comes twice; `SLICE_IN_USE`, a slice has more work than it
            would have room; `FAILED_PRECONDITION`, it ends.
        InfeasiblePlanError: `SLICES_INFEASIBLE`, a share or a node's capacity is exceeded, or a guarantee is not kept;
            `LATENCY_BELOW_FLOOR`.
    """
    check_etag(etag, book.etag, "the allocations")
    if not wanted:
        raise InvalidInputError("the allocation is empty; name at least one slice and node, or release slices to free")
    rows: dict[str, dict[str, Reserved]] = {}
    for row in wanted:
        mine = rows.setdefault(row.slice, {})
        if row.node in mine:
            raise InvalidInputError(f"slice {row.slice[:63]!r} has two rows for node {row.node[:63]!r}; give one")
        mine[row.node] = row.reserved
    before, after, changed = book.reserved(), book.reserved(), []
    version = book.version + 1
    for name, mine in rows.items():
        held = book.get(name)
        _check_changeable(held)
        kept = reservations(held.promise, mine, book.nodes, floors)
        changed.append(_moved(held, held.promise.profile, kept, after, version, now_ns))
    for node in {node for mine in rows.values() for node in mine}:
        check_node(node, book.nodes[node].capacity, before.get(node, NOTHING), after[node])
    return replace(book.with_slices(changed), version=version)


def resize(
    book: Book,
    name: str,
    resources: Mapping[str, float],
    shares: Mapping[str, Share],
    etag: str,
    floors: Floors,
    now_ns: int,
) -> Book:
    """Changes what one slice needs and its shares; where it has something, it serves the same parts of its traffic on
    the same nodes.

    Args:
        book: The state.
        name: The slice.
        resources: What full traffic needs from now on, by resource; others stay.
        shares: From now on, by resource; others stay.
        etag: The slice's.
        floors: There and back by light.
        now_ns: The time, in nanoseconds since 1970.

    Raises:
        InvalidInputError: As for `apply`.
        InfeasiblePlanError: As for `apply`: it does not fit beside the others.
    """
    held = book.get(name)
    check_etag(etag, book.etag_of(held.promise), f"slice {name!r}")
    if not resources and not shares:
        raise InvalidInputError(f"nothing of slice {name!r} is to change; name resources or shares")
    _check_changeable(held)
    profile = merged(
        replace(
            held.promise.profile,
            resources={**held.promise.profile.resources, **resources},
            shares={**held.promise.profile.shares, **shares},
        )
    )
    before, after = book.reserved(), book.reserved()
    kept = resized(replace(held.promise, profile=profile), book.nodes, floors)
    version = book.version + 1
    changed = _moved(held, profile, kept, after, version, now_ns)
    for node in kept:
        check_node(node, book.nodes[node].capacity, before.get(node, NOTHING), after[node])
    return replace(book.with_slices([changed]), version=version)


def _check_changeable(held: Slice) -> None:
    if held.promise.state is State.RELEASING:
        raise InvalidInputError(
            f"slice {held.name!r} is being released; it can be defined again once its work has ended",
            reason="FAILED_PRECONDITION",
            metadata={"slice": held.name},
        )


def _moved(
    held: Slice, profile: Profile, kept: Mapping[str, Reserved], after: dict[str, Amounts], version: int, now_ns: int
) -> Slice:
    """The slice with other reservations; takes the difference into `after`, which is of the whole mesh."""
    check_kept(held.name, held.used, kept)
    for node, part in held.reserved.items():
        there, had = after[node], part.amounts
        after[node] = (there[0] - had[0], there[1] - had[1], there[2] - had[2], there[3] - had[3])
    for node, part in kept.items():
        after[node] = plus(after.get(node, NOTHING), part.amounts)
    state = State.ACTIVE if kept else held.promise.state
    promise = Promise(held.name, held.promise.tenant, profile, state, MappingProxyType(dict(kept)), version, now_ns)
    return replace(held, promise=promise)


def release(book: Book, name: str, etag: str, drain: bool, now_ns: int) -> Book:
    """Ends a slice.

    Args:
        book: The state.
        name: The slice.
        etag: Its etag.
        drain: Where it is in use: let it end with the last of its work, and take none any more.
        now_ns: The time, in nanoseconds since 1970.

    Raises:
        InvalidInputError: `NOT_FOUND`, `STALE_ETAG`; or `SLICE_IN_USE`.
    """
    held = book.get(name)
    check_etag(etag, book.etag_of(held.promise), f"slice {name!r}")
    version = book.version + 1
    if not held.admissions:
        return replace(book.with_slices([], [name]), version=version)
    if not drain:
        raise InvalidInputError(
            f"slice {name!r} has {len(held.admissions)} pieces of work: wait for them, or release it with drain, and "
            "it ends with the last of them",
            reason="SLICE_IN_USE",
            metadata={"slice": name, "admitted": len(held.admissions)},
        )
    promise = replace(held.promise, state=State.RELEASING, version=version, changed_ns=now_ns)
    return replace(book.with_slices([replace(held, promise=promise)]), version=version)


def seen(book: Book, nodes: Mapping[str, Node]) -> Book:
    """The state with the nodes as they are now. One that has vanished stays, absent, for as long as something is
    reserved there. The same value where nothing has changed.

    Args:
        book: The state.
        nodes: The nodes by name; of more than `NODES_MAX` the first by name.
    """
    found = {name: nodes[name] for name in sorted(nodes)[:NODES_MAX]}
    for name in book.reserved():
        if name not in found:
            found[name] = replace(book.nodes[name], absent=True)
    return book if found == book.nodes else replace(book, nodes=MappingProxyType(found))
