"""Prints what extras of the distribution need, one requirement a line, for `pip install -r`.

`python requirements.py EXTRA...`, beside pyproject.toml. An image installs these before our own code is copied,
so that a changed line of code does not install torch again.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The dependencies of the base install and of extras, other extras of ours resolved into theirs.

    Raises:
        KeyError: There is no such extra.
    """
    own = f"{project['name']}["
    found: list[str] = list(project["dependencies"])
    for entry in [each for extra in extras for each in project["optional-dependencies"][extra]]:
        if entry.startswith(own):
            found += requirements(project, entry.removeprefix(own).rstrip("]").split(","))
        else:
            found.append(entry)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.write("".join(f"{line}\n" for line in requirements(table["project"], sys.argv[1:])))
