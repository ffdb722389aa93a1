"""Train so that nobody sees one node's part: masked sums, and noise whose price is kept in a ledger.

    python examples/secure_sums.py
    python examples/secure_sums.py gateway.example:7443 ~/.orbitmesh/me
"""

from __future__ import annotations

import sys

from _mesh import mesh_of

from orbitmesh import Privacy, SecureSums


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments, nodes=4) as mesh:
        run = mesh.train(
            "example-sums", task="digits", rounds=3, compression="int8", secure_sums=SecureSums(),
            privacy=Privacy(unit="record", epsilon=8.0),
        )  # fmt: skip
        try:
            status = run.wait(timeout=300)
            print(f"{status.state} after {status.rounds_done} rounds; the aggregator has seen sums only")
            ledger = run.ledger()
            print(ledger)
        finally:
            run.cancel()
            run.delete()


if __name__ == "__main__":
    main(sys.argv[1:])
