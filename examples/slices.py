"""Slices on a mesh of this machine: what would be, then promised, optimised, applied, used, resized and released.

    python examples/slices.py                                     # starts a mesh of real processes, and ends it
    python examples/slices.py gateway.example:7443 ~/.orbitmesh/me    # the same on yours; it leaves nothing behind
"""

from __future__ import annotations

import sys

from orbitmesh import CapacityError, InfeasiblePlanError, InvalidInputError, Mesh, SliceNode, SliceProfile, SliceShare

GOALS = ("balanced", "latency_sensitive", "throughput_max")
NODE_42 = SliceNode("node-42", {"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40})
"""An edge node that need not exist to be asked about."""
CAM = {"CPU": 0.5, "GPU": 0, "MemoryGB": 0.5, "BandwidthGbps": 0.1}
BULK = {"CPU": 0.5, "GPU": 0, "MemoryGB": 1, "BandwidthGbps": 0.2}


def what_would_be(mesh: Mesh) -> None:
    """Three templates on one node, for each goal: no slice of the mesh is touched."""
    print("\nwhat node-42 could promise to three slices at once, each with all of its traffic")
    profiles = {name: SliceProfile(template=name) for name in ("urllc", "embb", "mmtc")}
    for goal in GOALS:
        outcome = mesh.slices.optimize(goal, nodes=[NODE_42], what_if=profiles)
        served = ", ".join(f"{name} {part:.0%}" for name, part in outcome.served.items())
        print(f"  {goal:<18} {served}   objective {outcome.objective:.4g}, at best {outcome.bound:.4g}")
    try:
        mesh.slices.optimize(nodes=[NODE_42], what_if={"huge": SliceProfile("urllc", {"CPU": 64})})
    except InfeasiblePlanError as refused:
        print(f"  64 cores on it: {refused.reason}: {refused}")


def promise(mesh: Mesh) -> None:
    """Two slices, side by side on the mesh."""
    mesh.slices.define("cam", template="urllc", resources=CAM, latency_ms=20)
    mesh.slices.define("bulk", template="embb", resources=BULK, shares={"CPU": SliceShare(min=0.1, max=0.5)})
    outcome = mesh.slices.optimize("balanced", slices=["cam", "bulk"], traffic={"bulk": 0.8})
    print(f"\ncomputed in {outcome.took_s * 1e3:.1f} ms; served: {dict(outcome.served)}")
    for each in mesh.slices.apply(outcome).slices:
        where = ", ".join(f"{part.node} {dict(part.resources)}" for part in each.allocations)
        print(f"  {each.name} is {each.state}: {where}")


def two_operators(mesh: Mesh) -> None:
    """Both have looked at the same slice; one is faster."""
    seen = mesh.slices.get("cam")
    mesh.slices.resize(seen, resources={"CPU": 0.75})
    try:
        mesh.slices.resize(seen, resources={"CPU": 0.25})
    except InvalidInputError as refused:
        print(f"\nthe second operator: {refused.reason}: {refused}")
    print(f"  cam has {mesh.slices.get('cam').profile.resources['CPU']} CPU, as the first one left it")


def work(mesh: Mesh) -> None:
    """Work in a slice has what it was admitted with, and a slice in use does not vanish."""
    with mesh.slices.admit("cam", resources={"CPU": 0.5}, lifetime_s=600) as admission:
        print(f"\nadmitted on {', '.join(admission.nodes)} until {admission.until:%H:%M:%S} UTC at the latest")
        try:
            with mesh.slices.admit("cam", resources={"CPU": 0.5}):
                print("  there was room for more")
        except CapacityError as full:
            print(f"  more of it: {full.reason}: {full}")
        try:
            mesh.slices.release("cam")
        except InvalidInputError as used:
            print(f"  its release: {used.reason}: {used}")


def look(mesh: Mesh) -> None:
    """How they are; `watch` goes on telling for as long as it is read."""
    print()
    for overview in mesh.slices.watch():
        for each in overview.slices:
            left = each.error_budget_left
            budget = "no frame yet" if left is None else f"{left:.0%} of the error budget left"
            print(f"  {each.name}: {each.traffic.sent_bytes} bytes sent, {each.admitted} pieces of work, {budget}")
        break


def main(arguments: list[str]) -> None:
    """The whole of it."""
    at = dict(zip(("address", "identity"), arguments, strict=False))
    mesh = Mesh.connect(at["address"], identity=at["identity"]) if len(at) == 2 else Mesh.local(nodes=3)
    with mesh:
        for template in mesh.slices.templates():
            print(f"{template.name:<6} {template.profile.latency_ms:6.0f} ms  {template.about}")
        what_would_be(mesh)
        try:
            promise(mesh)
            two_operators(mesh)
            work(mesh)
            look(mesh)
        finally:
            mine = {each.name for each in mesh.slices.list().slices} & {"cam", "bulk"}
            for name in sorted(mine):
                mesh.slices.release(name)
        print(f"\nreleased; left: {[each.name for each in mesh.slices.list().slices]}")


if __name__ == "__main__":
    main(sys.argv[1:])
