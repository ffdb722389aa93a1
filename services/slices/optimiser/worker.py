"""The process that computes allocations: problems come in on stdin, outcomes go out on stdout, one after the other.

The solver holds a core for seconds, takes memory, and is other people's compiled code: here it can take its time, be
ended at once, and harm nobody. It ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

from orbitmesh.errors import MeshError
from services.slices.optimiser.problem_json import dump_outcome, load_problem

LENGTH_BYTES = 4
"""Each message has its length before it, big-endian."""
MESSAGE_BYTES_MAX = 256 << 20
"""The longest message."""
NICENESS = 5
"""How much more the service that answers is to get of a core than this one."""


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Solves until nothing more comes."""
    from services.slices.optimiser.optimise import optimise

    while len(head := source.read(LENGTH_BYTES)) == LENGTH_BYTES:
        problem, time_limit_s = load_problem(source.read(int.from_bytes(head, "big")))
        try:
            answer = dump_outcome(optimise(problem, time_limit_s=time_limit_s))
        except MeshError as error:
            told = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
            answer = json.dumps({"error": told}).encode()
        sink.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
        sink.flush()


if __name__ == "__main__":
    os.nice(NICENESS)
    # Whatever else writes to stdout, the solver's own log for instance, must not come between answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
