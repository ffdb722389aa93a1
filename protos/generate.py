"""Generates the Python stubs from the protos into clients/python/orbitmesh/v1, or checks that they are fresh.

    python protos/generate.py           write the stubs
    python protos/generate.py --check   exit 1, naming the files, where a stub is not what the protos give
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
STUBS = PROTOS.parent / "clients" / "python"


def generate(out: Path) -> None:
    """Writes `orbitmesh/v1/*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` below `out`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("orbitmesh/v1/*.proto"))
    include = str(resources.files("grpc_tools").joinpath("_proto"))
    arguments = ["protoc", f"-I{PROTOS}", f"-I{include}", f"--python_out={out}", f"--pyi_out={out}",
                 f"--grpc_python_out={out}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc refused the protos: see above")


def stale(fresh: Path) -> list[str]:
    """The stubs in the tree that differ from those below `fresh`, and those that have no proto any more."""
    expected = {path.relative_to(fresh): path.read_bytes() for path in fresh.glob("orbitmesh/v1/*")}
    actual = {path.relative_to(STUBS): path.read_bytes() for path in STUBS.glob("orbitmesh/v1/*_pb2*.py*")}
    return sorted(str(name) for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a stub is stale")
    if not parser.parse_args().check:
        generate(STUBS)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        wrong = stale(Path(directory))
    for name in wrong:
        sys.stderr.write(f"stale: clients/python/{name}: run `make protos`\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
