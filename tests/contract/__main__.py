"""The contract's checks as commands.

python -m tests.contract check                     style, and nothing broken since the baseline
python -m tests.contract baseline                  renew the baseline; refused where that breaks clients
python -m tests.contract baseline --break-clients  renew it all the same
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.contract.breaking import breaks
from tests.contract.descriptors import BASELINE, compile_protos, read_set, without_comments
from tests.contract.proto_rules import lint


def check(files: FileDescriptorSet, baseline: Path = BASELINE) -> list[str]:
    """What is wrong with a contract: its style, and what it breaks of the baseline."""
    wrong = [f"protos/{finding}" for finding in lint(files)]
    return wrong + [str(each) for each in breaks(read_set(baseline), files)]


def renew(files: FileDescriptorSet, *, break_clients: bool, baseline: Path = BASELINE) -> list[str]:
    """Write the baseline.

    Args:
        files: The contract.
        break_clients: Whether to write it although it breaks clients of the old one.
        baseline: Where it stands.

    Returns:
        What it breaks of the old baseline.
    """
    broken = [str(each) for each in breaks(read_set(baseline), files)] if baseline.exists() else []
    if not broken or break_clients:
        baseline.parent.mkdir(parents=True, exist_ok=True)
        baseline.write_bytes(without_comments(files).SerializeToString(deterministic=True))
    return broken


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="style, and nothing broken since the baseline")
    renewing = commands.add_parser("baseline", help="renew the baseline")
    renewing.add_argument("--break-clients", action="store_true", help="write it although it breaks clients")
    options = parser.parse_args(arguments)

    files = compile_protos()
    if options.command == "check":
        wrong = check(files)
        advice = (
            "style: mend the proto; a break: add instead of changing, or, on purpose, `make protos-baseline`"
        )
        failed = bool(wrong)
    else:
        wrong = renew(files, break_clients=options.break_clients)
        failed = bool(wrong) and not options.break_clients
        advice = (
            "the baseline was left: clients would break; `make protos-baseline` renews it on purpose"
            if failed else "the baseline was renewed, and breaks clients as listed"
        )  # fmt: skip
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    if wrong:
        sys.stderr.write(f"{advice}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
