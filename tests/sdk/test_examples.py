"""The scripts of `examples/` and the examples in the docstrings of the SDK's core, carried out on one mesh.

Docstrings of slices and of training have tests of their own; a symbol that is in none of the three is found.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import orbitmesh
from orbitmesh import (
    AsyncGeneration,
    AsyncMesh,
    Generation,
    InfeasiblePlanError,
    InvalidInputError,
    Link,
    Local,
    Mesh,
)
from tests.sdk import test_slices_examples, test_training_examples
from tests.sdk.doc_examples import examples, perform
from tests.sdk.test_surface import function_of, public

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

ELSEWHERE = {
    *test_slices_examples.VALUES, *test_training_examples.OF_A_RUN, "Slices", "SliceAdmission", "Training", "Privacy",
    "Ledger", "LedgerEntry", "LocalTraining", "SecureSums",
}  # fmt: skip
"""Carried out by the two other tests; `test_every_public_symbol_is_carried_out_somewhere` looks that they are."""
OF_THEM = {"train", "training", "trainings", "slices"}
OF_A_SKY = {"contact", "clock"}
"""Of a mesh under a contact plan: tests/mesh/test_local_contacts.py."""
BEFORE = ("deploy", "deployment", "deployments", "status", "nodes", "plan", "generate", "explain")
VALUES = (
    "Stage", "Node", "Status", "Plan", "PlannedStage", "PlannedCrossing", "CutCosts", "Token", "Link",
    "LinkMeasure", "LocalNode", "Breakdown", "BreakdownRow", "ClockOffset",
)  # fmt: skip
OF_AN_ANSWER = tuple(name for name in public(Generation) if name not in ("wait", "cancel"))
OF_A_LOCAL_MESH = ("gateway", "identity", "operator_identity", "directory", "pid", "processes", "services", "stats")


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


@pytest.fixture
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples name the model by its path in the repository."""
    monkeypatch.chdir(Path(__file__).parents[2])


def alike(example: doctest.Example, value: Any) -> None:
    """Figures and names differ from mesh to mesh: the kind of the value is what the docstring shows, or nothing is."""
    if not example.want or value is None:
        return
    try:
        kind = type(ast.literal_eval(example.want)).__name__
    except (SyntaxError, ValueError):
        kind = example.want.strip().rpartition("(")[0].partition("(")[0].rpartition(".")[2]
    assert type(value).__name__ == kind, f"{example.source.strip()} gave {value!r}"


def carry_out(scope: dict[str, Any], *symbols: Any) -> None:
    for symbol in symbols:
        for example in examples(symbol):
            alike(example, perform(example, scope))


async def carry_out_async(scope: dict[str, Any], *symbols: Any) -> None:
    for symbol in symbols:
        for example in examples(symbol):
            value = perform(example, scope)
            alike(example, await value if inspect.isawaitable(value) else value)


def of(owner: type, *names: str) -> list[Any]:
    return [function_of(public(owner)[name]) for name in names]


def scope_of(face: type, mesh: Mesh) -> dict[str, Any]:
    """The names that the examples take for granted; the gateway that they dial is ours."""

    def connect(address: str, *, identity: str) -> Any:
        assert ":" in address
        assert identity
        return face.connect(mesh.local.gateway, identity=mesh.local.identity)  # type: ignore[attr-defined]

    return {**vars(orbitmesh), "mesh": mesh, face.__name__: SimpleNamespace(connect=connect)}


def test_the_examples_of_the_core_do_what_they_show(mesh: Mesh, in_the_checkout: None) -> None:
    """Deployed, looked at, asked, explained, cut and restored, deleted, connected and closed."""
    scope = scope_of(Mesh, mesh)
    carry_out(scope, *of(Mesh, *BEFORE[:-2]), *of(Mesh, "generate"), Generation)
    scope["generation"].wait()
    carry_out(scope, *of(Generation, *OF_AN_ANSWER), *of(Mesh, "explain"))
    scope["plan"] = mesh.plan("models/pydoc", stages=3)
    carry_out(scope, *(getattr(orbitmesh, name) for name in VALUES))
    scope["mesh"] = mesh
    carry_out(scope, *of(orbitmesh.Breakdown, "stalled_s", "place_s"))
    carry_out(scope, *of(Generation, "wait"), *of(Mesh, "generate"), *of(Generation, "cancel"))
    carry_out(scope, *of(Local, *OF_A_LOCAL_MESH), *of(Local, "cut", "restore"))
    carry_out(scope, Mesh, *of(Mesh, "connect", "open", "close"))
    scope["mesh"] = mesh
    for deploys in (orbitmesh.Deployment, orbitmesh.Progress):
        carry_out(scope, *of(Mesh, "delete"), deploys)
    carry_out(scope, *of(Mesh, "delete"))
    carry_out(scope, *of(Local, "kill", "restart"))


async def test_the_examples_of_asyncio_do_what_they_show(mesh: Mesh, in_the_checkout: None) -> None:
    """The same life."""
    scope = scope_of(AsyncMesh, mesh)
    async with AsyncMesh.connect(mesh.local.gateway, identity=mesh.local.identity) as own:
        scope["mesh"] = own
        await carry_out_async(scope, *of(AsyncMesh, *BEFORE[:-2]), *of(AsyncMesh, "generate"), AsyncGeneration)
        await scope["generation"].wait()
        await carry_out_async(scope, *of(AsyncGeneration, *OF_AN_ANSWER), *of(AsyncMesh, "explain"))
        await carry_out_async(scope, *of(AsyncGeneration, "wait"), *of(AsyncMesh, "generate"))
        await carry_out_async(scope, *of(AsyncGeneration, "cancel"))
        await carry_out_async(scope, AsyncMesh, *of(AsyncMesh, "connect", "open", "close"))
        scope["mesh"] = own
        await carry_out_async(scope, *of(AsyncMesh, "delete"))


def test_every_public_symbol_is_carried_out_somewhere() -> None:
    """What is added to the package and shown by no test is found here."""
    here = {*VALUES, "Mesh", "Generation", "Local", "Progress", "Deployment"}
    named = {name: getattr(orbitmesh, name) for name in orbitmesh.__all__ if name != "__version__"}
    values = {name for name, it in named.items() if name[:5] != "Async" and not issubclass(it, Exception)}
    assert values == here | ELSEWHERE
    assert set(public(Mesh)) == {*BEFORE, *OF_THEM, "connect", "open", "close", "delete", "local"}
    others = {"cut", "restore", "kill", "restart"} | OF_A_SKY
    assert set(public(Local)) == {*OF_A_LOCAL_MESH, *others}
    told = inspect.getsource(test_training_examples) + inspect.getsource(test_slices_examples)
    assert [name for name in sorted(ELSEWHERE) if name not in told] == []
