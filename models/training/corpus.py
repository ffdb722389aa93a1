"""English text that every machine with CPython 3.11 has: its reference topics and its sources' own prose.

A document is one `pydoc` topic, or the docstrings and comment blocks of one module of the standard library in
source order. Whole documents are held out, chosen by a hash of their name, so that another patch release of
CPython holds out the same documents. No module is imported or run: the sources are parsed by `ast`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PER_MILLE = 75
"""Share of the documents that is held out, in thousandths."""

MIN_DOCSTRING_CHARS = 24
"""Shorter docstrings ("See PEP 8.") teach a vocabulary of stubs and are left out, in characters."""

MIN_COMMENT_LINES = 2
"""A comment of fewer lines is a label beside code more often than prose, in lines."""

MIN_COMMENT_CHARS = 60
"""Shorter comment blocks are left out, in characters."""

HELD_OUT_SALT = "orbitmesh pydoc held-out 1"
"""Mixed into the hash of a document's name; another salt is another split."""

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders that hold tests or text that is not CPython's own."""

LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")
"""Files whose content depends on how this interpreter was built."""

_COMMENT_LINE = re.compile(r"\s*#+ ?(.*)")
_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Document:
    """One text, named for the split."""

    name: str
    """`topic:NAME` or `module:DOTTED.NAME`."""
    text: str
    """Its text, ending in one newline."""


@dataclass(frozen=True)
class Corpus:
    """The two splits; no paragraph of `held_out` occurs in `train`."""

    train: tuple[Document, ...]
    """Documents to learn from, sorted by name."""
    held_out: tuple[Document, ...]
    """Documents to be measured on, sorted by name."""

    @property
    def sha256(self) -> str:
        """SHA-256 of both splits, names included, in hexadecimal."""
        digest = hashlib.sha256()
        for label, documents in (("train", self.train), ("held-out", self.held_out)):
            for document in documents:
                for field in (label, document.name, document.text):
                    encoded = field.encode()
                    digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    @property
    def held_out_text(self) -> str:
        """All held-out documents after each other, with an empty line between them."""
        return join(self.held_out)

    @property
    def train_text(self) -> str:
        """All training documents after each other, with an empty line between them."""
        return join(self.train)


def join(documents: tuple[Document, ...]) -> str:
    """The documents' texts with an empty line between them."""
    return "\n".join(document.text for document in documents)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text with each run of white space made one space."""
    for part in _PARAGRAPH_BREAK.split(text):
        squeezed = " ".join(part.split())
        if squeezed:
            yield squeezed


def load_corpus(topics_only: bool = False) -> Corpus:
    """Read, de-duplicate and split the text of this interpreter's library, or of its topics alone."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    documents = _without_repeats([*_topics(), *(() if topics_only else _modules(stdlib))])
    held_out = tuple(document for document in documents if _is_held_out(document.name))
    known = {paragraph for document in held_out for paragraph in paragraphs(document.text)}
    train = []
    for document in documents:
        if _is_held_out(document.name):
            continue
        text = _without_paragraphs(document.text, known)
        if text:
            train.append(Document(document.name, text))
    return Corpus(tuple(train), held_out)


def _is_held_out(name: str) -> bool:
    digest = hashlib.sha256(f"{HELD_OUT_SALT}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topic:{name}", topics[name].strip() + "\n")


def _modules(stdlib: Path) -> Iterator[Document]:
    named = []
    for path in stdlib.rglob("*.py"):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and not parts[0].startswith(LEFT_OUT_PREFIXES):
            named.append((".".join(part for part in parts if part != "__init__"), path))
    for name, path in sorted(named):
        text = _prose(path.read_bytes())
        if text:
            yield Document(f"module:{name}", text + "\n")


def _prose(source: bytes) -> str:
    """The docstrings and comment blocks of one source, in its order; "" for one that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old docstrings are not ours to report
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    parts = [*_docstrings(tree), *_comment_blocks(source.decode("utf-8", "replace"))]
    return "\n\n".join(text for _, text in sorted(parts))


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line number and text of the docstrings of a module, its classes and its functions, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if len(text) >= MIN_DOCSTRING_CHARS:
                yield node.body[0].lineno, text


def _comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each run of whole-line comments."""
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""]):
        match = _COMMENT_LINE.fullmatch(line)
        if match:
            block.append(match[1].rstrip())
            continue
        text = "\n".join(block).strip()
        if len(block) >= MIN_COMMENT_LINES and len(text) >= MIN_COMMENT_CHARS:
            yield number, text
        block = []


def _without_repeats(documents: list[Document]) -> list[Document]:
    """Each paragraph of any length worth copying stays only where it first occurs."""
    seen: set[str] = set()
    kept = []
    for document in sorted(documents, key=lambda one: one.name):
        parts = []
        for part in _PARAGRAPH_BREAK.split(document.text):
            squeezed = " ".join(part.split())
            if len(squeezed) >= MIN_DOCSTRING_CHARS:
                if squeezed in seen:
                    continue
                seen.add(squeezed)
            parts.append(part.rstrip())
        text = "\n\n".join(parts).strip()
        if text:
            kept.append(Document(document.name, text + "\n"))
    return kept


def _without_paragraphs(text: str, unwanted: set[str]) -> str:
    parts = [part for part in _PARAGRAPH_BREAK.split(text) if " ".join(part.split()) not in unwanted]
    joined = "\n\n".join(part.rstrip() for part in parts).strip()
    return joined + "\n" if joined else ""
