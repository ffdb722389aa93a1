"""The scripts of `examples/` and the examples in the docstrings of the SDK's core, carried out on one mesh."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from orbitmesh import InfeasiblePlanError, InvalidInputError, Link, Mesh

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SAYS = {
    "constellation_plan": "contacts",
    "deploy_your_own": "refused before a byte was sent (0 packs more)",
    "generate": "again: 'the same'",
    "operate": "generations under way",
    "secure_sums": "done after 3 rounds",
    "slices": "released; left: []",
    "stream_and_explain": "of the time has a name",
    "train_federated": "done;",
    "transfer": "EXPONENT_SPLIT_ZSTD: the same bytes",
}
"""What each prints when all of it went as it should."""
AS_OPERATOR = {"operate"}
LONG = {"deploy_your_own", "secure_sums", "train_federated"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh.local(nodes=4, link=Link(latency_ms=1, rate_mbps=1000)) as found:
        yield found


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_run_here() -> None:
    """One that is added is found missing."""
    assert {path.stem for path in EXAMPLES.glob("[!_]*.py")} == set(SAYS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in LONG else name for name in sorted(SAYS)]
)
def test_a_script_does_what_it_says(
    mesh: Mesh, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a mesh that is there already, of which it leaves nothing behind."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    identity = mesh.local.operator_identity if name in AS_OPERATOR else mesh.local.identity
    load(name).main([mesh.local.gateway, str(identity)])
    assert SAYS[name] in capsys.readouterr().out
    assert (mesh.deployments(), mesh.trainings(), mesh.slices.list().slices) == ([], [], ())


def test_what_cannot_be_deployed_is_refused_before_anything_is_sent(mesh: Mesh) -> None:
    """No plan for it, or a name that is taken: the gateway is told of no pack and the progress of no file."""
    steps: list[str] = []

    def refused(error: type[Exception], **how: object) -> None:
        steps.clear()
        with pytest.raises(error):
            mesh.deploy(ROOT / "models" / "pydoc", on_progress=lambda step: steps.append(step.phase), **how)
        assert not {"uploading", "planning", "loading"} & set(steps), steps

    before = mesh.status().packs
    refused(InfeasiblePlanError, name="never", kv_tokens=1 << 36)
    refused(InvalidInputError, name="never", nodes=["nobody"])
    assert mesh.deployments() == []
    assert mesh.status().packs == before
