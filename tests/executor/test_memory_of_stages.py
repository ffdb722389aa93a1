"""What a node lets go of is freed, although the collector is kept from walking what is imported."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbitmesh.pack import Manifest
from services.executor.architecture import import_family
from services.executor.loading import load
from services.executor.node import _import_family
from tests.mesh.support import Models


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_a_stage_is_freed_although_its_family_was_set_aside(tmp_path: Path) -> None:
    """Its modules refer to each other in circles; one collection after it was let go of, its weights are gone."""
    pack = Models(tmp_path).get("llama").pack
    manifest = Manifest.parse((pack / "manifest.json").read_bytes())
    # A family that nothing here has imported: it is new to this process, as the first one is to a node.
    _import_family("olmo", alone=True)
    assert gc.get_freeze_count() > 100_000
    gc.disable()
    try:
        stage, _ = load(manifest, pack, range(2), device="cpu", threads=None)
        weights = [weakref.ref(module.__self__) for module in stage._blocks]
        assert len(weights) == 2 and all(alive() is not None for alive in weights)
        del stage
        gc.collect()
        assert [alive() for alive in weights] == [None, None]
    finally:
        gc.enable()


def test_nothing_is_set_aside_beside_a_stage(tmp_path: Path) -> None:
    """A family that is imported while a stage is here stays with the collector, and so does the stage."""
    assert "transformers.models.olmo2.modeling_olmo2" not in sys.modules
    _import_family("olmo2", alone=False)
    assert "transformers.models.olmo2.modeling_olmo2" in sys.modules
    assert gc.get_freeze_count() == 0


def test_a_family_is_set_aside_once(tmp_path: Path) -> None:
    """The second stage of a family costs no walk over everything that was ever imported."""
    import_family("llama")
    _import_family("llama", alone=True)
    assert gc.get_freeze_count() == 0
