"""`python -m services.training.samples TASK COUNT OUT.npz`: examples that no node trains on, as users have them.

Writes the arrays `inputs` and `answers`. It is what the demo asks a trained model about; a process of its own, because
services are not imported by the SDK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from orbitmesh.errors import InvalidInputError, MeshError
from services.training.images import Images
from services.training.task import find_task


def main(arguments: list[str]) -> int:
    """Runs the command line."""
    name, count, out = arguments
    try:
        task = find_task(name)
        if not isinstance(task, Images):
            raise InvalidInputError(f"the task {name!r} has no pictures", reason="FAILED_PRECONDITION")
        inputs, answers = task.samples(int(count))
    except MeshError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    np.savez(Path(out), inputs=inputs, answers=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
