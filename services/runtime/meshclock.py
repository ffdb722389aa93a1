"""The mesh's clock in a file, for services that share it with others."""

from __future__ import annotations

import json
import math
from pathlib import Path

from orbitmesh.contacts import MeshClock
from orbitmesh.errors import InvalidInputError

CLOCK_BYTES_MAX = 4096
"""The largest file of a clock."""


def read_clock(path: Path) -> MeshClock:
    """The clock in a file.

    Raises:
        InvalidInputError: The file cannot be read or holds no clock.
    """
    wanted = ("origin_mesh_s", "origin_wall_s", "factor")
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(CLOCK_BYTES_MAX))
        numbers = [float(record[key]) for key in wanted]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} holds no clock ({error}); expected JSON with the numbers {', '.join(wanted)}"
        ) from None
    return MeshClock(*numbers)
