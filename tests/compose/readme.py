"""The blocks of commands of deploy/README.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
_BLOCK = re.compile(r"^## (?P<heading>.+?)$|^```sh(?P<kind>[^\n]*)\n(?P<commands>.*?)^```$", re.M | re.S)


def blocks() -> dict[str, str]:
    """`heading 1`, `heading 2`, ...: the commands of the first, second, ... block under a heading."""
    found: dict[str, str] = {}
    heading, count = "", 0
    for match in _BLOCK.finditer((DEPLOY / "README.md").read_text(encoding="utf-8")):
        if match["heading"]:
            heading, count = match["heading"], 0
        else:
            count += 1
            found[f"{heading} {count}"] = match["commands"]
    return found
