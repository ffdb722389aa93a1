from __future__ import annotations

from pathlib import Path

import pytest

from tests.securesum.support import People, make_people


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    """The identities of 32 nodes."""
    directory: Path = tmp_path_factory.mktemp("people")
    return make_people(directory, 32)
