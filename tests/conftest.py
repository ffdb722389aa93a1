"""What holds for every test: how long an example takes says nothing on a machine that others use, too."""

from __future__ import annotations

import gc

from hypothesis import settings

settings.register_profile("orbitmesh", deadline=None)
settings.load_profile("orbitmesh")

# What tests import stays until the end: the collector would look at all of torch again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """Everything is imported: what comes now is collected as ever."""
    gc.freeze()
    gc.enable()
