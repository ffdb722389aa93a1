"""What the package shows: exactly this, documented, light to import, and the same in its sync and async
face."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import orbitmesh
from orbitmesh import _generate_sync

PAIRS = (
    (orbitmesh.AsyncMesh, orbitmesh.Mesh),
    (orbitmesh.AsyncGeneration, orbitmesh.Generation),
    (orbitmesh.AsyncLocal, orbitmesh.Local),
    (orbitmesh.AsyncTraining, orbitmesh.Training),
    (orbitmesh.AsyncSlices, orbitmesh.Slices),
    (orbitmesh.AsyncSliceAdmission, orbitmesh.SliceAdmission),
)


def public(owner: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(owner, name) for name in vars(owner) if not name.startswith("_")}


def synced(text: str) -> str:
    return re.sub(r"\bAsync(Mesh|Generation|Training|SliceAdmission|Slices|Local|Iterator)\b", r"\1", text)


def prose(member: Any) -> str:
    return synced((member.__doc__ or "").partition("Example:")[0])


def function_of(member: Any) -> Any:
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, classmethod) else member


def test_all_is_exactly_the_public_surface() -> None:
    """Every name without underscore that is no module stands in `__all__`, and everything in it exists."""
    found = {
        name
        for name, value in vars(orbitmesh).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert found | {"__version__"} == set(orbitmesh.__all__)
    assert sorted(orbitmesh.__all__) == orbitmesh.__all__


def test_the_version_is_that_of_the_distribution() -> None:
    """`orbitmesh.__version__` and the installed metadata agree."""
    from importlib.metadata import version

    assert version("orbitmesh") == orbitmesh.__version__


@pytest.mark.parametrize("target", _generate_sync.TARGETS)
def test_the_sync_face_is_what_the_generator_makes(target: str) -> None:
    """Each of its modules is fresh."""
    assert (_generate_sync.HERE / target).read_text(encoding="utf-8") == _generate_sync.generate(target)


@pytest.mark.parametrize("target", _generate_sync.TARGETS)
def test_a_changed_core_makes_the_check_fail(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check sees a single changed letter, and says where."""
    before = _generate_sync.HERE
    for file in before.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(_generate_sync, "HERE", tmp_path)
    assert _generate_sync.main(["--check"]) == 0
    changed = _generate_sync.generate(target).replace("self._core", "self._croe", 1)
    (tmp_path / target).write_text(changed, encoding="utf-8")
    assert _generate_sync.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith(f"{target}: ")


@pytest.mark.parametrize(("asynchronous", "sync"), PAIRS)
def test_both_faces_have_the_same_methods_signatures_and_docstrings(asynchronous: type, sync: type) -> None:
    """Walks both classes: the sync one is the async one without `async`."""
    ours, theirs = public(asynchronous), public(sync)
    assert set(ours) == set(theirs)
    for name in set(ours) - {"local"}:
        one, other = function_of(ours[name]), function_of(theirs[name])
        assert not inspect.iscoroutinefunction(other), name
        assert synced(str(inspect.signature(one))) == str(inspect.signature(other)), name
        assert prose(one) == prose(other), name
        assert not re.search(r"\b(async|await|Async\w+)\b", other.__doc__ or ""), name


@pytest.mark.parametrize("name", [name for name in orbitmesh.__all__ if name != "__version__"])
def test_every_public_symbol_is_documented(name: str) -> None:
    """Classes have a docstring; those that are not errors show an example, and so does each public method."""
    symbol = getattr(orbitmesh, name)
    assert symbol.__doc__
    if issubclass(symbol, Exception):
        return
    assert ">>>" in symbol.__doc__, name
    if not dataclasses.is_dataclass(symbol):
        for method, member in public(symbol).items():
            if method != "local":
                assert ">>>" in (function_of(member).__doc__ or ""), f"{name}.{method}"


@pytest.mark.parametrize("owner", [pair[0] for pair in PAIRS])
def test_no_protobuf_type_stands_in_a_public_signature(owner: type) -> None:
    """Users never meet a generated class."""
    for name, member in public(owner).items():
        if name != "local":
            assert "pb2" not in str(inspect.signature(function_of(member))), name


def test_results_are_frozen() -> None:
    """Every dataclass of the surface refuses assignment."""
    for name in orbitmesh.__all__:
        symbol = getattr(orbitmesh, name)
        if dataclasses.is_dataclass(symbol):
            assert symbol.__dataclass_params__.frozen, name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "module", ["orbitmesh", "orbitmesh.cli.main", "orbitmesh.wire.streams", "orbitmesh.transfer_files"]
)
def test_the_base_install_suffices_to_import(module: str) -> None:
    """The SDK, the command line and the sending of packs import where nothing of the extras is installed."""
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'numpy', 'zstandard', 'transformers', 'safetensors', 'psutil'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import {module}
assert not {{'torch', 'numpy', 'zstandard'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
