"""Which satellites see which sites, when: a contact plan from orbits, and questions to it.

    python examples/constellation_plan.py

Needs `pip install 'orbitmesh[mesh]'`, which brings the orbit propagator.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from orbitmesh.cli.main import main as orbitmesh
from orbitmesh.contacts import ContactPlan

SCENARIO = Path(__file__).parent / "iridium" / "scenario.toml"


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "plan.json"
        code = orbitmesh(["contacts", str(SCENARIO), "--hours", "1", "--out", str(file)])
        if code:
            raise SystemExit(code)
        plan = ContactPlan.load(file)
    contacts = [contact for pair in plan.pairs for contact in plan.between(*pair)]
    print(f"{len(plan.nodes)} nodes, {len(contacts)} contacts")
    longest = max(contacts, key=lambda contact: contact.duration_s)
    print(f"the longest: {longest.title}, {longest.duration_s / 60:.1f} minutes, {longest.volume_bytes / 1e9:.1f} GB")
    middle_s = longest.start_s + longest.duration_s / 2
    print(f"in its middle {len(plan.open_at(middle_s))} links are open; light takes ", end="")
    print(f"{longest.latency_at(middle_s) * 1e3:.1f} ms; the next change is in ", end="")
    print(f"{(plan.next_change(middle_s) or middle_s) - middle_s:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
