"""Deploy a model in two stages, ask it, and see what it cost.

    python examples/generate.py                                        # starts a mesh of real processes, and ends it
    python examples/generate.py gateway.example:7443 ~/.orbitmesh/me   # the same on yours; it leaves nothing behind
"""

from __future__ import annotations

import sys

from _mesh import deployed, mesh_of

from orbitmesh import MeshError


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments) as mesh, deployed(mesh, "example") as name:
        generation = mesh.generate(name, "The with statement is used to", max_new_tokens=24, timeout=120)
        print(f"the answer: {generation.wait().text!r}")
        print(f"{len(generation.tokens)} tokens, the first after {generation.first_token_s or 0:.3f} s, then ", end="")
        print(f"{generation.tokens_per_second or 0:.1f} a second; {generation.wire_bytes} bytes between the nodes")
        # Sampled, with a seed: the same seed gives the same answer, however the model is cut.
        one, two = (
            mesh.generate(name, "A list is", max_new_tokens=12, temperature=0.8, seed=7).wait().text for _ in range(2)
        )
        print(f"sampled: {one!r}; again: {'the same' if one == two else two!r}")
        try:
            mesh.generate("nobody", "hello")
        except MeshError as refused:
            print(f"refused by name: {refused.reason}: {refused.message}")


if __name__ == "__main__":
    main(sys.argv[1:])
