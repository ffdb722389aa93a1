"""Work that comes to a slice and leaves it again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from orbitmesh.errors import CapacityError, InfeasiblePlanError, InvalidInputError, NodeLostError
from services.slices.amounts import NOTHING, Amounts, covers, in_words, minus, plus, to_map
from services.slices.values import Admission, Book, Slice, State

ADMISSIONS_MAX = 100_000
"""The most pieces of work that are admitted at once, over all slices."""
LOOKED_AT_MAX = 1_000
"""How many coming ends a refusal looks at to say when there is room again."""
NODES_NAMED_MAX = 16
"""The most nodes that one piece of work names: no slice is on more."""


THROUGH_MAX = 256
"""The most nodes that one piece of work goes through."""


def admit(
    book: Book,
    name: str,
    amounts: Amounts,
    nodes: Sequence[str],
    key: str,
    digest: str,
    until_ns: int,
    now_ns: int,
    through: Sequence[str] = (),
) -> tuple[Book, Admission]:
    """Reserves room in a slice for work, within what the slice has.

    Args:
        book: The state.
        name: The slice.
        amounts: What it needs on each node.
        nodes: Where it runs; none leaves one node to the slice: the one where most is left.
        key: Its name; not admitted yet.
        digest: Of the request.
        until_ns: When it is given back by itself.
        now_ns: The time; both in nanoseconds since 1970.
        through: The nodes that it goes through; none says nothing of that.

    Returns:
        The next state, and the admission.

    Raises:
        InvalidInputError: `NOT_FOUND`; the slice is not on such a node; `FAILED_PRECONDITION`, it is not active, or has
            nothing on any node that the work goes through.
        InfeasiblePlanError: `SLICES_INFEASIBLE`, more than the slice has in all.
        NodeLostError: The node is out of reach.
        CapacityError: `SLICE_FULL`, with what is free and when there is room; or too much is admitted in all.
    """
    held = book.get(name)
    _check_open(held)
    book = _without_ended(book, held, now_ns)
    held = book.get(name)
    places = _places(book, held, amounts, nodes, through)
    limit = held.promise.profile.max_number_of_ues
    if len(held.admissions) >= limit:
        raise _full(held, amounts, places, f"has {len(held.admissions)} pieces of work of at most {limit}", now_ns)
    for node in places:
        free = minus(held.reserved[node].amounts, held.used.get(node, NOTHING))
        if not covers(free, amounts):
            why = f"has {in_words(free)} free on {node} of {in_words(amounts)} asked"
            raise _full(held, amounts, places, why, now_ns)
    if book.where.count >= ADMISSIONS_MAX:
        raise CapacityError(
            f"{book.where.count} pieces of work are admitted already over all slices; try again later",
            metadata={"admitted": book.where.count},
        )
    made = Admission(key, name, places, amounts, until_ns, digest)
    return _with(book, held, made), made


def renew(book: Book, key: str, until_ns: int, now_ns: int) -> tuple[Book, Admission]:
    """Keeps work for longer; also in a slice that takes no new work, which ends with the last that it has.

    Args:
        book: The state.
        key: Its name.
        until_ns: When it is given back by itself, unless that was to be later before.
        now_ns: The time; both in nanoseconds since 1970.

    Returns:
        The next state, and the admission as it is now.

    Raises:
        InvalidInputError: `NOT_FOUND`, it was never admitted, or has ended.
    """
    name = book.where.get(key)
    book = book if name is None else _without_ended(book, book.slices[name], now_ns)
    before = None if name is None or name not in book.slices else book.slices[name].admissions.get(key)
    if before is None:
        raise InvalidInputError(
            "this work is not admitted any more: it has ended, or its time was over; ask to be admitted anew",
            reason="NOT_FOUND",
        )
    if until_ns <= before.until_ns:
        return book, before
    held, made = book.slices[before.slice], replace(before, until_ns=until_ns)
    order = held.order.drop((before.until_ns, key)).add((until_ns, key))
    return book.with_slices([replace(held, admissions=held.admissions.put(key, made), order=order)]), made


def withdraw(book: Book, key: str) -> Book:
    """The state without this piece of work; the same where it is unknown. A slice that was to end with it ends."""
    name = book.where.get(key)
    return book if name is None else _without(book, book.slices[name], [key])


def expire(book: Book, now_ns: int) -> Book:
    """The state without the work whose time is over; the same where there is none."""
    for held in list(book.slices.values()):
        book = _without_ended(book, held, now_ns)
    return book


def next_end_ns(book: Book) -> int | None:
    """When the next piece of work is given back by itself; None where there is none."""
    ends = [held.order.first[0] for held in book.slices.values() if held.order.first is not None]
    return min(ends, default=None)


def _check_open(held: Slice) -> None:
    state = held.promise.state
    if state is State.ACTIVE:
        return
    why = "nothing is reserved for it: apply an allocation" if state is State.DEFINED else "it is being released"
    raise InvalidInputError(
        f"slice {held.name!r} takes no work: {why}", reason="FAILED_PRECONDITION", metadata={"slice": held.name}
    )


def _places(
    book: Book, held: Slice, amounts: Amounts, nodes: Sequence[str], through: Sequence[str]
) -> tuple[str, ...]:
    """Where the work goes."""
    if len(nodes) > NODES_NAMED_MAX or len(set(nodes)) < len(nodes):
        raise InvalidInputError(f"work is on {NODES_NAMED_MAX} nodes at most, each named once; {len(nodes)} are named")
    for node in nodes:
        if node not in held.reserved:
            raise InvalidInputError(
                f"slice {held.name!r} has nothing on node {node[:63]!r}; it is on {', '.join(held.reserved)}",
                metadata={"slice": held.name, "node": node[:63]},
            )
    among = nodes or _passed(held, through)
    here = [node for node in among if not _absent(book, node)]
    if not here or (nodes and len(here) < len(nodes)):
        away = next(node for node in among if _absent(book, node))
        raise NodeLostError(
            f"slice {held.name!r} is on {away}, which is out of reach or wants no new work; try again later",
            metadata={"slice": held.name, "node": away},
        )
    able = [node for node in here if covers(held.reserved[node].amounts, amounts)]
    if not able or (nodes and len(able) < len(nodes)):
        node = next(node for node in here if node not in able)
        raise InfeasiblePlanError(
            f"work that needs {in_words(amounts)} never fits: slice {held.name!r} has "
            f"{in_words(held.reserved[node].amounts)} on {node} in all; resize the slice, or ask for less",
            reason="SLICES_INFEASIBLE",
            metadata={"slice": held.name, "node": node},
        )
    if nodes:
        return tuple(nodes)
    return (max(sorted(able), key=lambda node: _room(held, node, amounts)),)


def _passed(held: Slice, through: Sequence[str]) -> list[str]:
    """The nodes of the slice that work goes through, all of them where that is not said."""
    if len(through) > THROUGH_MAX:
        raise InvalidInputError(f"work goes through {THROUGH_MAX} nodes at most; {len(through)} are named")
    passed = [node for node in held.reserved if not through or node in through]
    if not passed:
        raise InvalidInputError(
            f"slice {held.name!r} has nothing where this would run: it is on {', '.join(held.reserved)}, and this goes "
            f"through {', '.join(node[:63] for node in through[:NODES_NAMED_MAX])}; define it with nodes of these",
            reason="FAILED_PRECONDITION",
            metadata={"slice": held.name},
        )
    return passed


def _absent(book: Book, node: str) -> bool:
    there = book.nodes.get(node)
    return there is None or there.absent


def _room(held: Slice, node: str, amounts: Amounts) -> float:
    """The smallest part of what a slice has on a node that would be left free, over the resources that are needed."""
    had = held.reserved[node].amounts
    free = minus(minus(had, held.used.get(node, NOTHING)), amounts)
    left = [rest / all_of_it for rest, all_of_it, need in zip(free, had, amounts, strict=True) if need and all_of_it]
    return min(left, default=-float(len(held.admissions)))


def _with(book: Book, held: Slice, made: Admission) -> Book:
    used = dict(held.used)
    for node in made.nodes:
        used[node] = plus(used.get(node, NOTHING), made.amounts)
    fresh = replace(
        held,
        admissions=held.admissions.put(made.key, made),
        order=held.order.add((made.until_ns, made.key)),
        used=MappingProxyType(used),
    )
    return replace(book.with_slices([fresh]), where=book.where.put(made.key, held.name))


def _without_ended(book: Book, held: Slice, now_ns: int) -> Book:
    first = held.order.first
    if first is None or first[0] > now_ns:
        return book
    ended = []
    for until_ns, key in held.order:
        if until_ns > now_ns:
            break
        ended.append(key)
    return _without(book, held, ended)


def _without(book: Book, held: Slice, keys: Sequence[str]) -> Book:
    admissions, order, used, where = held.admissions, held.order, dict(held.used), book.where
    for key in keys:
        gone = admissions.get(key)
        if gone is None:
            continue
        admissions, order, where = admissions.drop(key), order.drop((gone.until_ns, key)), where.drop(key)
        for node in gone.nodes:
            used[node] = minus(used[node], gone.amounts)
    if not admissions:
        used = {}
    fresh = replace(held, admissions=admissions, order=order, used=MappingProxyType(used))
    if not admissions and held.promise.state is State.RELEASING:
        return replace(book.with_slices([], [held.name]), where=where, version=book.version + 1)
    return replace(book.with_slices([fresh]), where=where)


def _full(held: Slice, amounts: Amounts, places: Sequence[str], why: str, now_ns: int) -> CapacityError:
    """The refusal of work for which there is no room, with what is free and from when there is."""
    free = _free(held, held.used, places)
    at_ns, exactly = _room_at(held, amounts, places)
    when = "" if at_ns is None else f"; there is room {'at' if exactly else 'not before'} {in_utc(at_ns)}"
    metadata: dict[str, object] = {"slice": held.name, "admitted": len(held.admissions)}
    metadata |= {f"free_{name}": f"{amount:g}" for name, amount in to_map(free).items()}
    if at_ns is not None:
        metadata["free_at_ns" if exactly else "free_not_before_ns"] = at_ns
        metadata["retry_after_ms"] = max(1, -((now_ns - at_ns) // 10**6))
    return CapacityError(f"slice {held.name!r} {why}{when}", reason="SLICE_FULL", metadata=metadata)


def _free(held: Slice, used: Mapping[str, Amounts], places: Sequence[str]) -> Amounts:
    """What is free on each of these nodes."""
    free = [minus(held.reserved[node].amounts, used.get(node, NOTHING)) for node in places]
    cpu, gpu, memory, bandwidth = (min(each) for each in zip(*free, strict=True))
    return cpu, gpu, memory, bandwidth


def _room_at(held: Slice, amounts: Amounts, places: Sequence[str]) -> tuple[int | None, bool]:
    """When enough has ended by itself, and whether that is exact or only not before."""
    used, count, limit = dict(held.used), len(held.admissions), held.promise.profile.max_number_of_ues
    last_ns: int | None = None
    for looked_at, (until_ns, key) in enumerate(held.order):
        if looked_at >= LOOKED_AT_MAX:
            return last_ns, False
        gone = held.admissions.get(key)
        if gone is None:
            continue
        count, last_ns = count - 1, until_ns
        for node in gone.nodes:
            used[node] = minus(used[node], gone.amounts)
        if count < limit and covers(_free(held, used, places), amounts):
            return until_ns, True
    return last_ns, False


def in_utc(at_ns: int) -> str:
    """A time for people, to the millisecond."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
