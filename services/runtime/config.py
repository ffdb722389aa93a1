"""Settings of a service: one TOML file, then command-line flags, into one frozen dataclass.

Nothing is read from the environment. A field of the dataclass is a key of the file and a flag: `cache_bytes`
is `cache_bytes = 1` in TOML and `--cache-bytes 1`. A field that is itself a dataclass is a table, its flags
carry the table's name: `[planner] cuts = 3` is `--planner-cuts 3`. The sentence under each field is the
flag's help.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from orbitmesh.errors import InvalidInputError

CONFIG_MAX_BYTES = 256 * 1024
"""Largest configuration file that is read, in bytes."""

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class _Key:
    """One leaf setting."""

    path: tuple[str, ...]
    """Names from the outermost table to the key."""
    kind: Any
    """Its type, without None."""
    optional: bool
    """True where None is allowed."""
    help: str
    """The sentence under the field."""

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")


def load_config(
    cls: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
) -> ConfigT:
    """Read the settings of a service.

    Args:
        cls: A frozen dataclass of str, int, float, bool, Path, enums, tuples of these, optional ones, and
            dataclasses.
        argv: The command line without the program; the process's own where left out. `--config FILE` names
            the file.
        prog: The program's name, for help.
        description: What the service is, for help.

    Raises:
        InvalidInputError: The file cannot be read, or a key is unknown, missing or of the wrong type; the
            message names file, line and key.
        SystemExit: The flags themselves are wrong, or help was asked for.
    """
    keys = _keys_of(cls)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with settings; flags win over it"
    )
    for key in keys:
        _add_flag(parser, key)
    given = vars(parser.parse_args(argv))
    file: Path | None = given.pop("config")
    values: dict[tuple[str, ...], Any] = {} if file is None else _read_file(file, keys)
    flags = {key.path: given[key.dotted] for key in keys if given[key.dotted] is not None}
    for key in keys:
        if key.path in flags:
            values[key.path] = _convert(key, flags[key.path], f"flag {key.flag}")
    return typing.cast("ConfigT", _build(cls, values, ()))


def _keys_of(cls: type[Any], prefix: tuple[str, ...] = ()) -> list[_Key]:
    hints, helps = typing.get_type_hints(cls), field_help(cls)
    keys: list[_Key] = []
    for field in dataclasses.fields(cls):
        kind, path = hints[field.name], (*prefix, field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            keys += _keys_of(kind, path)
            continue
        parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        rest = [part for part in parts if part is not type(None)]
        keys.append(_Key(path, rest[0], len(rest) < len(parts), helps.get(field.name, "")))
    return keys


def field_help(cls: type[Any]) -> dict[str, str]:
    """The sentence under each field of a dataclass, from its source; empty where the source is not there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[statement.target.id] = " ".join(after.value.value.split())
    return found


def _add_flag(parser: argparse.ArgumentParser, key: _Key) -> None:
    text = key.help.replace("%", "%%")
    if key.kind is bool:
        parser.add_argument(
            key.flag, dest=key.dotted, default=None, action=argparse.BooleanOptionalAction, help=text
        )
    else:
        many = typing.get_origin(key.kind) is tuple
        parser.add_argument(
            key.flag,
            dest=key.dotted,
            default=None,
            nargs="*" if many else None,
            action="extend" if many else "store",
            metavar=key.path[-1].upper(),
            help=text,
        )


def _read_file(path: Path, keys: Sequence[_Key]) -> dict[tuple[str, ...], Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the settings {path}: {error.strerror}; give another --config or none"
        ) from error
    if len(data) > CONFIG_MAX_BYTES:
        raise InvalidInputError(f"{path} has more than {CONFIG_MAX_BYTES} bytes: no file of settings")
    try:
        text = data.decode("utf-8")
        tree = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path} is no TOML: {error}") from None
    known = {key.path: key for key in keys}
    values = {}
    for leaf, value in _leaves(tree, known):
        where = f"{path}, line {_line_of(text, leaf)}"
        key = known.get(leaf)
        if key is None:
            options = ", ".join(sorted(each.dotted for each in keys))
            raise InvalidInputError(
                f"{where}: there is no setting {'.'.join(leaf)!r}; the settings are {options}",
                metadata={"key": ".".join(leaf)},
            )
        values[leaf] = _convert(key, value, where)
    return values


def _leaves(
    tree: Mapping[str, Any], known: Mapping[tuple[str, ...], _Key], prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in tree.items():
        path = (*prefix, name)
        if isinstance(value, dict) and path not in known:
            # An empty unknown table is still unknown: it is told as a leaf.
            found += _leaves(value, known, path) if value else [(path, value)]
        else:
            found.append((path, value))
    return found


def _line_of(text: str, path: tuple[str, ...]) -> int | str:
    """The line of a key, by a plain search: the table's header first, then the key below it."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header and "=" not in line.split("]")[0]:
            table = tuple(part.strip(" \"'") for part in header.group(1).split("."))
            if table == path:
                return number
            continue
        assigned = re.match(r"\s*([^=#]+?)\s*=", line)
        if assigned:
            here = (*table, *(part.strip(" \"'") for part in assigned.group(1).split(".")))
            if here == path[: len(here)]:
                return number
    return "unknown"


def _convert(key: _Key, value: Any, where: str) -> Any:
    try:
        return _value(key.kind, value)
    except (ValueError, TypeError):
        raise InvalidInputError(
            f"{where}: {key.dotted} is {str(value)[:80]!r} where {_words(key.kind)} was expected",
            metadata={"key": key.dotted},
        ) from None


def _value(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError
        return tuple(_value(typing.get_args(kind)[0], each) for each in value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        if kind is int and isinstance(value, float):
            raise TypeError
        return kind(value)
    if not isinstance(value, str):
        raise TypeError
    return Path(value).expanduser() if kind is Path else value


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {_words(typing.get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(
        kind, "a text"
    )


def _build(cls: type[Any], values: Mapping[tuple[str, ...], Any], prefix: tuple[str, ...]) -> Any:
    hints, arguments = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        kind, path = hints[field.name], (*prefix, field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            arguments[field.name] = _build(kind, values, path)
        elif path in values:
            arguments[field.name] = values[path]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            key = _Key(path, kind, False, "")
            raise InvalidInputError(
                f"the setting {key.dotted!r} is missing; give {key.flag} or set it in the file of --config",
                metadata={"key": key.dotted},
            )
    return cls(**arguments)
