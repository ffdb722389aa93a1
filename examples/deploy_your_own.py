"""Your own checkpoint: packed, planned before anything is sent, deployed with a standby, looked at, deleted.

    python examples/deploy_your_own.py                                 # packs the model of this repository
    python examples/deploy_your_own.py gateway.example:7443 ~/.orbitmesh/me

Packing needs `pip install 'orbitmesh[mesh]'`; whoever has a pack already, a directory with manifest.json, does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from _mesh import MODEL, mesh_of

from orbitmesh import InfeasiblePlanError, Progress
from orbitmesh.pack.builder import build_pack


def tell(step: Progress) -> None:
    """Each step as it comes."""
    print(f"  {step.phase} {step.subject}")


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments) as mesh, tempfile.TemporaryDirectory() as directory:
        pack = Path(directory) / "pack"
        manifest = build_pack(MODEL, pack, name="my-own")
        print(f"{manifest.name}: {manifest.layer_count} layers, a file each, every one with its SHA-256")
        plan = mesh.plan(pack, stages=2)
        print("\n".join(plan.reasons))
        packs = mesh.status().packs
        try:
            mesh.deploy(pack, name="my-own", kv_tokens=1 << 36)
        except InfeasiblePlanError as refused:
            print(f"refused before a byte was sent ({mesh.status().packs - packs} packs more): {refused.message}")
        deployment = mesh.deploy(pack, name="my-own", stages=2, standbys=1, on_progress=tell)
        try:
            for stage in deployment.stages:
                print(f"  layers {stage.layers} on {stage.node}")
            print(mesh.generate("my-own", "A list is", max_new_tokens=12).wait().text)
        finally:
            mesh.delete("my-own")


if __name__ == "__main__":
    main(sys.argv[1:])
