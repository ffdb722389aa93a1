"""Tables of numbers that lie in installed packages; the packages themselves are never imported.

Importing a library for one of its files would cost seconds and hundreds of megabytes on every node.
"""

from __future__ import annotations

import gzip
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from orbitmesh.errors import InvalidInputError
from services.training.arrays import FloatArray


def read_table(package: str, path: str) -> FloatArray:
    """The gzipped table of comma-separated numbers at `path` in an installed package, float32 of shape (rows, columns).

    Raises:
        InvalidInputError: `NOT_FOUND`, the package is not installed or carries no such file.
    """
    try:
        place = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        place = None
    if place is None or not place.is_file():
        raise InvalidInputError(
            f"the data of this task lies in the package {package!r} ({path}), which is not installed here: install "
            "orbitmesh[train] on every node of the run",
            reason="NOT_FOUND",
            metadata={"package": package},
        )
    with gzip.open(place, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
