"""Contact plans as JSON: one contact per line, every number to its last bit, every key checked.

`ContactPlan.dump`, `.parse` and `.load` are the way in; what is wrong with a text is said by the number of its entry.
"""

from __future__ import annotations

import json
from typing import Any

from orbitmesh.contacts import MAX_CONTACTS, MAX_PLAN_BYTES, Contact, ContactPlan, LatencyPoint, refuse
from orbitmesh.errors import InvalidInputError

FORMAT = "orbitmesh.contact-plan/1"
"""The `format` of a plan's JSON; another number means other keys."""



def dump(plan: ContactPlan) -> str:
    """The plan as JSON text."""
    head = {"format": FORMAT, "start_s": plan.start_s, "end_s": plan.end_s, "warnings": list(plan.warnings)}
    lines = ",\n".join("  " + json.dumps(_contact_record(contact)) for contact in plan.contacts)
    body = f"[\n{lines}\n ]" if lines else "[]"
    return f'{json.dumps(head)[:-1]}, "contacts": {body}}}\n'


def parse(text: str) -> ContactPlan:
    """The plan that a text holds.

    Raises:
        InvalidInputError: See `ContactPlan.parse`.
    """
    if len(text) > MAX_PLAN_BYTES:
        raise refuse(f"the contact plan has {len(text)} characters; expected at most {MAX_PLAN_BYTES}")
    try:
        record = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise refuse(f"the contact plan is no JSON: {error}; write one with `orbitmesh contacts --out`") from None
    return _plan_from_record(record)


_PLAN_KEYS = frozenset({"format", "start_s", "end_s", "contacts", "warnings"})
_PLAN_NEEDS = frozenset({"format", "start_s", "end_s", "contacts"})
_CONTACT_NEEDS = frozenset({"source", "target", "start_s", "end_s", "rate_bps", "latency"})
_CONTACT_KEYS = _CONTACT_NEEDS | {"kind", "acquisition_s", "max_elevation_deg", "truncated_start", "truncated_end"}


def _contact_record(contact: Contact) -> dict[str, Any]:
    record: dict[str, Any] = {
        "source": contact.source,
        "target": contact.target,
        "kind": contact.kind,
        "start_s": contact.start_s,
        "end_s": contact.end_s,
        "rate_bps": contact.rate_bps,
        "acquisition_s": contact.acquisition_s,
        "latency": [[point.at_s, point.latency_s] for point in contact.latency],
    }
    if contact.max_elevation_deg is not None:
        record["max_elevation_deg"] = contact.max_elevation_deg
    for key in ("truncated_start", "truncated_end"):
        if getattr(contact, key):
            record[key] = True
    return record


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise refuse(f"the key {twice[:80]!r} is there twice in one entry; keep one")
    return record


def _no_constant(text: str) -> float:
    raise refuse(f"{text} is not a number of a contact plan; expected finite numbers")


def _check_keys(record: object, needs: frozenset[str], known: frozenset[str], where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise refuse(f"{where}: expected an object with the keys {', '.join(sorted(needs))}")
    unknown = sorted(set(record) - known)
    if unknown:
        raise refuse(f"{where}: unknown key {unknown[0][:80]!r}; the keys are {', '.join(sorted(known))}")
    missing = sorted(needs - set(record))
    if missing:
        raise refuse(f"{where}: the key {missing[0]!r} is missing; it needs {', '.join(sorted(needs))}")
    return record


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(f"{where}: {key} is {str(value)[:80]!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise refuse(f"{where}: {key} is too large; expected a finite number") from None


def _flag(value: object, key: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise refuse(f"{where}: {key} is {str(value)[:80]!r}; expected true or false")
    return value


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise refuse(f"{where}: {key} is {str(value)[:80]!r}; expected a text")
    return value


def _list(value: object, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise refuse(f"{where}: {key} is {str(value)[:80]!r}; expected a list")
    return value


def _latency_from_record(value: object, where: str) -> tuple[LatencyPoint, ...]:
    points = []
    for index, entry in enumerate(_list(value, "latency", where)):
        if not isinstance(entry, list) or len(entry) != 2:
            raise refuse(f"{where}: latency[{index}] is {str(entry)[:80]!r}; expected [at_s, latency_s]")
        points.append(LatencyPoint(_number(entry[0], "at_s", where), _number(entry[1], "latency_s", where)))
    return tuple(points)


def _contact_from_record(value: object, where: str) -> Contact:
    record = _check_keys(value, _CONTACT_NEEDS, _CONTACT_KEYS, where)
    highest = record.get("max_elevation_deg")
    try:
        return Contact(
            source=_text(record["source"], "source", where),
            target=_text(record["target"], "target", where),
            start_s=_number(record["start_s"], "start_s", where),
            end_s=_number(record["end_s"], "end_s", where),
            rate_bps=_number(record["rate_bps"], "rate_bps", where),
            latency=_latency_from_record(record["latency"], where),
            kind=_text(record.get("kind", "radio"), "kind", where),
            acquisition_s=_number(record.get("acquisition_s", 0.0), "acquisition_s", where),
            max_elevation_deg=None if highest is None else _number(highest, "max_elevation_deg", where),
            truncated_start=_flag(record.get("truncated_start", False), "truncated_start", where),
            truncated_end=_flag(record.get("truncated_end", False), "truncated_end", where),
        )
    except InvalidInputError as error:
        prefix = "" if error.message.startswith(where) else f"{where}: "
        raise refuse(f"{prefix}{error.message}") from None


def _plan_from_record(value: object) -> ContactPlan:
    record = _check_keys(value, _PLAN_NEEDS, _PLAN_KEYS, "contact plan")
    if record["format"] != FORMAT:
        raise refuse(f"contact plan: format is {str(record['format'])[:80]!r}; this version reads {FORMAT!r}")
    entries = _list(record["contacts"], "contacts", "contact plan")
    if len(entries) > MAX_CONTACTS:
        raise refuse(f"contact plan: {len(entries)} contacts; expected at most {MAX_CONTACTS}")
    contacts = [_contact_from_record(entry, f"contacts[{index}]") for index, entry in enumerate(entries)]
    warnings = _list(record.get("warnings", []), "warnings", "contact plan")
    plan = {
        "start_s": _number(record["start_s"], "start_s", "contact plan"),
        "end_s": _number(record["end_s"], "end_s", "contact plan"),
    }
    _check_entries(contacts)
    said = tuple(_text(warning, f"warnings[{index}]", "contact plan") for index, warning in enumerate(warnings))
    return ContactPlan(plan["start_s"], plan["end_s"], tuple(contacts), said)


def _check_entries(contacts: list[Contact]) -> None:
    """Refuse overlaps by the numbers that the entries have in the text, which sorting would lose."""
    order = sorted(range(len(contacts)), key=lambda index: (contacts[index].start_s, index))
    latest: dict[tuple[str, str], int] = {}
    for index in order:
        contact = contacts[index]
        before = latest.get((contact.source, contact.target))
        if before is not None and contacts[before].end_s > contact.start_s:
            raise refuse(
                f"contacts[{index}] overlaps contacts[{before}]: {contact.source} -> {contact.target} is open until "
                f"{contacts[before].end_s} s and opens again at {contact.start_s} s; merge the two or move one"
            )
        latest[(contact.source, contact.target)] = index
