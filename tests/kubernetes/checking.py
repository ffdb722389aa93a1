"""Judges manifests: Kubernetes' own objects by its published schemas (the package kubernetes-validate), those of the
Prometheus operator by its (the npm package @kubernetes-models/prometheus-operator)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml  # type: ignore[import-untyped]

from tests.kubernetes.rendering import COMPONENTS, K8S, Manifest, render, render_by_kustomize, title

ROOT = K8S.parents[1]
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest version of Kubernetes that has all that is used (`preStop: sleep`), and the newest that is known."""
_MODELS = ROOT / "node_modules" / "@kubernetes-models" / "prometheus-operator"


def rendered(overlay: str) -> list[Manifest]:
    """An overlay, by kustomize itself where it is installed."""
    directory = K8S / "overlays" / overlay
    return render_by_kustomize(directory) or render(directory)


def everything() -> list[Manifest]:
    """The single mesh with every component."""
    with tempfile.TemporaryDirectory() as directory:
        path = mixed(Path(directory), "single", *COMPONENTS)
        return render_by_kustomize(path) or render(path)


def mixed(directory: Path, overlay: str, *components: str) -> Path:
    """A kustomization of an overlay and components, as a user writes one."""
    here = Path(os.path.relpath(K8S, directory.resolve()))
    settings = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(here / "overlays" / overlay)],
        "components": [str(here / "components" / each) for each in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return directory


def judge(manifests: list[Manifest]) -> list[str]:
    """What Kubernetes would refuse, a line each; nothing may be unknown to its schemas but what operators define."""
    wrong = []
    for version in VERSIONS:
        for manifest in manifests:
            if _custom(manifest):
                continue
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.absolute_path)
                wrong.append(f"{title(manifest)} at {path}: {error.message} ({version})")
            except kubernetes_validate.SchemaNotFoundError as error:
                wrong.append(f"{title(manifest)}: {error.message}")
    return wrong


def judge_custom(manifests: list[Manifest]) -> tuple[list[str], bool]:
    """The same for objects of the Prometheus operator, and whether they could be judged here."""
    node, own = shutil.which("node"), [each for each in manifests if _custom(each)]
    if node is None or not _MODELS.exists():
        return [], False
    done = subprocess.run(
        [node, str(Path(__file__).parent / "crds.mjs"), str(_MODELS)],
        input=json.dumps(own), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1) or done.stderr:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines(), True


def _custom(manifest: Manifest) -> bool:
    return str(manifest["apiVersion"]).startswith("monitoring.coreos.com/")
