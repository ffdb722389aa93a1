"""English text that every machine with CPython has: its reference topics, and the docstrings of its library.

A section is one `pydoc` topic, or the docstrings of one module. No module is imported: sources are parsed by `ast`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SALT = "orbitmesh pydoc held-out 1"
"""The one that the shipped model's training used: what it has not seen is held out here too."""

MIN_CHARS = 24
"""Shorter docstrings are left out, in characters."""

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of the library that hold tests or other people's code."""


@dataclass(frozen=True)
class Section:
    """One text."""

    name: str
    """`topic:NAME` or `module:DOTTED.NAME`."""
    text: str
    """Its text."""


@dataclass(frozen=True)
class Prose:
    """The sections, in two parts."""

    train: tuple[Section, ...]
    """To learn from, sorted by name."""
    held_out: tuple[Section, ...]
    """To be measured on, sorted by name."""


def read_prose(*, held_out_per_mille: int, topics_only: bool = False) -> Prose:
    """The text of this interpreter; each paragraph only where it first occurs, held-out sections before the others."""
    library = () if topics_only else _modules(Path(sysconfig.get_paths()["stdlib"]))
    sections = sorted([*_topics(), *library], key=lambda one: one.name)
    held_out = [one for one in sections if _held_out(one.name, held_out_per_mille)]
    train = [one for one in sections if not _held_out(one.name, held_out_per_mille)]
    return Prose(tuple(_without_repeats(train, _paragraphs(held_out))), tuple(_without_repeats(held_out, set())))


def _held_out(name: str, per_mille: int) -> bool:
    digest = hashlib.sha256(f"{HELD_OUT_SALT}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < per_mille


def _paragraphs(sections: list[Section]) -> set[str]:
    return {" ".join(part.split()) for one in sections for part in one.text.split("\n\n")}


def _without_repeats(sections: list[Section], seen: set[str]) -> Iterator[Section]:
    for one in sections:
        kept = []
        for part in one.text.split("\n\n"):
            squeezed = " ".join(part.split())
            if squeezed and squeezed not in seen:
                seen.add(squeezed)
                kept.append(part.rstrip())
        if kept:
            yield Section(one.name, "\n\n".join(kept) + "\n")


def _topics() -> Iterator[Section]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Section(f"topic:{name}", topics[name].strip())


def _modules(library: Path) -> Iterator[Section]:
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and (texts := list(_docstrings(path.read_bytes()))):
            name = ".".join(part for part in parts if part != "__init__")
            yield Section(f"module:{name}", "\n\n".join(texts))


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old docstrings are not ours to report
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if len(text) >= MIN_CHARS:
                yield text
