"""The client that is generated for TypeScript, against a running gateway; `make typescript` builds it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh import Mesh

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "clients" / "typescript" / "dist" / "src" / "generate.js"
PROMPT = "The with statement"
TOKENS = 12

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not PROGRAM.exists(), reason="not built here: make typescript"
)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh.local(nodes=2, directory=tmp_path_factory.mktemp("mesh")) as mesh:
        mesh.deploy(ROOT / "models" / "pydoc", name="demo", stages=2)
        yield mesh


def run(mesh: Mesh, deployment: str, identity: Path | None = None) -> subprocess.CompletedProcess[str]:
    who = identity or mesh.local.identity
    command = ["node", PROGRAM, mesh.local.gateway, who, deployment, PROMPT, TOKENS, "--json"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def test_it_gets_the_tokens_that_python_gets(mesh: Mesh) -> None:
    """Over mTLS with the identity of a client, as a stream."""
    done = run(mesh, "demo")
    assert done.returncode == 0, done.stderr
    *tokens, finished = map(json.loads, done.stdout.splitlines())
    expected = mesh.generate("demo", PROMPT, max_new_tokens=TOKENS).wait()
    assert [token["id"] for token in tokens] == list(expected.token_ids)
    assert "".join(token["text"] for token in tokens) == expected.text
    assert finished["newTokens"] == TOKENS


def test_a_refusal_says_what_the_gateway_says(mesh: Mesh) -> None:
    """A code and a sentence, exit code 1."""
    done = run(mesh, "nope")
    assert done.returncode == 1
    assert done.stderr.startswith("NotFound: there is no deployment 'nope'")
