"""A mesh's identities, a small gateway, and clients connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from orbitmesh import AsyncMesh
from orbitmesh._loop import LoopThread
from orbitmesh.trust import Role, init_mesh, issue
from tests.sdk.small_gateway import Identities, SmallGateway, serve


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """A mesh's identities."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    gateway = issue(base / "ca", Role.GATEWAY, "gateway", base / "gateway")
    issue(base / "ca", Role.CLIENT, "me", base / "me")
    return Identities(gateway, base / "me")


@pytest.fixture
async def gateway(identities: Identities) -> AsyncIterator[SmallGateway]:
    """A gateway on the test's own loop."""
    small = SmallGateway()
    server = await serve(small, identities.gateway)
    yield small
    await server.stop(None)


@pytest.fixture
async def mesh(gateway: SmallGateway, identities: Identities) -> AsyncIterator[AsyncMesh]:
    """A connected client."""
    async with AsyncMesh.connect(gateway.address, identity=identities.client) as connected:
        yield connected


@pytest.fixture
def gateway_elsewhere(identities: Identities) -> Iterator[SmallGateway]:
    """A gateway on a loop in another thread, for the sync client."""
    loop = LoopThread()
    small = SmallGateway()
    server = loop.run(lambda: serve(small, identities.gateway))
    yield small
    loop.run(lambda: server.stop(None))
    loop.stop()
