"""The page about dependencies and `pyproject.toml` tell the same."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata

import pytest

from tests.contract.descriptors import ROOT

NAME = re.compile(r"[A-Za-z0-9._-]+")
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
SECTION = re.compile(r"^## (?:`(\w+)`|Base)[^\n]*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
LICENCES = {
    "Apache-2.0": ("Apache",),
    "Apache-2.0 or BSD-3-Clause": ("Apache-2.0 OR BSD-3-Clause",),
    "BSD-3-Clause": ("BSD-3-Clause", "3-Clause BSD", "BSD 3-Clause"),
    "LGPL-3.0": ("LGPL-3.0",),
    "MIT": ("MIT",),
    "MPL-2.0": ("MPL-2.0",),
    "PSF-2.0 style": ("Python Software Foundation License",),
}
"""How packages themselves write the licences that the page names."""


def declared() -> dict[str, set[str]]:
    """The packages of each extra in `pyproject.toml`; those of the base under the empty name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        group: {
            match[0] for entry in entries if (match := NAME.match(entry)) and match[0] != project["name"]
        }
        for group, entries in groups.items()
    }


def described() -> dict[str, dict[str, tuple[str, str, str]]]:
    """The page's rows, by section and package: reason, licence and what it was chosen over."""
    page = (ROOT / "docs" / "dependencies.md").read_text()
    return {
        group: {name: (reason, licence, over) for name, reason, licence, over in ROW.findall(body)}
        for group, body in SECTION.findall(page)
    }


def test_every_dependency_stands_on_the_page_and_no_other_does() -> None:
    """Each package of the base and of each extra has one row in its section; a row without a package is stale."""
    assert {group: set(rows) for group, rows in described().items()} == declared()


def test_every_row_says_why_under_what_licence_and_over_what() -> None:
    """No cell of a row is empty."""
    rows = [(name, *row) for section in described().values() for name, row in section.items()]
    assert rows
    assert [row[0] for row in rows if not all(cell.strip() for cell in row)] == []


@pytest.mark.parametrize("name", sorted(name for group, names in declared().items() if group != "peers"
                                        for name in names))  # fmt: skip
def test_the_licence_on_the_page_is_the_one_that_the_package_states(name: str) -> None:
    """Each installed package's own metadata names the licence that the page gives it."""
    page = next(rows[name][1] for rows in described().values() if name in rows)
    stated = metadata(name)
    words = " ".join(
        [stated["License-Expression"] or "", (stated["License"] or ""), *(stated.get_all("Classifier") or [])]
    )
    assert any(word in words for word in LICENCES[page]), words[:300]
