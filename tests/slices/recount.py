"""A plain recount of what was promised: from rows, in fractions, with none of the book's own sums."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from services.slices.amounts import Amounts
from services.slices.resources import NAMES
from services.slices.values import Book, Slice

Load = dict[tuple[str, str], Fraction]


def over_commitments(book: Book, allowed: dict[str, tuple[int, ...]] | None = None) -> list[str]:
    """What is promised twice, in words; none where all is well.

    Args:
        book: The state.
        allowed: What may be reserved on a node, in millionths, where that is not its capacity.
    """
    found = []
    for (node, name), amount in reserved(book).items():
        most = (allowed or {}).get(node, book.nodes[node].capacity)[NAMES.index(name)]
        if amount > Fraction(most, 10**6):
            found.append(f"{node}: {amount} of {name} reserved of {Fraction(most, 10**6)}")
    for held in book.slices.values():
        for (node, name), amount in admitted(held).items():
            had = held.reserved[node].amounts[NAMES.index(name)] if node in held.reserved else 0
            if amount > Fraction(had, 10**6):
                found.append(f"{held.name} on {node}: {amount} of {name} admitted of {Fraction(had, 10**6)}")
        count = sum(1 for _ in held.admissions.values())
        if count > held.promise.profile.max_number_of_ues:
            found.append(f"{held.name}: {count} pieces of work")
    return found


def reserved(book: Book) -> Load:
    """What all slices have on each node, of each resource."""
    rows = [row for held in book.slices.values() for row in held.reserved.items()]
    return _sums([(node, part.amounts) for node, part in rows])


def admitted(held: Slice) -> Load:
    """What the work of a slice has on each node, of each resource."""
    return _sums([(node, each.amounts) for each in held.admissions.values() for node in each.nodes])


def _sums(rows: list[tuple[str, Amounts]]) -> Load:
    found: Load = defaultdict(Fraction)
    for node, amounts in rows:
        for name, amount in zip(NAMES, amounts, strict=True):
            assert amount >= 0
            found[node, name] += Fraction(amount, 10**6)
    return found


def contents(book: Book) -> dict[str, object]:
    """All of the state in plain values, for comparing."""
    return {
        "version": book.version,
        "nodes": {name: (node.capacity, node.absent) for name, node in book.nodes.items()},
        "slices": {
            name: (
                held.promise.tenant,
                held.promise.state.value,
                held.promise.version,
                {node: (part.served, part.amounts, part.traffic) for node, part in held.reserved.items()},
                sorted((each.key, each.nodes, each.amounts, each.until_ns) for each in held.admissions.values()),
                list(held.order),
                {node: amounts for node, amounts in held.used.items() if any(amounts)},
                held.promise.profile,
            )
            for name, held in book.slices.items()
        },
    }
