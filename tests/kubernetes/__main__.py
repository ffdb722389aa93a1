"""`python -m tests.kubernetes`, of `make lint`: every object of every overlay against the published schemas."""

from __future__ import annotations

import sys

from tests.kubernetes.checking import VERSIONS, everything, judge, judge_custom, rendered


def main() -> int:
    """0 where all is valid."""
    wrong: list[str] = []
    count = 0
    for name, manifests in {**{each: rendered(each) for each in ("single", "ha")}, "everything": everything()}.items():
        count += len(manifests)
        wrong += [f"{name}: {each}" for each in judge(manifests)]
    custom, judged = judge_custom(everything())
    wrong += custom
    for each in wrong:
        sys.stdout.write(f"{each}\n")
    if not wrong:
        sys.stdout.write(f"deploy/k8s: {count} objects hold to the schemas of Kubernetes {' and '.join(VERSIONS)}\n")
        if not judged:
            sys.stdout.write("npm's packages are not here: objects of the Prometheus operator were not judged\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
