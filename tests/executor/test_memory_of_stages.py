"""The collector is kept from walking what was imported, and from nothing else."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from services.executor.architecture import import_family
from services.executor.node import _import_family


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_a_new_family_is_set_aside_with_all_that_was_imported_before() -> None:
    """Before the first stage: half a million objects that the collector walks no more."""
    assert "transformers.models.olmo.modeling_olmo" not in sys.modules
    _import_family("olmo", alone=True)
    assert gc.get_freeze_count() > 100_000


def test_nothing_is_set_aside_beside_a_stage() -> None:
    """A family that is imported while a stage is here stays with the collector, and so does the stage."""
    assert "transformers.models.olmo2.modeling_olmo2" not in sys.modules
    _import_family("olmo2", alone=False)
    assert "transformers.models.olmo2.modeling_olmo2" in sys.modules
    assert gc.get_freeze_count() == 0


def test_a_family_is_set_aside_once() -> None:
    """The second stage of a family costs no walk over everything that was ever imported."""
    import_family("llama")
    _import_family("llama", alone=True)
    assert gc.get_freeze_count() == 0
