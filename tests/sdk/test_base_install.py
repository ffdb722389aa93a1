"""The base package alone: what it brings onto a machine, by what is installed here and in a fresh environment.

80 MB is what a client may take: the SDK, gRPC, protobuf, cryptography and their dependencies, without torch.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

MOST_BYTES = 80_000_000
HEAVY = {
    "torch", "transformers", "numpy", "scipy", "tokenizers", "highspy", "zstandard", "psutil", "sgp4", "matplotlib",
    "sqlalchemy", "psycopg", "safetensors", "sklearn", "services", "gateway",
}  # fmt: skip
ROOT = Path(__file__).parents[2]
PROGRAM = f"""
import sys
import orbitmesh, orbitmesh.aio, orbitmesh.client, orbitmesh.cli.main
loaded = {{name.partition('.')[0] for name in sys.modules}}
print(sorted(loaded & {HEAVY!r}))
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str) -> set[str]:
    """A distribution and all that it needs without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = canonical(waiting.pop())
        if one in found:
            continue
        found.add(one)
        for text in importlib.metadata.distribution(one).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def installed_bytes(name: str) -> int:
    """The sizes of a distribution's files."""
    paths = [Path(str(file.locate())) for file in importlib.metadata.distribution(name).files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def test_the_base_install_is_small_and_holds_no_torch() -> None:
    """What pip would bring for `orbitmesh` alone, summed over the files that are installed here, and our own source."""
    needed = closure("orbitmesh")
    assert needed >= {"orbitmesh", "grpcio", "protobuf", "cryptography"}
    assert not needed & {canonical(name) for name in HEAVY}
    # This checkout is installed in place: the packages that a wheel would carry are counted where they lie.
    own = [ROOT / "clients" / "python" / "orbitmesh", ROOT / "services", ROOT / "gateway"]
    size = sum(file.stat().st_size for base in own for file in base.rglob("*.py"))
    size += sum(installed_bytes(name) for name in needed - {"orbitmesh"})
    assert size < MOST_BYTES, f"{size / 1e6:.1f} MB: {sorted((installed_bytes(each), each) for each in needed)[-5:]}"


def test_what_is_imported_for_a_client_is_the_base() -> None:
    """The SDK and the command line, with everything installed: nothing of the extras is even loaded."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.soak
def test_a_fresh_environment_with_the_base_package_alone(tmp_path: Path) -> None:
    """`pip install .` into a new environment: its size over the environment's own, what it imports, and its command."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    before = tree_bytes(tmp_path / "venv")
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", str(ROOT)]
    subprocess.run(install, check=True)
    size = tree_bytes(tmp_path / "venv") - before
    assert size < MOST_BYTES, f"{size / 1e6:.1f} MB"
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    said = subprocess.run([python.parent / "orbitmesh", "--help"], capture_output=True, text=True, check=True)
    assert "generate" in said.stdout


def tree_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
