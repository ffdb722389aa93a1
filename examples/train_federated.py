"""Train where the data is: only what nodes learn travels, at a hundredth of its size; then a node answers with it.

    python examples/train_federated.py
    python examples/train_federated.py gateway.example:7443 ~/.orbitmesh/me
"""

from __future__ import annotations

import sys

from _mesh import mesh_of

from orbitmesh import LocalTraining

ROUNDS = 5


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments) as mesh:
        run = mesh.train(
            "example", task="digits", rounds=ROUNDS, local=LocalTraining(epochs=2), compression="topk:0.01"
        )
        try:
            told = 0
            for status in run.watch():
                for each in status.rounds[told:]:
                    accuracy = each.figures.get("accuracy", float("nan"))
                    nodes = ", ".join(each.contributed)
                    print(f"  round {each.index + 1} of {ROUNDS}: {accuracy:.1%} right, with {nodes}")
                told = len(status.rounds)
            print(f"{run.status().state}; {len(run.weights())} weights")
        finally:
            run.cancel()
            run.delete()


if __name__ == "__main__":
    main(sys.argv[1:])
