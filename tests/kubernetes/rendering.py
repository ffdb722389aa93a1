"""The manifests as a cluster gets them: rendered by kustomize where it is installed, and by a small reading of our own.

Ours knows what `deploy/k8s` uses of kustomize and refuses everything else: resources, components, namespace, labels,
images, and patches in JSON (RFC 6902). So every machine can check the manifests; where `kubectl` or `kustomize` is, a
test sees that both render the same.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
OVERLAYS = ("single", "ha")
COMPONENTS = ("autoscaling", "gpu", "monitoring")

Manifest = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "labels", "images", "resources", "components", "patches"}
_CLUSTER_WIDE = {"Namespace"}


def render(directory: Path) -> list[Manifest]:
    """What a kustomization makes.

    Raises:
        ValueError: It uses something that this reading does not know.
    """
    return _apply(directory.resolve(), [])


def render_by_kustomize(directory: Path) -> list[Manifest] | None:
    """The same by kustomize itself; None where neither `kubectl` nor `kustomize` is installed."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build", str(directory)]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(directory)]
    else:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def title(manifest: Manifest) -> str:
    """`Kind/name`."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def documents(path: Path) -> list[Manifest]:
    """The documents of a file."""
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def _apply(directory: Path, before: list[Manifest]) -> list[Manifest]:
    [settings] = documents(directory / "kustomization.yaml")
    if unknown := set(settings) - _KNOWN:
        raise ValueError(f"{directory} uses {sorted(unknown)}, which this reading of kustomize does not know")
    # A component changes what is there so far, so it is given it; a kustomization begins with nothing.
    found = before if settings["kind"] == "Component" else []
    for entry in settings.get("resources", ()):
        path = directory / entry
        found = found + (render(path) if path.is_dir() else documents(path))
    for entry in settings.get("components", ()):
        found = _apply(directory / entry, found)
    found = copy.deepcopy(found)
    for patch in settings.get("patches", ()):
        _patch(found, patch)
    for manifest in found:
        if "namespace" in settings:
            _set_namespace(manifest, settings["namespace"])
        for labels in settings.get("labels", ()):
            manifest["metadata"].setdefault("labels", {}).update(labels["pairs"])
        for image in settings.get("images", ()):
            _set_image(manifest, image)
    return found


def _set_namespace(manifest: Manifest, namespace: str) -> None:
    if manifest["kind"] not in _CLUSTER_WIDE:
        manifest["metadata"]["namespace"] = namespace
    for subject in manifest.get("subjects", ()):
        # Kustomize names the namespace of a service account that is among the resources.
        subject.setdefault("namespace", namespace)


def _set_image(manifest: Manifest, image: dict[str, str]) -> None:
    for container in containers(manifest):
        name = container["image"].partition("@")[0].rpartition(":")[0] or container["image"]
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image['newTag']}"


def pods(manifest: Manifest) -> list[dict[str, Any]]:
    """The templates of pods in an object: `metadata` and `spec`."""
    spec = manifest.get("spec", {})
    job = spec.get("jobTemplate", {}).get("spec", {})
    return [each["template"] for each in (spec, job) if "template" in each]


def containers(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """All containers of an object, the initial ones too."""
    for pod in pods(manifest):
        yield from pod["spec"].get("initContainers", ())
        yield from pod["spec"]["containers"]


def _patch(found: list[Manifest], patch: dict[str, Any]) -> None:
    target = patch["target"]
    chosen = [
        each
        for each in found
        if each["kind"] == target["kind"] and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
    ]
    if not chosen:
        raise ValueError(f"a patch meets nothing: {target}")
    for manifest in chosen:
        for step in yaml.safe_load(patch["patch"]):
            _step(manifest, step)


def _step(manifest: Manifest, step: dict[str, Any]) -> None:
    """One operation of RFC 6902."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].lstrip("/").split("/")]
    place: Any = manifest
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    value = copy.deepcopy(step.get("value"))
    key: Any = last if isinstance(place, dict) else (len(place) if last == "-" else int(last))
    if step["op"] == "test":
        if place[key] != value:
            raise ValueError(f"{step['path']} is {place[key]!r} where the patch expects {value!r}")
    elif step["op"] == "remove":
        del place[key]
    elif step["op"] == "replace":
        if isinstance(place, dict) and key not in place:
            raise ValueError(f"{step['path']} is not there to be replaced")
        place[key] = value
    elif step["op"] == "add" and isinstance(place, list):
        place.insert(key, value)
    elif step["op"] == "add":
        place[key] = value
    else:
        raise ValueError(f"this reading of RFC 6902 does not know {step['op']!r}")
