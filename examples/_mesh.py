"""What every example begins with: your mesh where you name one, and else one of real processes on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orbitmesh import Mesh

MODEL = Path(__file__).parents[1] / "models" / "pydoc"
"""The model in this repository."""


@contextmanager
def mesh_of(arguments: Sequence[str], nodes: int = 3) -> Iterator[Mesh]:
    """The mesh at `arguments`, an address and an identity directory; a local one where there are none."""
    address, identity = arguments if len(arguments) == 2 else ("", "")
    with Mesh.connect(address, identity=identity) if address else Mesh.local(nodes=nodes) as mesh:
        yield mesh


@contextmanager
def deployed(mesh: Mesh, name: str, stages: int = 2) -> Iterator[str]:
    """The model of this repository under a name, for as long as the block runs."""
    mesh.deploy(MODEL, name=name, stages=stages, on_progress=lambda step: print(f"  {step.phase} {step.subject}"))
    try:
        yield name
    finally:
        mesh.delete(name)
