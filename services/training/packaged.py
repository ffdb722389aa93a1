"""Tables of numbers that lie in installed packages; the packages themselves are never imported.

Importing a library for one of its files would cost seconds and hundreds of megabytes on every node. Nor need it be
installed: where the environment variable names a directory, the same files are taken from there, at the same paths.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from orbitmesh.errors import InvalidInputError
from services.training.arrays import FloatArray

DATA_VARIABLE = "ORBITMESH_TRAIN_DATA"
"""Environment variable that names a directory with the files of the packages, where those are not installed."""


def read_table(package: str, path: str) -> FloatArray:
    """The gzipped table of comma-separated numbers at `path` in an installed package, float32 of shape (rows, columns).

    Raises:
        InvalidInputError: `NOT_FOUND`, the package is not installed or carries no such file, nor does the directory
            that `ORBITMESH_TRAIN_DATA` names.
    """
    place = next((each for each in _places(package, path) if each.is_file()), None)
    if place is None:
        raise InvalidInputError(
            f"the data of this task lies in the package {package!r} ({path}), which is not installed here: install "
            f"orbitmesh[train] on every node of the run, or set {DATA_VARIABLE} to a directory that has that file",
            reason="NOT_FOUND",
            metadata={"package": package},
        )
    with gzip.open(place, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)


def _places(package: str, path: str) -> Iterator[Path]:
    if given := os.environ.get(DATA_VARIABLE):
        yield Path(given) / path
    try:
        yield Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        return
