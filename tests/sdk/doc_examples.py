"""Examples in docstrings, carried out."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Iterator
from typing import Any


def examples(symbol: Any) -> Iterator[doctest.Example]:
    """What stands behind `>>>`."""
    found = doctest.DocTestParser().get_examples(inspect.getdoc(symbol) or "")
    assert found, symbol
    yield from found


def perform(example: doctest.Example, scope: dict[str, Any]) -> Any:
    """The value of an example; of one with `await` a coroutine that gives it."""
    mode = "eval" if example.want else "exec"
    code = compile(example.source, "<example>", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return eval(code, scope)


def compare(example: doctest.Example, value: Any) -> None:
    """Texts and tuples are what the docstring shows; of figures and lists, which differ, the kind is."""
    if not example.want:
        return
    try:
        shown = ast.literal_eval(example.want)
    except (SyntaxError, ValueError):
        assert type(value).__name__ in ("ndarray",) and example.want.startswith("array("), example.source
        return
    assert type(value) is type(shown), example.source
    if isinstance(shown, str | tuple):
        assert value == shown, example.source


def show(scope: dict[str, Any], *symbols: Any) -> None:
    """Carries out the examples of each."""
    for symbol in symbols:
        for example in examples(symbol):
            compare(example, perform(example, scope))


async def show_async(scope: dict[str, Any], *symbols: Any) -> None:
    """The same where they `await`."""
    for symbol in symbols:
        for example in examples(symbol):
            value = perform(example, scope)
            compare(example, await value if inspect.isawaitable(value) else value)


def members(owner: type, *names: str) -> list[Any]:
    """Methods, and properties by what computes them."""
    found = [inspect.getattr_static(owner, name) for name in names]
    return [each.fget if isinstance(each, property) else each for each in found]
