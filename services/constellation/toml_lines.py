"""TOML with the line of every key, and the checks that a hand-written file deserves.

`tomllib` says where the syntax is wrong and nothing of where a key stands. `Lines` finds that by a scan of the text;
`Table` hands out values of one table, checked, and in the end refuses what nobody asked for.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from orbitmesh.errors import InvalidInputError

_HEADER = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_.\-]+)\s*\]\]?")
_KEY = re.compile(r"\s*\"?([A-Za-z0-9_\-]+)\"?\s*=")


def refuse(message: str) -> InvalidInputError:
    """The error of everything that is wrong with a scenario."""
    return InvalidInputError(message, reason="SCENARIO_INVALID")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant; empty where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class Lines:
    """Where tables and keys stand in a TOML text, counted from 1."""

    def __init__(self, text: str) -> None:
        self._places: dict[tuple[str | int, ...], int] = {}
        counts: dict[str, int] = {}
        table: tuple[str | int, ...] = ()
        depth = 0
        for number, line in enumerate(text.splitlines(), 1):
            bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', '""', line).split("#")[0]
            header = _HEADER.match(line) if depth == 0 else None
            key = _KEY.match(line) if depth == 0 else None
            if header and not key:
                name = header[1]
                if line.lstrip().startswith("[["):
                    counts[name] = counts.get(name, -1) + 1
                    table = (name, counts[name])
                else:
                    table = tuple(name.split("."))
                self._places[table] = number
                continue
            if key:
                self._places[*table, key[1]] = number
            depth = max(0, depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}"))

    def of(self, path: tuple[str | int, ...]) -> int:
        """The line of a key or table, or of the nearest thing that holds it."""
        while path:
            if path in self._places:
                return self._places[path]
            path = path[:-1]
        return 1


class Table:
    """One table of a file: values by key, each checked for type and range.

    Args:
        record: What `tomllib` made of it.
        path: Its place, for instance `("sites", 0)`.
        lines: Where things stand.
        file: The file's name, for messages.
    """

    def __init__(self, record: dict[str, Any], path: tuple[str | int, ...], lines: Lines, file: str) -> None:
        self._record = record
        self._path = path
        self._lines = lines
        self._file = file
        self._asked: set[str] = set()

    @property
    def line(self) -> int:
        """Where it begins."""
        return self._lines.of(self._path)

    def wrong(self, key: str | None, message: str) -> InvalidInputError:
        """An error at a key, or at the table itself."""
        line = self._lines.of(self._path if key is None else (*self._path, key))
        return refuse(f"{self._file}, line {line}: {message}")

    def has(self, key: str) -> bool:
        """True where the file has the key."""
        self._asked.add(key)
        return key in self._record

    def finish(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            InvalidInputError: There is an unknown key; names its line and the nearest known one.
        """
        for key in self._record:
            if key not in self._asked:
                hint = nearest(key, self._asked)
                known = ", ".join(sorted(self._asked))
                raise self.wrong(key, f"unknown key {key!r}{hint} (known here: {known})")

    def number(
        self, key: str, low: float, high: float, default: float | None = None, *, above: bool = False, unit: str = ""
    ) -> float:
        """A finite number from `low` (not itself, where `above`) to `high`."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, f"{key} is {value!r}; expected a number{unit and ' of ' + unit}")
        if not (low < value <= high if above else low <= value <= high):
            span = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise self.wrong(key, f"{key} is {value:g}; expected {span}{unit and ' ' + unit}")
        return float(value)

    def count(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(key, low, high, default)
        if value != int(value):
            raise self.wrong(key, f"{key} is {value:g}; expected a whole number from {low} to {high}")
        return int(value)

    def text(self, key: str, default: str | None = None, choices: tuple[str, ...] = ()) -> str:
        """A text, one of `choices` where there are some."""
        value = self._take(key, default)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, f"{key} is {value!r}; expected a text")
        if choices and value not in choices:
            raise self.wrong(
                key, f"{key} is {value!r}{nearest(value, choices)}; expected one of {', '.join(choices)}"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"{key} is {value!r}; expected true or false")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of texts."""
        value = self._take(key, default)
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self.wrong(key, f'{key} is {value!r}; expected a list of texts, for instance ["a", "b"]')
        return list(value)

    def indices(self, key: str, below: int) -> list[int]:
        """A list of whole numbers from 0 up to `below`; all of them where the key is not there."""
        value = self._take(key, list(range(below)))
        if not isinstance(value, list) or not all(type(each) is int and 0 <= each < below for each in value):
            raise self.wrong(key, f"{key} is {value!r}; expected a list of whole numbers from 0 to {below - 1}")
        return sorted(set(value))

    def pairs(self, key: str) -> list[tuple[str, str]]:
        """A list of pairs of texts."""
        value = self._take(key, None)
        good = isinstance(value, list) and all(
            isinstance(each, list) and len(each) == 2 and all(isinstance(name, str) for name in each)
            for each in value
        )
        if not good:
            raise self.wrong(key, f'{key} is {value!r}; expected pairs of names, for instance [["a", "b"]]')
        return [(first, second) for first, second in value]

    def table(self, key: str) -> Table:
        """A table inside this one."""
        value = self._take(key, None)
        if not isinstance(value, dict):
            raise self.wrong(key, f"{key} is {value!r}; expected a table, for instance {key} = {{ planes = 6 }}")
        return Table(value, (*self._path, key), self._lines, self._file)

    def tables(self, key: str) -> list[Table]:
        """A list of tables; empty where the key is not there."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.wrong(key, f"{key} must be a list of tables: write [[{key}]] above each")
        return [Table(each, (key, index), self._lines, self._file) for index, each in enumerate(value)]

    def value(self, key: str) -> Any:
        """Whatever stands there."""
        return self._take(key, None)

    def _take(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        if key in self._record:
            return self._record[key]
        if default is None:
            raise self.wrong(None, f"the key {key!r} is missing here; add `{key} = ...`")
        return default
