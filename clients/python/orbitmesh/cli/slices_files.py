"""Slices in files: what is to be asked (`--what-if FILE.toml`), and an outcome that was kept (`--out FILE.json`)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from orbitmesh._requests import between
from orbitmesh.errors import InvalidInputError
from orbitmesh.slice_results import GOALS, SliceAllocation, SliceNode, SliceOutcome, SliceProfile, SliceShare

FILE_BYTES = 4 << 20
"""A larger file is none of ours, in bytes."""
NUMBER_MAX = 1e15
"""The largest number that a file may hold; what it may be where it stands is judged later."""

_OF_PROFILE = tuple(each.name for each in fields(SliceProfile))
_OF_SHARE = tuple(each.name for each in fields(SliceShare))
_NUMBERS = ("latency_ms", "within_latency_permille", "least_served", "weight")
_WHOLE = ("nodes_max", "max_number_of_ues", "sst")


@dataclass(frozen=True)
class WhatIf:
    """What a file asks about."""

    goal: str | None = None
    """What to be best in; None where the file does not say it."""
    nodes: tuple[SliceNode, ...] = ()
    """Nodes in place of the mesh's; empty keeps those."""
    slices: Mapping[str, SliceProfile] = field(default_factory=dict)
    """Slices in place of the mesh's, by name; empty keeps those."""
    traffic: Mapping[str, float] = field(default_factory=dict)
    """How much of its traffic each slice has, by name."""


def read_what_if(path: str) -> WhatIf:
    """What a TOML file asks about: `goal`, `[traffic]`, `[[nodes]]` and `[[slices]]`.

    Raises:
        InvalidInputError: It cannot be read, or says something that nobody understands; the message names where.
    """
    try:
        known = tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is no TOML: {error}") from None
    _only(known, ("goal", "traffic", "nodes", "slices"), path)
    goal = known.get("goal")
    if goal is not None and goal not in GOALS:
        raise InvalidInputError(f"{path}: goal is {goal!r:.80}; expected one of {', '.join(GOALS)}")
    nodes = tuple(_node(each, f"{path}: node {index}") for index, each in enumerate(_tables(known, "nodes", path), 1))
    slices: dict[str, SliceProfile] = {}
    for index, each in enumerate(_tables(known, "slices", path), 1):
        where = f"{path}: slice {index}"
        name = _string(each, "name", where)
        if name in slices:
            raise InvalidInputError(f"{where}: {name!r:.80} comes twice; give each slice once")
        slices[name] = _profile(each, f"{path}: slice {name!r:.80}")
    if not nodes and not slices:
        raise InvalidInputError(f"{path} has neither [[nodes]] nor [[slices]]; give what is to be asked about")
    return WhatIf(goal, nodes, slices, _numbers(known.get("traffic", {}), f"{path}: traffic"))


def write_outcome(path: str, outcome: Mapping[str, Any]) -> None:
    """Keeps an outcome, so that it can be looked at before it is applied.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps({"outcome": outcome}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"the outcome cannot be written to {path}: {error.strerror}") from None


def read_outcome(path: str) -> SliceOutcome:
    """An outcome that `optimize --out` or `optimize --json` wrote.

    Raises:
        InvalidInputError: It cannot be read, or is none.
    """
    text = _text(path)
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        # Of `--json` only the first line is the outcome, where others follow.
        try:
            known = json.loads(text.partition("\n")[0])
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path} is no JSON: {error}; give what `optimize --out` wrote") from None
    outcome = known.get("outcome") if isinstance(known, dict) else None
    if not isinstance(outcome, dict):
        raise InvalidInputError(f"{path} holds no outcome; give what `orbitmesh slices optimize --out` wrote")
    try:
        allocations = tuple(
            SliceAllocation(
                slice=each["slice"],
                node=each["node"],
                served=each["served"],
                resources=dict(each["resources"]),
                traffic=each["traffic"],
            )
            for each in outcome["allocations"]
        )
        numbers = {name: float(outcome[name]) for name in ("objective", "bound", "gap", "took_s")}
        return SliceOutcome(
            goal=str(outcome["goal"]),
            allocations=allocations,
            etag=outcome["etag"],
            what_if=bool(outcome["what_if"]),
            **numbers,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the outcome in {path} is damaged ({type(error).__name__}: {error}); optimise again"
        ) from None


def _node(known: Mapping[str, Any], where: str) -> SliceNode:
    _only(known, ("name", "capacity", "reserved"), where)
    name = _string(known, "name", where)
    return SliceNode(
        name,
        _numbers(known.get("capacity", {}), f"{where}: capacity"),
        _numbers(known.get("reserved", {}), f"{where}: reserved"),
    )


def _profile(known: Mapping[str, Any], where: str) -> SliceProfile:
    _only(known, ("name", *_OF_PROFILE), where)
    said: dict[str, Any] = {name: _string(known, name, where) for name in ("template", "place", "sd") if name in known}
    said |= {name: _number(known[name], f"{where}: {name}") for name in _NUMBERS if name in known}
    for name in _WHOLE:
        if name in known:
            if not isinstance(known[name], int) or isinstance(known[name], bool):
                raise InvalidInputError(f"{where}: {name} is {known[name]!r:.80}; expected a whole number")
            said[name] = known[name]
    if "nodes" in known:
        if not isinstance(known["nodes"], list) or not all(isinstance(node, str) for node in known["nodes"]):
            raise InvalidInputError(f"{where}: nodes is {known['nodes']!r:.80}; expected a list of names")
        said["nodes"] = tuple(known["nodes"])
    return SliceProfile(
        **said,
        resources=_numbers(known.get("resources", {}), f"{where}: resources"),
        shares={
            name: _share(share, f"{where}: shares.{name}")
            for name, share in _table(known.get("shares", {}), f"{where}: shares").items()
        },
    )


def _share(known: Any, where: str) -> SliceShare:
    _only(_table(known, where), _OF_SHARE, where)
    return SliceShare(**_numbers(known, where))


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES:
        raise InvalidInputError(f"{path} is larger than {FILE_BYTES} bytes; that is no file of slices")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is no text in UTF-8") from None


def _only(known: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in known:
        if name not in names:
            raise InvalidInputError(f"{where}: {name!r:.80} is not known; expected some of {', '.join(names)}")


def _tables(known: Mapping[str, Any], name: str, path: str) -> list[Mapping[str, Any]]:
    found = known.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InvalidInputError(f"{path}: {name} is no list of tables; write each below a line [[{name}]]")
    return found


def _table(known: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(known, dict):
        raise InvalidInputError(f"{where} is {known!r:.80}; expected a table, such as {{ CPU = 4 }}")
    return known


def _numbers(known: Any, where: str) -> dict[str, float]:
    return {name: _number(value, f"{where}.{name}") for name, value in _table(known, where).items()}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool):
        raise InvalidInputError(f"{where} is {value!r}; expected a number")
    return between(value, where, -NUMBER_MAX, NUMBER_MAX)


def _string(known: Mapping[str, Any], name: str, where: str) -> str:
    value = known.get(name)
    if not isinstance(value, str):
        raise InvalidInputError(f"{where}: {name} is {value!r:.80}; expected a text")
    return value
