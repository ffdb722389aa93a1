"""What a node lets go of is freed, although the collector is kept from walking what is loaded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from services.executor.node import _set_aside_garbage_collection


class Held:
    """Something that refers to itself, as modules of a model do: only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_set_aside_is_freed_once_it_is_let_go() -> None:
    """A stage that was loaded, set aside and unloaded does not stay in memory through a cycle."""
    held = Held()
    alive = weakref.ref(held)
    _set_aside_garbage_collection()
    assert gc.get_freeze_count() > 0
    del held
    gc.collect()
    assert alive() is not None  # set aside: the collector does not see it
    _set_aside_garbage_collection()
    assert alive() is None
