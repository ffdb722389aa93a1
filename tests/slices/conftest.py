"""What several tests of slices start with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orbitmesh.trust import init_mesh, issue
from tests.slices.support import PEOPLE, Service, serving


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities of all kinds, each in `role-name`."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    for role, name in PEOPLE:
        issue(base / "ca", role, name, base / f"{role}-{name}")
    return base


@pytest.fixture
async def service(pki: Path, tmp_path: Path) -> AsyncIterator[Service]:
    """A service without slices."""
    async with serving(pki, tmp_path / "state") as found:
        yield found
